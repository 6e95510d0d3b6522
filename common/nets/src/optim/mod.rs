//! Optimisers whose moments can be saved, and learning-rate schedules.

mod adafactor;
mod schedule;

use std::collections::BTreeMap;

pub use adafactor::AdafactorConfig;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Var};
use ops::{AdamWStep, Clip, Moved, rounding_seed};
pub use schedule::LrSchedule;

use crate::params::{Grads, Params};

/// How a gradient becomes a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UpdateRule {
    AdamW(AdamWConfig),
    Adafactor(AdafactorConfig),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

impl AdamWConfig {
    pub fn at(&self, t: u64, lr: f64) -> AdamWStep {
        let (correction1, correction2) = (1.0 - self.beta1.powf(t as f64), 1.0 - self.beta2.powf(t as f64));
        AdamWStep {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            decay: (1.0 - lr * self.weight_decay) as f32,
            rate: (lr / correction1) as f32,
            root2: correction2.sqrt() as f32,
            eps: self.eps as f32,
        }
    }
}

/// A rule, and the moments that it keeps of past gradients.
pub struct Optimizer {
    pub rule: UpdateRule,
    /// Moments by the names under which a checkpoint stores them: `m.TENSOR` and `v.TENSOR`, or `row.TENSOR` and `col.TENSOR`
    /// where Adafactor keeps means over rows and columns only.
    pub moments: BTreeMap<String, Var>,
}

impl Optimizer {
    /// All moments are zero. `dtype` is f32, or bf16 for AdamW.
    pub fn new(params: &Params, rule: UpdateRule, dtype: DType) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, p) in params {
            let shapes: Vec<(&str, Vec<usize>)> = match rule {
                UpdateRule::AdamW(_) => vec![("m", p.dims().to_vec()), ("v", p.dims().to_vec())],
                UpdateRule::Adafactor(_) => adafactor::shapes(p.dims()),
            };
            ensure!(
                dtype == DType::F32 || matches!(rule, UpdateRule::AdamW(_)),
                "moments in bf16 are possible for AdamW only"
            );
            for (prefix, shape) in shapes {
                moments.insert(format!("{prefix}.{name}"), Var::zeros(shape, dtype, p.device())?);
            }
        }
        Ok(Self { rule, moments })
    }

    /// Changes `params` by their gradients, in place: step `t` (from 1) at learning rate `lr`.
    pub fn step(&mut self, params: &Params, grads: &Grads, t: u64, lr: f64) -> Result<()> {
        self.step_to(params, grads, None, t, lr)
    }

    /// [`Optimizer::step`] by the gradients times the factor of `clip`, on a GPU. Where that is NaN, AdamW changes nothing.
    pub fn step_to(&mut self, params: &Params, grads: &Grads, clip: Option<&Clip>, t: u64, lr: f64) -> Result<()> {
        let moment = |prefix: &str, name: &str| {
            let key = format!("{prefix}.{name}");
            self.moments.get(&key).with_context(|| format!("the optimiser has no moment '{key}'"))
        };
        let gradient = |name: &str| {
            let g = grads.get(name).with_context(|| format!("there is no gradient for '{name}'"))?;
            Ok::<_, anyhow::Error>(g.contiguous()?)
        };
        if let UpdateRule::AdamW(c) = self.rule {
            let grads = params.keys().map(|name| gradient(name)).collect::<Result<Vec<_>>>()?;
            let all = params.iter().zip(&grads).map(|((name, p), g)| {
                Ok(Moved { p, m: moment("m", name)?, v: moment("v", name)?, g, seed: rounding_seed(name, t) })
            });
            return Ok(c.at(t, lr).apply_all(&all.collect::<Result<Vec<_>>>()?, clip)?);
        }
        if let Some(clip) = clip {
            ops::scale_to(grads.values(), clip)?;
        }
        for (name, p) in params {
            let g = gradient(name)?;
            match self.rule {
                UpdateRule::Adafactor(c) if p.rank() < 2 => adafactor::step(c, p, moment("v", name)?, &g, t, lr)?,
                UpdateRule::Adafactor(c) => {
                    adafactor::step_factored(c, p, moment("row", name)?, moment("col", name)?, &g, t, lr)?
                }
                UpdateRule::AdamW(_) => {}
            }
        }
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        self.moments.values().map(|m| m.elem_count() * m.dtype().size_in_bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    /// Three steps on `p` with the gradients `g`, at rate 0.1.
    fn three(rule: UpdateRule, dtype: DType, p: &Tensor, g: &[Tensor]) -> Vec<f32> {
        let p = Var::from_tensor(p).unwrap();
        let params = Params::from([("p".to_string(), p.clone())]);
        let mut optimizer = Optimizer::new(&params, rule, dtype).unwrap();
        for (t, g) in g.iter().enumerate() {
            let grads = Grads::from([("p".to_string(), g.clone())]);
            optimizer.step(&params, &grads, t as u64 + 1, 0.1).unwrap();
        }
        p.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn cpu(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn near(got: &[f32], want: &[f32], tolerance: f32) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < tolerance), "{got:?} {want:?}");
    }

    const ADAMW: UpdateRule =
        UpdateRule::AdamW(AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 });
    const ADAFACTOR: UpdateRule = UpdateRule::Adafactor(AdafactorConfig { weight_decay: 0.01 });

    /// ```python
    /// import torch
    /// p = torch.nn.Parameter(torch.tensor([1., -2., 3.])); o = torch.optim.AdamW([p], lr=0.1, weight_decay=0.01)
    /// for g in ([1., -2., .5], [.5, 0., -1.], [2., 2., 2.]): p.grad = torch.tensor(g); o.step()
    /// print(p)   # [0.713169515132904, -1.835853934288025, 2.885817289352417]
    /// ```
    #[test]
    fn three_steps_of_adamw_equal_torchs() {
        let g = [[1f32, -2., 0.5], [0.5, 0., -1.], [2., 2., 2.]].map(|g| cpu(&g, &[3]));
        let want = [0.7131695, -1.8358539, 2.8858173];
        near(&three(ADAMW, DType::F32, &cpu(&[1., -2., 3.], &[3]), &g), &want, 1e-5);
        near(&three(ADAMW, DType::BF16, &cpu(&[1., -2., 3.], &[3]), &g), &want, 5e-3);
    }

    /// ```python
    /// import torch, transformers
    /// p = torch.nn.Parameter(torch.tensor([[[1., -2., 3.], [.5, 1., -1.]]])); q = torch.nn.Parameter(torch.tensor([1., -2.]))
    /// o = transformers.Adafactor([p, q], lr=0.1, weight_decay=0.01, scale_parameter=False, relative_step=False)
    /// for s in (1., -.5, 2.):
    ///     p.grad = s * torch.tensor([[[1., -2., .5], [.25, 4., -1.]]]); q.grad = s * torch.tensor([3., -.5]); o.step()
    /// print(p.flatten().tolist(), q.tolist())
    /// ```
    #[test]
    fn three_steps_of_adafactor_equal_transformers() {
        let scaled = |values: &[f32], shape: &[usize]| {
            [1f32, -0.5, 2.].map(|s| cpu(&values.iter().map(|v| s * v).collect::<Vec<_>>(), shape))
        };
        let matrix = cpu(&[1., -2., 3., 0.5, 1., -1.], &[1, 2, 3]);
        let got = three(ADAFACTOR, DType::F32, &matrix, &scaled(&[1., -2., 0.5, 0.25, 4., -1.], &[1, 2, 3]));
        near(&got, &[0.7804848, -1.894196, 2.891199, 0.46847585, 0.8862738, -0.8862738], 2e-6);
        let got = three(ADAFACTOR, DType::F32, &cpu(&[1., -2.], &[2]), &scaled(&[3., -0.5], &[2]));
        near(&got, &[0.8634076, -1.8604105], 2e-6);
    }

    /// Rounding to the nearest bf16 would leave v unchanged: a step shrinks it by a thousandth, which is less than half a digit.
    #[test]
    fn bf16_moments_shrink_as_f32_ones_do() {
        let p = Var::zeros(4096, DType::F32, &Device::Cpu).unwrap();
        let params = Params::from([("p".to_string(), p)]);
        let mut optimizer = Optimizer::new(&params, ADAMW, DType::BF16).unwrap();
        optimizer.moments["v.p"].set(&Tensor::ones(4096, DType::BF16, &Device::Cpu).unwrap()).unwrap();
        let grads = Grads::from([("p".to_string(), Tensor::zeros(4096, DType::F32, &Device::Cpu).unwrap())]);
        for t in 1..=200 {
            optimizer.step(&params, &grads, t, 0.0).unwrap();
        }
        let v = optimizer.moments["v.p"].to_dtype(DType::F32).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((v - 0.999f32.powi(200)).abs() < 2e-3, "{v}");
    }
}
