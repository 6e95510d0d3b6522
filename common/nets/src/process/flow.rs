//! Flow matching (rectified flow, arXiv 2209.03003): x_t = (1 - sigma) x_0 + sigma eps, and the denoiser predicts the velocity
//! eps - x_0. A time is 1000 sigma, a fraction.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};
use pipe::seed::Draws;
use serde::Deserialize;

use crate::config::Rule::{Flag, Number, Only, Whole, Words};
use crate::config::{self, Rules};

/// The arguments of diffusers' FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler.
const KEYS: Rules = &[
    ("_class_name", Words(&["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])),
    ("num_train_timesteps", Whole(2, 100_000)), // 1,000 in every published model
    ("shift", Number(1e-3, 1e3)),
    ("use_dynamic_shifting", Flag),
    ("base_shift", Number(-1e2, 1e2)),
    ("max_shift", Number(-1e2, 1e2)),
    ("base_image_seq_len", Whole(1, 1 << 24)),
    ("max_image_seq_len", Whole(1, 1 << 24)),
    ("invert_sigmas", Only(&["false", "null"])),
    ("shift_terminal", Only(&["null"])),
    ("use_karras_sigmas", Only(&["false", "null"])),
    ("use_exponential_sigmas", Only(&["false", "null"])),
    ("use_beta_sigmas", Only(&["false", "null"])),
    ("time_shift_type", Only(&["\"exponential\""])),
    ("stochastic_sampling", Only(&["false", "null"])),
];

crate::json::defaults! {
    /// `scheduler/scheduler_config.json` of a model that was trained by flow matching.
    #[derive(Clone, Debug)]
    pub struct FlowConfig {
        #[serde(rename = "_class_name")]
        class: String = String::new(),
        pub num_train_timesteps: usize = 1000,
        shift: f64 = 1.0,
        use_dynamic_shifting: bool = false,
        base_shift: f64 = 0.5,
        max_shift: f64 = 1.15,
        base_image_seq_len: usize = 256,
        max_image_seq_len: usize = 4096,
    }
}

pipe::names! {
    /// Which times training draws, and the weight of an error at each: as in diffusers' scripts for Stable Diffusion 3 and FLUX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
    pub enum WeightingScheme {
        /// Every timestep equally often
        None = "none",
        /// The logistic function of a normal draw: seldom at the ends (arXiv 2403.03206, Eq. 19)
        LogitNormal = "logit_normal" | "logit-normal",
        /// More often in the middle or at the ends (arXiv 2403.03206, Eq. 20)
        Mode = "mode",
        /// Every timestep equally often, with the weight sigma^-2
        SigmaSqrt = "sigma_sqrt" | "sigma-sqrt",
        /// Every timestep equally often, with the weight 2 / (pi (1 - 2 sigma + 2 sigma^2)) (arXiv 2403.03206, section 3.1)
        Cosmap = "cosmap",
    }
}

pipe::names! {
    /// The weight of a velocity's squared error in preference optimisation.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum FlowWeight {
        /// 1: Flow-DPO with a constant beta, which its authors found better (arXiv 2501.13918)
        Constant = "constant",
        /// (1 - sigma)^2: Flow-DPO as it follows from Diffusion-DPO, where beta falls with the noise (arXiv 2501.13918)
        OneMinusSigmaSq = "one-minus-sigma-sq" | "one_minus_sigma_sq",
    }
}

/// How training uses the process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowTraining {
    pub scheme: WeightingScheme,
    /// Mean and standard deviation of the normal draw of [`WeightingScheme::LogitNormal`].
    pub logit_mean: f64,
    pub logit_std: f64,
    /// Scale of [`WeightingScheme::Mode`].
    pub mode_scale: f64,
    pub weight: FlowWeight,
}

#[derive(Clone, Debug)]
pub struct Flow {
    pub config: FlowConfig,
    /// The times of training, the latest first: shifted, unless the shift depends on the size of the image.
    times: Vec<f32>,
    pub training: FlowTraining,
    /// Whether sampling divides the way from sigma 1 to 0 evenly before the shift, as FLUX's pipeline asks; otherwise from 1 to
    /// the smallest sigma of training.
    even: bool,
}

/// sigma shifted to where a larger image has the same signal: s sigma / (1 + (s - 1) sigma) (arXiv 2403.03206, Eq. 23).
fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

impl Flow {
    /// `flux`: whether the file belongs to a FLUX model.
    pub(super) fn open(file: &Path, flux: bool) -> Result<Self> {
        let config: FlowConfig = config::read(file, &[KEYS])?;
        let (least, most) = (config.base_image_seq_len, config.max_image_seq_len);
        ensure!(least < most, "{}: base_image_seq_len {least} is not below max_image_seq_len {most}", file.display());
        let scheme = if flux { WeightingScheme::None } else { WeightingScheme::LogitNormal };
        let weight = FlowWeight::Constant;
        let training = FlowTraining { scheme, logit_mean: 0.0, logit_std: 1.0, mode_scale: 1.29, weight };
        let n = config.num_train_timesteps;
        // In f32, as torch computes it.
        let (all, shift) = (n as f32, config.shift as f32);
        let shifted = |sigma: f32| shift * sigma / (1.0 + (shift - 1.0) * sigma);
        let time = |i: usize| if config.use_dynamic_shifting { i as f32 / all } else { shifted(i as f32 / all) } * all;
        Ok(Self { times: (1..=n).rev().map(time).collect(), config, training, even: flux })
    }

    pub fn with(self, training: FlowTraining) -> Self {
        Self { training, ..self }
    }

    /// Whether its file names Heun's sampler.
    pub fn asks_for_heun(&self) -> bool {
        self.config.class == "FlowMatchHeunDiscreteScheduler"
    }

    fn steps(&self) -> f64 {
        self.config.num_train_timesteps as f64
    }

    pub(super) fn draw(&self, draws: &mut Draws) -> f32 {
        let FlowTraining { scheme, logit_mean, logit_std, mode_scale, .. } = self.training;
        let u = match scheme {
            WeightingScheme::LogitNormal => {
                let normal = f64::from(draws.normals(1)[0]);
                1.0 / (1.0 + (-(logit_mean + logit_std * normal)).exp())
            }
            WeightingScheme::Mode => {
                let u = draws.uniform();
                1.0 - u - mode_scale * ((std::f64::consts::FRAC_PI_2 * u).cos().powi(2) - 1.0 + u)
            }
            _ => draws.uniform(),
        };
        self.times[((u * self.steps()) as usize).min(self.times.len() - 1)]
    }

    pub(super) fn check_time(&self, t: f64) -> Result<f32> {
        ensure!(
            (0.0..=self.steps()).contains(&t),
            "time {t} is out of range (times lie between 0 and {})",
            self.steps()
        );
        Ok(t as f32)
    }

    pub(super) fn add_noise(&self, x0: &Tensor, eps: &Tensor, t: &[f32]) -> Candle<Tensor> {
        let each = |f: fn(f64) -> f64| t.iter().map(|&t| f(f64::from(t) / self.steps()) as f32).collect::<Vec<_>>();
        ops::mix(&each(|sigma| 1.0 - sigma), x0, &each(|sigma| sigma), eps)
    }

    pub(super) fn target(&self, x0: &Tensor, eps: &Tensor) -> Candle<Tensor> {
        eps - x0
    }

    pub(super) fn weight(&self, t: f32) -> f64 {
        let sigma = f64::from(t) / self.steps();
        let scheme = match self.training.scheme {
            WeightingScheme::SigmaSqrt => sigma.powi(-2),
            WeightingScheme::Cosmap => 2.0 / (std::f64::consts::PI * (1.0 - 2.0 * sigma + 2.0 * sigma * sigma)),
            _ => 1.0,
        };
        scheme
            * match self.training.weight {
                FlowWeight::Constant => 1.0,
                FlowWeight::OneMinusSigmaSq => (1.0 - sigma).powi(2),
            }
    }

    /// The sigmas of sampling in `steps` steps, without the final 0, for an image of `tokens` tokens.
    pub fn sigmas(&self, steps: usize, tokens: usize) -> Vec<f64> {
        let c = &self.config;
        let from_to = |to: f64| {
            let share = |i: usize| i as f64 / (steps.max(2) - 1) as f64;
            (0..steps).map(move |i| 1.0 + share(i) * (to - 1.0))
        };
        let all: Vec<f64> = match self.even {
            // As numpy stores the pipeline's sigmas.
            true => from_to(1.0 / steps as f64).map(|sigma| f64::from(sigma as f32)).collect(),
            false => from_to(f64::from(self.times[self.times.len() - 1] / c.num_train_timesteps as f32)).collect(),
        };
        let shift = match c.use_dynamic_shifting {
            // exp(mu), where mu grows with the number of tokens: sigma is then shifted by as much.
            true => {
                let slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len) as f64;
                (c.base_shift + slope * (tokens as f64 - c.base_image_seq_len as f64)).exp()
            }
            false => c.shift,
        };
        all.into_iter().map(|sigma| f64::from(shifted(sigma, shift) as f32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flow(config: serde_json::Value, flux: bool) -> Flow {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("scheduler_config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        Flow::open(&file, flux).unwrap()
    }

    /// diffusers' own numbers for three configurations, six steps and an image of 48 tokens.
    #[test]
    fn sigmas_are_those_of_diffusers() {
        let class = "FlowMatchEulerDiscreteScheduler";
        let sd3 = json!({ "_class_name": class, "shift": 3.0 });
        let dynamic = json!({ "_class_name": class, "shift": 3.0, "use_dynamic_shifting": true });
        for (flow, expected) in [
            (flow(sd3, false), [1.0, 0.9233425, 0.8189233, 0.66832668, 0.43222505, 0.00892857]),
            (flow(dynamic.clone(), false), DYNAMIC),
            (flow(dynamic, true), FLUX),
        ] {
            for (ours, theirs) in flow.sigmas(6, 48).iter().zip(expected) {
                assert!((ours - theirs).abs() < 1e-7, "{ours} {theirs}");
            }
        }
    }

    const DYNAMIC: [f64; 6] = [1.0, 0.86440122, 0.70514584, 0.51545155, 0.28566951, 0.00159074];
    const FLUX: [f64; 6] = [1.0, 0.88837308, 0.76095802, 0.61415029, 0.44315794, 0.24146833];

    #[test]
    fn times_are_drawn_where_the_scheme_says() {
        let mut flow = flow(json!({ "_class_name": "FlowMatchEulerDiscreteScheduler" }), false);
        let mut share = |scheme: WeightingScheme| {
            flow.training.scheme = scheme;
            let times: Vec<f32> = (0..4000).map(|i| flow.draw(&mut pipe::seed::draws(1, "t", "", i))).collect();
            assert!(times.iter().all(|t| (1.0..=1000.0).contains(t) && flow.times.contains(t)));
            times.iter().filter(|t| (250.0..750.0).contains(*t)).count() as f64 / 4000.0
        };
        assert!((share(WeightingScheme::None) - 0.5).abs() < 0.03);
        // |normal| < ln 3
        assert!((share(WeightingScheme::LogitNormal) - 0.728).abs() < 0.03);
        assert!(share(WeightingScheme::Mode) > 0.6);
    }
}
