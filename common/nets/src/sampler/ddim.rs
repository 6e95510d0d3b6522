//! DDIM without added noise (eta = 0).

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};

use super::{Sampler, final_alpha, mix, spread::spread_whole, x0_and_eps};
use crate::noise::{PredictionType, Schedule, Spacing};

pub struct Ddim {
    timesteps: Vec<f32>,
    schedule: Schedule,
    final_alpha: f32,
    stride: usize,
}

impl Ddim {
    pub fn new(schedule: &Schedule, steps: usize) -> Result<Self> {
        let c = &schedule.config;
        ensure!(!c.thresholding, "thresholding is not supported; it is not meant for latents");
        let timesteps = spread_whole(c, c.timestep_spacing.unwrap_or(Spacing::Leading), steps)?;
        let blind = timesteps.iter().find(|&&t| schedule.alphas_cumprod[t as usize] == 0.0);
        ensure!(
            blind.is_none() || c.prediction_type != PredictionType::Epsilon,
            "prediction_type epsilon says nothing of timestep {}, where no signal is left; choose euler or dpmpp",
            blind.unwrap_or(&0.0)
        );
        Ok(Self {
            timesteps: timesteps.iter().map(|&t| t as f32).collect(),
            final_alpha: final_alpha(schedule, true),
            stride: c.num_train_timesteps / steps,
            schedule: schedule.clone(),
        })
    }
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// To x_{t - stride} (DDIM Eq. 12 with sigma = 0).
    fn step(&mut self, i: usize, x: &Tensor, answer: &Tensor) -> Candle<Tensor> {
        let c = &self.schedule.config;
        let t = self.timesteps[i] as usize;
        let now = self.schedule.alphas_cumprod[t] as f64;
        let next = t.checked_sub(self.stride).map_or(self.final_alpha, |t| self.schedule.alphas_cumprod[t]) as f64;
        let (mut x0, eps) = x0_and_eps(c.prediction_type, x, answer, now.sqrt(), (1.0 - now).sqrt())?;
        if c.clip_sample {
            x0 = x0.clamp(-c.clip_sample_range, c.clip_sample_range)?;
        }
        mix(next.sqrt(), &x0, (1.0 - next).sqrt(), &eps)
    }
}
