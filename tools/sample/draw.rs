//! From noise to pictures: classifier-free guidance around the UNet, then the VAE's decoder.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use nets::{
    image::Rgb,
    noise::Schedule,
    prompt::{Conditioning, PromptEncoder, TimeIds},
    sampler::{Method, Sampler},
    unet::UNet,
    vae::{self, Vae},
};
use rayon::prelude::*;

/// How images are drawn, whatever they show.
#[derive(Clone, Debug)]
pub struct Settings {
    pub method: Method,
    pub steps: usize,
    /// Weight of the prompt against the negative one; 1 or less: no guidance.
    pub guidance: f64,
    pub negative: Option<String>,
    /// SDXL: what sizes and crop it is told; `None` is an image made at its own size.
    pub time_ids: Option<TimeIds>,
}

impl Settings {
    pub fn guided(&self) -> bool {
        self.guidance > 1.0
    }
}

/// A whole Stable Diffusion model.
pub struct Painter {
    text: PromptEncoder,
    unet: UNet,
    vae: Vae,
    schedule: Schedule,
    settings: Settings,
    /// What guidance leads away from, one row.
    negative: Option<Conditioning>,
    device: Device,
    dtype: DType,
}

/// What came of a batch of B prompts.
pub struct Drawing {
    /// Final latents as the UNet sees them, (B, C, h, w), f32.
    pub latents: Tensor,
    pub images: Vec<Rgb>,
}

impl Painter {
    /// Everything from `base`, the UNet from its own folder.
    ///
    /// # Errors
    /// A part that is missing or damaged; parts that do not fit each other; settings that the model does not know.
    pub fn open(base: &Path, unet: &Path, settings: Settings, dtype: DType, device: &Device) -> Result<Self> {
        let text = PromptEncoder::open(base, dtype, device)?;
        let schedule = Schedule::open(base)?;
        let of = base.join("scheduler/scheduler_config.json");
        settings.method.begin(&schedule, settings.steps).with_context(|| of.display().to_string())?;
        let of = unet;
        let unet = UNet::open(unet, dtype, device)?;
        text.check(&unet.config).with_context(|| format!("{} and {}", of.display(), base.display()))?;
        // The VAE of SDXL overflows in f16: decoding is always f32.
        let vae = Vae::open(&base.join("vae"), DType::F32, device)?;
        let (channels, takes) = (vae.config.latent_channels, unet.config.in_channels);
        ensure!(
            channels == takes,
            "{} takes {takes} channels, the VAE of {} has {channels}",
            of.display(),
            base.display()
        );
        ensure!(
            settings.time_ids.is_none() || text.is_sdxl(),
            "--time-ids is SDXL's; {} knows no sizes",
            base.display()
        );
        let negative = match settings.guided() {
            true => Some(text.negative(settings.negative.as_deref())?),
            false => None,
        };
        Ok(Self { text, unet, vae, schedule, settings, negative, device: device.clone(), dtype })
    }

    /// The base's text encoders, by their folders' names.
    pub fn text_encoders(&self) -> &'static [&'static str] {
        self.text.parts()
    }

    /// (C, h, w) of the latents: those given, or of the asked size in pixels.
    ///
    /// # Errors
    /// A size that the VAE and the UNet cannot halve as often as they must.
    pub fn latent_size(
        &self,
        height: Option<usize>,
        width: Option<usize>,
        given: Option<&Tensor>,
    ) -> Result<[usize; 3]> {
        let (channels, factor) = (self.unet.config.in_channels, self.vae.config.factor());
        if let Some(given) = given {
            let (_, c, h, w) = given.dims4()?;
            ensure!(height.is_none() && width.is_none(), "--latents decides the size: leave out --height and --width");
            ensure!(c == channels, "--latents has {c} channels, the UNet takes {channels}");
            return Ok([c, h, w]);
        }
        let side = |asked: Option<usize>, flag: &str| -> Result<usize> {
            let pixels = asked.unwrap_or(self.unet.config.sample_size * factor);
            ensure!(
                pixels > 0 && pixels.is_multiple_of(factor),
                "{flag} {pixels} is not a multiple of the VAE's {factor}"
            );
            Ok(pixels / factor)
        };
        Ok([channels, side(height, "--height")?, side(width, "--width")?])
    }

    /// `noise` (B, C, h, w), standard normal. On the CPU each thread draws a few images by itself, which keeps it busier
    /// than sharing every operation; an image is the same whatever it is drawn with.
    pub fn draw(&self, prompts: &[&str], noise: &Tensor) -> Result<Drawing> {
        let threads = if self.device.is_cpu() { rayon::current_num_threads() } else { 1 };
        let share = prompts.len().div_ceil(threads);
        let drawn = prompts
            .par_chunks(share)
            .enumerate()
            .map(|(i, prompts)| self.draw_together(prompts, &noise.narrow(0, i * share, prompts.len())?));
        let drawn = drawn.collect::<Result<Vec<_>>>()?;
        let latents = drawn.iter().map(|d| &d.latents).collect::<Vec<_>>();
        Ok(Drawing { latents: Tensor::cat(&latents, 0)?, images: drawn.into_iter().flat_map(|d| d.images).collect() })
    }

    fn draw_together(&self, prompts: &[&str], noise: &Tensor) -> Result<Drawing> {
        let b = prompts.len();
        let prompted = self.text.encode(prompts)?;
        let told = match &self.negative {
            Some(negative) => Conditioning::cat(&[&negative.repeat(b)?, &prompted])?, // (2B, ...)
            None => prompted,
        };
        let mut sampler = self.settings.method.begin(&self.schedule, self.settings.steps)?;
        let noise = noise.to_device(&self.device)?;
        let latents = self.walk(sampler.as_mut(), &noise, &told)?; // (B, C, h, w), f32
        let pixels = self.vae.decode(&latents)?; // (B, 3, H, W)
        let (_, _, height, width) = pixels.dims4()?;
        let images = vae::to_u8(&pixels)?.into_iter().map(|data| Rgb { width, height, data }).collect();
        Ok(Drawing { latents, images })
    }

    /// The whole way from standard normal noise to the final latents.
    fn walk(&self, sampler: &mut dyn Sampler, noise: &Tensor, told: &Conditioning) -> Result<Tensor> {
        let (b, _, h, w) = noise.dims4()?;
        let rows = told.states.dim(0)?; // B, or 2B: the negative ones first
        let factor = self.vae.config.factor();
        let sizes = self.settings.time_ids.unwrap_or(TimeIds::whole(h * factor, w * factor));
        let added = told.added(&vec![sizes; rows])?;
        let mut x = (noise * sampler.initial_sigma())?;
        for (i, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
            let seen = sampler.input(i, &x)?.to_dtype(self.dtype)?;
            let seen = if rows == b { seen } else { Tensor::cat(&[&seen, &seen], 0)? };
            let answer =
                self.unet.forward(&seen, &vec![t; rows], &told.states, added.as_ref())?.to_dtype(DType::F32)?;
            let answer = match rows == b {
                true => answer,
                false => {
                    let (without, with) = (answer.narrow(0, 0, b)?, answer.narrow(0, b, b)?);
                    (&without + ((with - &without)? * self.settings.guidance)?)?
                }
            };
            x = sampler.step(i, &x, &answer)?;
        }
        Ok(x)
    }
}
