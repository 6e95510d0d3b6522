//! Euler's method on sigmas: SDXL's own sampler. Here x = x_0 + sigma eps, not scaled down as in the schedule. Ancestral, each
//! step goes further down than to the next sigma, and noise brings it up to that again.

use anyhow::Result;
use candle_core::{Result as Candle, Tensor};

use super::{Noise, Sampler, sigmas, spacing::spaced};
use crate::process::{Ddpm, FinalSigma, PredictionType, Spacing, mix};

pub struct Euler {
    timesteps: Vec<f32>,
    /// One more than there are timesteps.
    sigmas: Vec<f64>,
    initial_sigma: f64,
    predicts: PredictionType,
    ancestral: bool,
}

impl Euler {
    pub fn new(process: &Ddpm, steps: usize, karras: bool) -> Result<Self> {
        sigmas::refuse_others(process)?;
        process.config.require("interpolation_type", &["\"linear\""])?;
        process.config.require("timestep_type", &["\"discrete\""])?;
        ["sigma_min", "sigma_max"].iter().try_for_each(|key| process.config.require(key, &[]))?;
        Self::ending_at(process, steps, karras, process.config.final_sigmas_type, false)
    }

    pub fn ancestral(process: &Ddpm, steps: usize, karras: bool) -> Result<Self> {
        Self::ending_at(process, steps, karras, FinalSigma::Zero, true)
    }

    fn ending_at(process: &Ddpm, steps: usize, karras: bool, end: FinalSigma, ancestral: bool) -> Result<Self> {
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
        Ok(Self { timesteps, sigmas, initial_sigma, predicts: c.prediction_type, ancestral })
    }

    /// dx/dsigma = (x - x_0) / sigma at step i.
    fn slope(&self, i: usize, x: &Tensor, prediction: &Tensor) -> Candle<Tensor> {
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

    fn adds_noise(&self) -> bool {
        self.ancestral
    }

    fn input(&self, i: usize, x: &Tensor) -> Candle<Tensor> {
        let sigma = self.sigmas[i];
        x / (sigma * sigma + 1.0).sqrt()
    }

    /// x' = x + dx/dsigma (down - sigma) + up noise, where down = sigma' and up = 0, or ancestral with
    /// up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2 and down^2 = sigma'^2 - up^2.
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, noise: &Noise) -> Candle<Tensor> {
        let (now, next, slope) = (self.sigmas[i], self.sigmas[i + 1], self.slope(i, x, prediction)?);
        if !self.ancestral {
            return mix(1.0, x, next - now, &slope);
        }
        let up = (next.powi(2) * (now.powi(2) - next.powi(2)) / now.powi(2)).sqrt();
        let down = (next.powi(2) - up.powi(2)).sqrt();
        let x = mix(1.0, x, down - now, &slope)?;
        if up == 0.0 { Ok(x) } else { mix(1.0, &x, up, &noise.of_step(i, &x)?) }
    }
}
