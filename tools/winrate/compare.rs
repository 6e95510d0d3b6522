//! Compares one model with another: on all prompts, and group by group.

use anyhow::{Result, bail, ensure};
use pipe::winrates::{ByMetric, Cell, Change, Comparison, Group, Joint, Rate, Share, Side};
use pipe::{moments, names::Names};

use crate::bootstrap::{Bootstrap, of_share};
use crate::scored::{By, ModelScores, Prompt};
use crate::sign::{LEVEL, holm, sign_test};
use crate::stats::{Wins, wilson};

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
pub type Both<'a> = (Prompt<'a>, Prompt<'a>);

/// The prompts of two tables, in the order of the first. Both must have them all.
pub fn both<'a>(a: &'a ModelScores, b: &'a ModelScores) -> Result<Vec<Both<'a>>> {
    let mut both = vec![];
    for prompt in a.prompts() {
        match b.get(prompt) {
            Some(other) => both.push((prompt, other)),
            None => bail!(only(prompt, a, b)),
        }
    }
    match b.prompts().find(|prompt| a.get(*prompt).is_none()) {
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
    let groups = groups(a, by)?.into_iter().map(|Slice { name, places }| {
        let some: Vec<_> = places.iter().map(|&place| both[place as usize]).collect();
        compare_group(Some(name.to_owned()), &some, metrics, bootstrap)
    });
    let groups = groups.collect::<Result<_>>()?;
    let other_seeds = both.iter().filter(|(p, q)| p.seeds().zip(q.seeds()).is_some_and(|(p, q)| p != q)).count();
    let names = [a, b].map(|t| if a.model == b.model { format!("{} ({})", t.model, t.table) } else { t.model.clone() });
    let [name_a, name_b] = names;
    Ok(Comparison {
        a: name_a,
        b: name_b,
        table_a: a.table.clone(),
        table_b: b.table.clone(),
        all: compare_group(None, &both, metrics, bootstrap)?,
        groups,
        other_seeds,
    })
}

/// Some prompts of a table.
pub struct Slice<'a> {
    pub name: &'a str,
    /// Their places among all prompts.
    pub places: Vec<u32>,
}

/// Groups, each of which is a row of every table that is printed.
const MOST_GROUPS: usize = 1000;

/// The groups of a table's prompts, in the table's order; none if all prompts are of one set and `by` is not given.
pub fn groups(table: &ModelScores, by: Option<By>) -> Result<Vec<Slice<'_>>> {
    let column = by.unwrap_or(By::Set);
    let mut groups: Vec<Slice> = vec![];
    let mut named = false;
    for (place, prompt) in table.prompts().enumerate() {
        // Values are numbered in the order in which they come.
        let (number, value) = prompt.group(column);
        named |= value.is_some();
        if number == groups.len() {
            groups.push(Slice { name: value.unwrap_or("(none)"), places: vec![] });
        }
        groups[number].places.push(place as u32);
        ensure!(
            groups.len() <= MOST_GROUPS,
            "{}: more than {MOST_GROUPS} different values of {} to group by; group by another column with --by, or make one \
             set of all prompts with `prompts --set NAME`",
            table.table,
            column.name()
        );
    }
    ensure!(
        by.is_none() || named,
        "{}: no prompt has a {}, so there is nothing to group by; give it one in the prompts table",
        table.table,
        column.name()
    );
    if by.is_none() && groups.len() == 1 {
        groups.clear();
    }
    Ok(groups)
}

fn only(prompt: Prompt, has: &ModelScores, lacks: &ModelScores) -> String {
    format!(
        "prompt {} is in {} but not in {}; a win rate needs the same prompts: sample both models from one prompts table",
        prompt.name(),
        has.table,
        lacks.table
    )
}

fn compare_group(name: Option<String>, both: &[Both], metrics: &[String], bootstrap: Bootstrap) -> Result<Group> {
    let change = |m: usize| both.iter().map(|(a, b)| a.mean(m) - b.mean(m)).collect();
    let changes: Vec<Vec<f64>> = (0..metrics.len()).map(change).collect();
    let intervals = bootstrap.intervals(name.as_deref().unwrap_or(""), &changes)?;
    let cell = |m: usize| {
        let (mut best, mut mean) = (Wins::default(), Wins::default());
        for (a, b) in both {
            best.add(a.best(m), b.best(m));
            mean.add(a.mean(m), b.mean(m));
        }
        let mean_a = moments::mean(both.iter().map(|(a, _)| a.mean(m)));
        let mean_b = moments::mean(both.iter().map(|(_, b)| b.mean(m)));
        let sd_b = moments::sd(both.iter().flat_map(|(_, b)| b.scores(m)).map(f64::from));
        let (diff, (diff_low, diff_high)) = (mean_a - mean_b, intervals[m]);
        let change = sd_b.filter(|&sd| sd > 0.0).map(|sd| [diff, diff_low, diff_high].map(|x| x / sd));
        Cell {
            best: rate(best),
            mean_a,
            mean_b,
            sd_b,
            diff,
            diff_low,
            diff_high,
            change: Change::new(change),
            mean_of_n: rate(mean),
        }
    };
    let share = |prompts: usize| {
        let ((low, high), n) = (wilson(prompts, both.len()), both.len());
        Share { prompts, rate: prompts as f64 / n as f64, low, high }
    };
    let joint = |value: fn(Prompt, usize) -> f64| {
        let domination = both.iter().filter(|(a, b)| a.dominates(*b, value)).count();
        let collapse = both.iter().filter(|(a, b)| b.dominates(*a, value)).count();
        (metrics.len() > 1).then(|| Joint { domination: share(domination), collapse: share(collapse) })
    };
    let cells = metrics.iter().cloned().zip((0..metrics.len()).map(cell)).collect();
    let (joint, joint_mean_of_n) = (joint(|p, m| p.best(m)), joint(|p, m| p.mean(m)));
    Ok(Group { name, n: both.len(), metrics: ByMetric(cells), joint, joint_mean_of_n })
}

/// A rate before Holm's correction, without a winner.
fn rate(counts: Wins) -> Rate {
    let Wins { wins, ties, losses } = counts;
    let (bootstrap_low, bootstrap_high) = of_share(wins, counts.n());
    let (low, high) = wilson(wins, counts.n());
    let p = sign_test(wins, losses);
    let rate = counts.rate();
    Rate { wins, ties, losses, rate, low, high, bootstrap_low, bootstrap_high, p, p_holm: p, winner: None }
}
