//! How gradients become steps: length of the run, learning rate, optimiser and clipping.

use candle_core::DType;
use nets::optim::{AdafactorConfig, AdamWConfig, LrSchedule, UpdateRule};
use pipe::cli::{named, not_negative, number};
use pipe::origin::Origin;

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Optimisation")]
pub struct OptimiserFlags {
    /// Optimiser steps in total, including those before a resumption; 2000 as in Diffusion-DPO's launch lines
    #[arg(long, visible_alias = "steps", value_name = "N", default_value_t = 2000)]
    #[arg(help_heading = None, value_parser = clap::value_parser!(u64).range(1..=MOST_STEPS))]
    pub max_train_steps: u64,
    /// Learning rate; the default is Diffusion-DPO's, which belongs with --scale-lr
    #[arg(long, help_heading = None, visible_alias = "lr", value_name = "X", default_value = "1e-8", value_parser = not_negative())]
    learning_rate: f64,
    /// Multiply the learning rate by the number of pairs per optimiser step
    #[arg(long)]
    scale_lr: bool,
    /// How the learning rate changes over the run (diffusers' schedules)
    #[arg(long, default_value_t = LrSchedule::ConstantWithWarmup, value_parser = named::<LrSchedule>())]
    lr_scheduler: LrSchedule,
    /// Steps over which the learning rate rises from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    lr_warmup_steps: u64,
    /// Length of a linear or cosine schedule [default: --max-train-steps]
    #[arg(long, value_name = "N")]
    lr_total_steps: Option<u64>,
    /// Optimiser [default: adamw]
    #[arg(long, value_parser = named::<OptimizerName>())]
    pub optimizer: Option<OptimizerName>,
    /// The same as --optimizer adafactor
    #[arg(long, conflicts_with = "optimizer")]
    pub use_adafactor: bool,
    /// How AdamW's moments are stored; bf16 halves their memory
    #[arg(long, default_value_t = Moments::F32, value_parser = named::<Moments>())]
    moments: Moments,
    /// Decay of AdamW's mean gradient per step
    #[arg(long, value_name = "X", default_value_t = 0.9, value_parser = decay())]
    adam_beta1: f64,
    /// Decay of AdamW's mean squared gradient per step
    #[arg(long, value_name = "X", default_value_t = 0.999, value_parser = decay())]
    adam_beta2: f64,
    /// Added to the root of AdamW's mean squared gradient, so that nothing is divided by 0
    #[arg(long, value_name = "X", default_value = "1e-8", value_parser = not_negative())]
    adam_epsilon: f64,
    /// Weight decay of AdamW and Adafactor
    #[arg(long, value_name = "X", default_value_t = 1e-2, value_parser = not_negative())]
    adam_weight_decay: f64,
    /// Scale longer gradients down to this norm; inf never scales [default: 1 for AdamW, inf for Adafactor, which bounds
    /// its updates itself]
    #[arg(long, value_name = "X", value_parser = number("a number above 0, or inf", |norm| norm > 0.0))]
    pub max_grad_norm: Option<f64>,
}

/// At a million steps per second: 31 years. The number of samples, which is larger, still fits into 64 bits.
const MOST_STEPS: u64 = 1_000_000_000_000_000;

fn decay() -> impl clap::builder::TypedValueParser<Value = f64> {
    number("a number from 0 to less than 1", |x| (0.0..1.0).contains(&x))
}

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OptimizerName {
        Adamw = "adamw",
        /// As transformers' with scale_parameter and relative_step off: a quarter of AdamW's memory; Diffusion-DPO's choice for
        /// SDXL
        Adafactor = "adafactor",
    }
}

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Moments {
        F32 = "f32",
        Bf16 = "bf16",
    }
}

impl OptimiserFlags {
    pub fn rule(&self) -> UpdateRule {
        match self.optimizer {
            None | Some(OptimizerName::Adamw) if !self.use_adafactor => UpdateRule::AdamW(AdamWConfig {
                beta1: self.adam_beta1,
                beta2: self.adam_beta2,
                eps: self.adam_epsilon,
                weight_decay: self.adam_weight_decay,
            }),
            _ => UpdateRule::Adafactor(AdafactorConfig { weight_decay: self.adam_weight_decay }),
        }
    }

    pub fn moments(&self) -> DType {
        match self.moments {
            Moments::F32 => DType::F32,
            Moments::Bf16 => DType::BF16,
        }
    }

    /// The norm to which longer gradients are scaled down; Diffusion-DPO's code never scales Adafactor's.
    pub fn max_norm(&self) -> f64 {
        let default = if matches!(self.rule(), UpdateRule::AdamW(_)) { 1.0 } else { f64::INFINITY };
        self.max_grad_norm.unwrap_or(default)
    }

    /// The learning rate of every step of a run with this many pairs per step.
    pub fn learning_rate(&self, pairs_per_step: usize) -> LearningRate {
        LearningRate {
            base: self.learning_rate * if self.scale_lr { pairs_per_step as f64 } else { 1.0 },
            schedule: self.lr_scheduler,
            warmup: self.lr_warmup_steps,
            total: self.lr_total_steps.unwrap_or(self.max_train_steps),
            steps: self.max_train_steps,
        }
    }

    pub fn describe(&self, origin: Origin) -> Origin {
        // The length matters only to a schedule that ends.
        let mut origin = origin
            .arg("learning_rate", self.learning_rate)
            .arg("scale_lr", self.scale_lr)
            .arg("lr_scheduler", self.lr_scheduler.to_string())
            .arg("lr_warmup_steps", self.lr_warmup_steps);
        if matches!(self.lr_scheduler, LrSchedule::Linear | LrSchedule::Cosine) {
            origin = origin.arg("lr_total_steps", self.lr_total_steps.unwrap_or(self.max_train_steps));
        }
        origin = match self.rule() {
            UpdateRule::AdamW(AdamWConfig { beta1, beta2, eps, .. }) => {
                let origin = origin.arg("optimizer", OptimizerName::Adamw.to_string());
                origin.arg("adam_beta1", beta1).arg("adam_beta2", beta2).arg("adam_epsilon", eps)
            }
            UpdateRule::Adafactor(_) => origin.arg("optimizer", OptimizerName::Adafactor.to_string()),
        };
        origin
            .arg("adam_weight_decay", self.adam_weight_decay)
            .arg("moments", self.moments.to_string())
            .arg("max_grad_norm", self.max_norm().to_string())
    }
}

#[derive(Clone, Copy, Debug)]
pub struct LearningRate {
    base: f64,
    schedule: LrSchedule,
    warmup: u64,
    total: u64,
    steps: u64,
}

impl LearningRate {
    /// The learning rate of a step, from 1.
    pub fn at(&self, step: u64) -> f64 {
        self.base * self.schedule.factor(step - 1, self.warmup, self.total)
    }

    /// The sum over all steps: the farthest that Adam can carry one weight.
    pub fn sum(&self) -> f64 {
        let (samples, each) = self.samples();
        samples.map(|step| self.at(step)).sum::<f64>() * each
    }

    pub fn highest(&self) -> f64 {
        self.samples().0.map(|step| self.at(step)).fold(0.0, f64::max)
    }

    /// The steps from which a sum is computed, and the number of steps for which each stands: 1 up to a million steps, which are
    /// added in a few milliseconds.
    fn samples(&self) -> (impl Iterator<Item = u64> + use<>, f64) {
        let (steps, n) = (self.steps, self.steps.min(1_000_000));
        let step = move |i: u64| 1 + (u128::from(i) * u128::from(steps) / u128::from(n)) as u64;
        ((0..n).map(step), steps as f64 / n as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rates_of_many_steps_are_summed_from_samples() {
        let rate =
            |steps: u64| LearningRate { base: 2.0, schedule: LrSchedule::Linear, warmup: 0, total: steps, steps };
        assert_eq!((rate(4).sum(), rate(4).highest()), (2.0 + 1.5 + 1.0 + 0.5, 2.0));
        let many = 1_000_000_000_000;
        assert!((rate(many).sum() / many as f64 - 1.0).abs() < 1e-5 && rate(many).highest() == 2.0);
    }
}
