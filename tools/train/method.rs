//! What a run minimises, put together from its flags.

use nets::noise::{PredictionType, Schedule};
use pipe::cli::Common;

use crate::{
    args::Args,
    guard::Guard,
    loss::{Objective, PairLoss},
};

/// Everything that turns the inputs of a micro-batch into losses, besides the networks.
pub struct Method {
    pub schedule: Schedule,
    pub objective: Objective,
    pub guard: Guard,
    pub error: ErrorOf,
}

pipe::names! {
    /// Of what the squared error is taken, where the UNet predicts v.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ErrorOf {
        /// What the UNet predicts: against the error of epsilon a weight of 1 + 1/SNR in a v-prediction model, else 1
        Prediction = "prediction",
        /// The noise, whatever the UNet predicts: weight alpha_t^2 on the error of v
        Epsilon = "epsilon",
    }
}

pipe::names! {
    /// Which timesteps are trained.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Timesteps {
        /// `turbo` where the base's scheduler spaces timesteps `trailing` and the UNet predicts the noise, as SDXL Turbo; else `all`
        Auto = "auto",
        /// Each of the schedule as often
        All = "all",
        /// Four, 249, 499, 749 and 999 of 1000, the last without any signal: as Diffusion-DPO trains SDXL Turbo
        Turbo = "turbo",
    }
}

impl Timesteps {
    /// Which of the other two is meant for a base with this schedule.
    pub fn of(self, schedule: &Schedule) -> Self {
        match self {
            Timesteps::Auto if schedule.looks_distilled() => Timesteps::Turbo,
            Timesteps::Auto => Timesteps::All,
            named => named,
        }
    }

    /// The schedule to train by.
    pub fn trained(self, schedule: Schedule) -> Schedule {
        match self.of(&schedule) {
            Timesteps::Turbo => schedule.distilled(),
            _ => schedule,
        }
    }
}

/// Says so where not every timestep is trained.
pub fn tell_timesteps(schedule: &Schedule, common: &Common) {
    let (trained, all) = (&schedule.trained, schedule.config.num_train_timesteps);
    if trained.len() != all {
        common.say(format_args!(
            "{} of {all} timesteps are trained, {trained:?}, as fits a model distilled to a few steps; --timesteps all takes \
             every one",
            trained.len()
        ));
    }
}

impl Method {
    pub fn new(args: &Args, schedule: Schedule) -> Self {
        Self { schedule, objective: args.objective(), guard: args.guard, error: args.error }
    }

    /// w(lambda_t) of each image. With v = alpha eps - sigma x_0 and x_t given, eps = alpha v + sigma x_t, so that
    /// |eps error|^2 = alpha_t^2 |v error|^2.
    pub fn weights(&self, timesteps: &[u32]) -> Vec<f64> {
        let v = self.schedule.config.prediction_type == PredictionType::VPrediction;
        let weight = |t: &u32| match self.error {
            ErrorOf::Epsilon if v => f64::from(self.schedule.alphas_cumprod[*t as usize]),
            _ => 1.0,
        };
        timesteps.iter().map(weight).collect()
    }
}

/// One beta in the conventions that are about, as a line for a person. `latent`: C h w.
pub fn beta_elsewhere(beta: f64, latent: usize) -> String {
    format!(
        "beta {beta} (mean squared errors, with the 1/2: Diffusion-DPO's code) is {} without the 1/2 (diffusers' script for \
         Stable Diffusion) and {:.4} for errors summed over the {latent} numbers of a latent",
        beta / 2.0,
        beta / (2.0 * latent as f64)
    )
}

/// What the flags of a run cannot do, said before it begins. `path`: the sum of the learning rates of all steps, which is
/// as far as Adam can carry one weight; `size`: the root mean square of the weights.
pub fn too_small_a_step(path: f64, size: f64) -> Option<String> {
    (path < 5e-3 * size).then(|| {
        format!(
            "warning: all steps together can move a weight by {path:.1e} at most, and a usual weight is {size:.1e}: the model \
             will hardly change. Diffusion-DPO's rate of 1e-8 is meant with --scale_lr and 2048 pairs a step"
        )
    })
}

/// Beyond this the logistic loss is flat (won) or a straight line (lost) to one part in a thousand.
const SATURATED: f64 = 7.0;

/// What a step's z say about beta, if most of them are saturated.
pub fn saturated<'a>(pairs: impl Iterator<Item = &'a PairLoss>) -> Option<String> {
    let all: Vec<f64> = pairs.map(|p| p.z).collect();
    let won = all.iter().filter(|z| **z > SATURATED).count();
    let lost = all.iter().filter(|z| **z < -SATURATED).count();
    (2 * (won + lost) > all.len()).then(|| {
        format!(
            "warning: of {} pairs {won} have z above {SATURATED} (no gradient any more) and {lost} below -{SATURATED} (a pull \
             that no longer depends on z): the policy is far from the reference for this --beta_dpo; a smaller one, a smaller \
             --learning_rate or --refresh-every would help",
            all.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_beta_by_other_names() {
        let said = beta_elsewhere(5000.0, 4 * 64 * 64);
        assert!(said.contains("is 2500 without") && said.contains("0.1526 for errors summed over the 16384"), "{said}");
    }

    #[test]
    fn diffusion_dpos_readme_on_one_gpu_is_warned_of_and_its_launcher_is_not() {
        assert!(too_small_a_step(2000.0 * 1e-8, 0.03).is_some());
        assert!(too_small_a_step(1750.0 * 128e-8, 0.03).is_none());
    }

    #[test]
    fn saturation_is_most_of_the_pairs() {
        let pairs = |zs: &[f64]| zs.iter().map(|&z| PairLoss { z, loss: 0.0, gradient: [0.0; 2] }).collect::<Vec<_>>();
        assert!(saturated(pairs(&[0.1, 9.0, 1.0]).iter()).is_none());
        let said = saturated(pairs(&[-8.0, 9.0, 1.0]).iter()).unwrap();
        assert!(said.contains("of 3 pairs 1 have z above 7") && said.contains("and 1 below"));
    }
}
