//! Compares one model with another: on all prompts, and group by group.

use anyhow::{Result, bail, ensure};
use pipe::winrates::{ByMetric, Cell, Change, Comparison, Group, Rate, Side};
use pipe::{moments, names::Names};

use crate::bootstrap::Bootstrap;
use crate::scored::{ModelScores, Prompt};
use crate::sign::{LEVEL, holm, sign_test};
use crate::stats::{Wins, wilson};

pipe::names! {
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

/// Names the winners, with Holm's correction over all rates that are printed together.
pub fn correct(comparisons: &mut [Comparison], rate: fn(&mut Cell) -> &mut Rate) {
    let groups = comparisons.iter_mut().flat_map(|c| c.groups.iter_mut().chain([&mut c.all]));
    let mut rates: Vec<&mut Rate> = groups.flat_map(|g| &mut g.metrics.0).map(|(_, cell)| rate(cell)).collect();
    let p: Vec<f64> = rates.iter().map(|r| r.p).collect();
    for (rate, corrected) in rates.iter_mut().zip(holm(&p)) {
        let ahead = if rate.wins > rate.losses { Side::A } else { Side::B };
        rate.p_holm = corrected;
        rate.winner = (corrected <= LEVEL).then_some(ahead);
    }
}

/// One prompt of both models.
pub type Both<'a> = (&'a Prompt, &'a Prompt);

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
pub fn compare(
    a: &ModelScores,
    b: &ModelScores,
    metrics: &[String],
    by: Option<By>,
    bootstrap: Bootstrap,
) -> Result<Comparison> {
    let both = both(a, b)?;
    let mut some_prompts = vec![];
    for group in groups(a, by)? {
        let column = by.unwrap_or(By::Set);
        let some: Vec<_> = both.iter().copied().filter(|(p, _)| column.of(p) == group).collect();
        some_prompts.push(compare_group(Some(group.unwrap_or("(none)").to_owned()), &some, metrics, bootstrap));
    }
    let other_seeds = both.iter().filter(|(p, q)| p.seeds().zip(q.seeds()).is_some_and(|(p, q)| p != q)).count();
    let names = [a, b].map(|t| if a.model == b.model { format!("{} ({})", t.model, t.table) } else { t.model.clone() });
    let [name_a, name_b] = names;
    Ok(Comparison {
        a: name_a,
        b: name_b,
        table_a: a.table.clone(),
        table_b: b.table.clone(),
        all: compare_group(None, &both, metrics, bootstrap),
        groups: some_prompts,
        other_seeds,
    })
}

/// The groups of a table's prompts, in the table's order; none if all prompts are of one set and `by` is not given.
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

fn compare_group(name: Option<String>, both: &[Both], metrics: &[String], bootstrap: Bootstrap) -> Group {
    // What the bootstrap draws, prompt by prompt: three values per metric.
    let values = |(a, b): &Both| -> Vec<f64> {
        let won = |won: bool| f64::from(u8::from(won));
        (0..metrics.len())
            .flat_map(|m| [won(a.best[m] > b.best[m]), won(a.mean[m] > b.mean[m]), a.mean[m] - b.mean[m]])
            .collect()
    };
    let rows: Vec<_> = both.iter().map(values).collect();
    let intervals = bootstrap.intervals(name.as_deref().unwrap_or(""), &rows);
    let cell = |m: usize| {
        let (mut best, mut mean) = (Wins::default(), Wins::default());
        for (a, b) in both {
            best.add(a.best[m], b.best[m]);
            mean.add(a.mean[m], b.mean[m]);
        }
        let mean_a = moments::mean(both.iter().map(|(a, _)| a.mean[m]));
        let mean_b = moments::mean(both.iter().map(|(_, b)| b.mean[m]));
        let sd_b = moments::sd(both.iter().flat_map(|(_, b)| &b.scores[m]).map(|&x| f64::from(x)));
        let (diff, (diff_low, diff_high)) = (mean_a - mean_b, intervals[3 * m + 2]);
        let change = sd_b.filter(|&sd| sd > 0.0).map(|sd| [diff, diff_low, diff_high].map(|x| x / sd));
        Cell {
            best: rate(best, intervals[3 * m]),
            mean_a,
            mean_b,
            sd_b,
            diff,
            diff_low,
            diff_high,
            change: Change::new(change),
            mean_of_n: rate(mean, intervals[3 * m + 1]),
        }
    };
    let cells = metrics.iter().cloned().zip((0..metrics.len()).map(cell)).collect();
    Group { name, n: both.len(), metrics: ByMetric(cells) }
}

/// A rate before Holm's correction, without a winner.
fn rate(counts: Wins, (bootstrap_low, bootstrap_high): (f64, f64)) -> Rate {
    let Wins { wins, ties, losses } = counts;
    let (low, high) = wilson(wins, counts.n());
    let p = sign_test(wins, losses);
    let rate = counts.rate();
    Rate { wins, ties, losses, rate, low, high, bootstrap_low, bootstrap_high, p, p_holm: p, winner: None }
}
