//! The noise schedule and DDIM, in the paper's letters.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use candle_core::{Result as Candle, Tensor};
use serde::Deserialize;

use crate::checkpoint::read_json;

/// `scheduler/scheduler_config.json`; missing keys take diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    pub num_train_timesteps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: String,
    pub trained_betas: Option<Vec<f32>>,
    pub prediction_type: PredictionType,
    pub set_alpha_to_one: bool,
    pub steps_offset: usize,
    pub clip_sample: bool,
    pub clip_sample_range: f64,
    pub rescale_betas_zero_snr: bool,
    pub timestep_spacing: Option<Spacing>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: "linear".into(),
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            set_alpha_to_one: true,
            steps_offset: 0,
            clip_sample: true,
            clip_sample_range: 1.0,
            rescale_betas_zero_snr: false,
            timestep_spacing: None,
        }
    }
}

/// What the UNet predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise eps.
    Epsilon,
    /// v = alpha_t eps - sigma_t x_0.
    VPrediction,
}

/// How sampling steps are spread over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    Leading,
    Linspace,
    Trailing,
}

/// alpha-bar of every training timestep.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub config: SchedulerConfig,
    pub alphas_cumprod: Vec<f32>,
}

impl Schedule {
    /// From a model folder's `scheduler/`.
    pub fn open(base: &Path) -> Result<Self> {
        let file = base.join("scheduler/scheduler_config.json");
        let schedule = Self::new(read_json(&file)?);
        schedule.map_err(|e| e.context(format!("{} cannot be used", file.display())))
    }

    /// In f32, as torch computes it.
    pub fn new(config: SchedulerConfig) -> Result<Self> {
        let n = config.num_train_timesteps;
        ensure!(n > 1, "num_train_timesteps is {n}");
        let betas: Vec<f32> = match (&config.trained_betas, config.beta_schedule.as_str()) {
            (Some(betas), _) => betas.clone(),
            (None, "linear") => linspace(config.beta_start as f32, config.beta_end as f32, n),
            (None, "scaled_linear") => {
                let roots = linspace(config.beta_start.sqrt() as f32, config.beta_end.sqrt() as f32, n);
                roots.into_iter().map(|b| b * b).collect()
            }
            (None, other) => bail!("beta_schedule '{other}' is not supported; expected linear or scaled_linear"),
        };
        ensure!(!config.rescale_betas_zero_snr, "rescale_betas_zero_snr is not supported");
        // torch's cumprod sums up in f64 and stores f32
        let mut product = 1f64;
        let alphas_cumprod = betas
            .iter()
            .map(|beta| {
                product *= (1.0 - beta) as f64;
                product as f32
            })
            .collect();
        Ok(Self { config, alphas_cumprod })
    }

    /// x_t = alpha_t x_0 + sigma_t eps (Eq. 13), each image of (B, C, H, W) at its own timestep.
    pub fn add_noise(&self, x0: &Tensor, eps: &Tensor, timesteps: &[u32]) -> Candle<Tensor> {
        let (alpha, sigma) = self.alpha_sigma(timesteps, x0)?;
        x0.broadcast_mul(&alpha)? + eps.broadcast_mul(&sigma)?
    }

    /// What the UNet should predict: eps, or v = alpha_t eps - sigma_t x_0.
    pub fn target(&self, x0: &Tensor, eps: &Tensor, timesteps: &[u32]) -> Candle<Tensor> {
        match self.config.prediction_type {
            PredictionType::Epsilon => Ok(eps.clone()),
            PredictionType::VPrediction => {
                let (alpha, sigma) = self.alpha_sigma(timesteps, x0)?;
                eps.broadcast_mul(&alpha)? - x0.broadcast_mul(&sigma)?
            }
        }
    }

    /// alpha_t = sqrt(alpha-bar_t), sigma_t = sqrt(1 - alpha-bar_t), each (B, 1, 1, 1).
    fn alpha_sigma(&self, timesteps: &[u32], like: &Tensor) -> Candle<(Tensor, Tensor)> {
        let column = |f: fn(f32) -> f32| {
            let values: Vec<f32> = timesteps.iter().map(|&t| f(self.alphas_cumprod[t as usize])).collect();
            Tensor::from_vec(values, (timesteps.len(), 1, 1, 1), like.device())?.to_dtype(like.dtype())
        };
        Ok((column(f32::sqrt)?, column(|a| (1.0 - a).sqrt())?))
    }
}

/// torch.linspace in f32: counted from both ends.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n - 1) as f32;
    let at = |i: usize| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 };
    (0..n).map(at).collect()
}

/// DDIM without added noise (eta = 0).
pub struct Ddim {
    /// The timesteps to call the UNet at, in order.
    pub timesteps: Vec<usize>,
    schedule: Schedule,
    stride: usize,
}

impl Ddim {
    /// # Errors
    /// More steps than the model was trained with, or none.
    pub fn new(schedule: &Schedule, steps: usize) -> Result<Self> {
        let c = &schedule.config;
        let n = c.num_train_timesteps;
        ensure!(steps > 0 && steps <= n, "{steps} sampling steps do not fit {n} training timesteps");
        let stride = n / steps;
        let timesteps = match c.timestep_spacing.unwrap_or(Spacing::Leading) {
            Spacing::Leading => (0..steps).rev().map(|i| (i * stride + c.steps_offset).min(n - 1)).collect(),
            Spacing::Trailing => {
                let at = |i: usize| (n as f64 - i as f64 * n as f64 / steps as f64).round_ties_even() as usize - 1;
                (0..steps).map(at).collect()
            }
            Spacing::Linspace => {
                let at = |i: usize| ((n - 1) as f64 * i as f64 / (steps - 1).max(1) as f64).round_ties_even() as usize;
                (0..steps).rev().map(at).collect()
            }
        };
        Ok(Self { timesteps, schedule: schedule.clone(), stride })
    }

    /// From x_t and the UNet's answer to x_{t - stride} (DDIM Eq. 12 with sigma = 0).
    pub fn step(&self, x: &Tensor, prediction: &Tensor, t: usize) -> Candle<Tensor> {
        let c = &self.schedule.config;
        let all = &self.schedule.alphas_cumprod;
        let a_t = all[t];
        let a_prev = match t.checked_sub(self.stride) {
            Some(previous) => all[previous],
            None if c.set_alpha_to_one => 1.0,
            None => all[0],
        };
        let (alpha, sigma) = (a_t.sqrt() as f64, (1.0 - a_t).sqrt() as f64);
        let (mut x0, mut eps) = match c.prediction_type {
            PredictionType::Epsilon => (((x - (prediction * sigma)?)? / alpha)?, prediction.clone()),
            PredictionType::VPrediction => {
                (((x * alpha)? - (prediction * sigma)?)?, ((prediction * alpha)? + (x * sigma)?)?)
            }
        };
        if c.clip_sample {
            x0 = x0.clamp(-c.clip_sample_range, c.clip_sample_range)?;
            eps = ((x - (&x0 * alpha)?)? / sigma)?;
        }
        (x0 * a_prev.sqrt() as f64)? + (eps * (1.0 - a_prev).sqrt() as f64)?
    }
}
