//! `--replay`: the inputs of every step from a safetensors file, so that a run can be compared number by number with another
//! implementation.

use std::{collections::HashMap, num::NonZeroUsize, path::Path};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use nets::conditioning::{Conditioning, TimeIds};
use nets::{json, process::Process, prompt::PromptEncoder, vae::VaeConfig, weights};
use pipe::id::file_hash;

use crate::{data::Batch, loss::Label};

pub struct Replay {
    name: String,
    tensors: HashMap<String, Tensor>,
    /// Captions in the file: the pairs per step.
    pub pairs: NonZeroUsize,
    pub hash: String,
    /// Of the captions.
    pub conditioning: Conditioning,
    /// Pixels per latent, on each side.
    factor: usize,
}

impl Replay {
    /// Opens the inputs of a run of `steps` steps.
    pub fn open(path: &Path, vae: &Path, text: PromptEncoder, steps: u64) -> Result<Self> {
        let name = path.display().to_string();
        let metadata = weights::metadata(path)?;
        let prompts =
            metadata.get("prompts").with_context(|| format!("{name}: the metadata key 'prompts' is missing"))?;
        let captions: Vec<String> = serde_json::from_str(prompts)
            .with_context(|| format!("{name}: the metadata key 'prompts' is not a JSON list of captions"))?;
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("{name} is not a whole safetensors file"))?;
        let key_of = |i: u64| ["latents", "noise", "timesteps"].map(|what| format!("{i}.{what}"));
        if let Some((i, key)) =
            (0..steps).find_map(|i| Some((i, key_of(i).into_iter().find(|k| !tensors.contains_key(k))?)))
        {
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
        Ok(Self { name, tensors, pairs, hash: file_hash(path)?, conditioning, factor: vae.factor() })
    }

    fn get(&self, i: u64, what: &str) -> Result<&Tensor> {
        let key = format!("{i}.{what}");
        self.tensors.get(&key).with_context(|| format!("{}: tensor '{key}' is missing", self.name))
    }

    pub fn latent_shape(&self) -> Result<[usize; 3]> {
        match self.get(0, "latents")?.dims() {
            [_, c, h, w] => Ok([*c, *h, *w]),
            dims => bail!("{}: tensor '0.latents' has shape {dims:?}, expected (2B, C, h, w)", self.name),
        }
    }

    /// The inputs of step `i`, from 0. The labels are certain.
    pub fn batch(&self, i: u64, process: &Process, device: &Device) -> Result<Batch> {
        let latents = self.get(i, "latents")?.to_dtype(DType::F32)?;
        let noise = self.get(i, "noise")?.to_dtype(DType::F32)?;
        let times = self.get(i, "timesteps")?;
        ensure!(
            times.rank() == 1,
            "{}: tensor '{i}.timesteps' has shape {:?}; expected one timestep per image",
            self.name,
            times.dims()
        );
        let times: Vec<f64> = times.to_dtype(DType::F64)?.to_vec1()?;
        let pairs = self.pairs.get();
        let fits = latents.rank() == 4 && latents.dims() == noise.dims() && latents.dim(0)? == 2 * pairs;
        ensure!(
            fits && times.len() == 2 * pairs,
            "{}: step {i} has latents {:?}, noise {:?} and {} timesteps for {pairs} captions; expected 2 images per caption",
            self.name,
            latents.dims(),
            noise.dims(),
            times.len()
        );
        let (theirs, ours) = (latents.dim(1)?, self.latent_shape()?[0]);
        ensure!(theirs == ours, "{}: step {i} has latents of {theirs} channels, step 0 of {ours}", self.name);
        let times = times.into_iter().map(|t| process.check_time(t)).collect::<Result<Vec<f32>>>();
        let conditioning = self.conditioning.to_device(device)?;
        let conditioning = Conditioning::cat(&[&conditioning, &conditioning])?.with_sizes(self.sizes(i, &latents)?);
        Ok(Batch {
            conditioning: Conditioning { guidance: self.guidance(i, 2 * pairs)?, ..conditioning },
            latents: latents.to_device(device)?,
            noise: noise.to_device(device)?,
            times: times.with_context(|| format!("{}: step {i}", self.name))?,
            labels: vec![Label { target: 1.0, weight: 1.0 }; pairs],
        })
    }

    /// `<i>.guidance` of FLUX, one for each image; where it is missing, that of the run.
    fn guidance(&self, i: u64, images: usize) -> Result<Vec<f32>> {
        let key = format!("{i}.guidance");
        let Some(given) = self.tensors.get(&key) else { return Ok(vec![]) };
        ensure!(
            given.dims() == [images],
            "{}: '{key}' has shape {:?}; expected one number for each of {images} images",
            self.name,
            given.dims()
        );
        Ok(given.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// `<i>.time_ids`; where they are missing, those of whole images of the latents' size.
    fn sizes(&self, i: u64, latents: &Tensor) -> Result<Vec<TimeIds>> {
        let (images, _, h, w) = latents.dims4()?;
        let key = format!("{i}.time_ids");
        let Some(ids) = self.tensors.get(&key) else {
            return Ok(vec![TimeIds::whole(h * self.factor, w * self.factor); images]);
        };
        let rows: Option<Vec<[f32; 6]>> = match ids.dims() {
            [n, 6] if *n == images => {
                ids.to_dtype(DType::F32)?.to_vec2()?.into_iter().map(|row| row.try_into().ok()).collect()
            }
            _ => None,
        };
        let rows = rows.with_context(|| {
            format!("{}: '{key}' has shape {:?}; expected 6 numbers for each of {images} images", self.name, ids.dims())
        })?;
        Ok(rows.into_iter().map(TimeIds).collect())
    }
}
