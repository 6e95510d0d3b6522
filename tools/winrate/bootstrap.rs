//! The bootstrap: how far a mean over prompts could differ with other prompts.

use pipe::seed::draws;

use crate::stats::quantile;

/// What decides the draws. It is the same for every comparison, so that all resample the same prompts.
#[derive(Clone, Copy)]
pub struct Bootstrap {
    pub seed: u64,
    pub resamples: u32,
}

impl Bootstrap {
    /// The 95 % percentile interval of the mean of each column. `rows` are prompts, each with one value per column: both models'
    /// images of a prompt are drawn together (a paired bootstrap), and so are all metrics. `stream` names the group of prompts.
    ///
    /// Draw b is a pure function of (seed, stream, b), so nothing else in the table changes an interval.
    pub fn intervals(&self, stream: &str, rows: &[Vec<f64>]) -> Vec<(f64, f64)> {
        let columns = rows.first().map_or(0, Vec::len);
        let mut means = vec![Vec::with_capacity(self.resamples as usize); columns];
        for b in 0..self.resamples {
            let mut sums = vec![0.0; columns];
            let mut draws = draws(self.seed, "bootstrap", stream, b.into());
            for _ in rows {
                let row = &rows[draws.below(rows.len() as u64) as usize];
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            means.iter_mut().zip(sums).for_each(|(means, sum)| means.push(sum / rows.len() as f64));
        }
        let interval = |mut means: Vec<f64>| {
            means.sort_by(f64::total_cmp);
            (quantile(&means, 0.025), quantile(&means, 0.975))
        };
        means.into_iter().map(interval).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 600 samples of 80 prompts each, from a known distribution: 19 of 20 intervals should hold the truth.
    #[test]
    fn ninety_five_of_a_hundred_intervals_hold_the_truth() {
        let (samples, n) = (600, 80);
        let mut held = [0; 3];
        for sample in 0..samples {
            let mut world = draws(1, "world", "", sample);
            // A win in 60 % of prompts; a normal difference around 0.3; a skewed one, exponential with mean 1.
            let mut row = || {
                let normal = f64::from(world.normals(1)[0]);
                vec![f64::from(world.uniform() < 0.6), 0.3 + normal, -(1.0 - world.uniform()).ln()]
            };
            let rows: Vec<_> = (0..n).map(|_| row()).collect();
            let intervals = Bootstrap { seed: sample, resamples: 300 }.intervals("", &rows);
            for ((held, (low, high)), truth) in held.iter_mut().zip(intervals).zip([0.6, 0.3, 1.0]) {
                *held += (low <= truth && truth <= high) as u32;
            }
        }
        // 95 % of 600 is 570, with a standard deviation of 5. The percentile method covers a little less in small samples.
        assert!(held.iter().all(|h| (546..=588).contains(h)), "{held:?} of {samples}");
    }

    #[test]
    fn draws_belong_to_seed_and_prompts() {
        let rows: Vec<_> = (0..50).map(|i| vec![f64::from(i)]).collect();
        let of = |seed, stream: &str| Bootstrap { seed, resamples: 200 }.intervals(stream, &rows);
        assert_eq!(of(1, "a"), of(1, "a"));
        assert_ne!(of(1, "a"), of(2, "a"));
        assert_ne!(of(1, "a"), of(1, "b"));
        // A column's interval does not depend on its neighbours.
        let wide: Vec<_> = rows.iter().map(|r| vec![1.0, r[0]]).collect();
        assert_eq!(Bootstrap { seed: 1, resamples: 200 }.intervals("a", &wide)[1], of(1, "a")[0]);
    }
}
