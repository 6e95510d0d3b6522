//! One step of AdamW, in place, as torch's.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Result, Tensor, bail};
use half::bf16;
use multiversion::multiversion;
use rayon::prelude::*;

use super::arithmetic::CHUNK;
#[cfg(feature = "cuda")]
use super::cuda::{Table, launch, with_views};
use super::values::{Values, with_values, with_values_mut};

/// Numbers of a step that are the same for all tensors.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    pub beta1: f32,
    pub beta2: f32,
    /// 1 - lr * weight decay
    pub decay: f32,
    /// lr / (1 - beta1^t)
    pub rate: f32,
    /// sqrt(1 - beta2^t)
    pub root2: f32,
    pub eps: f32,
}

/// The norm of gradients on a GPU, and the factor that makes it at most a given one: NaN where the norm is not finite. Both (1).
#[derive(Clone, Debug)]
pub struct Clip {
    /// f64
    pub norm: Tensor,
    /// f32
    pub factor: Tensor,
}

/// A parameter, its moments, its gradient, and the seed for the rounding of bf16 moments.
pub struct Moved<'a> {
    pub p: &'a Tensor,
    pub m: &'a Tensor,
    pub v: &'a Tensor,
    pub g: &'a Tensor,
    pub seed: u32,
}

impl AdamWStep {
    /// [`AdamWStep::apply`] for many parameters on one device: a GPU moves all of them at once, by their gradients times the factor of
    /// `clip`; where that is NaN, it leaves them as they are.
    pub fn apply_all(&self, all: &[Moved], clip: Option<&Clip>) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(first) = all.first()
            && first.p.device().is_cuda()
        {
            return self.on_gpu(&all.iter().map(|t| [t.p, t.m, t.v, t.g]).collect::<Vec<_>>(), first.seed, clip);
        }
        if clip.is_some() {
            bail!("gradients on the CPU are clipped before AdamW gets them")
        }
        all.iter().try_for_each(|t| self.apply(t.p, t.m, t.v, t.g, t.seed))
    }

    /// Changes a parameter `p` and its moments by the gradient `g`, all of one shape:
    /// m += (1 - beta1) (g - m), v = beta2 v + (1 - beta2) g^2, p = decay p - rate m / (sqrt(v) / root2 + eps).
    ///
    /// `p` and `g` are f32; the moments are f32 or bf16. bf16 has 8 binary digits, and a second moment changes by a
    /// thousandth per step: rounded to the nearest, it would never shrink. So it is rounded up or down at random, in
    /// proportion to the distance, as a function of `seed` and the place.
    ///
    /// # Errors
    /// A tensor has another type, or p, m or v is not contiguous.
    pub fn apply(&self, p: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor, seed: u32) -> Result<()> {
        #[cfg(feature = "cuda")]
        if p.device().is_cuda() {
            return self.on_gpu(&[[p, m, v, g]], seed, None);
        }
        let on_cpu = |g: &[f32], values: [Values; 3]| match values {
            [Values::F32(p), Values::F32(m), Values::F32(v)] => {
                let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
                let chunks = p.par_chunks_mut(CHUNK).zip(moments).zip(g.par_chunks(CHUNK));
                chunks.for_each(|((p, (m, v)), g)| chunk(self, p, m, v, g));
                Ok(())
            }
            [Values::F32(p), Values::Bf16(m), Values::Bf16(v)] => {
                let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
                let chunks = p.par_chunks_mut(CHUNK).zip(moments).zip(g.par_chunks(CHUNK));
                chunks.enumerate().for_each(|(i, ((p, (m, v)), g))| {
                    let place = (i * CHUNK) as u32;
                    chunk_bf16(self, p, m, v, g, [seed.wrapping_add(place), (!seed).wrapping_add(place)]);
                });
                Ok(())
            }
            _ => bail!("AdamW takes f32 parameters, and moments that are f32 or bf16"),
        };
        with_values([g], |[g]| with_values_mut([p, m, v], |values| on_cpu(g, values)))??
    }

    /// `all`: p, m, v and g of each tensor.
    #[cfg(feature = "cuda")]
    fn on_gpu(&self, all: &[[&Tensor; 4]], seed: u32, clip: Option<&Clip>) -> Result<()> {
        let Some([p, m, ..]) = all.first() else { return Ok(()) };
        let name = match m.dtype() {
            DType::F32 => "adamw_f32",
            DType::BF16 => "adamw_bf16",
            other => bail!("AdamW's moments are f32 or bf16, not {other:?}"),
        };
        let fits = |[p, of_m, v, g]: &[&Tensor; 4]| {
            [p.dtype(), g.dtype()] == [DType::F32; 2] && [of_m.dtype(), v.dtype()] == [m.dtype(); 2]
        };
        if !all.iter().all(fits) {
            bail!("AdamW takes f32 parameters and gradients, and moments of one type")
        }
        let factor = clip.map_or_else(|| Tensor::ones(1, DType::F32, p.device()), |clip| Ok(clip.factor.clone()))?;
        with_views::<f32, 1, _>([&factor], |device, [factor]| {
            let table = Table::of(device, all)?;
            let ((rows, places), Self { beta1, beta2, decay, rate, root2, eps }) = (table.views(), *self);
            launch!(device, name, table.grid(), rows, places, factor, seed, beta1, beta2, decay, rate, root2, eps)
        })
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn chunk(s: &AdamWStep, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
    let (weight1, weight2) = (1.0 - s.beta1, 1.0 - s.beta2);
    for ((p, (m, v)), g) in p.iter_mut().zip(m.iter_mut().zip(v.iter_mut())).zip(g) {
        *m += weight1 * (g - *m);
        *v = s.beta2 * *v + weight2 * g * g;
        *p = s.decay * *p - s.rate * *m / (v.sqrt() / s.root2 + s.eps);
    }
}

/// The same with bf16 moments; `seeds` are those of the first element, for m and for v.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn chunk_bf16(s: &AdamWStep, p: &mut [f32], m: &mut [bf16], v: &mut [bf16], g: &[f32], seeds: [u32; 2]) {
    let (weight1, weight2) = (1.0 - s.beta1, 1.0 - s.beta2);
    for (i, ((p, (m, v)), g)) in p.iter_mut().zip(m.iter_mut().zip(v.iter_mut())).zip(g).enumerate() {
        let (old_m, old_v) = (m.to_f32(), v.to_f32());
        *m = round(old_m + weight1 * (g - old_m), hash(seeds[0].wrapping_add(i as u32)));
        *v = round(s.beta2 * old_v + weight2 * g * g, hash(seeds[1].wrapping_add(i as u32)));
        *p = s.decay * *p - s.rate * m.to_f32() / (v.to_f32().sqrt() / s.root2 + s.eps);
    }
}

/// The seed for the rounding of bf16 moments in step `t` of the tensor `name`.
pub fn rounding_seed(name: &str, t: u64) -> u32 {
    name.bytes().fold(hash(t as u32), |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193)) // FNV-1a
}

/// A well-mixed function of an integer ("lowbias32").
#[inline(always)]
fn hash(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// `x` rounded up or down, by the lower half of `random`.
#[inline(always)]
fn round(x: f32, random: u32) -> bf16 {
    match x.is_finite() {
        true => bf16::from_bits((x.to_bits().wrapping_add(random & 0xffff) >> 16) as u16),
        false => bf16::from_f32(x),
    }
}
