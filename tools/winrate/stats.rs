//! Best of n, wins, intervals: the arithmetic of a win rate, as pure functions.

pub use pipe::winrates::{Z, wilson};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The score of a prompt: that of its best image. `None` if no image has a score.
pub fn best_of(scores: impl Iterator<Item = f32>) -> Option<f32> {
    scores.reduce(f32::max)
}

/// Number of prompts on which the candidate's score is better than, equal to or worse than the baseline's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wins {
    pub wins: usize,
    pub ties: usize,
    pub losses: usize,
}

impl Wins {
    /// Counts one prompt. A win is strict, as in the paper; only exact equality is a tie.
    pub fn add<T: PartialOrd>(&mut self, candidate: T, baseline: T) {
        self.wins += (candidate > baseline) as usize;
        self.ties += (candidate == baseline) as usize;
        self.losses += (candidate < baseline) as usize;
    }

    pub fn n(&self) -> usize {
        self.wins + self.ties + self.losses
    }

    /// wins / n. A tie is not a win, and counts in n.
    pub fn rate(&self) -> f64 {
        self.wins as f64 / self.n() as f64
    }
}

/// Student's quantile of a two-sided 95 % interval, for `df` degrees of freedom.
pub fn student(df: usize) -> f64 {
    // One degree of freedom or more is never refused; none is as wide as can be.
    StudentsT::new(0.0, 1.0, df as f64).map_or(f64::INFINITY, |t| t.inverse_cdf(0.975))
}

/// The q-quantile of sorted values, interpolated linearly between two neighbours (numpy's `linear`).
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_of_is_the_maximum() {
        assert_eq!(best_of([0.2, 0.5, -1.0].into_iter()), Some(0.5));
        assert_eq!(best_of([-3.0].into_iter()), Some(-3.0));
        assert_eq!(best_of([].into_iter()), None);
    }

    // from scipy.stats import binomtest
    // for k, n in [(210, 297), (0, 10), (10, 10), (111, 150), (765, 1129)]:
    //     print(binomtest(k, n).proportion_ci(method='wilson'))
    #[test]
    fn wilson_is_scipys() {
        for (wins, n, low, high) in [
            (210, 297, 0.652931579, 0.755921643),
            (0, 10, 0.0, 0.277532800),
            (10, 10, 0.722467200, 1.0),
            (111, 150, 0.664435672, 0.803578611),
            (765, 1129, 0.649764245, 0.704212913),
        ] {
            let (l, h) = wilson(wins, n);
            assert!((l - low).abs() < 1e-7 && (h - high).abs() < 1e-7, "{wins}/{n}: {l} {h}");
        }
    }

    // from scipy.stats import t
    // for df in [1, 2, 3, 4, 5, 10, 29, 228]: print(df, t.ppf(.975, df))
    #[test]
    fn student_is_scipys() {
        for (df, t) in [
            (1, 12.706204736),
            (2, 4.302652730),
            (3, 3.182446305),
            (4, 2.776445105),
            (5, 2.570581836),
            (10, 2.228138852),
            (29, 2.045229642),
            (228, 1.970423195),
        ] {
            assert!((student(df) - t).abs() < 1e-8, "{df}: {}", student(df));
        }
    }

    #[test]
    fn a_win_is_strict() {
        let mut wins = Wins::default();
        for (a, b) in [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (2.0, 1.0)] {
            wins.add(a, b);
        }
        assert_eq!(wins, Wins { wins: 2, ties: 1, losses: 1 });
        assert_eq!(wins.rate(), 0.5);
    }

    /// Table I of the paper, from the counts behind its percentages.
    #[test]
    fn table_1_of_the_paper() {
        let columns = [
            (297, [[210, 170, 167, 157], [253, 233, 191, 206], [217, 218, 196, 207]]),
            (1129, [[765, 635, 573, 570], [791, 736, 636, 702], [691, 709, 643, 707]]),
            (150, [[111, 76, 71, 84], [109, 109, 91, 95], [86, 104, 96, 90]]),
        ];
        let printed = [
            [
                ["70.71", "57.24", "56.23", "52.86"],
                ["85.19", "78.45", "64.31", "69.36"],
                ["73.06", "73.40", "65.99", "69.70"],
            ],
            [
                ["67.76", "56.24", "50.75", "50.49"],
                ["70.06", "65.19", "56.33", "62.18"],
                ["61.20", "62.80", "56.95", "62.62"],
            ],
            [
                ["74.00", "50.67", "47.33", "56.00"],
                ["72.67", "72.67", "60.67", "63.33"],
                ["57.33", "69.33", "64.00", "60.00"],
            ],
        ];
        for ((n, counts), percents) in columns.iter().zip(printed) {
            for (wins, percent) in counts.iter().flatten().zip(percents.iter().flatten()) {
                let wins = Wins { wins: *wins, ties: 0, losses: n - wins };
                assert_eq!(format!("{:.2}", 100.0 * wins.rate()), *percent);
            }
        }
    }

    #[test]
    fn quantile_is_numpys() {
        // numpy.quantile([1, 2, 4, 8, 16], [0, .025, .5, .9, 1])
        let x = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (q, value) in [(0.0, 1.0), (0.025, 1.1), (0.5, 4.0), (0.9, 12.8), (1.0, 16.0)] {
            assert!((quantile(&x, q) - value).abs() < 1e-12, "{q}");
        }
    }
}
