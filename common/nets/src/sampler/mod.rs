//! From noise to latents: the field's deterministic samplers, each set up by the model's own `scheduler_config.json` as
//! diffusers' class of the same name sets itself up. x_t, alpha, sigma, eps and x_0 as in [`crate::noise`].

mod ddim;
mod dpmpp;
mod euler;
mod pndm;
mod spread;

use anyhow::{Result, bail, ensure};
use candle_core::{Result as Candle, Tensor};

use crate::noise::{FinalSigma, PredictionType, Schedule, SchedulerConfig};

pipe::names! {
    /// How to get from noise to latents.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Method {
        /// Deterministic DDIM, eta 0 (arXiv 2010.02502)
        Ddim = "ddim",
        /// Pseudo linear multistep, Stable Diffusion 1.5's own (arXiv 2202.09778)
        Pndm = "pndm",
        /// DPM-Solver++, second order, multistep: "DPM++ 2M" (arXiv 2211.01095)
        Dpmpp = "dpmpp",
        /// Euler's method on sigmas, SDXL's own (arXiv 2206.00364)
        Euler = "euler",
    }
}

/// One walk from noise to latents, for a batch of images.
pub trait Sampler {
    /// What to call the UNet with, in order. Step i is the i-th of these.
    fn timesteps(&self) -> &[f32];

    /// Standard deviation of the noise that the walk begins with.
    fn initial_sigma(&self) -> f64 {
        1.0
    }

    /// What the UNet sees of `x` at step i.
    fn input(&self, _i: usize, x: &Tensor) -> Candle<Tensor> {
        Ok(x.clone())
    }

    /// From `x` and the UNet's answer at step i to the next `x`.
    fn step(&mut self, i: usize, x: &Tensor, answer: &Tensor) -> Candle<Tensor>;
}

impl Method {
    /// A walk of `steps` steps.
    ///
    /// # Errors
    /// More steps than the schedule has room for, or none; a setting of the config that this sampler does not know.
    pub fn begin(self, schedule: &Schedule, steps: usize) -> Result<Box<dyn Sampler>> {
        let n = schedule.config.num_train_timesteps;
        ensure!(steps > 0 && steps <= n, "{steps} sampling steps do not fit {n} training timesteps");
        Ok(match self {
            Method::Ddim => Box::new(ddim::Ddim::new(schedule, steps)?),
            Method::Pndm => Box::new(pndm::Pndm::new(schedule, steps)?),
            Method::Dpmpp => Box::new(dpmpp::Dpmpp::new(schedule, steps)?),
            Method::Euler => Box::new(euler::Euler::new(schedule, steps)?),
        })
    }
}

/// a x + b y
fn mix(a: f64, x: &Tensor, b: f64, y: &Tensor) -> Candle<Tensor> {
    (x * a)? + (y * b)?
}

/// x_0 and eps, from x_t = alpha x_0 + sigma eps and what the UNet says of it.
fn x0_and_eps(
    predicts: PredictionType,
    x: &Tensor,
    answer: &Tensor,
    alpha: f64,
    sigma: f64,
) -> Candle<(Tensor, Tensor)> {
    Ok(match predicts {
        PredictionType::Epsilon => (mix(1.0 / alpha, x, -sigma / alpha, answer)?, answer.clone()),
        PredictionType::VPrediction => (mix(alpha, x, -sigma, answer)?, mix(sigma, x, alpha, answer)?),
    })
}

/// alpha-bar where a walk has no timestep left.
fn final_alpha(schedule: &Schedule, to_one_by_default: bool) -> f32 {
    match schedule.config.set_alpha_to_one.unwrap_or(to_one_by_default) {
        true => 1.0,
        false => schedule.alphas_cumprod[0],
    }
}

/// sigma / alpha of every training timestep; without a signal at the end, as large as half precision can say.
fn sigmas(schedule: &Schedule) -> Vec<f32> {
    let mut alphas = schedule.alphas_cumprod.clone();
    if let (true, Some(last)) = (schedule.config.rescale_betas_zero_snr, alphas.last_mut()) {
        *last = 2f32.powi(-24);
    }
    alphas.iter().map(|a| ((1.0 - a) / a).sqrt()).collect()
}

/// The sigma of each step, between two timesteps as numpy interpolates, and the one that the walk ends at.
fn sigmas_at(timesteps: &[f64], schedule: &Schedule) -> Vec<f64> {
    let all = sigmas(schedule);
    let last = all.len() - 1;
    let at = |t: f64| {
        let i = (t as usize).min(last);
        let next = (i + 1).min(last);
        let (a, b) = (all[i] as f64, all[next] as f64);
        (a + (b - a) * (t - i as f64).min(1.0)) as f32 as f64
    };
    let end = match schedule.config.final_sigmas_type {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => all[0] as f64,
    };
    timesteps.iter().map(|&t| at(t)).chain([end]).collect()
}

/// Settings that change the sigmas to others than the schedule's own.
fn refuse_other_sigmas(c: &SchedulerConfig) -> Result<()> {
    let asked = [
        ("use_karras_sigmas", c.use_karras_sigmas),
        ("use_exponential_sigmas", c.use_exponential_sigmas),
        ("use_beta_sigmas", c.use_beta_sigmas),
        ("use_lu_lambdas", c.use_lu_lambdas),
        ("use_flow_sigmas", c.use_flow_sigmas),
    ];
    match asked.iter().find(|(_, on)| *on == Some(true)) {
        Some((key, _)) => bail!("{key} is not supported; set it to false, or choose another --scheduler"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
