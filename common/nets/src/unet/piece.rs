//! The UNet as a list of pieces, each small enough to be recomputed by itself, and a stack of tensors that wait for a later
//! one: the skip connections, and the input of each transformer, which is added to its output.

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use ops::Activation;

use super::{block::TransformerBlock, config::UNetConfig};
use crate::{
    layers::{Conv2d, GroupNorm, Linear, ResnetBlock},
    loader::Loader,
};

/// What a piece is, before its weights are there.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where its tensors lie.
    name: String,
    kind: Kind,
    pub push: Push,
}

/// What a piece leaves on the stack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Push {
    Nothing,
    Input,
    Output,
}

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
    /// The input, and what it takes from the stack side by side with it.
    Resnet(ResnetBlock),
    /// Pixels to tokens.
    Enter(GroupNorm, Linear),
    Block(Box<TransformerBlock>),
    /// Tokens to pixels, added to what entered.
    Leave(Linear),
    Upsample(Conv2d),
    Out(GroupNorm, Conv2d),
}

/// What a piece works on.
#[derive(Clone)]
pub struct Input {
    /// Pixels (B, C, H, W) or, inside a transformer, tokens (B, H * W, C).
    pub x: Tensor,
    /// Taken from the stack.
    pub popped: Option<Tensor>,
    /// Height and width of what then lies on top of the stack.
    pub size: (usize, usize),
}

/// What the same for all pieces.
pub struct Conditions<'a> {
    /// The timestep after SiLU, (B, 4 * first channels).
    pub temb: &'a Tensor,
    /// Text states, (B, T, D).
    pub context: &'a Tensor,
}

impl Plan {
    pub fn pops(&self) -> bool {
        matches!(self.kind, Kind::Resnet { skip: true, .. } | Kind::Leave { .. })
    }

    /// Whether the timestep enters.
    pub fn is_timed(&self) -> bool {
        matches!(self.kind, Kind::Resnet { .. })
    }

    /// All pieces of a UNet, in the order in which they run.
    ///
    /// # Errors
    /// A config that does not fit itself, or asks for what is not built.
    pub fn all(c: &UNetConfig) -> Result<Vec<Self>> {
        c.check()?;
        let n = c.block_out_channels.len();
        let heads = c.attention_head_dim.get("attention_head_dim", n)?;
        let depths = c.transformer_layers_per_block.get("transformer_layers_per_block", n)?;
        let mut all: Vec<Plan> = vec![];
        let first = c.block_out_channels[0];
        let conv = |inner, out, stride, padding| Kind::Conv { inner, out, stride, padding };
        all.push(Plan { name: "conv_in".into(), kind: conv(c.in_channels, first, 1, 1), push: Push::Output });
        let transformer = |all: &mut Vec<Plan>, name: String, width, level: usize| {
            let heads = heads[level];
            all.push(Plan { name: name.clone(), kind: Kind::Enter { width }, push: Push::Input });
            for i in 0..depths[level] {
                let name = format!("{name}.transformer_blocks.{i}");
                all.push(Plan { name, kind: Kind::Block { width, heads }, push: Push::Nothing });
            }
            all.push(Plan { name, kind: Kind::Leave { width }, push: Push::Nothing });
        };
        let resnet = |name: String, inner, out, skip| Plan {
            name,
            kind: Kind::Resnet { inner, out, skip },
            push: Push::Nothing,
        };

        let mut skips = vec![first]; // channels of every skip connection, in the order they are made
        for (i, &out) in c.block_out_channels.iter().enumerate() {
            let inner = if i == 0 { first } else { c.block_out_channels[i - 1] };
            let crossed = kind(&c.down_block_types[i], "CrossAttnDownBlock2D", "DownBlock2D")?;
            for j in 0..c.layers_per_block {
                let inner = if j == 0 { inner } else { out };
                all.push(resnet(format!("down_blocks.{i}.resnets.{j}"), inner, out, false));
                if crossed {
                    transformer(&mut all, format!("down_blocks.{i}.attentions.{j}"), out, i);
                }
                all.last_mut().context("no piece")?.push = Push::Output;
                skips.push(out);
            }
            if i + 1 < n {
                let name = format!("down_blocks.{i}.downsamplers.0.conv");
                all.push(Plan { name, kind: conv(out, out, 2, c.downsample_padding), push: Push::Output });
                skips.push(out);
            }
        }

        let last = c.block_out_channels[n - 1];
        all.push(resnet("mid_block.resnets.0".into(), last, last, false));
        transformer(&mut all, "mid_block.attentions.0".into(), last, n - 1);
        all.push(resnet("mid_block.resnets.1".into(), last, last, false));

        let mut inner = last;
        for i in 0..n {
            let level = n - 1 - i;
            let out = c.block_out_channels[level];
            let crossed = kind(&c.up_block_types[i], "CrossAttnUpBlock2D", "UpBlock2D")?;
            for j in 0..c.layers_per_block + 1 {
                let skip =
                    skips.pop().context("the up blocks ask for more skip connections than the down blocks make")?;
                all.push(resnet(format!("up_blocks.{i}.resnets.{j}"), inner + skip, out, true));
                inner = out;
                if crossed {
                    transformer(&mut all, format!("up_blocks.{i}.attentions.{j}"), out, level);
                }
            }
            if i + 1 < n {
                let name = format!("up_blocks.{i}.upsamplers.0.conv");
                all.push(Plan { name, kind: Kind::Upsample { width: out }, push: Push::Nothing });
            }
        }
        all.push(Plan {
            name: String::new(),
            kind: Kind::Out { inner: first, out: c.out_channels },
            push: Push::Nothing,
        });
        Ok(all)
    }

    /// `p` at the UNet's root.
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
            // 1e-6 whatever norm_eps says
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

impl Piece {
    pub fn forward(&self, input: &Input, c: &Conditions) -> Result<Tensor> {
        let Input { x, popped, size: (height, width) } = input;
        Ok(match (self, popped) {
            (Piece::Conv(conv), _) => conv.forward(x)?,
            (Piece::Resnet(resnet), None) => resnet.forward(x, Some(c.temb))?,
            (Piece::Resnet(resnet), Some(skip)) => resnet.forward(&Tensor::cat(&[x, skip], 1)?, Some(c.temb))?,
            (Piece::Enter(norm, proj), _) => proj.forward(&ops::to_tokens(&norm.forward(x, Activation::None)?)?)?,
            (Piece::Block(block), _) => block.forward(x, c.context)?,
            (Piece::Leave(proj), Some(entered)) => {
                let (_, _, h, w) = entered.dims4()?;
                (entered + ops::from_tokens(&proj.forward(x)?, h, w)?)?
            }
            (Piece::Leave(_), None) => bail!("a transformer ends that never began"),
            // To the size of what comes next: twice as large, or one less where a size was odd.
            (Piece::Upsample(conv), _) => conv.forward(&ops::upsample_nearest(x, *height, *width)?)?,
            (Piece::Out(norm, conv), _) => conv.forward(&norm.forward(x, Activation::Silu)?)?,
        })
    }
}

/// Runs the pieces one after the other: `piece` gives the output of the i-th on its input.
pub fn run(plans: &[Plan], x: &Tensor, mut piece: impl FnMut(usize, &Input) -> Result<Tensor>) -> Result<Tensor> {
    let mut x = x.clone();
    let mut stack: Vec<Tensor> = vec![];
    for (i, plan) in plans.iter().enumerate() {
        let popped = match plan.pops() {
            true => Some(stack.pop().context("the UNet ran out of skip connections")?),
            false => None,
        };
        let size = match stack.last().map(Tensor::dims) {
            Some([.., height, width]) => (*height, *width),
            _ => (0, 0),
        };
        let input = Input { x, popped, size };
        let y = piece(i, &input)?;
        match plan.push {
            Push::Nothing => (),
            Push::Input => stack.push(input.x),
            Push::Output => stack.push(y.clone()),
        }
        x = y;
    }
    Ok(x)
}

fn kind(name: &str, crossed: &str, plain: &str) -> Result<bool> {
    match name {
        _ if name == crossed => Ok(true),
        _ if name == plain => Ok(false),
        _ => bail!("block type {name} is not supported; expected {crossed} or {plain}"),
    }
}
