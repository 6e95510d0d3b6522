//! AdamW with moments that can be saved, gradient clipping, and diffusers' learning-rate schedules.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{
    CpuStorage, Device, InplaceOp2, InplaceOp3, Layout, Result as Candle, Tensor, Var, backprop::GradStore,
};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::checkpoint::Params;

/// Gradients by name, f32, without history.
pub type Grads = BTreeMap<String, Tensor>;

/// Takes the gradient of every variable out of a backward pass; where none arrived (the loss does not depend on it), zeros.
/// Detached, because candle's gradients hold on to the whole graph.
pub fn gradients(params: &Params, mut store: GradStore) -> Result<Grads> {
    let take = |(name, var): (&String, &Var)| {
        let grad = match store.remove(var) {
            Some(grad) => grad.detach(),
            None => var.zeros_like()?.detach(),
        };
        Ok((name.clone(), grad))
    };
    params.iter().map(take).collect()
}

/// Adds `more` to `sum`, which may still be empty.
pub fn add(sum: &mut Grads, more: Grads) -> Result<()> {
    for (name, gradient) in more {
        match sum.get_mut(&name) {
            Some(before) => *before = (&*before + gradient)?,
            None => drop(sum.insert(name, gradient)),
        }
    }
    Ok(())
}

/// The Euclidean norm over all gradients, summed in f64 in name order.
pub fn global_norm(grads: &Grads) -> Result<f64> {
    let mut total = 0f64;
    for grad in grads.values() {
        total += match grad.device() {
            Device::Cpu => {
                let values = grad.flatten_all()?.to_vec1::<f32>()?;
                values.chunks(4096).map(|c| c.iter().map(|&v| v as f64 * v as f64).sum::<f64>()).sum::<f64>()
            }
            _ => grad.sqr()?.sum_all()?.to_scalar::<f32>()? as f64,
        };
    }
    Ok(total.sqrt())
}

/// Scales gradients so that their norm is at most `max_norm`, as torch's clip_grad_norm_.
pub fn clip(grads: &mut Grads, norm: f64, max_norm: f64) -> Result<()> {
    let scale = max_norm / (norm + 1e-6);
    if scale < 1.0 {
        for grad in grads.values_mut() {
            *grad = (&*grad * scale)?;
        }
    }
    Ok(())
}

/// AdamW's constants (torch's names).
#[derive(Clone, Copy, Debug)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

/// First and second moments, by name.
pub struct AdamW {
    pub config: AdamWConfig,
    pub m: BTreeMap<String, Var>,
    pub v: BTreeMap<String, Var>,
}

impl AdamW {
    /// Moments of zero.
    pub fn new(params: &Params, config: AdamWConfig) -> Result<Self> {
        let zeros = || params.iter().map(|(n, p)| Ok((n.clone(), Var::from_tensor(&p.zeros_like()?)?))).collect();
        let zeros: &dyn Fn() -> Candle<BTreeMap<String, Var>> = &zeros;
        Ok(Self { config, m: zeros()?, v: zeros()? })
    }

    /// The `t`-th step (from 1) at learning rate `lr`, in place.
    pub fn step(&mut self, params: &Params, grads: &Grads, t: u64, lr: f64) -> Result<()> {
        let c = self.config;
        let (correction1, correction2) = (1.0 - c.beta1.powf(t as f64), 1.0 - c.beta2.powf(t as f64));
        let update = Update {
            decay: (1.0 - lr * c.weight_decay) as f32,
            rate: (lr / correction1) as f32,
            root2: correction2.sqrt() as f32,
            eps: c.eps as f32,
        };
        for (name, p) in params {
            let missing = || format!("the optimiser has no moments for '{name}'");
            let (m, v) = (self.m.get(name).with_context(missing)?, self.v.get(name).with_context(missing)?);
            let g = grads.get(name).with_context(|| format!("there is no gradient for '{name}'"))?.contiguous()?;
            if p.device().is_cpu() {
                m.inplace_op2(&g, &First(c.beta1 as f32))?;
                v.inplace_op2(&g, &Second(c.beta2 as f32))?;
                p.inplace_op3(m, v, &update)?;
            } else {
                update_composed(p, m, v, &g, c, &update)?;
            }
        }
        Ok(())
    }
}

/// The same in candle's operations, for devices without our kernels.
fn update_composed(p: &Var, m: &Var, v: &Var, g: &Tensor, c: AdamWConfig, u: &Update) -> Candle<()> {
    let old = m.as_detached_tensor();
    m.set(&(&old + ((g - &old)? * (1.0 - c.beta1))?)?)?;
    v.set(&((v.as_detached_tensor() * c.beta2)? + (g.sqr()? * (1.0 - c.beta2))?)?)?;
    let denominator = ((v.as_detached_tensor().sqrt()? / u.root2 as f64)? + u.eps as f64)?;
    let moved = ((m.as_detached_tensor() / denominator)? * u.rate as f64)?;
    p.set(&((p.as_detached_tensor() * u.decay as f64)? - moved)?)
}

const CHUNK: usize = 1 << 14;

fn operand<'a>(storage: &'a CpuStorage, layout: &Layout) -> Candle<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => candle_core::bail!("the optimiser met a tensor that is not contiguous"),
    }
}

fn target(storage: &mut CpuStorage) -> Candle<&mut [f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        _ => candle_core::bail!("the optimiser works on f32"),
    }
}

/// m += (1 - beta1) (g - m)
struct First(f32);

impl InplaceOp2 for First {
    fn name(&self) -> &'static str {
        "adamw_m"
    }

    fn cpu_fwd(&self, m: &mut CpuStorage, _: &Layout, g: &CpuStorage, lg: &Layout) -> Candle<()> {
        let weight = 1.0 - self.0;
        let g = operand(g, lg)?;
        target(m)?.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(m, g)| {
            m.iter_mut().zip(g).for_each(|(m, g)| *m += weight * (g - *m));
        });
        Ok(())
    }
}

/// v = beta2 v + (1 - beta2) g^2
struct Second(f32);

impl InplaceOp2 for Second {
    fn name(&self) -> &'static str {
        "adamw_v"
    }

    fn cpu_fwd(&self, v: &mut CpuStorage, _: &Layout, g: &CpuStorage, lg: &Layout) -> Candle<()> {
        let (beta2, weight) = (self.0, 1.0 - self.0);
        let g = operand(g, lg)?;
        target(v)?.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(v, g)| {
            v.iter_mut().zip(g).for_each(|(v, g)| *v = beta2 * *v + weight * g * g);
        });
        Ok(())
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
        lm: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Candle<()> {
        let (m, v) = (operand(m, lm)?, operand(v, lv)?);
        let chunks = m.par_chunks(CHUNK).zip(v.par_chunks(CHUNK));
        target(p)?.par_chunks_mut(CHUNK).zip(chunks).for_each(|(p, (m, v))| update_chunk(self, p, m, v));
        Ok(())
    }
}

/// diffusers' learning-rate schedules, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LrSchedule {
    Constant,
    ConstantWithWarmup,
    Linear,
    Cosine,
}

impl LrSchedule {
    /// The factor on the learning rate for the step after `done` finished ones.
    pub fn factor(self, done: u64, warmup: u64, total: u64) -> f64 {
        let rising = done as f64 / warmup.max(1) as f64;
        let left = total.saturating_sub(done) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            LrSchedule::Constant => 1.0,
            _ if done < warmup => rising,
            LrSchedule::ConstantWithWarmup => 1.0,
            LrSchedule::Linear => left.max(0.0),
            LrSchedule::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left)).cos())).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// import torch
    /// p = torch.nn.Parameter(torch.tensor([1., -2., 3.])); o = torch.optim.AdamW([p], lr=0.1, weight_decay=0.01)
    /// for g in ([1., -2., .5], [.5, 0., -1.], [2., 2., 2.]): p.grad = torch.tensor(g); o.step()
    /// print(p)   # [0.713169515132904, -1.835853934288025, 2.885817289352417]
    /// ```
    #[test]
    fn three_steps_equal_torchs() {
        let p = Var::from_slice(&[1f32, -2., 3.], 3, &Device::Cpu).unwrap();
        let params = Params::from([("p".to_string(), p.clone())]);
        let config = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let mut adam = AdamW::new(&params, config).unwrap();
        for (t, g) in [[1f32, -2., 0.5], [0.5, 0., -1.], [2., 2., 2.]].iter().enumerate() {
            let grads = Grads::from([("p".to_string(), Tensor::new(g, &Device::Cpu).unwrap())]);
            adam.step(&params, &grads, t as u64 + 1, 0.1).unwrap();
        }
        let want = [0.7131695, -1.8358539, 2.8858173];
        for (got, want) in p.to_vec1::<f32>().unwrap().iter().zip(want) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn schedules_begin_and_end_where_diffusers_do() {
        let f = |s: LrSchedule, done| s.factor(done, 10, 110);
        assert_eq!((f(LrSchedule::ConstantWithWarmup, 0), f(LrSchedule::ConstantWithWarmup, 5)), (0.0, 0.5));
        assert_eq!((f(LrSchedule::Linear, 10), f(LrSchedule::Linear, 60), f(LrSchedule::Linear, 110)), (1.0, 0.5, 0.0));
        assert!((f(LrSchedule::Cosine, 60) - 0.5).abs() < 1e-12 && f(LrSchedule::Cosine, 110) < 1e-12);
    }
}
