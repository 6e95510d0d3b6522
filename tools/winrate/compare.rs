//! Compares one model with another: on all prompts, and group by group.

use anyhow::Result;
use pipe::winrates::{ByMetric, Cell, Change, Comparison, Group, Joint, Rate, Share, Side};

use crate::bootstrap::of_share;
use crate::sign::{LEVEL, holm, sign_test};
use crate::stats::{Wins, wilson};
use crate::sums::{Compared, Groups, Model, Pair, Sums};

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

/// Every pair of tables, on all prompts and in each group.
pub fn compare(groups: &Groups, models: &[Model], pairs: &[Pair], metrics: &[String]) -> Result<Vec<Comparison>> {
    let mut all = compare_group(None, &groups.all, pairs, metrics)?.into_iter();
    let named = groups.named().map(|(name, sums)| compare_group(Some(name), sums, pairs, metrics));
    let mut of_groups: Vec<_> = named.map(|of_pairs| Ok(of_pairs?.into_iter())).collect::<Result<_>>()?;
    let names = |t: &Model, other: &Model| match t.model == other.model {
        true => format!("{} ({})", t.model, t.table),
        false => t.model.clone(),
    };
    let comparison = |(&(a, b), compared): (&Pair, &Compared)| {
        let (a, b) = (&models[a], &models[b]);
        Some(Comparison {
            a: names(a, b),
            b: names(b, a),
            table_a: a.table.clone(),
            table_b: b.table.clone(),
            all: all.next()?,
            groups: of_groups.iter_mut().filter_map(Iterator::next).collect(),
            other_seeds: compared.other_seeds,
        })
    };
    Ok(pairs.iter().zip(&groups.all.compared).filter_map(comparison).collect())
}

/// One group for each pair of tables.
fn compare_group(name: Option<&str>, sums: &Sums, pairs: &[Pair], metrics: &[String]) -> Result<Vec<Group>> {
    let n = sums.n;
    let group = |((&(a, b), compared), intervals): ((&Pair, &Compared), Vec<(f64, f64)>)| {
        let cell = |m: usize| {
            let (a, b) = (&sums.tables[a][m], &sums.tables[b][m]);
            let (mean_a, mean_b) = (a.prompts.mean(), b.prompts.mean());
            let (diff, (diff_low, diff_high)) = (mean_a - mean_b, intervals[m]);
            let change = b.scale().map(|sd| [diff, diff_low, diff_high].map(|x| x / sd));
            let [best, mean] = compared.wins[m].map(rate);
            Cell {
                best,
                mean_a,
                mean_b,
                sd_b: b.images.sd(),
                diff,
                diff_low,
                diff_high,
                change: Change::new(change),
                mean_of_n: mean,
            }
        };
        let share = |prompts: usize| {
            let (low, high) = wilson(prompts, n);
            Share { prompts, rate: prompts as f64 / n as f64, low, high }
        };
        let [joint, joint_mean_of_n] = compared.joint.map(|[domination, collapse]| {
            (metrics.len() > 1).then(|| Joint { domination: share(domination), collapse: share(collapse) })
        });
        let cells = metrics.iter().cloned().zip((0..metrics.len()).map(cell)).collect();
        Group { name: name.map(str::to_owned), n, metrics: ByMetric(cells), joint, joint_mean_of_n }
    };
    Ok(pairs.iter().zip(&sums.compared).zip(sums.intervals()?).map(group).collect())
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
