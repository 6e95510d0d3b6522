//! The training timesteps that a sampler visits (arXiv 2305.08891, Table 2), with numpy's rounding.

use anyhow::{Result, ensure};

use crate::process::{SchedulerConfig, Spacing};

/// `steps` timesteps, the latest first; with linspace they are fractions.
pub fn spaced(c: &SchedulerConfig, spacing: Spacing, steps: usize) -> Result<Vec<f64>> {
    let (n, count) = (c.num_train_timesteps as f64, steps as f64);
    let all: Vec<f64> = match spacing {
        Spacing::Leading => {
            let stride = c.num_train_timesteps / steps;
            (0..steps).rev().map(|i| (i * stride + c.steps_offset) as f64).collect()
        }
        Spacing::Trailing => {
            let stride = (n - n / count) - n; // as numpy.arange computes it, the second less the first
            (0..steps).map(|i| (n + i as f64 * stride).round_ties_even() - 1.0).collect()
        }
        Spacing::Linspace => {
            let stride = (n - 1.0) / (count - 1.0);
            let at = |i: usize| if i == 0 { 0.0 } else { i as f64 * stride };
            (0..steps).rev().map(at).collect()
        }
    };
    ensure!(
        all[0] < n,
        "{steps} sampling steps and steps_offset {} reach beyond the last of {n} training timesteps; take fewer steps",
        c.steps_offset
    );
    Ok(all)
}

/// The same, rounded to whole timesteps.
pub fn spaced_whole(c: &SchedulerConfig, spacing: Spacing, steps: usize) -> Result<Vec<f64>> {
    Ok(spaced(c, spacing, steps)?.into_iter().map(f64::round_ties_even).collect())
}

/// The same where the end of the sampling counts as one more step, as in DPM-Solver++.
pub fn spaced_before_end(c: &SchedulerConfig, spacing: Spacing, steps: usize) -> Result<Vec<f64>> {
    if spacing == Spacing::Trailing {
        return spaced_whole(c, spacing, steps);
    }
    ensure!(
        steps < c.num_train_timesteps,
        "{steps} sampling steps and the end do not fit {} training timesteps; take fewer steps",
        c.num_train_timesteps
    );
    let mut all = spaced_whole(c, spacing, steps + 1)?;
    all.truncate(steps);
    Ok(all)
}
