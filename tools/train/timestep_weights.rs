//! `--timestep-weights`: the margin is larger at some timesteps than at others, and without weights these rule the training ("Rethinking
//! DPO in Diffusion Models", arXiv 2505.18736). The paper's own weights are not public; these follow from the run.

use nets::process::Process;
use serde::{Deserialize, Serialize};

use crate::loss::Pair;

const TENTHS: usize = 10;

/// The running mean of |z| in each tenth of the schedule; `None` before the first pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Margins([Option<f64>; TENTHS]);

/// The tenth of the schedule that a timestep lies in.
pub fn tenth(t: f32, process: &Process) -> usize {
    ((TENTHS as f64 * f64::from(t) / process.timesteps() as f64) as usize).min(TENTHS - 1)
}

impl Margins {
    /// Takes a step's pairs into the means, each of which reaches over about the last 100 pairs of its tenth.
    pub fn add(&mut self, pairs: &[Pair]) {
        for pair in pairs {
            let mean = &mut self.0[pair.tenth];
            *mean = Some(mean.map_or(pair.loss.z.abs(), |mean| mean + 0.01 * (pair.loss.z.abs() - mean)));
        }
    }

    /// w of a tenth: its share of the sum of 1 / r over all tenths, times their number, so that the mean weight is 1. r is the mean
    /// of |z|, but at least a tenth of the largest. 1 until every tenth has been seen.
    pub fn weight(&self, tenth: usize) -> f64 {
        let Some(r) = self.0.into_iter().collect::<Option<Vec<f64>>>() else { return 1.0 };
        let least = 0.1 * r.iter().copied().fold(0.0, f64::max);
        let inverse = |r: f64| 1.0 / r.max(least);
        let sum: f64 = r.iter().copied().map(inverse).sum();
        if least > 0.0 { TENTHS as f64 * inverse(r[tenth]) / sum } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{Errors, PairLoss};

    fn pair(tenth: usize, z: f64) -> Pair {
        let errors = Errors { policy_winner: 0.0, policy_loser: 0.0, reference_winner: 0.0, reference_loser: 0.0 };
        Pair { errors, loss: PairLoss { z, loss: 0.0, gradient: [0.0; 2] }, norm_ratio: 1.0, tenth }
    }

    #[test]
    fn weights_even_out_the_margins() {
        let mut margins = Margins::default();
        margins.add(&(0..9).map(|i| pair(i, 1.0)).collect::<Vec<_>>());
        assert_eq!(margins.weight(0), 1.0); // the last tenth has not been seen
        margins.add(&[pair(9, -4.0)]);
        let weights: Vec<f64> = (0..10).map(|i| margins.weight(i)).collect();
        assert!((weights.iter().sum::<f64>() - 10.0).abs() < 1e-12 && (weights[0] / weights[9] - 4.0).abs() < 1e-12);
        // Near 0, as after a refresh, a margin counts as a tenth of the largest.
        margins.0[3] = Some(0.0);
        assert!((margins.weight(3) / margins.weight(9) - 10.0).abs() < 1e-12);
        margins.0 = [Some(0.0); 10];
        assert_eq!(margins.weight(5), 1.0);
    }

    #[test]
    fn a_mean_follows_the_last_pairs() {
        let mut margins = Margins::default();
        margins.add(&[pair(2, 1.0), pair(2, 2.0)]);
        assert_eq!(margins.0[2], Some(1.01));
        margins.add(&vec![pair(2, 3.0); 1000]);
        assert!((margins.0[2].unwrap() - 3.0).abs() < 1e-3);
    }
}
