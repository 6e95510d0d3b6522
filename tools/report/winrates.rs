//! The rows that the page shows of what `winrate --json` wrote.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, ensure};
use pipe::winrates::{Cell, Comparison, Group, Pooled, PooledShare, Share, Side, Winrates};

/// A comparison over some prompts.
pub struct Row<'a> {
    pub a: &'a str,
    pub b: &'a str,
    /// The name of the group of prompts; over several training seeds, the candidate.
    pub label: &'a str,
    /// The number of training seeds, where they are taken together.
    pub seeds: Option<usize>,
    pub n: usize,
    /// The shares of the prompts on which all metrics are better, and on which all are worse, with their intervals.
    pub joint: Option<[[f64; 3]; 2]>,
    /// By metric; `read` has checked that all metrics of the file are there.
    pub cells: HashMap<&'a str, Shown<'a>>,
}

pub struct Shown<'a> {
    /// The win rate, and the lower and upper end of its interval, from 0 to 1.
    pub rate: [f64; 3],
    /// The change of the mean score, likewise, in standard deviations of the baseline's images; `None` if these are all the same.
    pub change: Option<[f64; 3]>,
    /// Over several training seeds: the rate of each.
    pub rates: &'a [f64],
    /// The test of one table against one other.
    pub test: Option<&'a Cell>,
}

pub fn read(path: &Path) -> Result<Winrates> {
    let file = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
    let all: Winrates = serde_json::from_str(&text)
        .with_context(|| format!("{file} is not what `winrate --json` writes; make it again"))?;
    ensure!(!all.metrics.is_empty(), "{file} holds no metric");
    let rows: Vec<Row> = all.comparisons.iter().flat_map(groups).chain(all.seeds.iter().map(pooled)).collect();
    ensure!(!rows.is_empty(), "{file} holds no comparison; give `winrate` two tables or more");
    for Row { a, b, label, seeds, cells, .. } in &rows {
        let label = if seeds.is_some() { "all" } else { label };
        let missing = all.metrics.iter().find(|m| !cells.contains_key(m.as_str()));
        ensure!(missing.is_none(), "{file}: {a} vs {b}, {label}: metric '{}' is missing", missing.map_or("", |m| m));
    }
    Ok(all)
}

/// A comparison over all prompts, then over its groups.
pub fn groups(c: &Comparison) -> impl Iterator<Item = Row<'_>> {
    std::iter::once(&c.all).chain(&c.groups).map(|group| over(c, group))
}

pub fn all(c: &Comparison) -> Row<'_> {
    over(c, &c.all)
}

fn over<'a>(c: &'a Comparison, group: &'a Group) -> Row<'a> {
    let shown = |(metric, cell): &'a (String, Cell)| {
        let (rate, change) = (cell.best.estimate(), cell.change.estimate());
        (metric.as_str(), Shown { rate, change, rates: &[], test: Some(cell) })
    };
    let cells = group.metrics.0.iter().map(shown).collect();
    let joint = group.joint.as_ref().map(|joint| joint.map(Share::estimate));
    Row { a: &c.a, b: &c.b, label: group.name.as_deref().unwrap_or("all"), seeds: None, n: group.n, joint, cells }
}

/// A comparison over all prompts and several training seeds.
pub fn pooled(p: &Pooled) -> Row<'_> {
    let cells = p.metrics.0.iter().map(|(metric, cell)| {
        let (rate, change) = (cell.wins.estimate(), cell.change.estimate());
        (metric.as_str(), Shown { rate, change, rates: &cell.wins.rates, test: None })
    });
    let joint = p.joint.as_ref().map(|joint| joint.map(PooledShare::estimate));
    Row { a: &p.a, b: &p.b, label: &p.a, seeds: Some(p.seeds), n: p.n, joint, cells: cells.collect() }
}

/// Both models of every comparison, the baseline first.
pub fn models(file: &Winrates) -> impl Iterator<Item = &str> {
    let single = file.comparisons.iter().map(|c| [&c.b, &c.a]);
    let pooled = file.seeds.iter().map(|p| [&p.b, &p.a]);
    single.chain(pooled).flatten().map(String::as_str)
}

pub fn prompts(file: &Winrates) -> Option<usize> {
    file.comparisons.first().map(|c| c.all.n).or(file.seeds.first().map(|p| p.n))
}

impl Shown<'_> {
    /// Who is ahead; `None` within the noise.
    pub fn winner(&self) -> Option<Side> {
        self.test?.best.winner
    }

    /// The class in the style: the candidate is ahead, the baseline is, or neither.
    pub fn class(&self) -> &'static str {
        match self.winner() {
            Some(Side::A) => "ahead",
            Some(Side::B) => "behind",
            None => "open",
        }
    }
}
