//! DPM-Solver++ of second order, multistep, midpoint: "DPM++ 2M".

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};

use super::{Sampler, mix, refuse_other_sigmas, sigmas_at, spread::spread_before_end, x0_and_eps};
use crate::noise::{FinalSigma, PredictionType, Schedule, Spacing};

pub struct Dpmpp {
    timesteps: Vec<f32>,
    /// sigma / alpha, one more than there are timesteps.
    sigmas: Vec<f64>,
    predicts: PredictionType,
    /// The last step is of first order.
    first_order_last: bool,
    /// x_0 as the step before saw it.
    before: Option<Tensor>,
}

impl Dpmpp {
    pub fn new(schedule: &Schedule, steps: usize) -> Result<Self> {
        let c = &schedule.config;
        refuse_other_sigmas(c)?;
        let plain = |setting: &Option<String>, usual: &str| setting.as_deref().is_none_or(|s| s == usual);
        ensure!(plain(&c.algorithm_type, "dpmsolver++"), "an algorithm_type other than dpmsolver++ is not supported");
        ensure!(plain(&c.solver_type, "midpoint"), "a solver_type other than midpoint is not supported");
        ensure!(c.solver_order == 2, "a solver_order other than 2 is not supported");
        ensure!(!c.thresholding, "thresholding is not supported; it is not meant for latents");
        let timesteps = spread_before_end(c, c.timestep_spacing.unwrap_or(Spacing::Linspace), steps)?;
        Ok(Self {
            sigmas: sigmas_at(&timesteps, schedule),
            timesteps: timesteps.iter().map(|&t| t as f32).collect(),
            predicts: c.prediction_type,
            first_order_last: c.euler_at_final
                || (c.lower_order_final && steps < 15)
                || c.final_sigmas_type == FinalSigma::Zero,
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

    /// With lambda = log(alpha / sigma), h = lambda' - lambda and r = h_before / h:
    ///
    ///   x' = sigma'/sigma x - alpha' (e^-h - 1) D,   D = x_0 + (x_0 - x_0 before) / (2 r)
    ///
    /// and D = x_0 in a step of first order (DPM-Solver++, Algorithm 2).
    fn step(&mut self, i: usize, x: &Tensor, answer: &Tensor) -> Candle<Tensor> {
        let (now, next) = (self.sigmas[i], self.sigmas[i + 1]);
        let ((alpha, sigma), (alpha_next, sigma_next)) = (alpha_sigma(now), alpha_sigma(next));
        let (x0, _) = x0_and_eps(self.predicts, x, answer, alpha, sigma)?;
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
