//! AdamW, in place, as torch's.

use anyhow::Result;
use candle_core::{CpuStorage, DType, InplaceOp2, InplaceOp3, Layout, Result as Candle, Tensor, Var};
use multiversion::multiversion;
#[cfg(feature = "cuda")]
use ops::cuda;
use ops::{with_values, write};
use rayon::prelude::*;

use super::kernel::{CHUNK, Moment, blend, operand, target};

/// AdamW's constants (torch's names).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

/// One tensor's step; `seed` decides how bf16 moments are rounded.
#[allow(clippy::too_many_arguments)]
pub fn step(c: AdamWConfig, p: &Var, m: &Var, v: &Var, g: &Tensor, t: u64, lr: f64, seed: u32) -> Result<()> {
    let (correction1, correction2) = (1.0 - c.beta1.powf(t as f64), 1.0 - c.beta2.powf(t as f64));
    let update = Update {
        decay: (1.0 - lr * c.weight_decay) as f32,
        rate: (lr / correction1) as f32,
        root2: correction2.sqrt() as f32,
        eps: c.eps as f32,
    };
    if p.device().is_cpu() && m.dtype() == DType::F32 {
        Ok(fused(c, p, m, v, g, &update)?)
    } else if p.device().is_cpu() {
        m.inplace_op2(g, &First { beta1: c.beta1 as f32, seed })?;
        v.inplace_op2(g, &Second { beta2: c.beta2 as f32, seed: !seed })?;
        Ok(p.inplace_op3(m, v, &update)?)
    } else {
        Ok(on_gpu(c, p, m, v, g, &update)?)
    }
}

/// All of it in one pass over the memory, which is what this takes its time for.
fn fused(c: AdamWConfig, p: &Var, m: &Var, v: &Var, g: &Tensor, u: &Update) -> Candle<()> {
    let (mut outer, mut inner) = (Ok(()), Ok(()));
    with_values([g], |[g]| {
        write(p, |p| {
            outer = write(m, |m| {
                inner = write(v, |v| {
                    let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
                    let all = p.par_chunks_mut(CHUNK).zip(moments).zip(g.par_chunks(CHUNK));
                    all.for_each(|((p, (m, v)), g)| fused_chunk(c.beta1 as f32, c.beta2 as f32, u, p, m, v, g));
                });
            });
        })
    })??;
    outer.and(inner)
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn fused_chunk(beta1: f32, beta2: f32, u: &Update, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
    let (weight1, weight2) = (1.0 - beta1, 1.0 - beta2);
    for ((p, (m, v)), g) in p.iter_mut().zip(m.iter_mut().zip(v.iter_mut())).zip(g) {
        *m += weight1 * (g - *m);
        *v = beta2 * *v + weight2 * g * g;
        *p = u.decay * *p - u.rate * *m / (v.sqrt() / u.root2 + u.eps);
    }
}

/// The same on a GPU.
#[cfg(feature = "cuda")]
fn on_gpu(c: AdamWConfig, p: &Var, m: &Var, v: &Var, g: &Tensor, u: &Update) -> Candle<()> {
    let (beta1, beta2) = (c.beta1 as f32, c.beta2 as f32);
    let step = cuda::AdamW { beta1, beta2, decay: u.decay, rate: u.rate, root2: u.root2, eps: u.eps };
    step.step(p, m, v, g)
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: AdamWConfig, _: &Var, _: &Var, _: &Var, _: &Tensor, _: &Update) -> Candle<()> {
    candle_core::bail!("this build has no CUDA")
}

/// m += (1 - beta1) (g - m)
struct First {
    beta1: f32,
    seed: u32,
}

impl InplaceOp2 for First {
    fn name(&self) -> &'static str {
        "adamw_m"
    }

    fn cpu_fwd(&self, m: &mut CpuStorage, _: &Layout, g: &CpuStorage, lg: &Layout) -> Candle<()> {
        let weight = 1.0 - self.beta1;
        blend(m, operand(g, lg)?, self.seed, |m, g| m + weight * (g - m))
    }
}

/// v = beta2 v + (1 - beta2) g^2
struct Second {
    beta2: f32,
    seed: u32,
}

impl InplaceOp2 for Second {
    fn name(&self) -> &'static str {
        "adamw_v"
    }

    fn cpu_fwd(&self, v: &mut CpuStorage, _: &Layout, g: &CpuStorage, lg: &Layout) -> Candle<()> {
        let (beta2, weight) = (self.beta2, 1.0 - self.beta2);
        blend(v, operand(g, lg)?, self.seed, |v, g| beta2 * v + weight * g * g)
    }
}

/// p = decay p - rate m / (sqrt(v) / root2 + eps)
struct Update {
    decay: f32,
    rate: f32,
    root2: f32,
    eps: f32,
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn update_chunk(u: &Update, p: &mut [f32], m: &[f32], v: &[f32]) {
    for (p, (m, v)) in p.iter_mut().zip(m.iter().zip(v)) {
        *p = u.decay * *p - u.rate * m / (v.sqrt() / u.root2 + u.eps);
    }
}

impl InplaceOp3 for Update {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        p: &mut CpuStorage,
        _: &Layout,
        m: &CpuStorage,
        _: &Layout,
        v: &CpuStorage,
        _: &Layout,
    ) -> Candle<()> {
        let (m, v) = (Moment::of(m)?, Moment::of(v)?);
        target(p)?.par_chunks_mut(CHUNK).enumerate().for_each_init(Default::default, |(a, b), (i, p)| {
            update_chunk(self, p, m.chunk(i, a), v.chunk(i, b));
        });
        Ok(())
    }
}
