//! The training objective, put together from its flags: noise schedule, loss, guard and weighting of timesteps.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use nets::conditioning::Conditioning;
use nets::denoiser::Config;
use nets::folder;
use nets::process::{ErrorOf, Process};
use pipe::cli::{named, number};
use pipe::origin::Origin;

use crate::flow::{self, FlowFlags};
use crate::loss::{Form, LossFlags, Objective, PairLoss};
use crate::{guard::Guard, reference::Reference};

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Method")]
pub struct MethodFlags {
    #[command(flatten)]
    loss: LossFlags,
    /// `sdpo` scales the loser's gradient down where it would make the winner's error rise. `sdpo:MU` is stricter: a small
    /// step still lowers that error by MU times what it would without the loser
    #[arg(long, value_name = "none|sdpo[:MU]", default_value = "none")]
    guard: Guard,
    /// The squared error that a v-prediction model minimises; other models have only one
    #[arg(long, default_value_t = ErrorOf::Prediction, value_parser = named::<ErrorOf>())]
    error: ErrorOf,
    /// Hold the policy near the base, for a reference that follows the policy: add X beta / 2 times the mean squared difference of
    /// their predictions to the loss ("Rethinking DPO"). It takes one more pass through a network
    #[arg(long, value_name = "X", value_parser = number("a number above 0", |x| x > 0.0 && x.is_finite()))]
    anchor: Option<f64>,
    /// Weight the pairs by their timesteps so that the margin counts alike everywhere ("Rethinking DPO"): by 1 / the running mean
    /// of |z| in the pair's tenth of the schedule
    #[arg(long)]
    pub timestep_weights: bool,
    /// The timesteps at which noise is added to the pairs
    #[arg(long, default_value_t = Timesteps::Auto, value_parser = named::<Timesteps>())]
    timesteps: Timesteps,
    #[command(flatten)]
    flow: FlowFlags,
}

impl MethodFlags {
    pub fn objective(&self) -> Result<Objective> {
        let objective = self.loss.objective()?;
        ensure!(
            objective.form != Form::Sft || self.guard == Guard::None,
            "--guard scales the loser's gradient, and with --loss sft the loser has none: leave one of them out"
        );
        Ok(objective)
    }
}

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Timesteps {
        /// `turbo` for a base like SDXL Turbo (it predicts noise, and its scheduler has the spacing `trailing`), otherwise `all`
        Auto = "auto",
        /// Every timestep of the schedule, equally often
        All = "all",
        /// 249, 499, 749 and 999 of 1000, the last without any signal: as Diffusion-DPO trains SDXL Turbo
        Turbo = "turbo",
    }
}

/// Everything besides the networks that turns the inputs of a micro-batch into losses.
pub struct Method {
    /// How the base turns images into noise, with the timesteps that are trained.
    pub process: Process,
    pub objective: Objective,
    pub guard: Guard,
    pub anchor: Option<Anchor>,
    pub timestep_weights: bool,
    error: ErrorOf,
    timesteps: Timesteps,
    /// The guidance that the denoiser gets as input, if it takes one.
    guidance: Option<f32>,
}

/// The base, which holds the policy near itself.
pub struct Anchor {
    pub weight: f64,
    pub base: Reference,
}

impl Method {
    pub fn open(flags: &MethodFlags, base: &Path, compute: DType, device: &Device) -> Result<Self> {
        let process = Process::open(base)?;
        let timesteps = match flags.timesteps {
            Timesteps::Auto if process.looks_distilled() => Timesteps::Turbo,
            Timesteps::Auto => Timesteps::All,
            named => named,
        };
        ensure!(
            timesteps != Timesteps::Turbo || matches!(process, Process::Ddpm(_)),
            "--timesteps turbo is for DDPM models, and the base is a flow-matching model: leave it out, or choose a --weighting-scheme"
        );
        let process = if timesteps == Timesteps::Turbo { process.distilled() } else { process };
        let process = flags.flow.apply(process, flags.error)?;
        let folder = folder::denoiser(base)?;
        let guidance = flags.flow.guidance(Config::read(&folder)?.guidance)?;
        let anchor = match flags.anchor {
            Some(weight) => Some(Anchor { weight, base: Reference::fixed(&folder, compute, device)? }),
            None => None,
        };
        let MethodFlags { guard, error, timestep_weights, .. } = *flags;
        Ok(Self { process, objective: flags.objective()?, guard, anchor, timestep_weights, error, timesteps, guidance })
    }

    pub fn describe(&self, origin: Origin) -> Origin {
        let mut origin = self.objective.describe(origin);
        if let Some(anchor) = &self.anchor {
            origin = origin.arg("anchor", anchor.weight);
        }
        if self.timestep_weights {
            origin = origin.arg("timestep_weights", true);
        }
        let origin = origin
            .arg("guard", self.guard.to_string())
            .arg("error", self.error.to_string())
            .arg("timesteps", self.timesteps.to_string());
        let origin = match &self.process {
            Process::Flow(flow) => flow::describe(flow, origin),
            Process::Ddpm(_) => origin,
        };
        match self.guidance {
            Some(guidance) => origin.arg("guidance_scale", guidance),
            None => origin,
        }
    }

    /// The conditioning of a batch with all that the denoiser takes.
    pub fn complete(&self, conditioning: Conditioning) -> Result<Conditioning> {
        match self.guidance {
            Some(guidance) => Ok(conditioning.with_guidance(guidance)?),
            None => Ok(conditioning),
        }
    }

    /// w(lambda_t) of each image.
    pub fn weights(&self, times: &[f32]) -> Vec<f64> {
        times.iter().map(|&t| self.process.weight(self.error, t)).collect()
    }

    pub fn timesteps_note(&self) -> Option<String> {
        let (trained, all) = self.process.few_times()?;
        Some(format!(
            "{} of {all} timesteps are trained, {trained:?}, as suits a model distilled to a few steps; --timesteps all trains \
             all of them",
            trained.len()
        ))
    }
}

/// A note that gives beta in the other conventions in use. `latent`: C, h and w of one latent.
pub fn beta_note(beta: f64, latent: [usize; 3]) -> String {
    let numbers: usize = latent.iter().product();
    format!(
        "beta {beta} (mean squared errors, with the 1/2: Diffusion-DPO's code) is {} without the 1/2 (diffusers' script for \
         Stable Diffusion) and {:.4} for errors summed over the {numbers} numbers of a latent",
        beta / 2.0,
        beta / (2.0 * numbers as f64)
    )
}

/// A warning if the weights will hardly move. `farthest`: the sum of the learning rates of all steps, which is as far as
/// Adam can carry one weight; `size`: the root mean square of the weights.
pub fn small_rate_warning(farthest: f64, size: f64) -> Option<String> {
    (farthest < 5e-3 * size).then(|| {
        format!(
            "warning: all steps together can move a weight by {farthest:.1e} at most, and a typical weight is {size:.1e}: the \
             model will hardly change. Diffusion-DPO's learning rate of 1e-8 belongs with --scale-lr and 2048 pairs per step"
        )
    })
}

/// Beyond this |z| the logistic loss is flat (won) or a straight line (lost) to one part in a thousand.
const SATURATED: f64 = 7.0;

/// A warning about beta where most pairs of a step are saturated.
pub fn saturation_warning<'a>(pairs: impl Iterator<Item = &'a PairLoss>) -> Option<String> {
    let all: Vec<f64> = pairs.map(|p| p.z).collect();
    let won = all.iter().filter(|z| **z > SATURATED).count();
    let lost = all.iter().filter(|z| **z < -SATURATED).count();
    (2 * (won + lost) > all.len()).then(|| {
        format!(
            "warning: of {} pairs, {won} have z above {SATURATED} (their gradient is 0) and {lost} have z below -{SATURATED} \
             (their gradient no longer depends on z): the policy is far from the reference for this --beta-dpo; a smaller \
             --beta-dpo, a smaller --learning-rate or --refresh-every would help",
            all.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beta_is_given_in_the_other_conventions() {
        let note = beta_note(5000.0, [4, 64, 64]);
        assert!(note.contains("is 2500 without") && note.contains("0.1526 for errors summed over the 16384"), "{note}");
    }

    #[test]
    fn diffusion_dpos_readme_on_one_gpu_is_warned_about_and_its_launcher_is_not() {
        assert!(small_rate_warning(2000.0 * 1e-8, 0.03).is_some());
        assert!(small_rate_warning(1750.0 * 128e-8, 0.03).is_none());
    }

    #[test]
    fn saturation_concerns_most_of_the_pairs() {
        let pairs = |zs: &[f64]| zs.iter().map(|&z| PairLoss { z, loss: 0.0, gradient: [0.0; 2] }).collect::<Vec<_>>();
        assert!(saturation_warning(pairs(&[0.1, 9.0, 1.0]).iter()).is_none());
        let warning = saturation_warning(pairs(&[-8.0, 9.0, 1.0]).iter()).unwrap();
        assert!(warning.contains("of 3 pairs, 1 have z above 7") && warning.contains("and 1 have z below"));
    }
}
