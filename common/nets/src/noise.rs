//! The noise schedule, in the paper's letters; `sampler` walks it back.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Result as Candle, Tensor};
use serde::Deserialize;

/// `scheduler/scheduler_config.json`, whichever of diffusers' classes wrote it; missing keys take diffusers' defaults, and
/// `None` the default of the sampler that reads them.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    pub num_train_timesteps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: String,
    pub trained_betas: Option<Vec<f32>>,
    pub prediction_type: PredictionType,
    pub rescale_betas_zero_snr: bool,
    pub timestep_spacing: Option<Spacing>,
    pub steps_offset: usize,
    pub set_alpha_to_one: Option<bool>,
    pub clip_sample: bool,
    pub clip_sample_range: f64,
    pub thresholding: bool,
    pub skip_prk_steps: bool,
    pub final_sigmas_type: FinalSigma,
    pub lower_order_final: bool,
    pub euler_at_final: bool,
    pub solver_order: usize,
    pub solver_type: Option<String>,
    pub algorithm_type: Option<String>,
    pub interpolation_type: Option<String>,
    pub timestep_type: Option<String>,
    pub use_karras_sigmas: Option<bool>,
    pub use_exponential_sigmas: Option<bool>,
    pub use_beta_sigmas: Option<bool>,
    pub use_lu_lambdas: Option<bool>,
    pub use_flow_sigmas: Option<bool>,
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
            rescale_betas_zero_snr: false,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            clip_sample: true,
            clip_sample_range: 1.0,
            thresholding: false,
            skip_prk_steps: false,
            final_sigmas_type: FinalSigma::Zero,
            lower_order_final: true,
            euler_at_final: false,
            solver_order: 2,
            solver_type: None,
            algorithm_type: None,
            interpolation_type: None,
            timestep_type: None,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            use_lu_lambdas: None,
            use_flow_sigmas: None,
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

/// The sigma that DPM-Solver++ and Euler end at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    Zero,
    /// That of training timestep 0.
    SigmaMin,
}

/// alpha-bar of every training timestep.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub config: SchedulerConfig,
    pub alphas_cumprod: Vec<f32>,
    /// The timesteps that training draws from, each as often.
    pub trained: Vec<u32>,
}

impl Schedule {
    /// From a model folder's `scheduler/`.
    pub fn open(base: &Path) -> Result<Self> {
        let file = base.join("scheduler/scheduler_config.json");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let config = serde_json::from_str(&without_infinities(&text))
            .with_context(|| format!("{} does not hold what is expected", file.display()))?;
        Self::new(config).with_context(|| format!("{} cannot be used", file.display()))
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
        ensure!(betas.len() == n, "trained_betas has {} entries for {n} timesteps", betas.len());
        let alphas_cumprod = cumulative(betas.iter().map(|beta| 1.0 - beta));
        let alphas_cumprod = match config.rescale_betas_zero_snr {
            true => zero_terminal_snr(&alphas_cumprod),
            false => alphas_cumprod,
        };
        Ok(Self { config, alphas_cumprod, trained: (0..n as u32).collect() })
    }

    /// Whether the config looks like that of a model that was distilled to a few steps: SDXL Turbo predicts eps and begins at
    /// pure noise, which its config calls "trailing". Others may say the same of their sampling alone.
    pub fn looks_distilled(&self) -> bool {
        self.config.timestep_spacing == Some(Spacing::Trailing)
            && self.config.prediction_type == PredictionType::Epsilon
    }

    /// The schedule by which Diffusion-DPO trains SDXL Turbo: at timesteps 249, 499, 749 and 999, the last of them without any
    /// signal.
    pub fn distilled(self) -> Self {
        let n = self.config.num_train_timesteps as u32;
        let trained = (1..=4).filter_map(|i| (n * i / 4).checked_sub(1)).collect();
        Self { alphas_cumprod: zero_terminal_snr(&self.alphas_cumprod), trained, ..self }
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

/// alpha-bar as torch.cumprod makes it of alphas: multiplied in f64, stored in f32.
fn cumulative(alphas: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1f64;
    let next = |alpha: f32| {
        product *= alpha as f64;
        product as f32
    };
    alphas.map(next).collect()
}

/// alpha-bar shifted and scaled so that nothing is left of the image at the last timestep (arXiv 2305.08891, Algorithm 1).
fn zero_terminal_snr(alphas_cumprod: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod.iter().map(|a| a.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let shifted: Vec<f32> = roots.iter().map(|r| ((r - last) * scale).powi(2)).collect();
    // diffusers goes by way of the betas, and so rounds once more
    let alpha = |i: usize| if i == 0 { shifted[0] } else { shifted[i] / shifted[i - 1] };
    cumulative((0..shifted.len()).map(|i| 1.0 - (1.0 - alpha(i))))
}

/// Python writes infinities that JSON does not know (`lambda_min_clipped`): they become null.
fn without_infinities(text: &str) -> String {
    let mut parts = text.split('"');
    let outside = |part: &str| part.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
    let mut out = parts.next().map(outside).unwrap_or_default();
    for (i, part) in parts.enumerate() {
        out.push('"');
        out.push_str(&if i % 2 == 0 { part.to_owned() } else { outside(part) });
    }
    out
}

/// torch.linspace in f32: counted from both ends.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n - 1) as f32;
    let at = |i: usize| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 };
    (0..n).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(json: &str) -> Schedule {
        Schedule::new(serde_json::from_str(&without_infinities(json)).unwrap()).unwrap()
    }

    #[test]
    fn python_s_infinities_are_read() {
        let config =
            schedule(r#"{"lambda_min_clipped": -Infinity, "x": NaN, "beta_schedule": "linear", "y": "-Infinity"}"#)
                .config;
        assert_eq!((config.num_train_timesteps, &config.beta_schedule[..]), (1000, "linear"));
    }

    #[test]
    fn turbo_is_trained_at_four_timesteps() {
        let sd = r#""beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear""#;
        let turbo = schedule(&format!(r#"{{{sd}, "timestep_spacing": "trailing"}}"#));
        let usual = turbo.alphas_cumprod.clone();
        assert!(turbo.looks_distilled());
        assert_eq!(turbo.trained, (0..1000).collect::<Vec<u32>>());
        let turbo = turbo.distilled();
        assert_eq!(turbo.trained, [249, 499, 749, 999]);
        assert_eq!((turbo.alphas_cumprod[999], turbo.alphas_cumprod[0]), (0.0, usual[0]));
        assert!(turbo.alphas_cumprod[500] < usual[500]);
        for other in
            [r#""timestep_spacing": "leading""#, r#""timestep_spacing": "trailing", "prediction_type": "v_prediction""#]
        {
            assert!(!schedule(&format!("{{{sd}, {other}}}")).looks_distilled());
        }
    }
}
