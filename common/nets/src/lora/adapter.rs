//! The low-rank pair of one layer, and which layers have one.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use pipe::seed;
use serde::{Deserialize, Serialize};

/// Which layers are adapted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f64,
    /// Module names, or their last parts: `to_q`, `ff.net.2`.
    pub targets: Vec<String>,
}

impl LoraConfig {
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// PEFT's rule: a module is adapted if its path is a target or ends in one.
    pub fn adapts(&self, module: &str) -> bool {
        self.targets.iter().any(|target| {
            module.strip_suffix(target.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    }
}

/// The trained adapter of one layer: A (rank, in) and B (out, rank). Where the layer is stored as a 1x1 convolution, both
/// have two more dimensions.
pub struct Adapter {
    pub a: Tensor,
    pub b: Tensor,
    /// alpha / rank
    pub scale: f64,
}

impl Adapter {
    /// A new layer's A and B. A is normal with standard deviation 1/rank (diffusers' `init_lora_weights="gaussian"`) and a
    /// function of `seed` and the module's name; B is zero, so that training starts at the base.
    ///
    /// `weight`: the shape of the layer's weight.
    pub fn initial(module: &str, weight: &[usize], rank: usize, seed: u64, device: &Device) -> Result<(Var, Var)> {
        let (out, inner, spatial) = (weight[0], weight[1], &weight[2..]);
        let values = seed::draws(seed, "lora", module, 0).normals(rank * inner);
        let values: Vec<f32> = values.into_iter().map(|v| v / rank as f32).collect();
        let a = Tensor::from_vec(values, [&[rank, inner], spatial].concat(), device)?;
        Ok((Var::from_tensor(&a)?, Var::zeros([&[out, rank], spatial].concat(), DType::F32, device)?))
    }

    pub fn names(module: &str) -> [String; 2] {
        ["A", "B"].map(|which| format!("{module}.lora_{which}.weight"))
    }

    pub fn of(module: &str, tensors: &BTreeMap<String, Tensor>, config: &LoraConfig) -> Result<Self> {
        let [a, b] = Self::names(module)
            .map(|name| tensors.get(&name).cloned().with_context(|| format!("the adapters lack tensor '{name}'")));
        Ok(Self { a: a?, b: b?, scale: config.scale() })
    }

    /// Whether all numbers are the same.
    pub fn equals(&self, other: &Self) -> Result<bool> {
        let numbers = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        Ok(self.scale == other.scale
            && numbers(&self.a)? == numbers(&other.a)?
            && numbers(&self.b)? == numbers(&other.b)?)
    }

    /// (alpha / rank) B A, in the shape of the layer's weight.
    pub fn delta(&self) -> Result<Tensor> {
        let (a, b) = (&self.a, &self.b);
        let dims = [&[b.dim(0)?, a.dim(1)?], &a.dims()[2..]].concat();
        let product = b.flatten_from(1)?.matmul(&a.flatten_from(1)?)?; // (out, in)
        Ok((product * self.scale)?.reshape(dims)?)
    }
}

pub fn modules<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    names.filter_map(|name| name.strip_suffix(".lora_A.weight").map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_pefts() {
        let config = LoraConfig { rank: 4, alpha: 8.0, targets: vec!["to_q".into(), "ff.net.2".into()] };
        assert_eq!(config.scale(), 2.0);
        for module in ["a.attn1.to_q", "to_q", "x.ff.net.2"] {
            assert!(config.adapts(module), "{module}");
        }
        for module in ["a.not_to_q", "a.to_q.b", "x.ff.net.20", "net.2"] {
            assert!(!config.adapts(module), "{module}");
        }
    }

    #[test]
    fn what_is_added_is_what_is_merged() {
        let (device, dims) = (Device::Cpu, [3, 2]);
        let (a, b) = Adapter::initial("m", &dims, 2, 7, &device).unwrap();
        b.set(&Tensor::from_vec(vec![1f32, -2., 3., 4., 0.5, -1.], (3, 2), &device).unwrap()).unwrap();
        let x = Tensor::from_vec(vec![0.5f32, -1.5], (1, 2), &device).unwrap();
        let adapter = Adapter { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 0.5 };
        let nothing = Tensor::zeros((3, 2), DType::F32, &device).unwrap();
        let one = ops::linear_adapted(&x, &nothing, None, [&adapter.a, &adapter.b], adapter.scale).unwrap();
        let one = one.to_vec2::<f32>().unwrap();
        let two = ops::linear(&x, &adapter.delta().unwrap(), None).unwrap().to_vec2::<f32>().unwrap();
        assert!(one[0].iter().zip(&two[0]).all(|(a, b)| (a - b).abs() < 1e-5), "{one:?} {two:?}");
        assert!(one[0].iter().any(|v| *v != 0.0));
    }
}
