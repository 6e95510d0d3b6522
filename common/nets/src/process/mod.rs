//! The process that turns an image into noise, and what a denoiser learns to predict of it. It hides whether a model was
//! trained by DDPM or by flow matching.

mod config;
mod ddpm;
mod flow;

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};
use pipe::seed::Draws;

pub use config::{FinalSigma, PredictionType, SchedulerConfig, Spacing};
pub use ddpm::Ddpm;
pub use flow::{Flow, FlowTraining, FlowWeight, WeightingScheme};

use crate::{config as configs, folder, mmdit::FLUX};

/// How images become noise. A time `t` is the number that the denoiser is given: a whole timestep in DDPM, 1000 sigma in flow
/// matching.
#[derive(Clone, Debug)]
pub enum Process {
    Ddpm(Ddpm),
    Flow(Flow),
}

pipe::names! {
    /// Whose squared error is taken where the denoiser predicts v.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ErrorOf {
        /// That of the prediction: compared with `epsilon`, a v-prediction model's errors have the weight 1 + 1/SNR
        Prediction = "prediction",
        /// That of the noise, whatever is predicted: the error of v has the weight alpha_t^2
        Epsilon = "epsilon",
    }
}

impl Process {
    /// Where a model folder says which process it was trained by.
    pub const FILE: &str = "scheduler/scheduler_config.json";

    pub fn open(base: &Path) -> Result<Self> {
        let file = base.join(Self::FILE);
        let class = configs::class(&file)?.unwrap_or_default();
        if class.starts_with("FlowMatch") {
            let transformer = folder::transformer_class(base)?;
            ensure!(
                transformer.is_some(),
                "{}: the noise of {class} is that of a transformer, and {} has none",
                file.display(),
                base.display()
            );
            return Ok(Process::Flow(Flow::open(&file, transformer.as_deref() == Some(FLUX))?));
        }
        // SDXL's pipeline, which has two text encoders, takes the file as it is.
        let repaired = !base.join("text_encoder_2").is_dir();
        Ok(Process::Ddpm(Ddpm::open(&file, repaired)?))
    }

    /// Times lie between 0 and this.
    pub fn timesteps(&self) -> usize {
        match self {
            Process::Ddpm(ddpm) => ddpm.config.num_train_timesteps,
            Process::Flow(flow) => flow.config.num_train_timesteps,
        }
    }

    pub fn draw(&self, draws: &mut Draws) -> f32 {
        match self {
            Process::Ddpm(ddpm) => ddpm.draw(draws),
            Process::Flow(flow) => flow.draw(draws),
        }
    }

    /// Refuses a time that the process does not have.
    pub fn check_time(&self, t: f64) -> Result<f32> {
        match self {
            Process::Ddpm(ddpm) => ddpm.check_time(t),
            Process::Flow(flow) => flow.check_time(t),
        }
    }

    /// x_t of the images `x0` and the noise `eps`, both (B, C, h, w), each image at its own time `t` (B).
    pub fn add_noise(&self, x0: &Tensor, eps: &Tensor, t: &[f32]) -> Candle<Tensor> {
        match self {
            Process::Ddpm(ddpm) => ddpm.add_noise(x0, eps, t),
            Process::Flow(flow) => flow.add_noise(x0, eps, t),
        }
    }

    /// The target of the denoiser's prediction from x_t, (B, C, h, w).
    pub fn target(&self, x0: &Tensor, eps: &Tensor, t: &[f32]) -> Candle<Tensor> {
        match self {
            Process::Ddpm(ddpm) => ddpm.target(x0, eps, t),
            Process::Flow(flow) => flow.target(x0, eps),
        }
    }

    /// w(lambda_t): the weight of the squared error of the prediction at time `t`.
    pub fn weight(&self, error: ErrorOf, t: f32) -> f64 {
        match self {
            Process::Ddpm(ddpm) => ddpm.weight(error, t),
            Process::Flow(flow) => flow.weight(t),
        }
    }

    /// Whether the configuration looks like that of a model that was distilled to a few steps.
    pub fn looks_distilled(&self) -> bool {
        matches!(self, Process::Ddpm(ddpm) if ddpm.looks_distilled())
    }

    /// The process by which a model that was distilled to a few steps is trained on.
    pub fn distilled(self) -> Self {
        match self {
            Process::Ddpm(ddpm) => Process::Ddpm(ddpm.distilled()),
            flow => flow,
        }
    }

    /// The times that training draws from and how many the schedule has, if it draws from some of them only.
    pub fn few_times(&self) -> Option<(&[u32], usize)> {
        let Process::Ddpm(ddpm) = self else { return None };
        let all = ddpm.config.num_train_timesteps;
        (ddpm.trained.len() != all).then_some((&ddpm.trained, all))
    }
}

/// a x + b y
pub(crate) fn mix(a: f64, x: &Tensor, b: f64, y: &Tensor) -> Candle<Tensor> {
    (x * a)? + (y * b)?
}
