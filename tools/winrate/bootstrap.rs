//! The bootstrap: how far a mean over prompts could differ with other prompts.

use std::{io, ops::Range, panic::resume_unwind, thread};

use anyhow::{Context, Error, Result};
use pipe::seed::{Draws, draws};
use statrs::distribution::{Binomial, DiscreteCDF};

use crate::stats::quantile;

/// What decides the draws. It is the same for every comparison, so that all resample the same prompts.
#[derive(Clone, Copy)]
pub struct Bootstrap {
    pub seed: u64,
    pub resamples: u32,
    /// Threads that resample; the intervals do not depend on them.
    pub threads: usize,
}

/// Prompts whose values and counts stay in a core's nearest caches. 2^12, so that twelve random bits choose one without bias.
const BLOCK: usize = 1 << 12;

/// Resamples that pass over the values together, so that those are read from memory once for all of them.
const TOGETHER: u32 = 64;

impl Bootstrap {
    /// The 95 % percentile interval of the mean of each column, which has a value per prompt. Both models' images of a prompt are drawn
    /// together (a paired bootstrap), and so are all columns. `stream` names the group of prompts.
    ///
    /// Draw b is a pure function of (seed, stream, b), so nothing else in the table changes an interval.
    pub fn intervals(&self, stream: &str, columns: &[Vec<f64>]) -> Result<Vec<(f64, f64)>> {
        let starts: Vec<u32> = (0..self.resamples).step_by(TOGETHER as usize).collect();
        let some = |starts: &[u32]| -> Vec<Vec<f64>> {
            let all = |&from| self.means(stream, columns, from..self.resamples.min(from + TOGETHER));
            starts.iter().flat_map(all).collect()
        };
        let share = starts.len().div_ceil(self.threads.max(1)).max(1);
        let means: Vec<Vec<f64>> = thread::scope(|scope| {
            let run = |starts| thread::Builder::new().spawn_scoped(scope, move || some(starts));
            let running =
                starts.chunks(share).map(run).collect::<io::Result<Vec<_>>>().context("cannot make a thread")?;
            let ended = running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            Ok::<_, Error>(ended.flatten().collect())
        })?;
        let interval = |column: usize| {
            let mut means: Vec<f64> = means.iter().map(|of_columns| of_columns[column]).collect();
            means.sort_by(f64::total_cmp);
            (quantile(&means, 0.025), quantile(&means, 0.975))
        };
        Ok((0..columns.len()).map(interval).collect())
    }

    /// The means of all columns in each of these resamples.
    fn means(&self, stream: &str, columns: &[Vec<f64>], resamples: Range<u32>) -> Vec<Vec<f64>> {
        let n = columns.first().map_or(0, Vec::len);
        let mut of_each: Vec<(Draws, Vec<u32>)> = resamples
            .map(|b| {
                let mut draws = draws(self.seed, "bootstrap", stream, b.into());
                let blocks = per_block(&mut draws, n);
                (draws, blocks)
            })
            .collect();
        let mut sums = vec![vec![0.0; columns.len()]; of_each.len()];
        let mut counts = vec![0.0; n.min(BLOCK)];
        for (block, from) in (0..n).step_by(BLOCK).enumerate() {
            let to = n.min(from + BLOCK);
            for ((draws, blocks), sums) in of_each.iter_mut().zip(&mut sums) {
                let counts = &mut counts[..to - from];
                counts.fill(0.0);
                throw(draws, blocks[block], counts);
                let columns = columns.iter().map(|column| &column[from..to]);
                sums.iter_mut().zip(columns).for_each(|(sum, column)| *sum += dot(counts, column));
            }
        }
        sums.iter_mut().flatten().for_each(|sum| *sum /= n as f64);
        sums
    }
}

/// How many of n draws among n prompts fall into each block.
fn per_block(draws: &mut Draws, n: usize) -> Vec<u32> {
    let mut blocks = vec![0; n.div_ceil(BLOCK)];
    match &mut blocks[..] {
        [all] => *all = n as u32,
        _ => (0..n).for_each(|_| blocks[draws.below(n as u64) as usize / BLOCK] += 1),
    }
    blocks
}

/// Adds `n` draws to the counts of a block's prompts.
fn throw(draws: &mut Draws, n: u32, counts: &mut [f64]) {
    if counts.len() < BLOCK {
        (0..n).for_each(|_| counts[draws.below(counts.len() as u64) as usize] += 1.0);
        return;
    }
    let mut left = n;
    while left > 0 {
        let bits = draws.next_u64();
        let now = left.min(5); // five times twelve bits
        (0..now).for_each(|i| counts[(bits >> (12 * i)) as usize % BLOCK] += 1.0);
        left -= now;
    }
}

/// The sum of products, in lanes that a processor adds at once.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks(LANES), b.chunks(LANES));
    a.zip(b).for_each(|(a, b)| sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b));
    sums.iter().sum()
}

/// The 95 % percentile interval of the share of `wins` in `n` under the bootstrap. No draw is needed: a resample's wins follow the
/// binomial distribution.
pub fn of_share(wins: usize, n: usize) -> (f64, f64) {
    let Ok(binomial) = Binomial::new(wins as f64 / n as f64, n as u64) else { return (0.0, 1.0) };
    let quantile = |q: f64| binomial.inverse_cdf(q) as f64 / n as f64;
    (quantile(0.025), quantile(0.975))
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn bootstrap(seed: u64, resamples: u32) -> Bootstrap {
        Bootstrap { seed, resamples, threads: 2 }
    }

    /// 600 samples of 80 prompts each, from a known distribution: 19 of 20 intervals should hold the truth.
    #[test]
    fn ninety_five_of_a_hundred_intervals_hold_the_truth() {
        let (samples, n) = (600, 80);
        let mut held = [0; 3];
        for sample in 0..samples {
            let mut world = draws(1, "world", "", sample);
            // A win in 60 % of prompts; a normal difference around 0.3; a skewed one, exponential with mean 1.
            let mut columns = [vec![], vec![], vec![]];
            for _ in 0..n {
                let normal = f64::from(world.normals(1)[0]);
                columns[0].push(f64::from(world.uniform() < 0.6));
                columns[1].push(0.3 + normal);
                columns[2].push(-(1.0 - world.uniform()).ln());
            }
            let wins = columns[0].iter().sum::<f64>() as usize;
            let drawn = bootstrap(sample, 300).intervals("", &columns).unwrap();
            let intervals = [of_share(wins, n), drawn[1], drawn[2]];
            for ((held, (low, high)), truth) in held.iter_mut().zip(intervals).zip([0.6, 0.3, 1.0]) {
                *held += (low <= truth && truth <= high) as u32;
            }
            // Shares are drawn as they are computed, but for chance and the steps of a share.
            let (low, high) = of_share(wins, n);
            assert!((low - drawn[0].0).abs() < 0.04 && (high - drawn[0].1).abs() < 0.04, "{:?} {low} {high}", drawn[0]);
        }
        // 95 % of 600 is 570, with a standard deviation of 5. The percentile method covers a little less in small samples.
        assert!(held.iter().all(|h| (546..=588).contains(h)), "{held:?} of {samples}");
    }

    // from scipy.stats import binom
    // for k, n in [(0, 10), (10, 10), (210, 297), (36, 60), (500000, 1000000)]: print(binom.ppf([.025, .975], n, k / n))
    #[test]
    fn a_share_is_scipys() {
        for (wins, n, low, high) in [
            (0, 10, 0, 0),
            (10, 10, 10, 10),
            (210, 297, 194, 225),
            (36, 60, 28, 43),
            (500_000, 1_000_000, 499_020, 500_980),
        ] {
            assert_eq!(of_share(wins, n), (f64::from(low) / n as f64, f64::from(high) / n as f64), "{wins} of {n}");
        }
    }

    #[test]
    fn draws_belong_to_seed_and_prompts() {
        let column: Vec<f64> = (0..50).map(f64::from).collect();
        let of = |seed, stream: &str| bootstrap(seed, 200).intervals(stream, from_ref(&column)).unwrap();
        assert_eq!(of(1, "a"), of(1, "a"));
        assert_ne!(of(1, "a"), of(2, "a"));
        assert_ne!(of(1, "a"), of(1, "b"));
        // A column's interval does not depend on its neighbours, nor on the threads.
        let wide = [vec![1.0; 50], column.clone()];
        assert_eq!(bootstrap(1, 200).intervals("a", &wide).unwrap()[1], of(1, "a")[0]);
        let alone = Bootstrap { seed: 1, resamples: 200, threads: 1 };
        assert_eq!(alone.intervals("a", from_ref(&column)).unwrap(), of(1, "a"));
        // One prompt after the other, as many as there are.
        let mut plain: Vec<f64> = (0..200)
            .map(|b| {
                let mut draws = draws(1, "bootstrap", "a", b);
                (0..50).map(|_| column[draws.below(50) as usize]).sum::<f64>() / 50.0
            })
            .collect();
        plain.sort_by(f64::total_cmp);
        assert_eq!(of(1, "a")[0], (quantile(&plain, 0.025), quantile(&plain, 0.975)));
    }

    /// Many blocks of prompts are resampled as one: n draws in all, each prompt as likely as every other.
    #[test]
    fn blocks_make_a_bootstrap_of_the_whole() {
        let n = 3 * BLOCK + 1000;
        let mut world = draws(3, "world", "", 0);
        let column: Vec<f64> = world.normals(n).into_iter().map(f64::from).collect();
        let ones = vec![1.0; n];
        let last: Vec<f64> = (0..n).map(|i| f64::from(i >= 3 * BLOCK)).collect();
        let means = bootstrap(1, 0).means("", &[ones, column.clone(), last], 0..2000);
        assert!(means.iter().all(|of| of[0] == 1.0));
        for (m, (mean, sd)) in
            [(1, (0.0, 1.0)), (2, (1000.0 / n as f64, (1000.0 / n as f64 * (1.0 - 1000.0 / n as f64)).sqrt()))]
        {
            let error = sd / (n as f64).sqrt();
            let centre = if m == 1 { column.iter().sum::<f64>() / n as f64 } else { mean };
            let of: Vec<f64> = means.iter().map(|of| (of[m] - centre) / error).collect();
            let (mean, var) = (of.iter().sum::<f64>() / 2000.0, of.iter().map(|x| x * x).sum::<f64>() / 2000.0);
            assert!(mean.abs() < 0.09 && (var - 1.0).abs() < 0.12, "column {m}: {mean} {var}");
        }
    }
}
