//! Several training seeds of a model: how far a win rate could differ with other seeds and other prompts.

use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Result, bail, ensure};
use pipe::winrates::{ByMetric, Change, Joint, Pooled, PooledCell, PooledShare};
use pipe::{moments, text::shown};

use crate::prompt::Prompt;
use crate::stats::{Z, student, wilson};
use crate::sums::{Model, Pair, Values};

/// The tables of a model, by their places: one per training seed, in the order in which they were named.
pub struct Tables<'a> {
    pub model: &'a str,
    pub seeds: Vec<usize>,
}

/// Tables whose images have the same `model` belong to one model.
pub fn models(tables: &[Model]) -> Vec<Tables<'_>> {
    let mut models: Vec<Tables> = vec![];
    for (place, table) in tables.iter().enumerate() {
        match models.iter_mut().find(|m| m.model == table.model) {
            Some(model) => model.seeds.push(place),
            None => models.push(Tables { model: &table.model, seeds: vec![place] }),
        }
    }
    models
}

/// A hash of the scores of each table. Two tables of a model that are alike are one training seed that was named twice.
pub struct Contents(Vec<DefaultHasher>);

impl Contents {
    pub fn new(tables: usize) -> Self {
        Self(vec![DefaultHasher::new(); tables])
    }

    /// Takes one prompt of all tables.
    pub fn add(&mut self, prompts: &[&Prompt]) {
        for (hash, prompt) in self.0.iter_mut().zip(prompts) {
            prompt.scores.iter().for_each(|score| score.to_bits().hash(hash));
        }
    }

    pub fn refuse_alike(&self, tables: &[Model]) -> Result<()> {
        let hashes: Vec<u64> = self.0.iter().map(Hasher::finish).collect();
        for Tables { model, seeds } in models(tables) {
            for (i, &a) in seeds.iter().enumerate() {
                if let Some(&b) = seeds[i + 1..].iter().find(|&&b| hashes[a] == hashes[b]) {
                    bail!(
                        "{} and {} hold the same scores of '{}', image by image: one training seed, which would count twice; name \
                         the table of each seed once",
                        tables[a].table,
                        tables[b].table,
                        shown(model)
                    );
                }
            }
        }
        Ok(())
    }
}

/// The counts of two models, seed by seed.
pub struct Pooling {
    a: String,
    b: String,
    seeds: Vec<Pair>,
    baselines: Vec<usize>,
    /// For each metric: wins, changes of the mean, and the scores of the baseline's images.
    metrics: Vec<(Seeds, Seeds, Values)>,
    domination: Seeds,
    collapse: Seeds,
}

/// Values of each seed and prompt, and of each prompt their mean over the seeds.
#[derive(Clone)]
struct Seeds {
    each: Vec<Values>,
    of_prompts: Values,
}

impl Seeds {
    fn new(seeds: usize) -> Self {
        Self { each: vec![Values::default(); seeds], of_prompts: Values::default() }
    }

    /// Takes a prompt's values, one per seed.
    fn add(&mut self, values: impl Iterator<Item = f64>) {
        let mut sum = 0.0;
        for (seed, x) in self.each.iter_mut().zip(values) {
            seed.add(x);
            sum += x;
        }
        self.of_prompts.add(sum / self.each.len() as f64);
    }
}

impl Pooling {
    /// The i-th table of `a` beside the i-th of `b`. A single table of either model is compared with every seed of the other.
    pub fn new(a: &Tables, b: &Tables, metrics: usize) -> Result<Self> {
        let (of_a, of_b) = (a.seeds.len(), b.seeds.len());
        ensure!(
            of_a == of_b || of_a == 1 || of_b == 1,
            "{} has {of_a} tables and {} has {of_b}, so their seeds cannot be paired; name as many of both, or one of either, or choose with --against",
            a.model,
            b.model
        );
        let seeds: Vec<Pair> = (0..of_a.max(of_b)).map(|i| (a.seeds[i % of_a], b.seeds[i % of_b])).collect();
        let none = Seeds::new(seeds.len());
        Ok(Self {
            a: a.model.to_owned(),
            b: b.model.to_owned(),
            seeds,
            baselines: b.seeds.clone(),
            metrics: vec![(none.clone(), none.clone(), Values::default()); metrics],
            domination: none.clone(),
            collapse: none,
        })
    }

    /// Counts one prompt of all tables.
    pub fn add(&mut self, prompts: &[&Prompt]) {
        let pairs = || self.seeds.iter().map(|&(a, b)| (prompts[a], prompts[b]));
        let indicator = |is: bool| f64::from(u8::from(is));
        for (m, (won, change, images)) in self.metrics.iter_mut().enumerate() {
            won.add(pairs().map(|(a, b)| indicator(a.best(m) > b.best(m))));
            change.add(pairs().map(|(a, b)| a.mean(m) - b.mean(m)));
            self.baselines.iter().flat_map(|&b| prompts[b].scores(m)).for_each(|x| images.add(x.into()));
        }
        self.domination.add(pairs().map(|(a, b)| indicator(a.dominates(b, Prompt::best))));
        self.collapse.add(pairs().map(|(a, b)| indicator(b.dominates(a, Prompt::best))));
    }

    pub fn close(self, metrics: &[String]) -> Pooled {
        let cell = |(won, change, images): &(Seeds, Seeds, Values)| {
            let (change, sd) = (estimate(change), images.sd().filter(|&sd| sd > 0.0));
            PooledCell {
                wins: share(won),
                change: Change::new(sd.map(|sd| [change.mean, change.low, change.high].map(|x| x / sd))),
            }
        };
        let joint = Joint { domination: share(&self.domination), collapse: share(&self.collapse) };
        Pooled {
            seeds: self.seeds.len(),
            n: self.domination.of_prompts.n(),
            metrics: ByMetric(metrics.iter().cloned().zip(self.metrics.iter().map(cell)).collect()),
            joint: (metrics.len() > 1).then_some(joint),
            a: self.a,
            b: self.b,
        }
    }
}

#[derive(Clone, Copy)]
struct Estimate {
    mean: f64,
    low: f64,
    high: f64,
}

fn share(won: &Seeds) -> PooledShare {
    let Estimate { mean: rate, low, high } = rate(won);
    PooledShare { rate, low, high, rates: won.each.iter().map(Values::mean).collect() }
}

/// The mean of the values over seeds and prompts, with an interval for other seeds and other prompts.
///
/// half-width^2 = a + b (Howe 1974).
/// a = (t_{S-1} s)^2 / S: variation between the means of the S seeds, by Student's t, which is large (4.3 for three seeds) because
/// few seeds hardly tell how far they differ. s covers the seed, and what it happened to do on each prompt.
/// b = 1.96^2 c / n: variation between prompts that all seeds share, which does not show between seeds. c is the covariance of
/// two seeds over the n prompts, averaged over all pairs of seeds.
/// With one seed, b is all there is (c is then the variance), and the interval says nothing about other seeds.
fn estimate(values: &Seeds) -> Estimate {
    let (seeds, n) = (values.each.len(), values.of_prompts.n());
    let mut of_seeds = Values::default();
    values.each.iter().for_each(|seed| of_seeds.add(seed.mean()));
    let (between, shared) = match seeds {
        1 => (0.0, values.each[0].variance()),
        _ => {
            // S^2 var(mean of seeds) = sum of their variances + S (S-1) c.
            let own = moments::mean(values.each.iter().map(Values::variance));
            let shared = (seeds as f64 * values.of_prompts.variance() - own) / (seeds - 1) as f64;
            (student(seeds - 1).powi(2) * of_seeds.variance() / seeds as f64, shared.max(0.0))
        }
    };
    let half = (between + Z * Z * shared / n as f64).sqrt();
    let mean = of_seeds.mean();
    Estimate { mean, low: mean - half, high: mean + half }
}

/// The same for wins, 0 or 1. The interval stays within [0, 1] and is never narrower than Wilson's for as many decisions, which
/// is right where (almost) all are alike. With one seed it is Wilson's.
fn rate(won: &Seeds) -> Estimate {
    let decisions = won.each.iter().map(Values::n).sum();
    let wins = won.each.iter().map(Values::sum).sum::<f64>() as usize;
    let (low, high) = wilson(wins, decisions);
    let wide = estimate(won);
    match won.each.len() {
        1 => Estimate { low, high, ..wide },
        _ => Estimate { low: wide.low.min(low).max(0.0), high: wide.high.max(high).min(1.0), ..wide },
    }
}

#[cfg(test)]
mod tests {
    use pipe::seed::draws;

    use super::*;

    /// `values[seed][prompt]`.
    fn of(values: &[Vec<f64>]) -> Seeds {
        let mut seeds = Seeds::new(values.len());
        (0..values[0].len()).for_each(|p| seeds.add(values.iter().map(|seed| seed[p])));
        seeds
    }

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
            let Estimate { low, high, .. } = rate(&of(&values));
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
        let e = estimate(&of(&[vec![1.0, 2.0, 6.0], vec![2.0, 3.0, 10.0]]));
        assert!((e.mean - 4.0).abs() < 1e-12 && (e.high - e.mean - 13.2730).abs() < 1e-3, "{}", e.high - e.mean);
        // Seeds that move against each other share nothing.
        let e = estimate(&of(&[vec![0.0, 1.0], vec![1.0, 0.0]]));
        assert_eq!((e.mean, e.low, e.high), (0.5, 0.5, 0.5));
        // Winning on every prompt does not make the interval zero.
        let e = rate(&of(&[vec![1.0; 50], vec![1.0; 50]]));
        assert!(e.mean == 1.0 && e.high == 1.0 && (e.low - wilson(100, 100).0).abs() < 1e-12, "{}", e.low);
        let e = rate(&of(&[[vec![1.0; 30], vec![0.0; 20]].concat()]));
        assert_eq!((e.low, e.high), wilson(30, 50));
    }
}
