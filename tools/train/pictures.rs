//! Pictures of a few prompts during training, drawn by the base and by the policy from the same noise, and the share of the
//! prompts on which the policy's picture scores higher.
//!
//! They lie in OUT_DIR/pictures/: `prompts.txt`, `base/00.png`, `step-000100/00.png`, ..., and `winrates.jsonl`.

use std::path::{Path, PathBuf};
use std::{fs, io::Write};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use nets::conditioning::{Conditioning, TimeIds};
use nets::image::{self, Rgb};
use nets::sampler::{Guidance, Noise, Sampling};
use nets::{
    denoiser::Denoiser, drawing, folder, lora, process::Process, prompt::PromptEncoder, vae::Vae, weights::Weights,
};
use pipe::prompt_source::{self, Prompt};
use pipe::{atomic, cli::number, id, seed};
use rayon::prelude::*;
use serde_json::json;

use crate::judges::{Judges, Picture};
use crate::models::ModelFlags;
use crate::reference::{detached, whole};
use crate::state::State;

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Pictures")]
pub struct PictureFlags {
    /// Draw some prompts every N steps, and at the end, into OUT_DIR/pictures/: with the policy, and once with the base
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    sample_every: Option<u64>,
    /// A prompt to draw; may be repeated
    #[arg(long, value_name = "TEXT", requires = "sample_every")]
    sample_prompt: Vec<String>,
    /// Prompts to draw: anything that `prompts` reads
    #[arg(long, value_name = "FILE", requires = "sample_every")]
    sample_prompts: Option<PathBuf>,
    /// Draw only the first N of the file's prompts
    #[arg(long, value_name = "N", default_value_t = 4, requires = "sample_every")]
    sample_max: usize,
    /// Sampling steps per picture
    #[arg(long, value_name = "N", default_value_t = 25, requires = "sample_every")]
    sample_steps: usize,
    /// Weight of the prompt [default: as diffusers' pipeline of this model has it]
    #[arg(long, value_name = "X", requires = "sample_every", value_parser = number("a number", f64::is_finite))]
    sample_guidance: Option<f64>,
    /// Score the pictures with the metrics in this folder (DIR/hps, DIR/clip, ...), and write the policy's win rates over the base
    #[arg(long, value_name = "DIR", requires = "sample_every")]
    sample_models: Option<PathBuf>,
}

impl PictureFlags {
    /// The prompts, where pictures are asked for.
    fn prompts(&self) -> Result<Option<Vec<Prompt>>> {
        if self.sample_every.is_none() {
            return Ok(None);
        }
        let text = |prompt: &String| Prompt {
            prompt_id: id::prompt_id(prompt),
            prompt: prompt.clone(),
            set: String::new(),
            category: None,
            challenge: None,
            nsfw_prob: None,
        };
        let mut prompts: Vec<Prompt> = self.sample_prompt.iter().map(text).collect();
        if let Some(file) = &self.sample_prompts {
            let read = prompt_source::read(std::slice::from_ref(file), None)?;
            prompts.extend(read.prompts.into_iter().take(self.sample_max));
        }
        ensure!(
            !prompts.is_empty(),
            "--sample-every draws prompts: name them with --sample-prompt or --sample-prompts"
        );
        Ok(Some(prompts))
    }
}

pub struct Pictures {
    every: u64,
    folder: PathBuf,
    prompts: Vec<Prompt>,
    seeds: Vec<u64>,
    /// One row per prompt.
    prompted: Vec<Conditioning>,
    guidance: Option<Guidance>,
    weight: f64,
    process: Process,
    sampling: Sampling,
    /// (C, h, w)
    latent: [usize; 3],
    base: Vec<Picture>,
    vae: PathBuf,
    device: Device,
    judges: Option<Judges>,
}

/// The pictures of a step, and by metric the policy's win rate over the base.
pub struct Drawn {
    pub pictures: Vec<Picture>,
    pub rates: Vec<(&'static str, f64)>,
}

impl Pictures {
    /// Draws with the base. `None` where no pictures are asked for. `side`: of the pictures in pixels.
    pub fn begin(
        flags: &PictureFlags,
        models: &ModelFlags,
        side: Option<usize>,
        seed: u64,
        out: &Path,
        device: &Device,
    ) -> Result<Option<Self>> {
        let (Some(every), Some(prompts)) = (flags.sample_every, flags.prompts()?) else { return Ok(None) };
        let text = PromptEncoder::open(&models.base, DType::F32, device).context("--base")?;
        let base = Denoiser::open(&folder::denoiser(&models.base)?, DType::F32, device)?;
        let vae = models.vae_folder();
        let factor = Vae::open(&vae, DType::F32, &Device::Cpu)?.config.factor();
        let side = side.map_or(base.config.side, |pixels| pixels / factor);
        let weight = flags.sample_guidance.unwrap_or_else(|| drawing::usual_weight(&base.config));
        let prompted = |prompt: &Prompt| -> Result<Conditioning> {
            drawing::with_weight(text.encode(&[&prompt.prompt])?, &base.config, weight)
        };
        let mut pictures = Self {
            every,
            folder: out.join("pictures"),
            seeds: prompts.iter().map(|p| seed::draws(seed, "image", &p.prompt_id, 0).next_u64()).collect(),
            prompted: prompts.iter().map(prompted).collect::<Result<_>>()?,
            guidance: drawing::guidance(&base.config, weight, &text, None)?,
            weight,
            process: Process::open(&models.base)?,
            sampling: Sampling { scheduler: None, steps: flags.sample_steps, karras: false, spacing: None },
            latent: [base.config.channels[0], side, side],
            base: vec![],
            vae,
            device: device.clone(),
            judges: flags.sample_models.as_ref().map(|folder| Judges::open(folder, device)).transpose()?,
            prompts,
        };
        let texts: String = pictures.prompts.iter().map(|p| p.prompt.replace(['\n', '\r'], " ") + "\n").collect();
        atomic::write(&pictures.folder.join("prompts.txt"), texts.as_bytes())?;
        pictures.base = pictures.draw(&base, "base")?;
        if let Some(judges) = &mut pictures.judges {
            judges.keep_base(&pictures.base, &pictures.prompts)?;
        }
        Ok(Some(pictures))
    }

    /// Takes the base's pictures; later calls get none.
    pub fn take_base(&mut self) -> Vec<Picture> {
        std::mem::take(&mut self.base)
    }

    pub fn due(&self, step: u64, last: u64) -> bool {
        step.is_multiple_of(self.every) || step == last
    }

    /// Draws with the policy as it is after `step`. `unet`: the UNet that training started from.
    pub fn draw_policy(&self, step: u64, state: &State, unet: &Path) -> Result<Drawn> {
        let tensors = match &state.counters.lora {
            None => whole(&state.policy),
            Some(config) => lora::merged(&Weights::open(unet)?, config, &detached(&state.policy.params).collect())?,
        };
        let weights = Weights::in_memory("the policy", tensors);
        let policy = Denoiser::of(unet, &weights, DType::F32, &self.device)?;
        let pictures = self.draw(&policy, &format!("step-{step:06}"))?;
        let rates = match &self.judges {
            Some(judges) => self.judge(judges, step, &pictures)?,
            None => vec![],
        };
        Ok(Drawn { pictures, rates })
    }

    /// One picture per prompt, written into the folder `name`. On the CPU each thread draws pictures by itself.
    fn draw(&self, denoiser: &Denoiser, name: &str) -> Result<Vec<Picture>> {
        let vae = Vae::open(&self.vae, DType::F32, &self.device)?;
        let draw = |i: usize| self.picture(denoiser, &vae, i);
        let all = 0..self.prompts.len();
        let drawn: Vec<Rgb> = match self.device.is_cpu() {
            true => all.into_par_iter().map(draw).collect::<Result<_>>()?,
            false => all.map(draw).collect::<Result<_>>()?,
        };
        let folder = self.folder.join(name);
        let file = |(i, rgb): (usize, Rgb)| {
            let png = image::png(&rgb, Some(("parameters", &self.parameters(i, &rgb, name))))?;
            atomic::write_unsynced(&folder.join(format!("{i:02}.png")), &png)?;
            Ok(Picture { png, width: rgb.width, height: rgb.height })
        };
        drawn.into_iter().enumerate().map(file).collect()
    }

    fn picture(&self, denoiser: &Denoiser, vae: &Vae, i: usize) -> Result<Rgb> {
        let ([_, h, w], factor) = (self.latent, vae.config.factor());
        let prompted = self.prompted[i].clone().with_sizes(vec![TimeIds::whole(h * factor, w * factor)]);
        let mut sampler = self.sampling.sampler(&self.process, [h, w])?;
        let noise = Noise::new(vec![self.seeds[i]], 0..1, None)?;
        let guidance = self.guidance.as_ref();
        let drawn = drawing::draw((denoiser, vae), sampler.as_mut(), &noise, self.latent, &prompted, guidance)?;
        drawn.images.into_iter().next().context("the VAE decoded nothing")
    }

    /// As `sample` writes them.
    fn parameters(&self, i: usize, rgb: &Rgb, model: &str) -> String {
        format!(
            "{}\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {model}, RNG: balanced-dpo",
            self.prompts[i].prompt,
            self.sampling.steps,
            self.sampling.label(&self.process),
            self.weight,
            self.seeds[i],
            rgb.width,
            rgb.height
        )
    }

    /// Adds a line to winrates.jsonl.
    fn judge(&self, judges: &Judges, step: u64, pictures: &[Picture]) -> Result<Vec<(&'static str, f64)>> {
        let rates = judges.compare(pictures, &self.prompts)?;
        let path = self.folder.join("winrates.jsonl");
        let metrics: serde_json::Map<_, _> =
            rates.iter().map(|(name, rate)| ((*name).to_owned(), rate.json())).collect();
        let before = fs::read_to_string(&path).unwrap_or_default();
        // A run that went back to a checkpoint comes to a step again.
        let earlier = |line: &&str| {
            serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line["step"].as_u64() < Some(step))
        };
        let mut lines: Vec<String> = before.lines().filter(earlier).map(str::to_owned).collect();
        lines.push(json!({ "step": step, "n": self.prompts.len(), "metrics": metrics }).to_string());
        let mut text = vec![];
        lines.iter().try_for_each(|line| writeln!(text, "{line}"))?;
        atomic::write(&path, &text)?;
        Ok(rates.into_iter().map(|(name, rate)| (name, rate.rate())).collect())
    }
}
