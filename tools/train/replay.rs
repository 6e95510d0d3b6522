//! Inputs of every step from a safetensors file, so that a run can be compared number by number with another implementation.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use nets::{checkpoint, prompt::PromptEncoder};

use crate::{loss::Label, source::Batch};

pub struct Replay {
    name: String,
    tensors: HashMap<String, Tensor>,
    pairs: usize,
    states: Tensor,
}

impl Replay {
    /// # Errors
    /// No whole safetensors file, or no list of captions in its metadata.
    pub fn open(path: &Path, text: PromptEncoder) -> Result<Self> {
        let name = path.display().to_string();
        let metadata = checkpoint::metadata(path)?;
        let prompts =
            metadata.get("prompts").with_context(|| format!("{name}: the metadata key 'prompts' is missing"))?;
        let captions: Vec<String> = serde_json::from_str(prompts)
            .with_context(|| format!("{name}: the metadata key 'prompts' is not a JSON list of captions"))?;
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("{name} is not a whole safetensors file"))?;
        ensure!(!captions.is_empty(), "{name}: the metadata key 'prompts' lists no captions");
        Ok(Self { name, tensors, pairs: captions.len(), states: text.encode(&captions)?.states })
    }

    /// The inputs of step `i`, one entry a step, on a schedule of `trained` timesteps; every pair is sure of its winner.
    ///
    /// # Errors
    /// The file has no such step, or its tensors do not fit each other or the captions.
    pub fn batch(&self, i: u64, trained: usize, device: &Device) -> Result<Batch> {
        let get = |what: &str| {
            let key = format!("{i}.{what}");
            self.tensors.get(&key).with_context(|| format!("{}: tensor '{key}' is missing", self.name))
        };
        let latents = get("latents")?.to_dtype(DType::F32)?;
        let noise = get("noise")?.to_dtype(DType::F32)?;
        let timesteps: Vec<u32> = get("timesteps")?.to_dtype(DType::U32)?.to_vec1()?;
        let pairs = self.pairs;
        let fits = latents.rank() == 4 && latents.dims() == noise.dims() && latents.dim(0)? == 2 * pairs;
        ensure!(
            fits && timesteps.len() == 2 * pairs,
            "{}: step {i} has latents {:?}, noise {:?} and {} timesteps for {pairs} captions; expected 2 images a caption",
            self.name,
            latents.dims(),
            noise.dims(),
            timesteps.len()
        );
        let late = timesteps.iter().find(|&&t| t as usize >= trained);
        ensure!(late.is_none(), "{}: step {i} has timestep {late:?} of a schedule of {trained}", self.name);
        Ok(Batch {
            latents: latents.to_device(device)?,
            noise: noise.to_device(device)?,
            timesteps,
            states: self.states.clone(),
            labels: vec![Label { target: 1.0, weight: 1.0 }; pairs],
        })
    }
}
