//! Spike detection: is the loss or a gradient NaN, or the loss far above its running mean?

use pipe::cli::{named, number};
use serde::{Deserialize, Serialize};

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OnSpike {
        /// Continue; stop only if a number is NaN or infinite
        Ignore = "ignore",
        /// Stop and keep the last good checkpoint
        Stop = "stop",
        /// Return to the last checkpoint and skip the pairs that led to the spike, as PaLM's authors did; at most three times
        Rollback = "rollback",
    }
}

#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Runs")]
pub struct SpikeFlags {
    /// What to do when the loss is NaN or infinite, or higher than --spike allows
    #[arg(long, default_value_t = OnSpike::Stop, value_parser = named::<OnSpike>())]
    pub on_spike: OnSpike,
    /// A loss of more than X times its mean over the last 50 steps is a spike; single losses of small batches can
    /// reach ten times the mean without harm
    #[arg(long, value_name = "X", default_value_t = 20.0, value_parser = number("a number above 1", |x| x > 1.0))]
    pub spike: f64,
}

impl SpikeFlags {
    /// The fault of a step with this loss and this gradient norm, if it has one.
    pub fn trouble(&self, history: &LossHistory, loss: f64, grad_norm: f64) -> Option<String> {
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Some(format!("the loss is {loss} and the gradient's norm {grad_norm}"));
        }
        let usual = history.usual().filter(|_| self.on_spike != OnSpike::Ignore)?;
        (loss > self.spike * usual)
            .then(|| format!("the loss is {loss:.4}, {:.0} times its running mean of {usual:.4}", loss / usual))
    }
}

/// The losses of the steps so far, as a running mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossHistory {
    /// Exponential mean over about 50 steps.
    now: f64,
    /// Mean of the first 20 steps.
    first: f64,
    steps: u64,
}

impl LossHistory {
    const WINDOW: u64 = 50;
    /// Steps that must have been seen before a loss can be called a spike.
    const FIRST: u64 = 20;

    pub fn add(&mut self, loss: f64) {
        self.steps += 1;
        self.now += (loss - self.now) / self.steps.min(Self::WINDOW) as f64;
        if self.steps <= Self::FIRST {
            self.first = self.now;
        }
    }

    /// The loss that spikes are measured against: the running mean, or the mean of the first steps where that is higher.
    /// (A loss that has fallen to almost nothing may well return to where it began.)
    fn usual(&self) -> Option<f64> {
        (self.steps >= Self::FIRST).then(|| self.now.max(self.first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_far_above_the_running_mean() {
        let flags = |on_spike| SpikeFlags { on_spike, spike: 10.0 };
        let (stop, ignore) = (flags(OnSpike::Stop), flags(OnSpike::Ignore));
        let mut history = LossHistory::default();
        assert!(stop.trouble(&history, 100.0, 1.0).is_none());
        (0..30).for_each(|i| history.add(if i % 2 == 0 { 0.6 } else { 0.8 }));
        assert!(stop.trouble(&history, 6.9, 1.0).is_none());
        assert!(stop.trouble(&history, 7.5, 1.0).is_some_and(|t| t.contains("times its running mean of 0.7")));
        assert!(ignore.trouble(&history, 7.5, 1.0).is_none());
        (0..300).for_each(|_| history.add(0.001));
        assert!(stop.trouble(&history, 0.7, 1.0).is_none() && stop.trouble(&history, 7.5, 1.0).is_some());
        assert!(ignore.trouble(&history, f64::NAN, 1.0).is_some());
        assert!(ignore.trouble(&history, 0.7, f64::INFINITY).is_some());
    }
}
