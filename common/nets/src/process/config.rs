//! `scheduler/scheduler_config.json`: the noise schedule a model was trained with, and how diffusers samples from it.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, ensure};
use pipe::names::Names;
use serde::Deserialize;
use serde_json::Value;

use crate::config::Rule::{Flag, Free, List, Named, Number, Only, Read, Whole, Words};
use crate::config::{self, Rules};

/// The arguments of those of diffusers' schedulers that noise by DDPM.
const KEYS: Rules = &[
    ("_class_name", Read),
    ("num_train_timesteps", Whole(2, 100_000)), // 1,000 in every published model
    ("beta_start beta_end", Number(0.0, 1.0)),
    ("beta_schedule", Words(&["linear", "scaled_linear"])),
    ("trained_betas", List(100_000, &Number(0.0, 1.0))),
    ("prediction_type", Named(PredictionType::FORMS)),
    (
        "rescale_betas_zero_snr set_alpha_to_one clip_sample skip_prk_steps lower_order_final euler_at_final \
         use_karras_sigmas",
        Flag,
    ),
    ("timestep_spacing", Named(Spacing::FORMS)),
    ("steps_offset", Whole(0, 100_000)),
    ("clip_sample_range", Number(1e-6, 1e6)),
    ("final_sigmas_type", Named(FinalSigma::FORMS)),
    // What some sampler refuses ([`SchedulerConfig::require`]); the others do not have it.
    (
        "algorithm_type interpolation_type lambda_min_clipped sigma_max sigma_min solver_order solver_type \
         thresholding timestep_type use_beta_sigmas use_dynamic_shifting use_exponential_sigmas use_flow_sigmas \
         use_lu_lambdas",
        Read,
    ),
    // Keys of samplers that are not here, or of settings that are refused above.
    (
        "disable_corrector dynamic_thresholding_ratio flow_shift original_inference_steps predict_x0 \
         sample_max_value solver_p tensor_format time_shift_type timestep_scaling",
        Free,
    ),
    ("variance_type", Words(&["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"])),
];

crate::json::defaults! {
    /// The file of any of diffusers' DDPM schedulers. A missing key takes diffusers' default; `None` is the default of the
    /// sampler that reads it.
    #[derive(Clone, Debug)]
    pub struct SchedulerConfig {
        pub num_train_timesteps: usize = 1000,
        pub beta_start: f64 = 0.0001,
        pub beta_end: f64 = 0.02,
        pub beta_schedule: String = "linear".into(),
        pub trained_betas: Option<Vec<f32>> = None,
        pub prediction_type: PredictionType = PredictionType::Epsilon,
        pub rescale_betas_zero_snr: bool = false,
        pub timestep_spacing: Option<Spacing> = None,
        pub steps_offset: usize = 0,
        pub set_alpha_to_one: Option<bool> = None,
        pub clip_sample: bool = true,
        pub clip_sample_range: f64 = 1.0,
        pub skip_prk_steps: bool = false,
        pub final_sigmas_type: FinalSigma = FinalSigma::Zero,
        pub lower_order_final: bool = true,
        pub euler_at_final: bool = false,
        pub use_karras_sigmas: Option<bool> = None,
        /// Every other key. A sampler refuses those that change what it computes ([`SchedulerConfig::require`]).
        #[serde(flatten)]
        other: BTreeMap<String, Value> = BTreeMap::new(),
    }
}

pipe::names! {
    /// The target of the denoiser's prediction.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
    #[serde(try_from = "String")]
    pub enum PredictionType {
        /// The noise eps.
        Epsilon = "epsilon",
        /// v = alpha_t eps - sigma_t x_0.
        VPrediction = "v_prediction",
    }
}

pipe::names! {
    /// Which of the training timesteps a sampler visits (arXiv 2305.08891, Table 2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
    #[serde(try_from = "String")]
    pub enum Spacing {
        /// Multiples of one stride, counted from the first timestep
        Leading = "leading",
        /// Multiples of one stride, counted from the last timestep
        Trailing = "trailing",
        /// Evenly from the last timestep to the first
        Linspace = "linspace",
    }
}

pipe::names! {
    /// The sigma at which DPM-Solver++ and Euler end.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
    #[serde(try_from = "String")]
    pub enum FinalSigma {
        Zero = "zero",
        /// The sigma of training timestep 0.
        SigmaMin = "sigma_min",
    }
}

impl SchedulerConfig {
    pub fn read(file: &Path) -> Result<Self> {
        let config: Self = config::read(file, &[KEYS])?;
        let class = config.other.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        let other = class.starts_with("FlowMatch") || class.starts_with("EDM") || class.starts_with("Cosine");
        ensure!(!other, "{}: a model of {class} is not supported: its noise is not DDPM's", file.display());
        Ok(config)
    }

    /// The changes that diffusers' StableDiffusionPipeline makes to files from 2022: latents are not clipped, and timesteps begin at 1. It
    /// warns of the change too.
    pub fn repaired(self, file: &Path) -> Self {
        let own = ["DDIMScheduler", "DDPMScheduler"].map(Value::from);
        let clips = self.clip_sample && self.other.get("_class_name").is_some_and(|class| own.contains(class));
        for (changed, what) in
            [(clips, "clip_sample is taken for false"), (self.steps_offset != 1, "steps_offset is taken for 1")]
        {
            if changed {
                config::warn(&format!("{}: {what}, as by diffusers' StableDiffusionPipeline", file.display()));
            }
        }
        Self { clip_sample: false, steps_offset: 1, ..self }
    }

    /// Refuses a file that sets `key` to something else than one of `supported`, which are JSON.
    pub fn require(&self, key: &str, supported: &'static [&'static str]) -> Result<()> {
        let set = self.other.get(key).unwrap_or(&Value::Null);
        ensure!(
            set.is_null() || Only(supported).fits(set),
            "{key} = {set} is not supported by this sampler, only {} is",
            supported.join(" or ")
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_written_by_python_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("scheduler_config.json");
        let text =
            r#"{"lambda_min_clipped": -Infinity, "x": NaN, "beta_schedule": "linear", "solver_type": "-Infinity"}"#;
        std::fs::write(&file, text).unwrap();
        let config = SchedulerConfig::read(&file).unwrap();
        assert_eq!((config.num_train_timesteps, &config.beta_schedule[..]), (1000, "linear"));
        assert!(config.require("lambda_min_clipped", &[]).is_ok() && config.require("absent", &[]).is_ok());
        assert_eq!(
            config.require("solver_type", &["\"x\""]).unwrap_err().to_string(),
            r#"solver_type = "-Infinity" is not supported by this sampler, only "x" is"#
        );
    }
}
