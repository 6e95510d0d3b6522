//! Whether the disk holds the checkpoints of a run: a run of days should not end at its first.

use std::path::Path;

use anyhow::{Result, ensure};
use nets::params::count;
use nets::weights::Weights;
use pipe::{place, text};

use crate::state::{REFRESHED, State};
use crate::{checkpoints::Checkpoints, start::Setup};

/// The disk space of a run's checkpoints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disk {
    /// Bytes of one.
    pub checkpoint: u64,
    /// How many more are on the disk at once.
    pub at_once: u64,
}

impl Disk {
    /// `base`: the weights of the whole denoiser. `there`: how many regular checkpoints the output folder holds.
    pub fn of(setup: &Setup, state: &State, checkpoints: &Checkpoints, base: &Weights, there: usize) -> Self {
        let (done, steps) = (state.counters.step, setup.optimiser.max_train_steps);
        let trained = count(&state.policy.params);
        let published = checkpoints.dtype().size_in_bytes();
        let mut bytes = state.optimizer.bytes() + published * trained;
        if setup.reference.moves_within(steps) || state.counters.reference == REFRESHED {
            bytes += 4 * trained;
        }
        if published != 4 {
            bytes += 4 * trained; // state/ keeps f32
        }
        if setup.lora.config().is_some() {
            bytes += published * trained; // under kohya's names too
            if checkpoints.merge {
                let size = |name: &String| base.dims(name).unwrap_or_default().iter().product::<usize>();
                bytes += published * base.names().iter().map(size).sum::<usize>();
            }
        }
        let to_come = checkpoints.to_come(done, steps);
        Self { checkpoint: bytes as u64, at_once: at_once(to_come, checkpoints.limit(), there) }
    }

    /// Refuses a run whose first checkpoint does not fit on the disk of `out`. Returns a warning if they do not all fit.
    pub fn check(self, out: &Path) -> Result<Option<String>> {
        self.judge(out, place::free(out)?)
    }

    fn judge(self, out: &Path, free: u64) -> Result<Option<String>> {
        let (out, one, left) = (out.display(), text::bytes(self.checkpoint), text::bytes(free));
        ensure!(
            self.checkpoint <= free,
            "a checkpoint takes {one}, and the disk of {out} has {left} left: make room, or name another folder with -o"
        );
        let all = self.checkpoint.saturating_mul(self.at_once);
        Ok((all > free).then(|| {
            format!(
                "warning: the checkpoints take {} on the disk ({} of {one}), and that of {out} has {left} left: make room before they \
                 are written, or set --checkpoints-total-limit",
                text::bytes(all),
                self.at_once
            )
        }))
    }
}

/// How many checkpoints are added: the regular ones to come, and the last one. Beyond the limit, each replaces one, which is still
/// there while the new one is written.
fn at_once(to_come: u64, limit: Option<usize>, there: usize) -> u64 {
    let most = limit.map_or(u64::MAX, |limit| (limit as u64).saturating_add(1).saturating_sub(there as u64));
    to_come.saturating_add(1).min(most).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_counted_that_are_on_the_disk_at_once() {
        for ((to_come, limit, there), expected) in [
            ((0, None, 0), 1),     // the last alone
            ((3, None, 0), 4),     // all, and the last
            ((15, Some(1), 0), 2), // a new one beside the old one, and at the end the last beside it
            ((15, Some(3), 0), 4),
            ((1, Some(3), 0), 2),
            ((15, Some(1), 1), 1), // a resumed run
            ((15, Some(1), 5), 1),
        ] {
            assert_eq!(at_once(to_come, limit, there), expected, "{to_come} {limit:?} {there}");
        }
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_before_the_first_step() {
        let disk = Disk { checkpoint: 10_000_000_000, at_once: 2 };
        let judge = |free| disk.judge(Path::new("out"), free);
        let error = judge(9_999_999_999).unwrap_err().to_string();
        assert!(error.contains("takes 10.00 GB") && error.contains("out has 10.00 GB left"), "{error}");
        let warning = judge(15_000_000_000).unwrap().unwrap();
        assert!(warning.contains("20.00 GB") && warning.contains("2 of 10.00 GB"), "{warning}");
        assert_eq!(judge(20_000_000_000).unwrap(), None);
    }
}
