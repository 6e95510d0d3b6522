//! The blocks: image and text attend to each other, in two streams with weights of their own, or in one.

use anyhow::Result;
use candle_core::{Result as Candle, Tensor};
use ops::Mask;

use super::config::MMDiTConfig;
use super::embedding::{EPS, parts};
use crate::layers::{Linear, RmsNorm};
use crate::loader::Loader;

/// The parts that all blocks share.
pub struct Shared {
    /// The embedding of time, text and guidance after SiLU, (B, width).
    pub temb: Tensor,
    /// cos and sin of FLUX's angles, each (T + N, head width / 2).
    pub angles: Option<[Tensor; 2]>,
}

impl Shared {
    fn turned(&self, x: Tensor) -> Candle<Tensor> {
        match &self.angles {
            Some([cos, sin]) => ops::rotate(&x, cos, sin),
            None => Ok(x),
        }
    }
}

/// Between two blocks.
#[derive(Clone)]
pub struct Tokens {
    /// (B, N, width); in single blocks the text's stand before the image's, (B, T + N, width).
    pub image: Tensor,
    /// (B, T, width); `None` once no block needs them apart.
    pub text: Option<Tensor>,
}

/// Queries, keys and values of some tokens, each normalised per head or not.
struct Qkv {
    projections: [Linear; 3],
    norms: Option<[RmsNorm; 2]>,
    head: usize,
}

impl Qkv {
    /// `names` of queries, keys and values, and of the two norms.
    fn load(p: &Loader, c: &MMDiTConfig, names: [&str; 3], norms: [&str; 2]) -> Result<Self> {
        let width = c.width();
        let linear = |name: &str| Linear::load(p.pp(name), width, width);
        let norm = |name: &str| RmsNorm::load(p.pp(name), c.head_width, EPS);
        let norms = if c.norm { Some([norm(norms[0])?, norm(norms[1])?]) } else { None };
        Ok(Self { projections: [linear(names[0])?, linear(names[1])?, linear(names[2])?], norms, head: c.head_width })
    }

    fn image(p: &Loader, c: &MMDiTConfig) -> Result<Self> {
        Self::load(p, c, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"])
    }

    fn text(p: &Loader, c: &MMDiTConfig) -> Result<Self> {
        Self::load(p, c, ["add_q_proj", "add_k_proj", "add_v_proj"], ["norm_added_q", "norm_added_k"])
    }

    /// The `i`-th projection of `x` (B, N, width): 0 queries, 1 keys, 2 values.
    fn project(&self, i: usize, x: &Tensor) -> Candle<Tensor> {
        let y = self.projections[i].forward(x)?;
        match self.norms.as_ref().and_then(|norms| norms.get(i)) {
            Some(norm) => {
                let (b, n, width) = y.dims3()?;
                norm.forward(&y.reshape((b, n, width / self.head, self.head))?)?.reshape((b, n, width))
            }
            None => Ok(y),
        }
    }
}

/// Linear, GELU by tanh, linear.
struct FeedForward(Linear, Linear);

impl FeedForward {
    fn load(p: Loader, width: usize) -> Result<Self> {
        Ok(Self(Linear::load(p.pp("net.0.proj"), width, 4 * width)?, Linear::load(p.pp("net.2"), 4 * width, width)?))
    }

    fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        self.1.forward(&ops::gelu_tanh(&self.0.forward(x)?)?)
    }
}

/// The text's half of a joint block.
enum Context {
    /// The block continues.
    Whole { norm1: Linear, to_out: Linear, ff: FeedForward },
    /// It ends here and gives keys and values only: the last block of Stable Diffusion 3.
    Last { norm1: Linear },
}

/// diffusers' JointTransformerBlock and FluxTransformerBlock.
pub struct JointBlock {
    norm1: Linear,
    attn: Qkv,
    to_out: Linear,
    /// A second attention among the image's tokens.
    attn2: Option<(Qkv, Linear)>,
    ff: FeedForward,
    added: Qkv,
    context: Context,
    heads: usize,
}

impl JointBlock {
    /// The `i`-th block; `p` at the transformer's root.
    pub fn load(p: &Loader, c: &MMDiTConfig, i: usize) -> Result<Self> {
        let (p, width) = (p.pp("transformer_blocks").pp(i), c.width());
        let (dual, last) = (c.dual.contains(&i), !c.is_flux() && i + 1 == c.joint);
        let (a, a2) = (p.pp("attn"), p.pp("attn2"));
        let norm = |name: &str, parts: usize| Linear::load(p.pp(name).pp("linear"), width, parts * width);
        let context = match last {
            true => Context::Last { norm1: norm("norm1_context", 2)? },
            false => Context::Whole {
                norm1: norm("norm1_context", 6)?,
                to_out: Linear::load(a.pp("to_add_out"), width, width)?,
                ff: FeedForward::load(p.pp("ff_context"), width)?,
            },
        };
        Ok(Self {
            norm1: norm("norm1", if dual { 9 } else { 6 })?,
            attn: Qkv::image(&a, c)?,
            to_out: Linear::load(a.pp("to_out.0"), width, width)?,
            attn2: match dual {
                true => Some((Qkv::image(&a2, c)?, Linear::load(a2.pp("to_out.0"), width, width)?)),
                false => None,
            },
            ff: FeedForward::load(p.pp("ff"), width)?,
            added: Qkv::text(&a, c)?,
            context,
            heads: c.heads,
        })
    }

    pub fn forward(&self, x: &Tensor, text: &Tensor, shared: &Shared) -> Result<Tokens> {
        let (temb, t) = (&shared.temb, text.dim(1)?);
        let mut again = None; // scale, shift and gate of the second attention
        let [shift, scale, gate, shift_mlp, scale_mlp, gate_mlp] = match &self.attn2 {
            None => parts(&self.norm1, temb)?,
            Some(_) => {
                let [a, b, c, d, e, f, shift, scale, gate] = parts(&self.norm1, temb)?;
                again = Some([scale, shift, gate]);
                [a, b, c, d, e, f]
            }
        };
        let h = ops::modulated_layer_norm(x, &scale, &shift, EPS)?;

        let side = |i: usize, h_text: &Tensor| -> Result<Tensor> {
            Ok(Tensor::cat(&[&self.added.project(i, h_text)?, &self.attn.project(i, &h)?], 1)?)
        };
        let attend = |q: Tensor, h_text: &Tensor| -> Result<Tensor> {
            let (k, v) = (shared.turned(side(1, h_text)?)?, side(2, h_text)?);
            Ok(ops::attention(&q, &k, &v, self.heads, Mask::None)?)
        };
        let (attended, text) = match &self.context {
            Context::Last { norm1 } => {
                let [scale, shift] = parts(norm1, temb)?;
                let h_text = ops::modulated_layer_norm(text, &scale, &shift, EPS)?;
                (attend(self.attn.project(0, &h)?, &h_text)?, None)
            }
            Context::Whole { norm1, to_out, ff } => {
                let [shift, scale, gate, shift_mlp, scale_mlp, gate_mlp] = parts(norm1, temb)?;
                let h_text = ops::modulated_layer_norm(text, &scale, &shift, EPS)?;
                let all = attend(shared.turned(side(0, &h_text)?)?, &h_text)?;
                let y = to_out.forward(&all.narrow(1, 0, t)?.contiguous()?)?;
                let text = ops::add_gated(text, &gate, &y)?;
                let h_text = ops::modulated_layer_norm(&text, &scale_mlp, &shift_mlp, EPS)?;
                let text = ops::add_gated(&text, &gate_mlp, &ff.forward(&h_text)?)?;
                (all.narrow(1, t, all.dim(1)? - t)?.contiguous()?, Some(text))
            }
        };

        let mut image = ops::add_gated(x, &gate, &self.to_out.forward(&attended)?)?;
        if let (Some((qkv, to_out)), Some([scale, shift, gate])) = (&self.attn2, again) {
            let h = ops::modulated_layer_norm(x, &scale, &shift, EPS)?;
            let [q, k, v] = [qkv.project(0, &h)?, qkv.project(1, &h)?, qkv.project(2, &h)?];
            let attended = ops::attention(&q, &k, &v, self.heads, Mask::None)?;
            image = ops::add_gated(&image, &gate, &to_out.forward(&attended)?)?;
        }
        let h = ops::modulated_layer_norm(&image, &scale_mlp, &shift_mlp, EPS)?;
        Ok(Tokens { image: ops::add_gated(&image, &gate_mlp, &self.ff.forward(&h)?)?, text })
    }
}

/// diffusers' FluxSingleTransformerBlock: attention and feed-forward network beside each other.
pub struct SingleBlock {
    norm: Linear,
    attn: Qkv,
    proj_mlp: Linear,
    proj_out: Linear,
    heads: usize,
}

impl SingleBlock {
    pub fn load(p: &Loader, c: &MMDiTConfig, i: usize) -> Result<Self> {
        let (p, width) = (p.pp("single_transformer_blocks").pp(i), c.width());
        Ok(Self {
            norm: Linear::load(p.pp("norm.linear"), width, 3 * width)?,
            attn: Qkv::image(&p.pp("attn"), c)?,
            proj_mlp: Linear::load(p.pp("proj_mlp"), width, 4 * width)?,
            proj_out: Linear::load(p.pp("proj_out"), 5 * width, width)?,
            heads: c.heads,
        })
    }

    /// `x`: the tokens of text and image, (B, T + N, width).
    pub fn forward(&self, x: &Tensor, shared: &Shared) -> Result<Tensor> {
        let [shift, scale, gate] = parts(&self.norm, &shared.temb)?;
        let h = ops::modulated_layer_norm(x, &scale, &shift, EPS)?;
        let (q, k) = (shared.turned(self.attn.project(0, &h)?)?, shared.turned(self.attn.project(1, &h)?)?);
        let attended = ops::attention(&q, &k, &self.attn.project(2, &h)?, self.heads, Mask::None)?;
        let mlp = ops::gelu_tanh(&self.proj_mlp.forward(&h)?)?;
        Ok(ops::add_gated(x, &gate, &self.proj_out.forward(&Tensor::cat(&[attended, mlp], 2)?)?)?)
    }
}
