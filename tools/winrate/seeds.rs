//! Several training seeds of a model: how far a win rate could differ with other seeds and other prompts.

use anyhow::{Result, ensure};
use pipe::moments;
use pipe::winrates::{ByMetric, Change, Joint, Pooled, PooledCell, PooledShare};

use crate::compare::both;
use crate::scored::{ModelScores, Prompt};
use crate::stats::{Z, student, wilson};

/// A model's tables: one per training seed, in the order in which they were named.
pub struct Model<'a> {
    pub name: &'a str,
    pub seeds: Vec<&'a ModelScores>,
}

/// Tables whose images have the same `model` belong to one model.
pub fn models(tables: &[ModelScores]) -> Vec<Model<'_>> {
    let mut models: Vec<Model> = vec![];
    for table in tables {
        match models.iter_mut().find(|m| m.name == table.model) {
            Some(model) => model.seeds.push(table),
            None => models.push(Model { name: &table.model, seeds: vec![table] }),
        }
    }
    models
}

#[derive(Clone, Copy)]
struct Estimate {
    mean: f64,
    low: f64,
    high: f64,
}

/// Compares seed by seed, the i-th of `a` with the i-th of `b`. A single table of either model is compared with every seed of the
/// other.
pub fn compare(a: &Model, b: &Model, metrics: &[String]) -> Result<Pooled> {
    let (of_a, of_b) = (a.seeds.len(), b.seeds.len());
    ensure!(
        of_a == of_b || of_a == 1 || of_b == 1,
        "{} has {of_a} tables and {} has {of_b}, so their seeds cannot be paired; name as many of both, or one of either, or choose with --against",
        a.name,
        b.name
    );
    let seeds = of_a.max(of_b);
    // All prompts in the order of the first table: the p-th is the same prompt everywhere.
    let first = a.seeds[0];
    let in_order = |table| -> Result<Vec<Prompt>> { Ok(both(first, table)?.into_iter().map(|(_, p)| p).collect()) };
    let mut pairs = vec![];
    for seed in 0..seeds {
        let (a, b) = (in_order(a.seeds[seed % of_a])?, in_order(b.seeds[seed % of_b])?);
        pairs.push(a.into_iter().zip(b).collect::<Vec<_>>());
    }
    let values = |value: &dyn Fn(Prompt, Prompt) -> f64| -> Vec<Vec<f64>> {
        pairs.iter().map(|seed| seed.iter().map(|&(a, b)| value(a, b)).collect()).collect()
    };
    let cell = |m: usize| {
        let won = values(&|a, b| f64::from(u8::from(a.best(m) > b.best(m))));
        let images = b.seeds.iter().flat_map(|table| table.prompts()).flat_map(|prompt| prompt.scores(m));
        let sd = moments::sd(images.map(f64::from)).filter(|&sd| sd > 0.0);
        let change = estimate(&values(&|a, b| a.mean(m) - b.mean(m)));
        PooledCell {
            wins: share(&won),
            change: Change::new(sd.map(|sd| [change.mean, change.low, change.high].map(|x| x / sd))),
        }
    };
    let dominates = |a: Prompt, b: Prompt| f64::from(u8::from(a.dominates(b, |p, m| p.best(m))));
    let joint = (metrics.len() > 1).then(|| Joint {
        domination: share(&values(&|a, b| dominates(a, b))),
        collapse: share(&values(&|a, b| dominates(b, a))),
    });
    let metrics = ByMetric(metrics.iter().cloned().zip((0..metrics.len()).map(cell)).collect());
    Ok(Pooled { a: a.name.to_owned(), b: b.name.to_owned(), seeds, n: pairs[0].len(), metrics, joint })
}

fn share(won: &[Vec<f64>]) -> PooledShare {
    let Estimate { mean: rate, low, high } = rate(won);
    PooledShare { rate, low, high, rates: won.iter().map(|seed| mean(seed)).collect() }
}

fn mean(values: &[f64]) -> f64 {
    moments::mean(values.iter().copied())
}

fn variance(values: &[f64]) -> f64 {
    moments::sd(values.iter().copied()).map_or(0.0, |sd| sd * sd)
}

/// The mean of `values[seed][prompt]` over both, with an interval for other seeds and other prompts.
///
/// half-width^2 = a + b (Howe 1974).
/// a = (t_{S-1} s)^2 / S: variation between the means of the S seeds, by Student's t, which is large (4.3 for three seeds) because
/// few seeds hardly tell how far they differ. s covers the seed, and what it happened to do on each prompt.
/// b = 1.96^2 c / n: variation between prompts that all seeds share, which does not show between seeds. c is the covariance of
/// two seeds over the n prompts, averaged over all pairs of seeds.
/// With one seed, b is all there is (c is then the variance), and the interval says nothing about other seeds.
fn estimate(values: &[Vec<f64>]) -> Estimate {
    let (seeds, n) = (values.len(), values[0].len());
    let of_seeds: Vec<f64> = values.iter().map(|seed| mean(seed)).collect();
    let of_prompts: Vec<f64> = (0..n).map(|p| moments::mean(values.iter().map(|seed| seed[p]))).collect();
    let (between, shared) = match seeds {
        1 => (0.0, variance(&values[0])),
        _ => {
            // S^2 var(mean of seeds) = sum of their variances + S (S-1) c.
            let own = moments::mean(values.iter().map(|seed| variance(seed)));
            let shared = (seeds as f64 * variance(&of_prompts) - own) / (seeds - 1) as f64;
            (student(seeds - 1).powi(2) * variance(&of_seeds) / seeds as f64, shared.max(0.0))
        }
    };
    let half = (between + Z * Z * shared / n as f64).sqrt();
    let mean = mean(&of_seeds);
    Estimate { mean, low: mean - half, high: mean + half }
}

/// The same for wins, 0 or 1. The interval stays within [0, 1] and is never narrower than Wilson's for as many decisions, which
/// is right where (almost) all are alike. With one seed it is Wilson's.
fn rate(won: &[Vec<f64>]) -> Estimate {
    let decisions = won.iter().map(Vec::len).sum();
    let wins = won.iter().flatten().filter(|&&x| x == 1.0).count();
    let (low, high) = wilson(wins, decisions);
    let wide = estimate(won);
    match won.len() {
        1 => Estimate { low, high, ..wide },
        _ => Estimate { low: wide.low.min(low).max(0.0), high: wide.high.max(high).min(1.0), ..wide },
    }
}

#[cfg(test)]
mod tests {
    use pipe::seed::draws;

    use super::*;

    /// A known world: whether a seed wins a prompt depends on the prompt, the seed and chance, each normal; the true rate is
    /// P(0.3 + prompt + seed + chance > 0). Of 600 worlds, how many intervals hold it?
    fn held(seeds: usize, n: usize, sd: f32, truth: f64) -> usize {
        let holds = |world: u64| {
            let mut world = draws(7, "world", "", world);
            let prompts = world.normals(n);
            let values: Vec<Vec<f64>> = (0..seeds)
                .map(|_| {
                    let shift = 0.3 + sd * world.normals(1)[0];
                    let chance = world.normals(n);
                    prompts.iter().zip(chance).map(|(p, x)| f64::from(u8::from(shift + p + x > 0.0))).collect()
                })
                .collect();
            let Estimate { low, high, .. } = rate(&values);
            low <= truth && truth <= high
        };
        (0..600).filter(|&world| holds(world)).count()
    }

    // from scipy.stats import norm
    // for sd in (0, .1, .2, .4): print(norm.cdf(.3 / (2 + sd**2) ** .5))
    #[test]
    fn ninety_three_of_a_hundred_intervals_hold_the_truth_with_three_seeds() {
        for (sd, truth) in [(0.0, 0.583_998), (0.1, 0.583_792), (0.2, 0.583_183), (0.4, 0.580_872)] {
            let held = held(3, 229, sd, truth);
            assert!((558..=594).contains(&held), "seeds differ by {sd}: {held} of 600");
        }
        // One seed tells of prompts only, and where seeds do not differ that is all.
        assert!((558..=582).contains(&held(1, 229, 0.0, 0.583_998)));
    }

    #[test]
    fn the_parts_are_students_and_the_covariance() {
        // numpy: x = [[1, 2, 6], [2, 3, 10]]; means 3 and 5, s^2 = 2; cov([1, 2, 6], [2, 3, 10]) = 11.5
        // scipy.stats.t.ppf(.975, 1) = 12.7062047362; (12.7062047362^2 * 2 / 2 + 1.959964^2 * 11.5 / 3) ** .5 = 13.2730
        let e = estimate(&[vec![1.0, 2.0, 6.0], vec![2.0, 3.0, 10.0]]);
        assert!((e.mean - 4.0).abs() < 1e-12 && (e.high - e.mean - 13.2730).abs() < 1e-3, "{}", e.high - e.mean);
        // Seeds that move against each other share nothing.
        let e = estimate(&[vec![0.0, 1.0], vec![1.0, 0.0]]);
        assert_eq!((e.mean, e.low, e.high), (0.5, 0.5, 0.5));
        // Wins without exception are no certainty.
        let e = rate(&[vec![1.0; 50], vec![1.0; 50]]);
        assert!(e.mean == 1.0 && e.high == 1.0 && (e.low - wilson(100, 100).0).abs() < 1e-12, "{}", e.low);
        let e = rate(&[[vec![1.0; 30], vec![0.0; 20]].concat()]);
        assert_eq!((e.low, e.high), wilson(30, 50));
    }
}
