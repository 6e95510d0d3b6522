//! Pictures from noise: the guided walk of a sampler, and the VAE's decoder.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

use crate::conditioning::Conditioning;
use crate::denoiser::{Config, Denoiser, Guided};
use crate::image::Rgb;
use crate::prompt::PromptEncoder;
use crate::sampler::{Guidance, Noise, Sampler, walk};
use crate::vae::{self, Vae};

/// The result for a batch of B prompts.
pub struct Drawing {
    /// Final latents as the denoiser sees them, (B, C, h, w), f32.
    pub latents: Tensor,
    pub images: Vec<Rgb>,
}

/// The weight of guidance of a denoiser whose user names none, as in diffusers' pipelines.
pub fn usual_weight(config: &Config) -> f64 {
    match config.guidance {
        Guided::ByNegative(weight) | Guided::AsInput(weight) => weight,
        Guided::Never => 1.0,
    }
}

/// Guidance by a second prediction, for the negative prompt; `None` if the denoiser does without or the weight is 1 or less.
pub fn guidance(
    config: &Config,
    weight: f64,
    text: &PromptEncoder,
    negative: Option<&str>,
) -> Result<Option<Guidance>> {
    let by_negative = matches!(config.guidance, Guided::ByNegative(_));
    Ok(match by_negative && weight > 1.0 {
        true => Some(Guidance { weight, negative: text.negative(negative)? }),
        false => None,
    })
}

/// The prompts, with the weight where the denoiser takes it as an input.
pub fn with_weight(prompted: Conditioning, config: &Config, weight: f64) -> Result<Conditioning> {
    Ok(match config.guidance {
        Guided::AsInput(_) => prompted.with_guidance(weight as f32)?,
        _ => prompted,
    })
}

/// Draws B images with latents of size `latent`: (C, h, w). Fails if the latents are not finite.
pub fn draw(
    (denoiser, vae): (&Denoiser, &Vae),
    sampler: &mut dyn Sampler,
    noise: &Noise,
    latent: [usize; 3],
    prompted: &Conditioning,
    guidance: Option<&Guidance>,
) -> Result<Drawing> {
    let latents = walk(denoiser, sampler, noise, latent, prompted, guidance)?; // (B, C, h, w)
    let finite = latents.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?.is_finite();
    ensure!(
        finite,
        "the denoiser's latents hold NaN or an infinity: the model is damaged, or the guidance is too high"
    );
    let pixels = vae.decode(&latents)?; // (B, 3, H, W)
    let (_, _, height, width) = pixels.dims4()?;
    let images = vae::to_u8(&pixels)?.into_iter().map(|data| Rgb { width, height, data }).collect();
    Ok(Drawing { latents, images })
}
