//! From noise to pictures: classifier-free guidance around the UNet, then the VAE's decoder.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use nets::{
    image::{self, Rgb},
    noise::{Ddim, Schedule},
    prompt::{Conditioning, PromptEncoder, TimeIds},
    unet::UNet,
    vae::{self, Vae},
};
use rayon::prelude::*;

/// A whole Stable Diffusion model.
pub struct Painter {
    text: PromptEncoder,
    unet: UNet,
    vae: Vae,
    ddim: Ddim,
    device: Device,
    dtype: DType,
}

/// What came of a batch of B prompts.
pub struct Drawing {
    /// Final latents as the UNet sees them, (B, C, h, w), f32.
    pub latents: Tensor,
    /// B PNG files.
    pub pngs: Vec<Vec<u8>>,
}

impl Painter {
    /// Everything from `base`, the UNet from its own folder.
    ///
    /// # Errors
    /// A part that is missing or damaged; parts that do not fit each other; a number of steps that the schedule lacks.
    pub fn open(base: &Path, unet: &Path, steps: usize, dtype: DType, device: &Device) -> Result<Self> {
        let text = PromptEncoder::open(base, dtype, device)?;
        let of = unet;
        let unet = UNet::open(unet, dtype, device)?;
        // The VAE of SDXL overflows in f16: decoding is always f32.
        let vae = Vae::open(&base.join("vae"), DType::F32, device)?;
        let (([_, width], _), takes) = (text.shape(), unet.config.cross_attention_dim);
        ensure!(
            width == takes,
            "{} attends to states of width {takes}, the text encoder of {} makes {width}",
            of.display(),
            base.display()
        );
        let (channels, takes) = (vae.config.latent_channels, unet.config.in_channels);
        ensure!(
            channels == takes,
            "{} takes {takes} channels, the VAE of {} has {channels}",
            of.display(),
            base.display()
        );
        let ddim = Ddim::new(&Schedule::open(base)?, steps)?;
        Ok(Self { text, unet, vae, ddim, device: device.clone(), dtype })
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
    pub fn draw(&self, prompts: &[&str], noise: &Tensor, guidance: f64) -> Result<Drawing> {
        let threads = if self.device.is_cpu() { rayon::current_num_threads() } else { 1 };
        let share = prompts.len().div_ceil(threads);
        let drawn = prompts
            .par_chunks(share)
            .enumerate()
            .map(|(i, prompts)| self.draw_together(prompts, &noise.narrow(0, i * share, prompts.len())?, guidance));
        let drawn = drawn.collect::<Result<Vec<_>>>()?;
        let latents = drawn.iter().map(|d| &d.latents).collect::<Vec<_>>();
        Ok(Drawing { latents: Tensor::cat(&latents, 0)?, pngs: drawn.iter().flat_map(|d| d.pngs.clone()).collect() })
    }

    fn draw_together(&self, prompts: &[&str], noise: &Tensor, guidance: f64) -> Result<Drawing> {
        let guided = guidance > 1.0;
        let told = self.text.encode(prompts)?; // (B, ...)
        let told = match guided {
            true => Conditioning::cat(&[&self.text.negative(None)?.repeat(prompts.len())?, &told])?, // (2B, ...)
            false => told,
        };
        let (_, _, h, w) = noise.dims4()?;
        let factor = self.vae.config.factor();
        let rows = told.states.dim(0)?;
        let added = told.added(&vec![TimeIds::whole(h * factor, w * factor); rows])?;
        let mut x = noise.to_device(&self.device)?; // (B, C, h, w), f32
        for &t in &self.ddim.timesteps {
            let input = if guided { Tensor::cat(&[&x, &x], 0)? } else { x.clone() };
            let timesteps = vec![t as f32; input.dim(0)?];
            let eps = self.unet.forward(&input.to_dtype(self.dtype)?, &timesteps, &told.states, added.as_ref())?;
            let eps = eps.to_dtype(DType::F32)?;
            let eps = match guided {
                true => {
                    let (without, with) =
                        (eps.narrow(0, 0, prompts.len())?, eps.narrow(0, prompts.len(), prompts.len())?);
                    (&without + ((with - &without)? * guidance)?)?
                }
                false => eps,
            };
            x = self.ddim.step(&x, &eps, t)?;
        }
        let pixels = self.vae.decode(&x)?; // (B, 3, H, W)
        let (_, _, height, width) = pixels.dims4()?;
        let images = vae::to_u8(&pixels)?.into_iter();
        let pngs = images.map(|data| image::png(&Rgb { width, height, data })).collect::<Result<_>>();
        Ok(Drawing { latents: x, pngs: pngs.context("cannot write an image")? })
    }
}
