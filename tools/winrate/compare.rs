//! One model against another: over all prompts, and group by group.

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::{
    scored::{Prompt, Scored},
    stats::{self, Wins, wilson},
};

/// What prompts are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    Set,
    Category,
    Challenge,
}

impl By {
    pub fn name(self) -> &'static str {
        match self {
            By::Set => "set",
            By::Category => "category",
            By::Challenge => "challenge",
        }
    }

    fn of(self, prompt: &Prompt) -> Option<&str> {
        match self {
            By::Set => prompt.key.0.as_deref(),
            By::Category => prompt.category.as_deref(),
            By::Challenge => prompt.challenge.as_deref(),
        }
    }
}

/// A candidate against a baseline.
pub struct Comparison {
    pub a: String,
    pub b: String,
    pub table_a: String,
    pub table_b: String,
    /// The groups in the order in which the candidate's table has them, then all prompts.
    pub rows: Vec<Row>,
    /// Prompts whose images began from other noise in the two tables.
    pub other_seeds: usize,
}

/// A comparison over some prompts.
pub struct Row {
    /// `None`: all prompts.
    pub group: Option<String>,
    pub n: usize,
    /// One a metric.
    pub cells: Vec<Cell>,
}

pub struct Cell {
    pub wins: Wins,
    pub mean_a: f64,
    pub mean_b: f64,
    /// Of the baseline's scores, image by image.
    pub sd_b: Option<f64>,
}

impl Cell {
    /// The change of the mean score, in standard deviations of the baseline.
    pub fn change_sd(&self) -> Option<f64> {
        self.sd_b.filter(|&sd| sd > 0.0).map(|sd| (self.mean_a - self.mean_b) / sd)
    }

    pub fn json(&self) -> Value {
        let (low, high) = wilson(self.wins.wins, self.wins.n());
        json!({
            "wins": self.wins.wins, "ties": self.wins.ties, "losses": self.wins.losses,
            "rate": self.wins.rate(), "low": low, "high": high,
            "mean_a": self.mean_a, "mean_b": self.mean_b, "sd_b": self.sd_b, "change_sd": self.change_sd(),
        })
    }
}

impl Row {
    pub fn json(&self, metrics: &[String]) -> Map<String, Value> {
        let mut map = Map::new();
        map.extend(self.group.iter().map(|g| ("name".to_owned(), g.as_str().into())));
        map.insert("n".into(), self.n.into());
        let cells: Map<_, _> = metrics.iter().cloned().zip(self.cells.iter().map(Cell::json)).collect();
        map.insert("metrics".into(), cells.into());
        map
    }
}

impl Comparison {
    pub fn all(&self) -> &Row {
        &self.rows[self.rows.len() - 1]
    }
}

/// Compares two tables prompt by prompt. Without `by`, sets are told apart where there are several.
///
/// # Errors
/// A prompt that only one table has; a group that was asked for and that no prompt has.
pub fn compare(a: &Scored, b: &Scored, metrics: usize, by: Option<By>) -> Result<Comparison> {
    let mut both = vec![];
    for prompt in &a.prompts {
        match b.get(&prompt.key) {
            Some(other) => both.push((prompt, other)),
            None => bail!(only(prompt, a, b)),
        }
    }
    if let Some(prompt) = b.prompts.iter().find(|p| a.get(&p.key).is_none()) {
        bail!(only(prompt, b, a));
    }
    let column = by.unwrap_or(By::Set);
    let mut groups: Vec<Option<&str>> = vec![];
    for (prompt, _) in &both {
        let group = column.of(prompt);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    ensure!(
        by.is_none() || groups != [None],
        "{}: no prompt has a {}, so there is nothing to group by; give it one in the prompts table",
        a.table,
        column.name()
    );
    if by.is_none() && groups.len() == 1 {
        groups.clear();
    }
    let mut rows = vec![];
    for group in groups {
        let some: Vec<_> = both.iter().copied().filter(|(p, _)| column.of(p) == group).collect();
        rows.push(row(Some(group.unwrap_or("(none)").to_owned()), &some, metrics));
    }
    rows.push(row(None, &both, metrics));
    let other_seeds = both.iter().filter(|(p, q)| p.seeds().zip(q.seeds()).is_some_and(|(p, q)| p != q)).count();
    let names = [a, b].map(|t| if a.model == b.model { format!("{} ({})", t.model, t.table) } else { t.model.clone() });
    let [name_a, name_b] = names;
    Ok(Comparison { a: name_a, b: name_b, table_a: a.table.clone(), table_b: b.table.clone(), rows, other_seeds })
}

fn only(prompt: &Prompt, has: &Scored, lacks: &Scored) -> String {
    format!(
        "prompt {} is in {} but not in {}; a win rate needs the same prompts: sample both models from one prompts table",
        prompt.name(),
        has.table,
        lacks.table
    )
}

fn row(group: Option<String>, both: &[(&Prompt, &Prompt)], metrics: usize) -> Row {
    let cell = |m: usize| {
        let mut wins = Wins::default();
        both.iter().for_each(|(a, b)| wins.add(a.best[m], b.best[m]));
        let scores_b = both.iter().flat_map(|(_, b)| &b.scores[m]).map(|&x| f64::from(x));
        // Every prompt weighs the same, also where an image had no score.
        let mean = |p: &Prompt| stats::mean(p.scores[m].iter().map(|&x| f64::from(x)));
        Cell {
            wins,
            mean_a: stats::mean(both.iter().map(|(a, _)| mean(a))),
            mean_b: stats::mean(both.iter().map(|(_, b)| mean(b))),
            sd_b: stats::sd(scores_b),
        }
    };
    Row { group, n: both.len(), cells: (0..metrics).map(cell).collect() }
}
