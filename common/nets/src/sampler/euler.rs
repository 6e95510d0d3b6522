//! Euler's method on sigmas: SDXL's own sampler. Here x = x_0 + sigma eps, not scaled down as in the schedule.

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};

use super::{Sampler, mix, refuse_other_sigmas, sigmas_at, spread::spread};
use crate::noise::{PredictionType, Schedule, Spacing};

pub struct Euler {
    timesteps: Vec<f32>,
    /// One more than there are timesteps.
    sigmas: Vec<f64>,
    initial_sigma: f64,
    predicts: PredictionType,
}

impl Euler {
    pub fn new(schedule: &Schedule, steps: usize) -> Result<Self> {
        let c = &schedule.config;
        refuse_other_sigmas(c)?;
        let plain = |setting: &Option<String>, usual: &str| setting.as_deref().is_none_or(|s| s == usual);
        ensure!(plain(&c.interpolation_type, "linear"), "an interpolation_type other than linear is not supported");
        ensure!(plain(&c.timestep_type, "discrete"), "a timestep_type other than discrete is not supported");
        let spacing = c.timestep_spacing.unwrap_or(Spacing::Linspace);
        // diffusers looks sigmas up at the timesteps as f32 stores them
        let timesteps: Vec<f32> = spread(c, spacing, steps)?.iter().map(|&t| t as f32).collect();
        let sigmas = sigmas_at(&timesteps.iter().map(|&t| t as f64).collect::<Vec<_>>(), schedule);
        let largest = sigmas.iter().copied().fold(0.0, f64::max);
        let initial_sigma = match spacing {
            Spacing::Leading => (largest * largest + 1.0).sqrt(),
            Spacing::Linspace | Spacing::Trailing => largest,
        };
        Ok(Self { timesteps, sigmas, initial_sigma, predicts: c.prediction_type })
    }
}

impl Sampler for Euler {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn initial_sigma(&self) -> f64 {
        self.initial_sigma
    }

    fn input(&self, i: usize, x: &Tensor) -> Candle<Tensor> {
        let sigma = self.sigmas[i];
        x / (sigma * sigma + 1.0).sqrt()
    }

    /// x + dx/dsigma (sigma' - sigma), where dx/dsigma = (x - x_0) / sigma.
    fn step(&mut self, i: usize, x: &Tensor, answer: &Tensor) -> Candle<Tensor> {
        let (now, next) = (self.sigmas[i], self.sigmas[i + 1]);
        match self.predicts {
            PredictionType::Epsilon => mix(1.0, x, next - now, answer),
            PredictionType::VPrediction => {
                let size = now * now + 1.0;
                let slope = mix(now / size, x, 1.0 / size.sqrt(), answer)?;
                mix(1.0, x, next - now, &slope)
            }
        }
    }
}
