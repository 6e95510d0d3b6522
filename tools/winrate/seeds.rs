//! Several training seeds of a model: how far a win rate could have come out otherwise with other seeds and other prompts.

use anyhow::{Result, ensure};
use pipe::seed::draws;

use crate::{
    bootstrap::Bootstrap,
    compare::{Both, both},
    layout::{Format, Grid},
    scored::Scored,
    stats::{self, quantile},
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
    pub rate: (f64, f64),
    /// Change of the mean score, in standard deviations of the baseline's images.
    pub change: f64,
    pub change_interval: (f64, f64),
}

/// Compares seed by seed, the i-th of `a` with the i-th of `b`, from the first again where `b` has fewer.
///
/// Seeds and prompts are drawn anew together (a two-way bootstrap), so an interval tells what another training and other prompts
/// could have given; with three seeds it is a rough one.
///
/// # Errors
/// Tables with other prompts.
pub fn compare(a: &Model, b: &Model, metrics: usize, bootstrap: Bootstrap) -> Result<Pooled> {
    let pairs = a.seeds.iter().zip(b.seeds.iter().cycle());
    // [seed][prompt][2 metric + (win, difference)]
    let mut values: Vec<Vec<Vec<f64>>> = vec![];
    for (a, b) in pairs {
        let value = |(a, b): &Both| -> Vec<f64> {
            let won = |m: usize| f64::from(u8::from(a.best[m] > b.best[m]));
            (0..metrics).flat_map(|m| [won(m), a.mean[m] - b.mean[m]]).collect()
        };
        values.push(both(a, b)?.iter().map(value).collect());
    }
    let n = values[0].len();
    ensure!(values.iter().all(|v| v.len() == n), "the tables of {} hold different prompts", a.name);

    let intervals = intervals(&values, bootstrap);
    let mean = |seed: &[Vec<f64>], column: usize| stats::mean(seed.iter().map(|row| row[column]));
    let cell = |m: usize| {
        let images = b.seeds.iter().flat_map(|t| &t.prompts).flat_map(|p| &p.scores[m]);
        let sd = stats::sd(images.map(|&x| f64::from(x))).filter(|&sd| sd > 0.0).unwrap_or(f64::NAN);
        let (low, high) = intervals[2 * m + 1];
        Cell {
            rates: values.iter().map(|seed| mean(seed, 2 * m)).collect(),
            rate: intervals[2 * m],
            change: stats::mean(values.iter().map(|seed| mean(seed, 2 * m + 1))) / sd,
            change_interval: (low / sd, high / sd),
        }
    };
    Ok(Pooled {
        a: a.name.to_owned(),
        b: b.name.to_owned(),
        seeds: values.len(),
        n,
        cells: (0..metrics).map(cell).collect(),
    })
}

fn intervals(values: &[Vec<Vec<f64>>], bootstrap: Bootstrap) -> Vec<(f64, f64)> {
    let (seeds, n, columns) = (values.len(), values[0].len(), values[0][0].len());
    let mut means = vec![Vec::with_capacity(bootstrap.resamples as usize); columns];
    for b in 0..bootstrap.resamples {
        let mut draws = draws(bootstrap.seed, "bootstrap", "seeds", b.into());
        let drawn: Vec<usize> = (0..seeds).map(|_| draws.below(seeds as u64) as usize).collect();
        let mut sums = vec![0.0; columns];
        for _ in 0..n {
            let prompt = draws.below(n as u64) as usize;
            for &seed in &drawn {
                sums.iter_mut().zip(&values[seed][prompt]).for_each(|(sum, x)| *sum += x);
            }
        }
        means.iter_mut().zip(sums).for_each(|(means, sum)| means.push(sum / (n * seeds) as f64));
    }
    let interval = |mut means: Vec<f64>| {
        means.sort_by(f64::total_cmp);
        (quantile(&means, 0.025), quantile(&means, 0.975))
    };
    means.into_iter().map(interval).collect()
}

/// Win rates, and changes of the mean score, a line a comparison.
pub fn grids(pooled: &[Pooled], metrics: &[String], best_of: u32, format: Format) -> Vec<Grid> {
    let grid = |title: String, cell: &dyn Fn(&Cell) -> String| {
        let row = |p: &Pooled| {
            let head = [p.a.clone(), p.b.clone(), p.seeds.to_string(), p.n.to_string()];
            head.into_iter().chain(p.cells.iter().map(cell)).collect()
        };
        let head = ["model", "against", "seeds", "n"].map(String::from).into_iter().chain(metrics.iter().cloned());
        Grid { title, head: head.collect(), rows: pooled.iter().map(row).collect(), left: 2 }
    };
    let between = "[95 % bootstrap over seeds and prompts]";
    vec![
        grid(format!("win rate, best of {best_of} images a prompt, mean of the training seeds {between}"), &|c| {
            let rate = stats::mean(c.rates.iter().copied());
            if format == Format::Csv {
                return rate.to_string();
            }
            format!("{:.1} % [{:.1}, {:.1}]", 100.0 * rate, 100.0 * c.rate.0, 100.0 * c.rate.1)
        }),
        grid(format!("change of the mean score, in sd of the baseline's images {between}"), &|c| {
            if format == Format::Csv {
                return c.change.to_string();
            }
            format!("{:+.2} [{:+.2}, {:+.2}]", c.change, c.change_interval.0, c.change_interval.1)
        }),
    ]
}
