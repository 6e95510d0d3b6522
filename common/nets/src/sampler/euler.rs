//! Euler's method on sigmas: SDXL's own sampler. Here x = x_0 + sigma eps, not scaled down as in the schedule.

use anyhow::Result;
use candle_core::{Result as Candle, Tensor};

use super::{Noise, Sampler, sigmas, spacing::spaced};
use crate::process::{Ddpm, FinalSigma, PredictionType, Spacing, mix};

pub struct Euler {
    timesteps: Vec<f32>,
    /// One more than there are timesteps.
    pub(super) sigmas: Vec<f64>,
    initial_sigma: f64,
    predicts: PredictionType,
}

impl Euler {
    pub fn new(process: &Ddpm, steps: usize, karras: bool) -> Result<Self> {
        sigmas::refuse_others(process)?;
        process.config.require("interpolation_type", &["\"linear\""])?;
        process.config.require("timestep_type", &["\"discrete\""])?;
        ["sigma_min", "sigma_max"].iter().try_for_each(|key| process.config.require(key, &[]))?;
        Self::ending_at(process, steps, karras, process.config.final_sigmas_type)
    }

    pub(super) fn ending_at(process: &Ddpm, steps: usize, karras: bool, end: FinalSigma) -> Result<Self> {
        let c = &process.config;
        let spacing = c.timestep_spacing.unwrap_or(Spacing::Linspace);
        let training = sigmas::of_training(process);
        // diffusers looks sigmas up at the timesteps as f32 stores them.
        let mut timesteps: Vec<f32> = spaced(c, spacing, steps)?.iter().map(|&t| t as f32).collect();
        let mut sigmas = sigmas::at(&training, &timesteps.iter().map(|&t| t as f64).collect::<Vec<_>>());
        if karras {
            sigmas = sigmas::karras(sigmas[0], sigmas[steps - 1], steps);
            timesteps = sigmas.iter().map(|&sigma| sigmas::timestep_of(sigma, &training) as f32).collect();
        }
        let sigmas = sigmas::with_end(&sigmas, &training, end);
        let largest = sigmas.iter().copied().fold(0.0, f64::max);
        let initial_sigma = match spacing {
            Spacing::Leading => (largest * largest + 1.0).sqrt(),
            Spacing::Linspace | Spacing::Trailing => largest,
        };
        Ok(Self { timesteps, sigmas, initial_sigma, predicts: c.prediction_type })
    }

    /// dx/dsigma = (x - x_0) / sigma at step i.
    pub(super) fn slope(&self, i: usize, x: &Tensor, prediction: &Tensor) -> Candle<Tensor> {
        match self.predicts {
            PredictionType::Epsilon => Ok(prediction.clone()),
            PredictionType::VPrediction => {
                let sigma = self.sigmas[i];
                let size = sigma * sigma + 1.0;
                mix(sigma / size, x, 1.0 / size.sqrt(), prediction)
            }
        }
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

    /// x + dx/dsigma (sigma' - sigma)
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, _: &Noise) -> Candle<Tensor> {
        mix(1.0, x, self.sigmas[i + 1] - self.sigmas[i], &self.slope(i, x, prediction)?)
    }
}
