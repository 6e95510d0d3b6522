//! `--replay`: the inputs of every step from a safetensors file, so that a run can be compared number by number with another
//! implementation.

use std::{num::NonZeroUsize, path::Path};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use nets::conditioning::{Conditioning, TimeIds};
use nets::weights::{self, Weights};
use nets::{json, process::Process, prompt::PromptEncoder, vae::VaeConfig};

use crate::{data::Batch, loss::Label};

pub struct Replay {
    weights: Weights,
    /// Captions in the file: the pairs per step.
    pub pairs: NonZeroUsize,
    pub hash: String,
    /// The text states of the captions.
    pub conditioning: Conditioning,
    /// Pixels per latent, on each side.
    factor: usize,
}

impl Replay {
    /// Opens the inputs of a run of `steps` steps.
    pub fn open(path: &Path, vae: &Path, text: PromptEncoder, steps: u64) -> Result<Self> {
        let (metadata, weights) = (weights::metadata(path)?, Weights::open(path)?);
        let name = &weights.name;
        let prompts =
            metadata.get("prompts").with_context(|| format!("{name}: the metadata key 'prompts' is missing"))?;
        let captions: Vec<String> = serde_json::from_str(prompts)
            .with_context(|| format!("{name}: the metadata key 'prompts' is not a JSON list of captions"))?;
        let key_of = |i: u64| ["latents", "noise", "timesteps"].map(|what| format!("{i}.{what}"));
        if let Some((i, key)) = (0..steps).find_map(|i| Some((i, key_of(i).into_iter().find(|k| !weights.has(k))?))) {
            bail!(
                "{name}: tensor '{key}' is missing: the file has the inputs of {i} of the {steps} steps of --max-train-steps, \
                 which needs 0.latents to {}.timesteps",
                steps - 1
            );
        }
        let pairs = NonZeroUsize::new(captions.len());
        let pairs = pairs.with_context(|| format!("{name}: the metadata key 'prompts' lists no captions"))?;
        let vae: VaeConfig = json::read(&vae.join("config.json"))?;
        let conditioning = text.encode(&captions)?;
        Ok(Self { hash: weights.hash()?, weights, pairs, conditioning, factor: vae.factor() })
    }

    pub fn latent_shape(&self) -> Result<[usize; 3]> {
        match self.weights.dims("0.latents") {
            Some(&[_, c, h, w]) => Ok([c, h, w]),
            dims => bail!(
                "{}: tensor '0.latents' has shape {:?}, expected (2B, C, h, w)",
                self.weights.name,
                dims.unwrap_or_default()
            ),
        }
    }

    /// The inputs of step `i`, from 0. The labels are certain.
    pub fn batch(&self, i: u64, process: &Process, device: &Device) -> Result<Batch> {
        let latents = self.weights.raw(&format!("{i}.latents"))?.to_dtype(DType::F32)?;
        let noise = self.weights.raw(&format!("{i}.noise"))?.to_dtype(DType::F32)?;
        let times = self.weights.raw(&format!("{i}.timesteps"))?;
        ensure!(
            times.rank() == 1,
            "{}: tensor '{i}.timesteps' has shape {:?}; expected one timestep per image",
            self.weights.name,
            times.dims()
        );
        let times: Vec<f64> = times.to_dtype(DType::F64)?.to_vec1()?;
        let pairs = self.pairs.get();
        let fits = latents.rank() == 4 && latents.dims() == noise.dims() && latents.dim(0)? == 2 * pairs;
        ensure!(
            fits && times.len() == 2 * pairs,
            "{}: step {i} has latents {:?}, noise {:?} and {} timesteps for {pairs} captions; expected 2 images per caption",
            self.weights.name,
            latents.dims(),
            noise.dims(),
            times.len()
        );
        let (theirs, ours) = (latents.dim(1)?, self.latent_shape()?[0]);
        ensure!(theirs == ours, "{}: step {i} has latents of {theirs} channels, step 0 of {ours}", self.weights.name);
        let times = times.into_iter().map(|t| process.check_time(t)).collect::<Result<Vec<f32>>>();
        let conditioning = self.conditioning.to_device(device)?;
        let conditioning = Conditioning::cat(&[&conditioning, &conditioning])?.with_sizes(self.sizes(i, &latents)?);
        Ok(Batch {
            conditioning: Conditioning { guidance: self.guidance(i, 2 * pairs)?, ..conditioning },
            latents: latents.to_device(device)?,
            noise: noise.to_device(device)?,
            times: times.with_context(|| format!("{}: step {i}", self.weights.name))?,
            labels: vec![Label { target: 1.0, weight: 1.0 }; pairs],
        })
    }

    /// `<i>.guidance` of FLUX, one for each image; where it is missing, that of the run.
    fn guidance(&self, i: u64, images: usize) -> Result<Vec<f32>> {
        let key = format!("{i}.guidance");
        if !self.weights.has(&key) {
            return Ok(vec![]);
        }
        let given = self.weights.raw(&key)?;
        ensure!(
            given.dims() == [images],
            "{}: '{key}' has shape {:?}; expected one number for each of {images} images",
            self.weights.name,
            given.dims()
        );
        Ok(given.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// `<i>.time_ids`; where they are missing, those of whole images of the latents' size.
    fn sizes(&self, i: u64, latents: &Tensor) -> Result<Vec<TimeIds>> {
        let (images, _, h, w) = latents.dims4()?;
        let key = format!("{i}.time_ids");
        if !self.weights.has(&key) {
            return Ok(vec![TimeIds::whole(h * self.factor, w * self.factor); images]);
        }
        let ids = self.weights.raw(&key)?;
        let rows: Option<Vec<[f32; 6]>> = match ids.dims() {
            [n, 6] if *n == images => {
                ids.to_dtype(DType::F32)?.to_vec2()?.into_iter().map(|row| row.try_into().ok()).collect()
            }
            _ => None,
        };
        let rows = rows.with_context(|| {
            format!(
                "{}: '{key}' has shape {:?}; expected 6 numbers for each of {images} images",
                self.weights.name,
                ids.dims()
            )
        })?;
        Ok(rows.into_iter().map(TimeIds).collect())
    }
}
