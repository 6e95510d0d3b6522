//! The loop around a sampler's steps, with classifier-free guidance (arXiv 2207.12598).

use anyhow::Result;
use candle_core::{DType, Tensor};

use super::{Noise, Sampler};
use crate::{conditioning::Conditioning, denoiser::Denoiser};

/// Away from `negative` (one row), `weight` times as far as the prompt alone leads.
pub struct Guidance {
    pub weight: f64,
    pub negative: Conditioning,
}

/// The final latents (B, C, h, w), f32, of B images with this conditioning and noise. `latent`: (C, h, w).
pub fn walk(
    denoiser: &Denoiser,
    sampler: &mut dyn Sampler,
    noise: &Noise,
    latent: [usize; 3],
    prompted: &Conditioning,
    guidance: Option<&Guidance>,
) -> Result<Tensor> {
    let b = prompted.states.dim(0)?;
    let device = prompted.states.device();
    let conditioning = match guidance {
        Some(Guidance { negative, .. }) => {
            let negative = negative.repeat(b)?.with_sizes(prompted.sizes.clone());
            Conditioning::cat(&[&negative, prompted])? // 2B
        }
        None => prompted.clone(),
    };
    let dtype = conditioning.states.dtype();
    let rows = conditioning.states.dim(0)?;
    let mut x = (noise.initial(latent)?.to_device(device)? * sampler.initial_sigma())?; // (B, C, h, w)
    for (i, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
        let input = sampler.input(i, &x)?.to_dtype(dtype)?;
        let input = if guidance.is_some() { Tensor::cat(&[&input, &input], 0)? } else { input };
        let prediction = denoiser.predict(&input, &vec![t; rows], &conditioning)?.to_dtype(DType::F32)?;
        let prediction = match guidance {
            None => prediction,
            Some(Guidance { weight, .. }) => {
                let (negative, positive) = (prediction.narrow(0, 0, b)?, prediction.narrow(0, b, b)?);
                (&negative + ((positive - &negative)? * *weight)?)?
            }
        };
        x = sampler.step(i, &x, &prediction, noise)?;
    }
    Ok(x)
}
