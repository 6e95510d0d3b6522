//! The results as JSON for programs, numbers unrounded. `common/FORMATS.md` lists the fields.

use anyhow::Result;
use pipe::names::Names;
use serde_json::{Map, Value, json};

use crate::{
    bootstrap::Bootstrap,
    compare::{By, Cell, Rate, Row, Side},
    scored::{ModelScores, Prompt},
    seeds::PooledCell,
    stats::wilson,
    tables::{Distribution, Results},
};

pub fn whole(results: &Results, voted: &[(String, Vec<String>)], bootstrap: Bootstrap) -> Result<String> {
    let metrics = results.metrics;
    let tables = results.tables.iter().zip(voted).map(|(t, (_, voted))| table(t, metrics, voted));
    let comparisons = results.comparisons.iter().map(|c| {
        let groups = c.rows.iter().filter(|r| r.group.is_some()).map(|r| row(r, metrics));
        json!({
            "a": c.a, "b": c.b, "table_a": c.table_a, "table_b": c.table_b,
            "all": row(c.all(), metrics), "groups": groups.collect::<Vec<_>>(), "other_seeds": c.other_seeds,
        })
    });
    let pooled = results.pooled.iter().map(|p| {
        let cells = metrics.iter().cloned().zip(p.cells.iter().map(pooled_cell));
        json!({"a": p.a, "b": p.b, "seeds": p.seeds, "n": p.n, "metrics": cells.collect::<Map<_, _>>()})
    });
    let whole = json!({
        "best_of": results.best_of,
        "by": results.by.unwrap_or(By::Set).name(),
        "metrics": metrics,
        "held_out": results.held_out,
        "seed": bootstrap.seed,
        "resamples": bootstrap.resamples,
        "tables": tables.collect::<Vec<_>>(),
        "comparisons": comparisons.collect::<Vec<_>>(),
        "seeds": pooled.collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string(&whole)?)
}

fn pooled_cell(c: &PooledCell) -> Value {
    json!({
        "rate": c.rate.mean, "low": c.rate.low, "high": c.rate.high, "rates": c.rates,
        "change_sd": c.change.map(|e| e.mean), "change_sd_low": c.change.map(|e| e.low), "change_sd_high": c.change.map(|e| e.high),
    })
}

fn table(t: &ModelScores, metrics: &[String], voted: &[String]) -> Value {
    let nulls: Map<_, _> = metrics.iter().cloned().zip(t.nulls.iter().map(|&n| n.into())).collect();
    let prompts: Vec<&Prompt> = t.prompts.iter().collect();
    let distribution = |m: usize| {
        let s = Distribution::of(&prompts, m);
        json!({"mean": s.mean, "min": s.min, "max": s.max, "sd": s.sd, "sd_of_a_prompt": s.sd_of_a_prompt})
    };
    let scores: Map<_, _> = metrics.iter().cloned().zip((0..metrics.len()).map(distribution)).collect();
    json!({
        "table": t.table, "model": t.model, "prompts": t.prompts.len(), "null_scores": nulls, "scores": scores, "voted": voted,
    })
}

fn row(row: &Row, metrics: &[String]) -> Map<String, Value> {
    let mut map = Map::new();
    map.extend(row.group.iter().map(|g| ("name".to_owned(), g.as_str().into())));
    map.insert("n".into(), row.n.into());
    let cells: Map<_, _> = metrics.iter().cloned().zip(row.cells.iter().map(|c| cell(c).into())).collect();
    map.insert("metrics".into(), cells.into());
    map
}

fn cell(c: &Cell) -> Map<String, Value> {
    let mut map = rate(&c.best);
    let more = json!({
        "mean_a": c.mean_a, "mean_b": c.mean_b, "sd_b": c.sd_b,
        "diff": c.mean_a - c.mean_b, "diff_low": c.diff.0, "diff_high": c.diff.1,
        "change_sd": c.change_sd(), "change_sd_low": c.in_sd(c.diff.0), "change_sd_high": c.in_sd(c.diff.1),
        "mean_of_n": rate(&c.mean),
    });
    map.extend(more.as_object().cloned().unwrap_or_default());
    map
}

fn rate(r: &Rate) -> Map<String, Value> {
    let (low, high) = wilson(r.wins.wins, r.wins.n());
    let winner = r.winner().map(|side| if side == Side::A { "a" } else { "b" });
    let rate = json!({
        "wins": r.wins.wins, "ties": r.wins.ties, "losses": r.wins.losses, "rate": r.wins.rate(), "low": low, "high": high,
        "bootstrap_low": r.bootstrap.0, "bootstrap_high": r.bootstrap.1, "p": r.p, "p_holm": r.p_holm, "winner": winner,
    });
    rate.as_object().cloned().unwrap_or_default()
}
