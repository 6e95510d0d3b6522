//! From noise to pictures: the text encoder, the denoiser under a sampler, and the VAE's decoder.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use nets::denoiser::{Config, Denoiser, Guided};
use nets::drawing::{self, Drawing, guidance, usual_weight, with_weight};
use nets::image::MAX_PIXELS;
use nets::sampler::{GivenNoise, Guidance, Noise, Sampling, Scheduler};
use nets::vae::Vae;
use nets::{conditioning::TimeIds, process::Process, prompt::PromptEncoder};
use rayon::prelude::*;

#[derive(Clone, Debug)]
pub struct Settings {
    pub sampling: Sampling,
    /// Weight of the prompt against the negative one; 1 or less: no guidance. Where the denoiser takes it as an input, that
    /// input. `None`: as diffusers' pipeline has it.
    pub guidance: Option<f64>,
    pub negative: Option<String>,
    /// SDXL's sizes and crop; `None`: those of an image that was made at its own size.
    pub time_ids: Option<TimeIds>,
}

impl Settings {
    /// With the guidance of a denoiser whose user names none.
    fn of(self, denoiser: &Config) -> Self {
        Self { guidance: Some(self.guidance.unwrap_or(usual_weight(denoiser))), ..self }
    }

    pub fn weight(&self) -> f64 {
        self.guidance.unwrap_or(1.0)
    }
}

pub struct Painter {
    text: PromptEncoder,
    denoiser: Denoiser,
    vae: Vae,
    process: Process,
    pub settings: Settings,
    guidance: Option<Guidance>,
    device: Device,
}

impl Painter {
    /// Everything from the model folder `base`, the denoiser from its own folder.
    pub fn open(base: &Path, denoiser: &Path, settings: Settings, dtype: DType, device: &Device) -> Result<Self> {
        let text = PromptEncoder::open(base, dtype, device).context("--base")?;
        let process = Process::open(base)?;
        let file = base.join(Process::FILE);
        let (folder, config) = (denoiser.display(), Config::read(denoiser)?);
        settings.sampling.sampler(&process, [config.side; 2]).with_context(|| file.display().to_string())?;
        let settings = settings.of(&config);
        let denoiser = Denoiser::open(denoiser, dtype, device)?;
        denoiser.config.check_text(text.widths()).with_context(|| format!("{folder} and {}", base.display()))?;
        // The VAE of SDXL overflows in f16, so decoding is always f32.
        let vae = Vae::open(&base.join("vae"), DType::F32, device)?;
        let (channels, [takes, _]) = (vae.config.latent_channels, denoiser.config.channels);
        ensure!(channels == takes, "{folder} takes {takes} channels, the VAE of {} has {channels}", base.display());
        ensure!(
            settings.time_ids.is_none() || (text.widths().pooled.is_some() && matches!(process, Process::Ddpm(_))),
            "--time-ids is for SDXL; {} does not use sizes",
            base.display()
        );
        let by_negative = matches!(config.guidance, Guided::ByNegative(_));
        ensure!(
            settings.negative.is_none() || by_negative,
            "--negative works through guidance by a second prediction, which {} was made to do without",
            base.display()
        );
        let guidance = guidance(&config, settings.weight(), &text, settings.negative.as_deref())?;
        Ok(Self { text, denoiser, vae, process, settings, guidance, device: device.clone() })
    }

    pub fn text_encoders(&self) -> &'static [&'static str] {
        self.text.parts()
    }

    /// The sampler that the settings ask for, or the model's own.
    pub fn scheduler(&self) -> Scheduler {
        self.settings.sampling.scheduler(&self.process)
    }

    /// The denoiser's name in the model folder and in the provenance.
    pub fn part(&self) -> &'static str {
        self.denoiser.config.part
    }

    /// The sampler's name in AUTOMATIC1111's web UI.
    pub fn sampler_label(&self) -> String {
        self.settings.sampling.label(&self.process)
    }

    /// (C, h, w) of the latents: those given, or of the asked size in pixels.
    pub fn latent_size(
        &self,
        height: Option<usize>,
        width: Option<usize>,
        given: Option<&GivenNoise>,
    ) -> Result<[usize; 3]> {
        let ([channels, _], factor) = (self.denoiser.config.channels, self.vae.config.factor());
        if let Some(given) = given {
            let (_, c, h, w) = given.latents.dims4()?;
            ensure!(height.is_none() && width.is_none(), "--latents decides the size: leave out --height and --width");
            ensure!(c == channels, "--latents has {c} channels, the denoiser takes {channels}");
            let multiple = self.denoiser.config.multiple;
            ensure!(
                h.is_multiple_of(multiple) && w.is_multiple_of(multiple),
                "--latents are {h} x {w}, and the transformer takes multiples of {multiple}"
            );
            let sampler = self.settings.sampling.sampler(&self.process, [h, w])?;
            if sampler.adds_noise() {
                given.check_steps(sampler.timesteps().len()).context("--latents does not fit")?;
            }
            return Ok([c, h, w]);
        }
        let side = |asked: Option<usize>, flag: &str| -> Result<usize> {
            let pixels = asked.unwrap_or(self.denoiser.config.side * factor);
            ensure!(
                pixels > 0 && pixels.is_multiple_of(factor),
                "{flag} {pixels} is not a multiple of the VAE's {factor}"
            );
            let step = factor * self.denoiser.config.multiple;
            ensure!(pixels.is_multiple_of(step), "{flag} {pixels} is not a multiple of the denoiser's {step}");
            Ok(pixels / factor)
        };
        let (h, w) = (side(height, "--height")?, side(width, "--width")?);
        let pixels = h.saturating_mul(w).saturating_mul(factor * factor);
        ensure!(
            pixels <= MAX_PIXELS,
            "--height {} and --width {} make {pixels} pixels; an image of more than {MAX_PIXELS} cannot be read again",
            h.saturating_mul(factor),
            w.saturating_mul(factor)
        );
        Ok([channels, h, w])
    }

    /// B images with latents of size (C, h, w). On the CPU each thread draws a few images by itself, which keeps it busier
    /// than sharing every operation. An image does not depend on the others of its batch.
    pub fn draw(&self, prompts: &[&str], noise: &Noise, latent: [usize; 3]) -> Result<Drawing> {
        let threads = if self.device.is_cpu() { rayon::current_num_threads() } else { 1 };
        let share = prompts.len().div_ceil(threads);
        let drawn = prompts.par_chunks(share).enumerate().map(|(i, prompts)| {
            let rows = i * share..i * share + prompts.len();
            self.draw_batch(prompts, &noise.rows(rows)?, latent)
        });
        let drawn = drawn.collect::<Result<Vec<_>>>()?;
        let latents = drawn.iter().map(|d| &d.latents).collect::<Vec<_>>();
        Ok(Drawing { latents: Tensor::cat(&latents, 0)?, images: drawn.into_iter().flat_map(|d| d.images).collect() })
    }

    fn draw_batch(&self, prompts: &[&str], noise: &Noise, latent: [usize; 3]) -> Result<Drawing> {
        let ([_, h, w], factor) = (latent, self.vae.config.factor());
        let sizes = self.settings.time_ids.unwrap_or(TimeIds::whole(h * factor, w * factor));
        let prompted = self.text.encode(prompts)?.with_sizes(vec![sizes; prompts.len()]);
        let prompted = with_weight(prompted, &self.denoiser.config, self.settings.weight())?;
        let mut sampler = self.settings.sampling.sampler(&self.process, [h, w])?;
        let models = (&self.denoiser, &self.vae);
        drawing::draw(models, sampler.as_mut(), noise, latent, &prompted, self.guidance.as_ref())
            .with_context(|| format!("with --guidance {}", self.settings.weight()))
    }
}
