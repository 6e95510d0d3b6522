//! The UNet as a list of pieces, each small enough to be recomputed by itself, and a stack of tensors that a later piece
//! needs: the skip connections, and the input of each transformer, which is added to its output.

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use ops::Activation;

use super::{block::TransformerBlock, config::UNetConfig};
use crate::layers::{Conv2d, GroupNorm, Linear, ResnetBlock};
use crate::loader::Loader;

/// A piece without its weights.
#[derive(Clone, Debug)]
pub struct PieceSpec {
    name: String,
    kind: Kind,
    pub push: Push,
}

/// The output that a piece leaves on the stack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Push {
    Nothing,
    Input,
    Output,
}

/// The computation of a piece, and its numbers of channels.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Conv { inner: usize, out: usize, stride: usize, padding: usize },
    Resnet { inner: usize, out: usize, skip: bool },
    Enter { width: usize },
    Block { width: usize, heads: usize },
    Leave { width: usize },
    Upsample { width: usize },
    Out { inner: usize, out: usize },
}

/// A piece with its weights.
pub enum Piece {
    Conv(Conv2d),
    /// Takes its input and, in an up block, the channels of the skip connection after it.
    Resnet(ResnetBlock),
    /// Pixels to tokens.
    Enter(GroupNorm, Linear),
    Block(Box<TransformerBlock>),
    /// Tokens to pixels, added to what entered.
    Leave(Linear),
    Upsample(Conv2d),
    Out(GroupNorm, Conv2d),
}

/// The input of one piece.
#[derive(Clone)]
pub struct Input {
    /// Pixels (B, C, H, W) or, inside a transformer, tokens (B, H * W, C).
    pub x: Tensor,
    /// The tensor that the piece takes from the stack, in the shape that it was left in.
    pub popped: Option<Tensor>,
    /// Height and width of the tensor that is then on top of the stack.
    pub size: (usize, usize),
}

pub struct Shared<'a> {
    /// The embedding of the timestep after SiLU, (B, 4 * first channels).
    pub temb: &'a Tensor,
    /// Text states, (B, T, D).
    pub context: &'a Tensor,
}

impl PieceSpec {
    pub fn pops(&self) -> bool {
        matches!(self.kind, Kind::Resnet { skip: true, .. } | Kind::Leave { .. })
    }

    pub fn is_timed(&self) -> bool {
        matches!(self.kind, Kind::Resnet { .. })
    }

    pub fn all(c: &UNetConfig) -> Result<Vec<Self>> {
        c.check()?;
        let n = c.block_out_channels.len();
        let heads = c.attention_head_dim.get("attention_head_dim", n)?;
        let depths = c.transformer_layers_per_block.get("transformer_layers_per_block", n)?;
        let mut specs = Specs { c, heads, depths, all: vec![], skips: vec![] };
        let first = c.block_out_channels[0];
        specs.conv("conv_in".into(), c.in_channels, first, 1, 1);
        specs.down_blocks()?;
        specs.mid_block();
        specs.up_blocks()?;
        specs.add(String::new(), Kind::Out { inner: first, out: c.out_channels }, Push::Nothing);
        Ok(specs.all)
    }

    /// Loads the piece's weights; `p` at the UNet's root.
    pub fn load(&self, p: &Loader, c: &UNetConfig) -> Result<Piece> {
        let root = p;
        let p = p.pp(&self.name);
        let projection = |p, width| match c.use_linear_projection {
            true => Linear::load(p, width, width),
            false => Linear::load_1x1(p, width, width),
        };
        let (groups, eps) = (c.norm_num_groups, c.norm_eps);
        Ok(match self.kind {
            Kind::Conv { inner, out, stride, padding } => Piece::Conv(Conv2d::load(p, inner, out, 3, stride, padding)?),
            Kind::Resnet { inner, out, .. } => {
                Piece::Resnet(ResnetBlock::load(p, inner, out, groups, eps, Some(c.time_width()))?)
            }
            // diffusers' Transformer2DModel has 1e-6 here, whatever norm_eps is.
            Kind::Enter { width } => {
                Piece::Enter(GroupNorm::load(p.pp("norm"), width, groups, 1e-6)?, projection(p.pp("proj_in"), width)?)
            }
            Kind::Block { width, heads } => {
                Piece::Block(Box::new(TransformerBlock::load(p, width, c.cross_attention_dim, heads)?))
            }
            Kind::Leave { width } => Piece::Leave(projection(p.pp("proj_out"), width)?),
            Kind::Upsample { width } => Piece::Upsample(Conv2d::load(p, width, width, 3, 1, 1)?),
            Kind::Out { inner, out } => Piece::Out(
                GroupNorm::load(root.pp("conv_norm_out"), inner, groups, eps)?,
                Conv2d::load(root.pp("conv_out"), inner, out, 3, 1, 1)?,
            ),
        })
    }
}

struct Specs<'a> {
    c: &'a UNetConfig,
    /// Attention heads and transformer blocks of each level.
    heads: Vec<usize>,
    depths: Vec<usize>,
    all: Vec<PieceSpec>,
    /// Channels of the skip connections that no piece has taken yet.
    skips: Vec<usize>,
}

impl Specs<'_> {
    fn add(&mut self, name: String, kind: Kind, push: Push) {
        self.all.push(PieceSpec { name, kind, push });
    }

    /// A convolution whose output is a skip connection.
    fn conv(&mut self, name: String, inner: usize, out: usize, stride: usize, padding: usize) {
        self.add(name, Kind::Conv { inner, out, stride, padding }, Push::Output);
        self.skips.push(out);
    }

    fn resnet(&mut self, name: String, inner: usize, out: usize, skip: bool) {
        self.add(name, Kind::Resnet { inner, out, skip }, Push::Nothing);
    }

    fn transformer(&mut self, name: String, width: usize, level: usize) {
        let heads = self.heads[level];
        self.add(name.clone(), Kind::Enter { width }, Push::Input);
        for i in 0..self.depths[level] {
            self.add(format!("{name}.transformer_blocks.{i}"), Kind::Block { width, heads }, Push::Nothing);
        }
        self.add(name, Kind::Leave { width }, Push::Nothing);
    }

    fn down_blocks(&mut self) -> Result<()> {
        let c = self.c;
        let mut inner = c.block_out_channels[0];
        for (i, &out) in c.block_out_channels.iter().enumerate() {
            let crossed = c.down_block_types[i] == "CrossAttnDownBlock2D";
            for j in 0..c.layers_per_block {
                self.resnet(format!("down_blocks.{i}.resnets.{j}"), inner, out, false);
                inner = out;
                if crossed {
                    self.transformer(format!("down_blocks.{i}.attentions.{j}"), out, i);
                }
                self.all.last_mut().context("no piece")?.push = Push::Output;
                self.skips.push(out);
            }
            if i + 1 < c.block_out_channels.len() {
                self.conv(format!("down_blocks.{i}.downsamplers.0.conv"), out, out, 2, 1);
            }
        }
        Ok(())
    }

    fn mid_block(&mut self) {
        let level = self.c.block_out_channels.len() - 1;
        let width = self.c.block_out_channels[level];
        self.resnet("mid_block.resnets.0".into(), width, width, false);
        self.transformer("mid_block.attentions.0".into(), width, level);
        self.resnet("mid_block.resnets.1".into(), width, width, false);
    }

    fn up_blocks(&mut self) -> Result<()> {
        let c = self.c;
        let n = c.block_out_channels.len();
        let mut inner = c.block_out_channels[n - 1];
        for i in 0..n {
            let level = n - 1 - i;
            let out = c.block_out_channels[level];
            let crossed = c.up_block_types[i] == "CrossAttnUpBlock2D";
            for j in 0..c.layers_per_block + 1 {
                let skip =
                    self.skips.pop().context("the up blocks need more skip connections than the down blocks make")?;
                self.resnet(format!("up_blocks.{i}.resnets.{j}"), inner + skip, out, true);
                inner = out;
                if crossed {
                    self.transformer(format!("up_blocks.{i}.attentions.{j}"), out, level);
                }
            }
            if i + 1 < n {
                self.add(format!("up_blocks.{i}.upsamplers.0.conv"), Kind::Upsample { width: out }, Push::Nothing);
            }
        }
        Ok(())
    }
}

impl Piece {
    /// (B, C, H, W), or inside a transformer (B, H * W, C).
    pub fn forward(&self, input: &Input, shared: &Shared) -> Result<Tensor> {
        let Input { x, popped, size: (height, width) } = input;
        Ok(match (self, popped) {
            (Piece::Conv(conv), _) => conv.forward(x)?,
            (Piece::Resnet(resnet), None) => resnet.forward(x, Some(shared.temb))?,
            (Piece::Resnet(resnet), Some(skip)) => resnet.forward(&Tensor::cat(&[x, skip], 1)?, Some(shared.temb))?,
            (Piece::Enter(norm, proj), _) => proj.forward(&ops::to_tokens(&norm.forward(x, Activation::None)?)?)?,
            (Piece::Block(block), _) => block.forward(x, shared.context)?,
            (Piece::Leave(proj), Some(entered)) => {
                let (_, _, h, w) = entered.dims4()?;
                (entered + ops::from_tokens(&proj.forward(x)?, h, w)?)?
            }
            (Piece::Leave(_), None) => bail!("a transformer ends that did not begin"),
            // To the size of the next skip connection: twice as large, or one less where that size is odd.
            (Piece::Upsample(conv), _) => conv.forward(&ops::upsample_nearest(x, *height, *width)?)?,
            (Piece::Out(norm, conv), _) => conv.forward(&norm.forward(x, Activation::Silu)?)?,
        })
    }
}

/// Runs the pieces one after the other; `piece(i, input)` is the output of the i-th piece.
pub fn run(specs: &[PieceSpec], x: &Tensor, mut piece: impl FnMut(usize, &Input) -> Result<Tensor>) -> Result<Tensor> {
    let mut x = x.clone();
    let mut stack: Vec<Tensor> = vec![];
    for (i, spec) in specs.iter().enumerate() {
        let popped = match spec.pops() {
            true => Some(stack.pop().context("the UNet ran out of skip connections")?),
            false => None,
        };
        let size = match stack.last().map(Tensor::dims) {
            Some([.., height, width]) => (*height, *width),
            _ => (0, 0),
        };
        let input = Input { x, popped, size };
        let y = piece(i, &input)?;
        match spec.push {
            Push::Nothing => (),
            Push::Input => stack.push(input.x),
            Push::Output => stack.push(y.clone()),
        }
        x = y;
    }
    Ok(x)
}
