//! Whether a run is still calm: a loss or weights that are no numbers, or a loss far above what is usual.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::{
    args::Args,
    start,
    state::{self, Counters, State},
};

pipe::names! {
    /// What to do when it is not.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OnSpike {
        /// Go on, unless something is no number
        Ignore = "ignore",
        /// End with the last good checkpoint kept
        Stop = "stop",
        /// Go back to the last checkpoint and past the pairs that came after it, as PaLM's trainers did; three times at most
        Rollback = "rollback",
    }
}

/// The usual loss: an exponential mean over some 50 steps, or that of the first steps where it has fallen below. (A loss that
/// has gone down to almost nothing may well return to where it began.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usual {
    now: f64,
    first: f64,
    steps: u64,
}

impl Usual {
    const STEPS: u64 = 50;
    /// Steps that must have been seen before anything can be unusual.
    const FIRST: u64 = 20;

    pub fn add(&mut self, loss: f64) {
        self.steps += 1;
        self.now += (loss - self.now) / self.steps.min(Self::STEPS) as f64;
        if self.steps <= Self::FIRST {
            self.first = self.now;
        }
    }

    /// What is wrong with this step, if anything is; a loss above `factor` times the usual one is a spike.
    pub fn trouble(&self, loss: f64, grad_norm: f64, factor: Option<f64>) -> Option<String> {
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Some(format!("the loss is {loss} and the gradient's norm {grad_norm}"));
        }
        let factor = factor.filter(|_| self.steps >= Self::FIRST)?;
        let usual = self.now.max(self.first);
        (loss > factor * usual)
            .then(|| format!("the loss is {loss:.4}, {:.0} times the usual {usual:.4}", loss / usual))
    }
}

/// Goes back to the newest checkpoint and past the pairs up to those of step `at`, or ends the run.
///
/// # Errors
/// The run ends here: that was asked for, there is no checkpoint in `out`, or nothing has come of going back before.
pub fn recover(
    args: &Args,
    state: State,
    out: &Path,
    at: u64,
    trouble: &str,
    rollbacks: usize,
    device: &Device,
) -> Result<State> {
    const MOST: usize = 3; // without a new checkpoint between
    let newest = state::newest(out);
    let kept = match &newest {
        Some(path) => format!("the last checkpoint is kept, {}", path.display()),
        None => format!("there is no checkpoint in {} yet", out.display()),
    };
    ensure!(
        args.on_spike == OnSpike::Rollback,
        "step {at}: {trouble}; {kept}. A smaller --learning_rate or --beta_dpo may help, or --on_spike rollback"
    );
    ensure!(rollbacks <= MOST, "step {at}: {trouble}, after going back {MOST} times; {kept}");
    let newest = newest.with_context(|| {
        format!("step {at}: {trouble}, and there is no checkpoint in {} to go back to", out.display())
    })?;
    args.common
        .say(format_args!("step {at}: {trouble}; going on from {}, past the pairs up to this step", newest.display()));
    let Counters { labels, skipped, .. } = state.counters.clone();
    drop(state); // there may be no memory for two
    let mut state = start::again(args, &labels, device, &newest)?;
    state.counters.skipped = skipped + at - state.counters.step;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_far_above_the_usual() {
        let mut usual = Usual::default();
        assert!(usual.trouble(100.0, 1.0, Some(10.0)).is_none());
        (0..30).for_each(|i| usual.add(if i % 2 == 0 { 0.6 } else { 0.8 }));
        assert!(usual.trouble(6.9, 1.0, Some(10.0)).is_none());
        assert!(usual.trouble(7.5, 1.0, Some(10.0)).is_some_and(|t| t.contains("times the usual 0.7")));
        assert!(usual.trouble(7.5, 1.0, None).is_none());
        (0..300).for_each(|_| usual.add(0.001));
        assert!(usual.trouble(0.7, 1.0, Some(10.0)).is_none() && usual.trouble(7.5, 1.0, Some(10.0)).is_some());
        assert!(usual.trouble(f64::NAN, 1.0, None).is_some() && usual.trouble(0.7, f64::INFINITY, None).is_some());
    }
}
