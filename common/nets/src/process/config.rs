//! `scheduler/scheduler_config.json`: the noise schedule a model was trained with, and how diffusers samples from it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// The file of any of diffusers' DDPM schedulers. A missing key takes diffusers' default; `None` is the default of the
/// sampler that reads it.
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
    pub skip_prk_steps: bool,
    pub final_sigmas_type: FinalSigma,
    pub lower_order_final: bool,
    pub euler_at_final: bool,
    pub use_karras_sigmas: Option<bool>,
    /// Every other key. A sampler refuses those that change what it computes ([`SchedulerConfig::expect`]).
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
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
            skip_prk_steps: false,
            final_sigmas_type: FinalSigma::Zero,
            lower_order_final: true,
            euler_at_final: false,
            use_karras_sigmas: None,
            other: BTreeMap::new(),
        }
    }
}

/// What the denoiser predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise eps.
    Epsilon,
    /// v = alpha_t eps - sigma_t x_0.
    VPrediction,
}

pipe::names! {
    /// Which of the training timesteps a sampler visits (arXiv 2305.08891, Table 2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Spacing {
        /// Multiples of one stride, counted from the first timestep
        Leading = "leading",
        /// Multiples of one stride, counted from the last timestep
        Trailing = "trailing",
        /// Evenly from the last timestep to the first
        Linspace = "linspace",
    }
}

/// The sigma at which DPM-Solver++ and Euler end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    Zero,
    /// The sigma of training timestep 0.
    SigmaMin,
}

impl SchedulerConfig {
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&without_infinities(&text))
            .with_context(|| format!("{} is not a scheduler's configuration", file.display()))
    }

    /// Refuses a file that sets `key` to something else than `supported`.
    pub fn require(&self, key: &str, supported: impl Into<Value>) -> Result<()> {
        let (set, supported) = (self.other.get(key).unwrap_or(&Value::Null), supported.into());
        ensure!(
            set.is_null() || *set == supported,
            "{key} = {set} is not supported by this sampler, only {supported} is"
        );
        Ok(())
    }
}

/// Python writes infinities, which JSON does not have (`lambda_min_clipped`); they become null.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_written_by_python_are_read() {
        let text = r#"{"lambda_min_clipped": -Infinity, "x": NaN, "beta_schedule": "linear", "y": "-Infinity"}"#;
        let config: SchedulerConfig = serde_json::from_str(&without_infinities(text)).unwrap();
        assert_eq!((config.num_train_timesteps, &config.beta_schedule[..]), (1000, "linear"));
        assert!(config.require("lambda_min_clipped", 1).is_ok() && config.require("absent", 1).is_ok());
        assert_eq!(
            config.require("y", "x").unwrap_err().to_string(),
            r#"y = "-Infinity" is not supported by this sampler, only "x" is"#
        );
    }
}
