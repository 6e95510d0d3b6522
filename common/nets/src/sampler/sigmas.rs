//! sigma = sigma_t / alpha_t, the noise in x = x_0 + sigma eps: of the training timesteps, of a sampler's steps, and as Karras
//! et al. spread them.

use anyhow::Result;

use crate::process::{Ddpm, FinalSigma};

/// The sigma of every training timestep. Where the last one keeps nothing of the image, it is as large as half precision can
/// say, as in diffusers.
pub fn of_training(process: &Ddpm) -> Vec<f32> {
    let mut alphas = process.alphas_cumprod.clone();
    if let (true, Some(last)) = (process.config.rescale_betas_zero_snr, alphas.last_mut()) {
        *last = 2f32.powi(-24);
    }
    alphas.iter().map(|a| ((1.0 - a) / a).sqrt()).collect()
}

/// The sigmas at these timesteps, interpolated between two training timesteps as numpy does it.
pub fn at(training: &[f32], timesteps: &[f64]) -> Vec<f64> {
    let last = training.len() - 1;
    let at = |t: f64| {
        let i = (t as usize).min(last);
        let next = (i + 1).min(last);
        let (a, b) = (training[i] as f64, training[next] as f64);
        a + (b - a) * (t - i as f64).min(1.0)
    };
    timesteps.iter().map(|&t| at(t)).collect()
}

/// The sigmas of the steps in f32, as torch stores them, and behind them the one that the sampling ends at.
pub fn with_end(sigmas: &[f64], training: &[f32], end: FinalSigma) -> Vec<f64> {
    let end = match end {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => training[0],
    };
    sigmas.iter().map(|&sigma| sigma as f32).chain([end]).map(f64::from).collect()
}

/// `steps` sigmas from the largest to the smallest, evenly spread as sigma^(1/7) (arXiv 2206.00364, Eq. 5).
pub fn karras(largest: f64, smallest: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (from, to) = (largest.powf(1.0 / RHO), smallest.powf(1.0 / RHO));
    let share = |i: usize| i as f64 / (steps.max(2) - 1) as f64;
    (0..steps).map(|i| (from + share(i) * (to - from)).powf(RHO)).collect()
}

/// The timestep with this sigma: between two training timesteps, linear in log sigma.
pub fn timestep_of(sigma: f64, training: &[f32]) -> f64 {
    let log = |i: usize| f64::from(training[i].ln());
    let target = sigma.max(1e-10).ln();
    let below = training.iter().rposition(|s| f64::from(s.ln()) <= target).unwrap_or(0);
    let low = below.min(training.len() - 2);
    let share = (log(low) - target) / (log(low) - log(low + 1));
    low as f64 + share.clamp(0.0, 1.0)
}

/// Refuses sigmas that are neither the schedule's own nor Karras'.
pub fn refuse_others(process: &Ddpm) -> Result<()> {
    ["use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"]
        .iter()
        .try_for_each(|key| process.config.require(key, &["false"]))
}
