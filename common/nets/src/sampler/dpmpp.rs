//! DPM-Solver++ of second order, multistep, midpoint: "DPM++ 2M".

use anyhow::Result;
use candle_core::{Result as Candle, Tensor};

use super::{Noise, Sampler, sigmas, spacing::spaced_before_end};
use crate::process::{Ddpm, FinalSigma, Spacing, mix};

pub struct Dpmpp {
    timesteps: Vec<f32>,
    /// sigma / alpha, one more than there are timesteps.
    sigmas: Vec<f64>,
    process: Ddpm,
    first_order_last: bool,
    /// x_0 as predicted at the step before.
    before: Option<Tensor>,
}

impl Dpmpp {
    pub fn new(process: &Ddpm, steps: usize, karras: bool) -> Result<Self> {
        let c = &process.config;
        sigmas::refuse_others(process)?;
        // diffusers' class takes other samplers' words for its own default.
        c.require("algorithm_type", &["\"dpmsolver++\"", "\"deis\""])?;
        c.require("solver_type", &["\"midpoint\"", "\"logrho\"", "\"bh1\"", "\"bh2\""])?;
        c.require("solver_order", &["2"])?;
        c.require("lambda_min_clipped", &["\"-inf\""])?;
        c.require("use_dynamic_shifting", &["false"])?;
        c.require("thresholding", &["false"])?; // which is not meant for latents
        let training = sigmas::of_training(process);
        let mut timesteps = spaced_before_end(c, c.timestep_spacing.unwrap_or(Spacing::Linspace), steps)?;
        let mut sigmas = sigmas::at(&training, &timesteps);
        if karras {
            // Over all training timesteps, whatever the spacing is.
            sigmas = sigmas::karras(training[training.len() - 1].into(), training[0].into(), steps);
            timesteps = sigmas.iter().map(|&s| sigmas::timestep_of(s, &training).round_ties_even()).collect();
        }
        Ok(Self {
            sigmas: sigmas::with_end(&sigmas, &training, c.final_sigmas_type),
            timesteps: timesteps.iter().map(|&t| t as f32).collect(),
            first_order_last: c.euler_at_final
                || (c.lower_order_final && steps < 15)
                || c.final_sigmas_type == FinalSigma::Zero,
            process: process.clone(),
            before: None,
        })
    }
}

/// alpha and sigma of x_t = alpha x_0 + sigma eps, from their ratio.
fn alpha_sigma(ratio: f64) -> (f64, f64) {
    let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
    (alpha, ratio * alpha)
}

impl Sampler for Dpmpp {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// With lambda = log(alpha / sigma), h = lambda' - lambda and r = (h of the step before) / h:
    ///
    ///   x' = sigma'/sigma x - alpha' (e^-h - 1) D,   D = x_0 + (x_0 - x_0 before) / (2 r)
    ///
    /// and D = x_0 in a step of first order (DPM-Solver++, Algorithm 2).
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, _: &Noise) -> Candle<Tensor> {
        let (now, next) = (self.sigmas[i], self.sigmas[i + 1]);
        let ((alpha, sigma), (alpha_next, sigma_next)) = (alpha_sigma(now), alpha_sigma(next));
        let (x0, _) = self.process.x0_and_eps(x, prediction, alpha, sigma)?;
        let last = i + 1 == self.timesteps.len();
        let d = match self.before.replace(x0.clone()) {
            Some(before) if !(last && self.first_order_last) => {
                let r = (self.sigmas[i - 1] / now).ln() / (now / next).ln();
                mix(1.0 + 0.5 / r, &x0, -0.5 / r, &before)?
            }
            _ => x0,
        };
        // e^-h is next / now
        mix(sigma_next / sigma, x, -alpha_next * (next / now - 1.0), &d)
    }
}
