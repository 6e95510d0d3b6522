//! The state of a run: everything that changes from step to step.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use nets::lora::{self, Adapter, LoraConfig};
use nets::process::Process;
use nets::{denoiser::Trainable, folder, optim::Optimizer, weights::Weights};
use pipe::id::{hex, sha256};
use serde::{Deserialize, Serialize};

use crate::timestep_weights::{Margins, tenth};
use crate::{loss::Label, reference::Reference, spikes::LossHistory};

pub struct State {
    pub policy: Trainable,
    pub reference: Reference,
    pub optimizer: Optimizer,
    pub counters: Counters,
}

/// The counters of a run, and what a resumption must share with it to be the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Optimiser steps done.
    pub step: u64,
    pub seed: u64,
    /// Pairs per optimiser step.
    pub effective_batch: usize,
    /// SHA-256 of the labels, or of the replay file.
    pub labels: String,
    /// SHA-256 of the reference's weights at the start, or `REFRESHED` where state/ holds them.
    pub reference: String,
    /// SHA-256 of the reference that the command line named, if it named one.
    pub named: Option<String>,
    /// The adapters that are trained; `None` if the whole UNet is trained.
    #[serde(default)]
    pub lora: Option<LoraConfig>,
    #[serde(default, rename = "usual")]
    pub losses: LossHistory,
    /// Steps whose pairs were skipped after a spike.
    #[serde(default)]
    pub skipped: u64,
    /// The folder in which diffusers has such a denoiser.
    #[serde(default = "unet", skip_serializing_if = "is_unet")]
    pub part: String,
    /// Under --timestep-weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margins: Option<Margins>,
}

fn unet() -> String {
    folder::DENOISER.into()
}

fn is_unet(part: &String) -> bool {
    part == folder::DENOISER
}

impl Counters {
    /// The labels of B pairs at these times, with the weights of their timesteps.
    pub fn weighted(&self, labels: &[Label], times: &[f32], process: &Process) -> Vec<Label> {
        let weight = |t: f32| self.margins.map_or(1.0, |margins| margins.weight(tenth(t, process)));
        labels.iter().zip(times).map(|(label, &t)| Label { weight: label.weight * weight(t), ..*label }).collect()
    }
}

/// In `Counters::reference`: the reference has moved since the start.
pub const REFRESHED: &str = "refreshed";

/// The distance that the policy has moved, relative to the norm of the base.
#[derive(Clone, Copy, Debug)]
pub struct Drift {
    /// |theta - theta_base| / |theta_base|
    pub base: f64,
    /// |theta - theta_reference| / |theta_base|
    pub reference: f64,
}

impl State {
    /// Moves the reference by `rate` of the way to the policy. See [`Reference::follow`] for `scratch`.
    pub fn move_reference(&mut self, rate: f64, scratch: &std::path::Path) -> Result<()> {
        self.reference.follow(&self.policy, rate, scratch)?;
        self.counters.reference = REFRESHED.into();
        Ok(())
    }

    /// SHA-256 of the present weights of policy and reference.
    pub fn hash(&self) -> Result<String> {
        let mut hashes = vec![];
        let mut add = |tensor: &Tensor| -> Result<()> {
            let values = tensor.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            hashes.extend(sha256(&bytes));
            Ok(())
        };
        for (name, var) in &self.policy.params {
            add(var)?;
            add(&self.reference.get(name, var.dims())?)?;
        }
        Ok(hex(&sha256(&hashes)))
    }

    /// How far the policy is from the base and from the present reference.
    pub fn drift(&self, base: &Weights) -> Result<Drift> {
        let [from_base, from_reference, size] = match &self.counters.lora {
            None => self.squares_of_weights(base)?,
            Some(config) => self.squares_of_adapters(base, config)?,
        };
        let relative = |square: f64| (square / size.max(f64::MIN_POSITIVE)).sqrt();
        Ok(Drift { base: relative(from_base), reference: relative(from_reference) })
    }

    /// |theta - theta_base|^2, |theta - theta_reference|^2 and |theta_base|^2.
    fn squares_of_weights(&self, base: &Weights) -> Result<[f64; 3]> {
        let (mut from_base, mut from_reference, mut size) = (0.0, 0.0, 0.0);
        for (name, var) in &self.policy.params {
            let theta = var.as_detached_tensor();
            let theta0 = base.get(name, var.dims())?.to_dtype(DType::F32)?.to_device(var.device())?;
            from_base += ops::sum_of_squares(&(&theta - &theta0)?)?;
            from_reference += ops::sum_of_squares(&(theta - self.reference.get(name, var.dims())?)?)?;
            size += ops::sum_of_squares(&theta0)?;
        }
        Ok([from_base, from_reference, size])
    }

    /// The same where adapters change the weights of a layer by scale B A.
    fn squares_of_adapters(&self, base: &Weights, config: &LoraConfig) -> Result<[f64; 3]> {
        let (mut from_base, mut from_reference, mut size) = (0.0, 0.0, 0.0);
        for name in base.names() {
            size += ops::sum_of_squares(&base.raw(&name)?.to_dtype(DType::F32)?)?;
        }
        for module in lora::modules(self.policy.params.keys()) {
            let names = Adapter::names(&module);
            let [a, b] = names.each_ref().map(|name| &self.policy.params[name]);
            let policy = Adapter { a: a.as_detached_tensor(), b: b.as_detached_tensor(), scale: config.scale() };
            let moved = policy.delta()?;
            from_base += ops::sum_of_squares(&moved)?;
            let (a, b) = (self.reference.get(&names[0], a.dims())?, self.reference.get(&names[1], b.dims())?);
            let reference = Adapter { a, b, scale: config.scale() };
            from_reference += ops::sum_of_squares(&(moved - reference.delta()?)?)?;
        }
        Ok([from_base, from_reference, size])
    }

    /// The root mean square of the trained weights; 0 for adapters, which start at 0.
    pub fn weight_size(&self) -> Result<f64> {
        if self.counters.lora.is_some() {
            return Ok(0.0);
        }
        let (mut sum, mut n) = (0.0, 0);
        for var in self.policy.params.values() {
            sum += ops::sum_of_squares(&var.as_detached_tensor())?;
            n += var.elem_count();
        }
        Ok((sum / n as f64).sqrt())
    }
}
