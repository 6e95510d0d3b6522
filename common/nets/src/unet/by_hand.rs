//! The pieces of a UNet without candle's history: what a backward pass needs of the forward pass is named, and its formulas are
//! written out. So nothing is computed, kept or added that is not needed. Results are those of [`Piece::forward`] up to rounding.

use anyhow::{Result, bail};
use candle_core::Tensor;
use ops::hand::{self, Plus};
use ops::{Activation, Mask};

use super::block::{Attention, TransformerBlock};
use super::piece::{Input, Piece, Shared};
use crate::layers::wanted;

/// What a piece keeps of its forward pass for its backward pass, besides its input.
pub enum Kept {
    Nothing,
    /// The two inputs side by side, and what the second norm gets.
    Resnet {
        x: Tensor,
        h: Tensor,
    },
    Block(Box<KeptOfBlock>),
}

/// Of a transformer block: the operands and the result of its attentions, the sums after them, and what GEGLU gets.
pub struct KeptOfBlock {
    own: KeptOfAttention,
    x1: Tensor,
    text: KeptOfAttention,
    x2: Tensor,
    f: Tensor,
}

struct KeptOfAttention {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
}

/// The gradients of a piece's inputs.
pub struct InputGrads {
    pub x: Option<Tensor>,
    pub popped: Option<Tensor>,
    /// Of the timesteps' embedding, plus what there was of it.
    pub temb: Option<Tensor>,
}

impl Piece {
    /// Whether the passes here know all of the piece: they know no adapters.
    pub fn is_plain(&self) -> bool {
        match self {
            Piece::Conv(_) | Piece::Upsample(_) | Piece::Out(..) => true,
            Piece::Resnet(resnet) => !resnet.is_adapted(),
            Piece::Enter(_, proj) | Piece::Leave(proj) => !proj.is_adapted(),
            Piece::Block(block) => !block.is_adapted(),
        }
    }

    /// The forward pass up to what is kept.
    pub fn kept(&self, input: &Input, shared: &Shared) -> Result<Kept> {
        Ok(match self {
            Piece::Resnet(resnet) => {
                let x = match &input.popped {
                    Some(skip) => Tensor::cat(&[&input.x, skip], 1)?,
                    None => input.x.clone(),
                };
                Kept::Resnet { h: resnet.half(&x, Some(shared.temb))?, x }
            }
            Piece::Block(block) => Kept::Block(Box::new(block.kept(&input.x, shared.context)?)),
            _ => Kept::Nothing,
        })
    }

    /// The rest of the forward pass. As [`Piece::forward`].
    pub fn finish(&self, input: &Input, kept: &Kept) -> Result<Tensor> {
        let Input { x, popped, size: (height, width) } = input;
        Ok(match (self, kept, popped) {
            (Piece::Conv(conv), ..) => conv.plain(x, Plus::default())?,
            (Piece::Resnet(resnet), Kept::Resnet { x, h }, _) => resnet.finish(x, h)?,
            (Piece::Enter(norm, proj), ..) => proj.plain(&ops::to_tokens(&norm.plain(x, Activation::None)?)?, None)?,
            (Piece::Block(block), Kept::Block(kept), _) => block.finish(kept)?,
            (Piece::Leave(proj), _, Some(entered)) => {
                let (_, _, h, w) = entered.dims4()?;
                (entered + ops::from_tokens(&proj.plain(x, None)?, h, w)?)?
            }
            (Piece::Upsample(conv), ..) => conv.plain(&ops::upsample_nearest(x, *height, *width)?, Plus::default())?,
            (Piece::Out(norm, conv), ..) => conv.plain(&norm.plain(x, Activation::Silu)?, Plus::default())?,
            _ => bail!("a piece of the UNet met what another has kept"),
        })
    }

    /// The gradients of the inputs, from that of the result, `gy`; that of `x`, if it is wanted. Those of the weights are added to their
    /// sums.
    pub fn grad(
        &self,
        input: &Input,
        kept: Kept,
        shared: &Shared,
        gy: &Tensor,
        wants_x: bool,
        by_temb: Option<Tensor>,
    ) -> Result<InputGrads> {
        let Input { x, popped, size: (height, width) } = input;
        let of_x = |gx: Option<Tensor>, temb: Option<Tensor>| Ok(InputGrads { x: gx, popped: None, temb });
        match (self, kept, popped) {
            (Piece::Conv(conv), ..) => of_x(conv.grad(x, gy, wants_x)?, by_temb),
            (Piece::Resnet(resnet), Kept::Resnet { x: both, h }, popped) => {
                let (gx, temb) = resnet.grad(&both, &h, Some(shared.temb), gy, by_temb)?;
                let Some(skip) = popped else { return of_x(Some(gx), temb) };
                let (own, others) = (x.dim(1)?, skip.dim(1)?);
                Ok(InputGrads {
                    x: Some(hand::channels(&gx, 0, own)?),
                    popped: Some(hand::channels(&gx, own, others)?),
                    temb,
                })
            }
            (Piece::Enter(norm, proj), ..) => {
                let (_, _, h, w) = x.dims4()?;
                let tokens = ops::to_tokens(&norm.plain(x, Activation::None)?)?;
                let gn = ops::from_tokens(&wanted(proj.grad(&tokens, gy, true, None)?)?, h, w)?;
                of_x(Some(norm.grad(x, Activation::None, &gn, None)?), by_temb)
            }
            (Piece::Block(block), Kept::Block(kept), _) => {
                of_x(Some(block.grad(x, shared.context, *kept, gy)?), by_temb)
            }
            (Piece::Leave(proj), _, Some(_)) => Ok(InputGrads {
                x: proj.grad(x, &ops::to_tokens(gy)?, true, None)?,
                popped: Some(gy.clone()),
                temb: by_temb,
            }),
            (Piece::Upsample(conv), ..) => {
                let large = ops::upsample_nearest(x, *height, *width)?;
                let g = wanted(conv.grad(&large, gy, true)?)?;
                drop(large);
                of_x(Some(hand::upsample_grad(x, *height, *width, &g)?), by_temb)
            }
            (Piece::Out(norm, conv), ..) => {
                let g = wanted(conv.grad(&norm.plain(x, Activation::Silu)?, gy, true)?)?;
                of_x(Some(norm.grad(x, Activation::Silu, &g, None)?), by_temb)
            }
            _ => bail!("a piece of the UNet met what another has kept"),
        }
    }
}

impl Attention {
    fn is_adapted(&self) -> bool {
        [&self.to_q, &self.to_k, &self.to_v, &self.to_out].into_iter().any(|layer| layer.is_adapted())
    }

    /// Up to the last layer. `x`: the queries' side after its norm.
    fn kept(&self, x: &Tensor, context: &Tensor) -> Result<KeptOfAttention> {
        let [q, k, v] =
            [(&self.to_q, x), (&self.to_k, context), (&self.to_v, context)].map(|(to, x)| to.plain(x, None));
        let (q, k, v) = (q?, k?, v?);
        let o = ops::attention(&q, &k, &v, self.heads, Mask::None)?;
        Ok(KeptOfAttention { q, k, v, o })
    }

    /// The gradients of `x`, and of `context` where that is `x`, in one; `h` is `x` after its norm.
    fn grad(
        &self,
        kept: KeptOfAttention,
        h: impl Fn() -> Result<Tensor>,
        context: Option<&Tensor>,
        gy: &Tensor,
    ) -> Result<Tensor> {
        let KeptOfAttention { q, k, v, o } = kept;
        let go = wanted(self.to_out.grad(&o, gy, true, None)?)?;
        drop(o);
        let [gq, gk, gv] = hand::attention_grad([&q, &k, &v], self.heads, &go)?;
        drop((q, k, v, go));
        let h = h()?;
        let (from, own) = (context.unwrap_or(&h), context.is_none());
        let gh = self.to_q.grad(&h, &gq, true, None)?;
        drop(gq);
        let gk = self.to_k.grad(from, &gk, own, gh.clone().filter(|_| own))?;
        let gv = self.to_v.grad(from, &gv, own, gk)?;
        Ok(wanted(if own { gv } else { gh })?)
    }
}

impl TransformerBlock {
    fn is_adapted(&self) -> bool {
        self.attn1.is_adapted() || self.attn2.is_adapted() || self.ff_in.is_adapted() || self.ff_out.is_adapted()
    }

    fn kept(&self, x: &Tensor, context: &Tensor) -> Result<KeptOfBlock> {
        let h = self.norm1.plain(x)?;
        let own = self.attn1.kept(&h, &h)?;
        drop(h);
        let x1 = self.attn1.to_out.plain(&own.o, Some(x))?;
        let text = self.attn2.kept(&self.norm2.plain(&x1)?, context)?;
        let x2 = self.attn2.to_out.plain(&text.o, Some(&x1))?;
        let f = self.ff_in.plain(&self.norm3.plain(&x2)?, None)?;
        Ok(KeptOfBlock { own, x1, text, x2, f })
    }

    fn finish(&self, kept: &KeptOfBlock) -> Result<Tensor> {
        Ok(self.ff_out.plain(&ops::geglu(&kept.f)?, Some(&kept.x2))?)
    }

    fn grad(&self, x: &Tensor, context: &Tensor, kept: KeptOfBlock, gy: &Tensor) -> Result<Tensor> {
        let KeptOfBlock { own, x1, text, x2, f } = kept;
        let g = wanted(self.ff_out.grad(&ops::geglu(&f)?, gy, true, None)?)?;
        let gf = hand::geglu_grad(&f, &g)?;
        drop((f, g));
        let g = wanted(self.ff_in.grad(&self.norm3.plain(&x2)?, &gf, true, None)?)?;
        drop(gf);
        let g2 = self.norm3.grad(&x2, &g, Some(gy))?;
        drop(x2);
        let g = self.attn2.grad(text, || Ok(self.norm2.plain(&x1)?), Some(context), &g2)?;
        let g1 = self.norm2.grad(&x1, &g, Some(&g2))?;
        drop((x1, g2));
        let g = self.attn1.grad(own, || Ok(self.norm1.plain(x)?), None, &g1)?;
        Ok(self.norm1.grad(x, &g, Some(&g1))?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Tensor};

    use crate::conditioning::Conditioning;
    use crate::denoiser::Trainable;
    use crate::params::{self, Grads};
    use crate::pass::{Activations, Pass};

    fn random(shape: &[usize], seed: u64) -> Tensor {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn close(name: &str, ours: &Tensor, theirs: &Tensor) {
        let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let apart = largest(&(ours - theirs).unwrap());
        assert!(apart <= 1e-4 * largest(theirs).max(1e-3), "{name}: {apart} of {}", largest(theirs));
    }

    /// Every kind of piece, with and without a shortcut, and a size that halves to an odd one: the same predictions and gradients as
    /// candle's.
    #[test]
    fn passes_by_hand_equal_candles() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle/base/unet");
        let Trainable { denoiser, params, .. } = Trainable::open(&folder, &Device::Cpu).unwrap();
        for (i, var) in params.values().enumerate() {
            let more = (random(var.dims(), 100 + i as u64) * 0.3).unwrap();
            var.set(&(var.as_detached_tensor() + more).unwrap()).unwrap();
        }
        let (x, gy, t) = (random(&[3, 4, 7, 10], 1), random(&[3, 4, 7, 10], 2), [3.0, 500.0, 998.0]);
        let states = random(&[3, 5, denoiser.config.widths.states], 3);
        let conditioning = Conditioning::of_text(states, None);
        let gradients = |pass: Pass| {
            let (y, mut grads) = (pass.prediction(), Grads::new());
            params::accumulate(&params, &mut grads, || pass.backward(&gy)).unwrap();
            (y, grads)
        };
        let (y, theirs) = gradients(denoiser.forward_for(Activations::Recomputed, &x, &t, &conditioning).unwrap());
        for activations in [Activations::Kept, Activations::Recomputed] {
            let pass = denoiser.forward_by_hand(activations, &x, &t, &conditioning).unwrap();
            let (ours, grads) = gradients(pass.unwrap());
            close("prediction", &ours, &y);
            assert!(grads.keys().eq(theirs.keys()) && grads.len() == params.len());
            grads.iter().for_each(|(name, ours)| close(name, ours, &theirs[name]));
        }
    }
}
