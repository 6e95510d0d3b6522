//! DDIM without added noise (eta = 0).

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};

use super::{Noise, Sampler, final_alpha, spacing::spaced_whole};
use crate::process::{Ddpm, PredictionType, Spacing, mix};

pub struct Ddim {
    timesteps: Vec<f32>,
    process: Ddpm,
    final_alpha: f32,
    stride: usize,
}

impl Ddim {
    pub fn new(process: &Ddpm, steps: usize) -> Result<Self> {
        let c = &process.config;
        c.require("thresholding", &["false"])?; // which is not meant for latents
        let timesteps = spaced_whole(c, c.timestep_spacing.unwrap_or(Spacing::Leading), steps)?;
        let blind = timesteps.iter().find(|&&t| process.alphas_cumprod[t as usize] == 0.0);
        ensure!(
            blind.is_none() || c.prediction_type != PredictionType::Epsilon,
            "a prediction of epsilon says nothing about the image at timestep {}, where no signal is left; choose euler or dpmpp",
            blind.unwrap_or(&0.0)
        );
        Ok(Self {
            timesteps: timesteps.iter().map(|&t| t as f32).collect(),
            final_alpha: final_alpha(process, true),
            stride: c.num_train_timesteps / steps,
            process: process.clone(),
        })
    }
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// To x_{t - stride} (DDIM Eq. 12 with sigma = 0).
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, _: &Noise) -> Candle<Tensor> {
        let c = &self.process.config;
        let t = self.timesteps[i] as usize;
        let now = self.process.alphas_cumprod[t] as f64;
        let next = t.checked_sub(self.stride).map_or(self.final_alpha, |t| self.process.alphas_cumprod[t]) as f64;
        let (mut x0, eps) = self.process.x0_and_eps(x, prediction, now.sqrt(), (1.0 - now).sqrt())?;
        if c.clip_sample {
            x0 = x0.clamp(-c.clip_sample_range, c.clip_sample_range)?;
        }
        mix(next.sqrt(), &x0, (1.0 - next).sqrt(), &eps)
    }
}
