//! Heads of linear layers on top of a vector, computed in f64.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor, cpu::erf::erf_f64};

use crate::weights::Weights;

/// y = x W^T + b
struct Layer {
    weight: Vec<f64>, // (out, in)
    bias: Vec<f64>,   // (out)
}

impl Layer {
    fn apply(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.weight.chunks_exact(x.len()).zip(&self.bias);
        rows.map(|(row, b)| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b).collect()
    }

    /// One layer that does what `before` and then this layer do.
    fn after(&self, before: &Layer) -> Layer {
        let (inner, width) = (before.bias.len(), before.weight.len() / before.bias.len());
        let mut weight = Vec::with_capacity(self.bias.len() * width);
        for row in self.weight.chunks_exact(inner) {
            let mut sum = vec![0f64; width];
            for (w, before) in row.iter().zip(before.weight.chunks_exact(width)) {
                sum.iter_mut().zip(before).for_each(|(sum, b)| *sum += w * b);
            }
            weight.extend(sum);
        }
        Layer { weight, bias: self.apply(&before.bias) }
    }
}

/// The function between the layers of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// Dropout alone: the head is one affine map.
    Nothing,
    Relu,
    /// The exact GELU.
    Gelu,
}

impl Between {
    fn apply(self, x: f64) -> f64 {
        match self {
            Self::Nothing => x,
            Self::Relu => x.max(0.0),
            Self::Gelu => 0.5 * x * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2)),
        }
    }
}

/// The numbers of the linear layers in a published head. The numbers between them belong to dropout and activations.
pub(super) type Form = ([usize; 5], Between);

/// Linear layers, and what stands between them.
pub(super) struct Head {
    layers: Vec<Layer>,
    between: Between,
}

impl Head {
    /// Reads the head `prefix`.N for vectors of `width` numbers, in one of the published forms.
    pub(super) fn read(weights: &Weights, prefix: &str, width: usize, forms: &[Form]) -> Result<Self> {
        let mut numbers = BTreeMap::new();
        for name in weights.names() {
            let number = name.strip_prefix(prefix).and_then(|n| n.strip_prefix('.')?.strip_suffix(".weight"));
            if let Some(number) = number {
                numbers.insert(number.parse::<usize>().ok(), name);
            }
        }
        let numbers: Vec<usize> = numbers.into_keys().flatten().collect();
        let form = forms.iter().find(|(form, _)| numbers == form);
        let expected = || forms.iter().map(|(form, _)| format!("{form:?}")).collect::<Vec<_>>().join(" or ");
        ensure!(
            form.is_some(),
            "{} is not a known head: its linear layers are {prefix}.{numbers:?}, expected {}",
            weights.name,
            expected()
        );
        let between = form.map_or(Between::Nothing, |(_, between)| *between);
        let mut layers: Vec<Layer> = vec![];
        let mut inner = width;
        for n in &numbers {
            let name = format!("{prefix}.{n}.bias");
            let out = weights.raw(&name)?.elem_count();
            layers.push(Layer {
                weight: doubles(&weights.get(&format!("{prefix}.{n}.weight"), &[out, inner])?)?,
                bias: doubles(&weights.get(&name, &[out])?)?,
            });
            inner = out;
        }
        ensure!(inner == 1, "{}: the last layer gives {inner} numbers, expected one", weights.name);
        if between == Between::Nothing {
            layers = layers.into_iter().reduce(|before, layer| layer.after(&before)).into_iter().collect();
        }
        Ok(Self { layers, between })
    }

    /// The score of a vector `x` (width).
    pub(super) fn apply(&self, x: &[f32]) -> f64 {
        let mut x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                x.iter_mut().for_each(|v| *v = self.between.apply(*v));
            }
            x = layer.apply(&x);
        }
        x[0]
    }
}

fn doubles(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}
