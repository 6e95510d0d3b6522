//! Several training seeds of a model: how far a win rate could have come out otherwise with other seeds and other prompts.

use anyhow::{Result, ensure};

use crate::{
    compare::both,
    layout::{Format, Grid},
    scored::{Prompt, Scored},
    stats::{self, Z, student, wilson},
    tables::Results,
};

/// A model's tables: one a training seed, in the order in which they were named.
pub struct Model<'a> {
    pub name: &'a str,
    pub seeds: Vec<&'a Scored>,
}

/// Tables whose images have the same `model` belong to one model.
pub fn models(tables: &[Scored]) -> Vec<Model<'_>> {
    let mut models: Vec<Model> = vec![];
    for table in tables {
        match models.iter_mut().find(|m| m.name == table.model) {
            Some(model) => model.seeds.push(table),
            None => models.push(Model { name: &table.model, seeds: vec![table] }),
        }
    }
    models
}

/// A model against another, over all their prompts.
pub struct Pooled {
    pub a: String,
    pub b: String,
    pub seeds: usize,
    pub n: usize,
    /// One a metric.
    pub cells: Vec<Cell>,
}

/// Means over seeds and prompts, with 95 % intervals.
pub struct Cell {
    /// Share of prompts on which the candidate's best image scores higher, one a seed.
    pub rates: Vec<f64>,
    pub rate: Estimate,
    /// Change of the mean score, in standard deviations of the baseline's images; `None` where all of these score the same.
    pub change: Option<Estimate>,
}

/// A mean and its 95 % interval.
#[derive(Clone, Copy)]
pub struct Estimate {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// Compares seed by seed, the i-th of `a` with the i-th of `b`; a single table of either is compared with every seed of the other.
///
/// # Errors
/// Numbers of seeds that do not go together; tables with other prompts.
pub fn compare(a: &Model, b: &Model, metrics: usize) -> Result<Pooled> {
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
    let in_order = |table| -> Result<Vec<&Prompt>> { Ok(both(first, table)?.into_iter().map(|(_, p)| p).collect()) };
    let mut pairs = vec![];
    for seed in 0..seeds {
        let (a, b) = (in_order(a.seeds[seed % of_a])?, in_order(b.seeds[seed % of_b])?);
        pairs.push(a.into_iter().zip(b).collect::<Vec<_>>());
    }
    let values = |value: &dyn Fn(&Prompt, &Prompt) -> f64| -> Vec<Vec<f64>> {
        pairs.iter().map(|seed| seed.iter().map(|(a, b)| value(a, b)).collect()).collect()
    };
    let cell = |m: usize| {
        let won = values(&|a, b| f64::from(u8::from(a.best[m] > b.best[m])));
        let images = b.seeds.iter().flat_map(|t| &t.prompts).flat_map(|p| &p.scores[m]);
        let sd = stats::sd(images.map(|&x| f64::from(x))).filter(|&sd| sd > 0.0);
        let change = estimate(&values(&|a, b| a.mean[m] - b.mean[m]));
        Cell {
            rates: won.iter().map(|seed| mean(seed)).collect(),
            rate: rate(&won),
            change: sd.map(|sd| Estimate { mean: change.mean / sd, low: change.low / sd, high: change.high / sd }),
        }
    };
    let cells = (0..metrics).map(cell).collect();
    Ok(Pooled { a: a.name.to_owned(), b: b.name.to_owned(), seeds, n: pairs[0].len(), cells })
}

fn mean(values: &[f64]) -> f64 {
    stats::mean(values.iter().copied())
}

fn variance(values: &[f64]) -> f64 {
    stats::sd(values.iter().copied()).map_or(0.0, |sd| sd * sd)
}

/// The mean of `values[seed][prompt]` over both, with an interval for other seeds and other prompts.
///
/// Its square is a sum of two (Howe 1974). Student's, over the means of the S seeds: (t_{S-1} s)^2 / S; with few seeds their spread s is
/// hardly known, and t, 4.3 for three, makes up for it. These means vary by the seed and by what it happened to do on each prompt. What
/// prompts do to all seeds alike does not show between seeds: 1.96^2 c / n, where c is the covariance over the prompts of two
/// seeds, the mean of all pairs of seeds. With one seed the second part alone is left, and nothing is said of other seeds.
fn estimate(values: &[Vec<f64>]) -> Estimate {
    let (seeds, n) = (values.len(), values[0].len());
    let of_seeds: Vec<f64> = values.iter().map(|seed| mean(seed)).collect();
    let of_prompts: Vec<f64> = (0..n).map(|p| stats::mean(values.iter().map(|seed| seed[p]))).collect();
    let (between, shared) = match seeds {
        1 => (0.0, variance(&values[0])),
        _ => {
            // S^2 var(mean of seeds) = sum of their variances + S (S-1) c.
            let own = stats::mean(values.iter().map(|seed| variance(seed)));
            let shared = (seeds as f64 * variance(&of_prompts) - own) / (seeds - 1) as f64;
            (student(seeds - 1).powi(2) * variance(&of_seeds) / seeds as f64, shared.max(0.0))
        }
    };
    let half = (between + Z * Z * shared / n as f64).sqrt();
    let mean = mean(&of_seeds);
    Estimate { mean, low: mean - half, high: mean + half }
}

/// The same of wins, 0 or 1: within [0, 1], and never narrower than Wilson's interval of as many decisions, which stays
/// honest where (almost) all are alike. With one seed it is Wilson's.
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

/// Win rates, and changes of the mean score, a line a comparison; as CSV a line a number.
pub fn grids(results: &Results, format: Format) -> Vec<Grid> {
    if format == Format::Csv {
        return vec![long(results)];
    }
    let grid = |title: String, cell: &dyn Fn(&Cell) -> String| {
        let row = |p: &Pooled| {
            let head = [p.a.clone(), p.b.clone(), p.seeds.to_string(), p.n.to_string()];
            head.into_iter().chain(p.cells.iter().map(cell)).collect()
        };
        let metrics = results.metrics.iter().map(|m| results.called(m));
        let head = ["model", "against", "seeds", "n"].map(String::from).into_iter().chain(metrics);
        Grid { title, head: head.collect(), rows: results.pooled.iter().map(row).collect(), left: 2 }
    };
    let (images, between) = (results.best_of, "[95 % interval over seeds and prompts]");
    vec![
        grid(format!("win rate, best of {images} images a prompt, mean of the training seeds {between}"), &|c| {
            let Estimate { mean, low, high } = c.rate;
            format!("{:.1} % [{:.1}, {:.1}]", 100.0 * mean, 100.0 * low, 100.0 * high)
        }),
        grid(format!("change of the mean score, in sd of the baseline's images {between}"), &|c| match c.change {
            Some(Estimate { mean, low, high }) => format!("{mean:+.2} [{low:+.2}, {high:+.2}]"),
            None => "-".into(),
        }),
    ]
}

/// One number and its interval a line: `figure` is `rate`, or `change_sd` as in the JSON.
fn long(results: &Results) -> Grid {
    let mut rows = vec![];
    for (figure, of) in [("rate", (|c| Some(c.rate)) as fn(&Cell) -> Option<Estimate>), ("change_sd", |c| c.change)] {
        for p in results.pooled {
            for (metric, cell) in results.metrics.iter().zip(&p.cells) {
                let mut row = vec![figure.to_owned(), p.a.clone(), p.b.clone(), results.called(metric)];
                row.extend([p.seeds, p.n].map(|n| n.to_string()));
                let numbers = of(cell).map(|e| [e.mean, e.low, e.high].map(|x| x.to_string()));
                row.extend(numbers.unwrap_or_else(|| ["-", "-", "-"].map(String::from)));
                rows.push(row);
            }
        }
    }
    let head = ["figure", "model", "against", "metric", "seeds", "n", "rate", "low", "high"].map(String::from);
    Grid { title: String::new(), head: head.to_vec(), rows, left: 4 }
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
