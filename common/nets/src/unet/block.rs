//! The transformer block of the UNet: pixels attend to each other and to the prompt.

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};
use ops::Mask;

use crate::layers::{LayerNorm, Linear};
use crate::loader::Loader;

/// Multi-head attention, the queries from the pixels.
pub(super) struct Attention {
    pub to_q: Linear,
    pub to_k: Linear,
    pub to_v: Linear,
    pub to_out: Linear,
    pub heads: usize,
}

impl Attention {
    fn load(p: Loader, width: usize, context: usize, heads: usize) -> Result<Self> {
        ensure!(heads > 0 && width.is_multiple_of(heads), "{width} channels do not divide into {heads} heads");
        Ok(Self {
            to_q: Linear::load_no_bias(p.pp("to_q"), width, width)?,
            to_k: Linear::load_no_bias(p.pp("to_k"), context, width)?,
            to_v: Linear::load_no_bias(p.pp("to_v"), context, width)?,
            to_out: Linear::load(p.pp("to_out.0"), width, width)?,
            heads,
        })
    }

    /// `x` (B, N, width), `context` (B, T, D) -> (B, N, width)
    fn forward(&self, x: &Tensor, context: &Tensor) -> Candle<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(context)?, self.to_v.forward(context)?);
        self.to_out.forward(&ops::attention(&q, &k, &v, self.heads, Mask::None)?)
    }
}

/// BasicTransformerBlock: self-attention, cross-attention and a GEGLU network, each added to its input.
pub struct TransformerBlock {
    pub(super) norm1: LayerNorm,
    pub(super) attn1: Attention,
    pub(super) norm2: LayerNorm,
    pub(super) attn2: Attention,
    pub(super) norm3: LayerNorm,
    pub(super) ff_in: Linear,
    pub(super) ff_out: Linear,
}

impl TransformerBlock {
    /// `width` of the pixels' tokens, `context`: width D of the text states.
    pub fn load(p: Loader, width: usize, context: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            norm1: LayerNorm::load(p.pp("norm1"), width, 1e-5)?,
            attn1: Attention::load(p.pp("attn1"), width, width, heads)?,
            norm2: LayerNorm::load(p.pp("norm2"), width, 1e-5)?,
            attn2: Attention::load(p.pp("attn2"), width, context, heads)?,
            norm3: LayerNorm::load(p.pp("norm3"), width, 1e-5)?,
            ff_in: Linear::load(p.pp("ff.net.0.proj"), width, 8 * width)?,
            ff_out: Linear::load(p.pp("ff.net.2"), 4 * width, width)?,
        })
    }

    pub fn forward(&self, x: &Tensor, context: &Tensor) -> Candle<Tensor> {
        let h = self.norm1.forward(x)?;
        let x = (x + self.attn1.forward(&h, &h)?)?;
        let x = (&x + self.attn2.forward(&self.norm2.forward(&x)?, context)?)?;
        let h = ops::geglu(&self.ff_in.forward(&self.norm3.forward(&x)?)?)?;
        &x + self.ff_out.forward(&h)?
    }
}
