//! What `winrate --json` wrote.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Fields that are not shown are left out here.
#[derive(Deserialize)]
pub struct Winrates {
    /// The number of images per prompt, of which the best counts.
    pub best_of: u64,
    /// What prompts are grouped by.
    pub by: String,
    pub metrics: Vec<String>,
    /// Metrics that judge and did not vote.
    #[serde(default)]
    pub held_out: Vec<String>,
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// What `winrate --seeds` writes in place of the comparisons.
    #[serde(default)]
    pub seeds: Vec<Pooled>,
}

/// Candidate `a` against baseline `b`.
#[derive(Deserialize)]
pub struct Comparison {
    pub a: String,
    pub b: String,
    pub all: Group,
    #[serde(default)]
    groups: Vec<Group>,
}

/// Candidate `a` against baseline `b`, over all prompts and several training seeds.
#[derive(Deserialize)]
pub struct Pooled {
    pub a: String,
    pub b: String,
    pub seeds: u64,
    #[serde(flatten)]
    pub all: Group,
}

/// A comparison over some prompts.
#[derive(Deserialize)]
pub struct Group {
    /// `None`: all prompts.
    #[serde(default)]
    name: Option<String>,
    /// The number of prompts.
    pub n: u64,
    metrics: HashMap<String, Cell>,
}

/// One metric's comparison.
#[derive(Deserialize)]
pub struct Cell {
    /// The win rate and its 95 % interval, from 0 to 1.
    pub rate: f64,
    low: f64,
    high: f64,
    /// The change of the mean score and its 95 % interval, in standard deviations of the baseline's images.
    change_sd: Option<f64>,
    change_sd_low: Option<f64>,
    change_sd_high: Option<f64>,
    /// Of one table against one other.
    #[serde(flatten)]
    pub test: Option<Test>,
    /// Over several training seeds: the rate of each.
    #[serde(default)]
    pub rates: Vec<f64>,
}

#[derive(Deserialize)]
pub struct Test {
    pub wins: usize,
    pub ties: usize,
    pub losses: usize,
    pub mean_a: f64,
    pub mean_b: f64,
    /// The p-value of the sign test, corrected for all rates of the file.
    pub p_holm: f64,
    pub winner: Option<Side>,
    pub mean_of_n: MeanOfN,
}

/// The comparison by the mean of a prompt's images.
#[derive(Deserialize)]
pub struct MeanOfN {
    pub rate: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    A,
    B,
}

impl Winrates {
    /// # Errors
    /// The file cannot be read, is not what `winrate --json` writes, or lacks a metric in one of its comparisons.
    pub fn read(path: &Path) -> Result<Self> {
        let file = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
        let all: Self = serde_json::from_str(&text)
            .with_context(|| format!("{file} is not what `winrate --json -o {file}` writes"))?;
        let compared = !all.comparisons.is_empty() || !all.seeds.is_empty();
        ensure!(compared, "{file} holds no comparison; give `winrate` two tables or more");
        ensure!(!all.metrics.is_empty(), "{file} holds no metric");
        let single = all.comparisons.iter().flat_map(|c| c.groups().map(move |group| (&c.a, &c.b, group)));
        for (a, b, group) in single.chain(all.seeds.iter().map(|p| (&p.a, &p.b, &p.all))) {
            let missing = all.metrics.iter().find(|m| !group.metrics.contains_key(*m));
            ensure!(
                missing.is_none(),
                "{file}: {a} vs {b}, {}: metric '{}' is missing",
                group.label(),
                missing.map_or("", |m| m)
            );
            let counted = group.metrics.values().all(|cell| cell.test.is_some() || !cell.rates.is_empty());
            ensure!(counted, "{file}: {a} vs {b}, {}: a metric has neither wins nor rates of seeds", group.label());
        }
        Ok(all)
    }

    /// Both models of every comparison, the baseline first.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        let single = self.comparisons.iter().map(|c| [&c.b, &c.a]);
        let pooled = self.seeds.iter().map(|p| [&p.b, &p.a]);
        single.chain(pooled).flatten().map(String::as_str)
    }

    /// The number of prompts that were compared.
    pub fn prompts(&self) -> Option<usize> {
        self.comparisons.first().map(|c| c.all.n).or(self.seeds.first().map(|p| p.all.n)).map(|n| n as usize)
    }
}

impl Comparison {
    /// All prompts, then the groups.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.all).chain(&self.groups)
    }
}

impl Group {
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or("all")
    }

    /// One of the file's metrics; `Winrates::read` has checked that every group has all of them.
    pub fn cell(&self, metric: &str) -> &Cell {
        &self.metrics[metric]
    }
}

impl Cell {
    /// The win rate, and the lower and upper end of its interval.
    pub fn rate(&self) -> [f64; 3] {
        [self.rate, self.low, self.high]
    }

    /// The change of the mean score, likewise; `None` where the baseline's scores are all the same.
    pub fn change(&self) -> Option<[f64; 3]> {
        Some([self.change_sd?, self.change_sd_low?, self.change_sd_high?])
    }

    /// Nobody wins within the noise.
    pub fn winner(&self) -> Option<Side> {
        self.test.as_ref()?.winner
    }

    /// The class in the style: the candidate is ahead, the baseline is, or nobody.
    pub fn class(&self) -> &'static str {
        match self.winner() {
            Some(Side::A) => "ahead",
            Some(Side::B) => "behind",
            None => "open",
        }
    }
}
