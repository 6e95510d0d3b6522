//! The bootstrap: how far a mean over prompts could differ with other prompts.

use std::{io, panic::resume_unwind, thread};

use anyhow::{Context, Error, Result};
use pipe::seed::{Draws, draws};
use statrs::distribution::{Binomial, DiscreteCDF};

use crate::stats::quantile;

/// The settings that decide the draws. They are the same for every group of prompts.
#[derive(Clone, Copy)]
pub struct Bootstrap {
    pub seed: u64,
    pub resamples: u32,
    /// Threads that resample; the intervals do not depend on them.
    pub threads: usize,
}

/// Prompts whose values and counts stay in a core's nearest caches.
const BLOCK: usize = 1 << 12;

/// Resamples the means of several columns, which have a value per prompt. Both models' images of a prompt are drawn together (a
/// paired bootstrap), and so are all columns.
///
/// A resample of up to [`BLOCK`] prompts draws as many of them as there are. With more prompts, each is drawn a number of times that
/// is Poisson(1), and the mean is over what was drawn: equal except for the number of draws; no prompt is kept in memory
/// (Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams").
///
/// The draws of resample b in a block are a pure function of (seed, stream, b, block), so nothing else in the table changes an
/// interval.
#[derive(Clone)]
pub struct Resampled {
    by: Bootstrap,
    /// Names the group of prompts.
    pub stream: String,
    /// The prompts of a block, column by column.
    block: Vec<Vec<f64>>,
    /// For each resample, the number of prompts drawn in earlier blocks, and the sum of each column over them.
    sums: Vec<f64>,
    /// The number of blocks before.
    before: u64,
}

impl Resampled {
    pub fn new(by: Bootstrap, stream: &str, columns: usize) -> Self {
        Self { by, stream: stream.to_owned(), block: vec![vec![]; columns], sums: vec![], before: 0 }
    }

    /// Takes a prompt's values, one per column.
    pub fn add(&mut self, values: impl Iterator<Item = f64>) -> Result<()> {
        if self.block.first().is_some_and(|column| column.len() == BLOCK) {
            self.resample(poisson)?;
            self.before += 1;
            self.block.iter_mut().for_each(Vec::clear);
        }
        self.block.iter_mut().zip(values).for_each(|(column, x)| column.push(x));
        Ok(())
    }

    /// The 95 % percentile interval of the mean of each column.
    pub fn intervals(mut self) -> Result<Vec<(f64, f64)>> {
        self.resample(if self.before == 0 { as_many } else { poisson })?;
        let width = self.block.len() + 1;
        let interval = |column: usize| {
            let mut means: Vec<f64> = self.sums.chunks(width).map(|sums| sums[1 + column] / sums[0]).collect();
            means.sort_by(f64::total_cmp);
            (quantile(&means, 0.025), quantile(&means, 0.975))
        };
        Ok((0..self.block.len()).map(interval).collect())
    }

    /// Adds the block to the sums of each resample.
    fn resample(&mut self, draw: fn(&mut Draws, &mut [f64])) -> Result<()> {
        let Self { by, stream, block, sums, before } = self;
        let (by, stream, block, before) = (*by, &**stream, &*block, *before);
        let Some(n) = block.first().map(Vec::len) else { return Ok(()) };
        let width = block.len() + 1;
        sums.resize(by.resamples as usize * width, 0.0);
        let share = (by.resamples as usize).div_ceil(by.threads.max(1)).max(1);
        let some = |from: usize, sums: &mut [f64]| {
            let mut counts = vec![0.0; n];
            for (b, sums) in (from as u64..).zip(sums.chunks_mut(width)) {
                draw(&mut draws(by.seed, "bootstrap", stream, b | before << 32), &mut counts);
                sums[0] += counts.iter().sum::<f64>();
                sums[1..].iter_mut().zip(block).for_each(|(sum, column)| *sum += dot(&counts, column));
            }
        };
        thread::scope(|scope| {
            let run = |(i, sums)| thread::Builder::new().spawn_scoped(scope, move || some(i * share, sums));
            let running = sums.chunks_mut(share * width).enumerate().map(run).collect::<io::Result<Vec<_>>>();
            for thread in running.context("cannot make a thread")? {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            Ok::<_, Error>(())
        })
    }
}

/// Draws as many prompts as there are.
fn as_many(draws: &mut Draws, counts: &mut [f64]) {
    counts.fill(0.0);
    (0..counts.len()).for_each(|_| counts[draws.below(counts.len() as u64) as usize] += 1.0);
}

/// Draws each prompt Poisson(1) times, to 16 bits: as often as a random number, from -2^15 on, is greater than a bound.
fn poisson(draws: &mut Draws, counts: &mut [f64]) {
    /// 2^16 P(X <= i) - 2^15 - 1 for i from 0. Eight or more is rarer than 2^-16.
    const BOUNDS: [i16; 7] = [-8660, 15450, 27504, 31523, 32527, 32728, 32762];
    const LANES: usize = 64;
    for counts in counts.chunks_mut(LANES) {
        let (mut random, mut drawn) = ([0_i16; LANES], [0_i16; LANES]);
        for four in random[..counts.len().next_multiple_of(4)].chunks_mut(4) {
            let bits = draws.next_u64();
            four.iter_mut().enumerate().for_each(|(i, x)| *x = (bits >> (16 * i)) as i16);
        }
        for bound in BOUNDS {
            drawn.iter_mut().zip(&random).for_each(|(drawn, &x)| *drawn += i16::from(x > bound));
        }
        counts.iter_mut().zip(drawn).for_each(|(count, drawn)| *count = drawn.into());
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

    fn resampled(by: Bootstrap, stream: &str, columns: &[Vec<f64>]) -> Resampled {
        let mut resampled = Resampled::new(by, stream, columns.len());
        for prompt in 0..columns[0].len() {
            resampled.add(columns.iter().map(|column| column[prompt])).unwrap();
        }
        resampled
    }

    fn intervals(by: Bootstrap, stream: &str, columns: &[Vec<f64>]) -> Vec<(f64, f64)> {
        resampled(by, stream, columns).intervals().unwrap()
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
            let drawn = intervals(bootstrap(sample, 300), "", &columns);
            let intervals = [of_share(wins, n), drawn[1], drawn[2]];
            for ((held, (low, high)), truth) in held.iter_mut().zip(intervals).zip([0.6, 0.3, 1.0]) {
                *held += (low <= truth && truth <= high) as u32;
            }
            // Shares are drawn as they are computed, except for chance and the steps of a share.
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
        let of = |seed, stream: &str| intervals(bootstrap(seed, 200), stream, from_ref(&column));
        assert_eq!(of(1, "a"), of(1, "a"));
        assert_ne!(of(1, "a"), of(2, "a"));
        assert_ne!(of(1, "a"), of(1, "b"));
        // A column's interval does not depend on its neighbours, nor on the threads.
        let wide = [vec![1.0; 50], column.clone()];
        assert_eq!(intervals(bootstrap(1, 200), "a", &wide)[1], of(1, "a")[0]);
        let alone = Bootstrap { seed: 1, resamples: 200, threads: 1 };
        assert_eq!(intervals(alone, "a", from_ref(&column)), of(1, "a"));
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

    /// Many blocks of prompts are resampled as one: the means of resamples lie around the mean, as far as they should, also where
    /// blocks differ.
    #[test]
    fn blocks_make_a_bootstrap_of_the_whole() {
        let n = 3 * BLOCK + 1000;
        let mut world = draws(3, "world", "", 0);
        let column: Vec<f64> = world.normals(n).into_iter().map(f64::from).collect();
        let last: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i >= 3 * BLOCK))).collect();
        for (m, column) in [column, last].iter().enumerate() {
            let centre = column.iter().sum::<f64>() / n as f64;
            let sd = (column.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / n as f64).sqrt();
            let (low, high) = intervals(bootstrap(1, 4000), "", &[vec![1.0; n], column.clone()])[1];
            let half = 1.96 * sd / (n as f64).sqrt();
            let near = |x: f64, expected: f64| (x - expected).abs() < 0.1 * half;
            assert!(near(low, centre - half) && near(high, centre + half), "column {m}: {low} {high} {centre} {half}");
        }
        assert_eq!(intervals(bootstrap(1, 100), "", &[vec![1.0; n]]), [(1.0, 1.0)]);
    }

    #[test]
    fn counts_are_poissons() {
        let mut counts = vec![0.0; 1 << 20];
        poisson(&mut draws(5, "world", "", 0), &mut counts);
        let n = counts.len() as f64;
        let mut factorial = 1.0;
        for i in 0..6 {
            factorial *= f64::from(i.max(1));
            let (expected, share) =
                ((-1.0_f64).exp() / factorial, counts.iter().filter(|&&x| x == f64::from(i)).count() as f64 / n);
            assert!((share - expected).abs() < 5.0 * (expected / n).sqrt() + 2e-5, "{i}: {share} {expected}");
        }
    }
}
