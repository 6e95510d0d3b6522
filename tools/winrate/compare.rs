//! Compares one model with another: on all prompts, and group by group.

use anyhow::{Result, bail, ensure};
use pipe::{moments, names::Names};

use crate::{
    bootstrap::Bootstrap,
    scored::{ModelScores, Prompt},
    sign::{LEVEL, holm, sign_test},
    stats::Wins,
};

pipe::names! {
    /// The column by which prompts are grouped.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum By {
        /// Where prompts are from: a benchmark, or a part of it
        Set = "set",
        /// PartiPrompts' category, or what the prompts table says
        Category = "category",
        /// PartiPrompts' challenge; in the mini world it holds the style of the artwork, so `style` means the same
        Challenge = "challenge" | "style",
    }
}

impl By {
    pub fn of(self, prompt: &Prompt) -> Option<&str> {
        match self {
            By::Set => prompt.key.0.as_deref(),
            By::Category => prompt.category.as_deref(),
            By::Challenge => prompt.challenge.as_deref(),
        }
    }
}

/// A candidate `a` against a baseline `b`.
pub struct Comparison {
    pub a: String,
    pub b: String,
    pub table_a: String,
    pub table_b: String,
    /// The groups in the order in which the candidate's table has them, then all prompts.
    pub rows: Vec<Row>,
    /// Number of prompts whose images start from different noise in the two tables.
    pub other_seeds: usize,
}

/// A comparison over some prompts.
pub struct Row {
    /// `None`: all prompts.
    pub group: Option<String>,
    pub n: usize,
    /// One per metric.
    pub cells: Vec<Cell>,
}

/// A comparison over some prompts under one metric.
pub struct Cell {
    /// By the best image of each prompt.
    pub best: Rate,
    /// By the mean over the images of each prompt.
    pub mean: Rate,
    pub mean_a: f64,
    pub mean_b: f64,
    /// 95 % interval of mean_a - mean_b, by the paired bootstrap over prompts.
    pub diff: (f64, f64),
    /// Standard deviation of the baseline's scores, image by image.
    pub sd_b: Option<f64>,
}

/// On how many prompts the candidate is ahead, and how certain that is.
pub struct Rate {
    pub wins: Wins,
    /// 95 % interval of the rate, by the paired bootstrap over prompts.
    pub bootstrap: (f64, f64),
    /// The exact sign test's p-value, alone and corrected for all rates of the printed table.
    pub p: f64,
    pub p_holm: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

impl Rate {
    /// Who is ahead; `None` within the noise.
    pub fn winner(&self) -> Option<Side> {
        let ahead = if self.wins.wins > self.wins.losses { Side::A } else { Side::B };
        (self.p_holm <= LEVEL).then_some(ahead)
    }
}

impl Cell {
    /// A difference of scores in standard deviations of the baseline.
    pub fn in_sd(&self, diff: f64) -> Option<f64> {
        self.sd_b.filter(|&sd| sd > 0.0).map(|sd| diff / sd)
    }

    /// The change of the mean score, in standard deviations of the baseline.
    pub fn change_sd(&self) -> Option<f64> {
        self.in_sd(self.mean_a - self.mean_b)
    }
}

impl Comparison {
    pub fn all(&self) -> &Row {
        &self.rows[self.rows.len() - 1]
    }
}

/// Holm's correction over all rates that are printed together.
pub fn correct(comparisons: &mut [Comparison], rate: fn(&mut Cell) -> &mut Rate) {
    let cells = comparisons.iter_mut().flat_map(|c| &mut c.rows).flat_map(|r| &mut r.cells);
    let mut rates: Vec<&mut Rate> = cells.map(rate).collect();
    let p: Vec<f64> = rates.iter().map(|r| r.p).collect();
    for (rate, corrected) in rates.iter_mut().zip(holm(&p)) {
        rate.p_holm = corrected;
    }
}

/// One prompt of both models.
pub type Both<'a> = (&'a Prompt, &'a Prompt);

/// The prompts of two tables, in the order of the first.
///
/// # Errors
/// Only one table has some prompt.
pub fn both<'a>(a: &'a ModelScores, b: &'a ModelScores) -> Result<Vec<Both<'a>>> {
    let mut both = vec![];
    for prompt in &a.prompts {
        match b.get(&prompt.key) {
            Some(other) => both.push((prompt, other)),
            None => bail!(only(prompt, a, b)),
        }
    }
    match b.prompts.iter().find(|p| a.get(&p.key).is_none()) {
        Some(prompt) => bail!(only(prompt, b, a)),
        None => Ok(both),
    }
}

/// Compares two tables prompt by prompt. Without `by`, prompts are grouped by set if there are several sets.
///
/// # Errors
/// Only one table has some prompt; no prompt has a value in the column `by`.
pub fn compare(
    a: &ModelScores,
    b: &ModelScores,
    metrics: usize,
    by: Option<By>,
    bootstrap: Bootstrap,
) -> Result<Comparison> {
    let both = both(a, b)?;
    let mut rows = vec![];
    for group in groups(a, by)? {
        let column = by.unwrap_or(By::Set);
        let some: Vec<_> = both.iter().copied().filter(|(p, _)| column.of(p) == group).collect();
        rows.push(row(Some(group.unwrap_or("(none)").to_owned()), &some, metrics, bootstrap));
    }
    rows.push(row(None, &both, metrics, bootstrap));
    let other_seeds = both.iter().filter(|(p, q)| p.seeds().zip(q.seeds()).is_some_and(|(p, q)| p != q)).count();
    let names = [a, b].map(|t| if a.model == b.model { format!("{} ({})", t.model, t.table) } else { t.model.clone() });
    let [name_a, name_b] = names;
    Ok(Comparison { a: name_a, b: name_b, table_a: a.table.clone(), table_b: b.table.clone(), rows, other_seeds })
}

/// The groups of a table's prompts, in the table's order; none if all prompts are of one set and `by` is not given.
///
/// # Errors
/// No prompt has a value in the column `by`.
pub fn groups(table: &ModelScores, by: Option<By>) -> Result<Vec<Option<&str>>> {
    let column = by.unwrap_or(By::Set);
    let mut groups: Vec<Option<&str>> = vec![];
    for prompt in &table.prompts {
        let group = column.of(prompt);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    ensure!(
        by.is_none() || groups != [None],
        "{}: no prompt has a {}, so there is nothing to group by; give it one in the prompts table",
        table.table,
        column.name()
    );
    if by.is_none() && groups.len() == 1 {
        groups.clear();
    }
    Ok(groups)
}

fn only(prompt: &Prompt, has: &ModelScores, lacks: &ModelScores) -> String {
    format!(
        "prompt {} is in {} but not in {}; a win rate needs the same prompts: sample both models from one prompts table",
        prompt.name(),
        has.table,
        lacks.table
    )
}

fn row(group: Option<String>, both: &[Both], metrics: usize, bootstrap: Bootstrap) -> Row {
    // What the bootstrap draws, prompt by prompt: three values per metric.
    let values = |(a, b): &Both| -> Vec<f64> {
        let won = |won: bool| f64::from(u8::from(won));
        (0..metrics)
            .flat_map(|m| [won(a.best[m] > b.best[m]), won(a.mean[m] > b.mean[m]), a.mean[m] - b.mean[m]])
            .collect()
    };
    let rows: Vec<_> = both.iter().map(values).collect();
    let intervals = bootstrap.intervals(group.as_deref().unwrap_or(""), &rows);
    let cell = |m: usize| {
        let (mut best, mut mean) = (Wins::default(), Wins::default());
        for (a, b) in both {
            best.add(a.best[m], b.best[m]);
            mean.add(a.mean[m], b.mean[m]);
        }
        let rate = |wins: Wins, bootstrap| {
            let p = sign_test(wins.wins, wins.losses);
            Rate { wins, bootstrap, p, p_holm: p }
        };
        Cell {
            best: rate(best, intervals[3 * m]),
            mean: rate(mean, intervals[3 * m + 1]),
            diff: intervals[3 * m + 2],
            mean_a: moments::mean(both.iter().map(|(a, _)| a.mean[m])),
            mean_b: moments::mean(both.iter().map(|(_, b)| b.mean[m])),
            sd_b: moments::sd(both.iter().flat_map(|(_, b)| &b.scores[m]).map(|&x| f64::from(x))),
        }
    };
    Row { group, n: both.len(), cells: (0..metrics).map(cell).collect() }
}
