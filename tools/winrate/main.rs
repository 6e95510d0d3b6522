//! winrate: on how many prompts one model's best image scores higher than another's.
//!
//!   winrate policy.parquet base.parquet
//!   winrate balanced.parquet diffusion-dpo.parquet base.parquet --by category --json -o winrates.json

mod compare;
mod scored;
mod stats;

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use pipe::{
    atomic,
    cli::{self, Answer, Common},
    table::Inputs,
    text,
};
use serde_json::json;

use compare::{By, Comparison, compare};
use scored::Scored;

/// Tell on how many prompts one model's best image scores higher than another's
///
/// Each table holds one model's images, scored. Of each prompt's images the best under a metric stands for the model;
/// the win rate is the share of prompts where the candidate's is strictly better, with its 95 % Wilson interval. Below
/// it stand the mean scores, which a few lucky images cannot lift. Every table is compared with every later one, so name
/// the candidate first and the baselines after it.
#[derive(Parser)]
#[command(name = "winrate", version, max_term_width = 100, after_help = EXAMPLES)]
struct Args {
    /// Scored tables of the same prompts, two or more (Parquet, Arrow, a folder of parts, or `-`)
    #[arg(required = true, value_name = "TABLE")]
    tables: Vec<PathBuf>,
    /// Metrics to compare, separated by commas [default: every metric of the first table]
    #[arg(long, value_name = "M,...", value_delimiter = ',')]
    metrics: Vec<String>,
    /// Images of each prompt that count, the first by k; the paper takes the best of 5
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    best_of: u32,
    /// Column whose values get a row each [default: set, where there are several]
    #[arg(long, value_enum, value_name = "COLUMN")]
    by: Option<By>,
    /// Exit with 1 if a win rate of the first table over the last, over all prompts, is below P (0 to 1)
    #[arg(long, value_name = "P")]
    require: Option<f64>,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  winrate policy.parquet base.parquet
  winrate balanced.parquet diffusion-dpo.parquet base.parquet --by category
  winrate policy.parquet base.parquet --json -o winrates.json
  winrate policy.parquet base.parquet --metrics hps,clip --require 0.5

Exit status: 0 done, 1 a rate is below --require, 2 trouble.";

fn main() -> ExitCode {
    cli::run("winrate", run)
}

fn run(args: Args) -> Result<Answer> {
    let common = &args.common;
    common.refuse_shard("a win rate is over all prompts")?;
    ensure!(args.require.is_none_or(|p| (0.0..=1.0).contains(&p)), "--require takes a share from 0 to 1, such as 0.5");
    let inputs = Inputs::open_each(&args.tables)?;
    let metrics = metrics(&args, &inputs)?;
    let hashes = args.tables.iter().zip(&inputs);
    let hashes = hashes.map(|(path, input)| Ok((path.display().to_string(), scored::scorers(input, &metrics)?)));
    let untold = scored::same_scorers(&hashes.collect::<Result<Vec<_>>>()?, &metrics)?;
    if !untold.is_empty() {
        common.say(format!(
            "winrate: warning: not every table tells which scorer gave {}; make sure that it was the same",
            untold.join(", ")
        ));
    }

    let n = args.best_of as usize;
    let tables: Vec<_> = args.tables.iter().zip(inputs).collect();
    let tables = tables.into_iter().map(|(path, input)| Scored::read(path, input, &metrics, n));
    let tables = tables.collect::<Result<Vec<_>>>()?;
    // The paper's order: everything against the last table, then against the one before it.
    let mut comparisons = vec![];
    for (j, b) in tables.iter().enumerate().skip(1).rev() {
        for a in tables[..j].iter().rev() {
            comparisons.push(compare(a, b, metrics.len(), args.by)?);
        }
    }
    notes(common, &tables, &metrics, &comparisons);

    let out = if common.json {
        as_json(&args, &metrics, &tables, &comparisons)? + "\n"
    } else {
        as_text(&args, &metrics, &comparisons)
    };
    match common.output.as_deref().filter(|o| o.as_os_str() != "-") {
        Some(path) => atomic::write(path, out.as_bytes())?,
        None => std::io::stdout().write_all(out.as_bytes()).context("cannot print the win rates")?,
    }
    let first_vs_last = &comparisons[tables.len() - 2];
    Ok(judge(&args, &metrics, first_vs_last))
}

fn metrics(args: &Args, inputs: &[Inputs]) -> Result<Vec<String>> {
    let found = scored::metrics_of(inputs[0].schema());
    ensure!(
        !found.is_empty(),
        "{} has no metric (a column of floating-point numbers); `winrate` reads what `score` writes of an images table",
        inputs[0].name()
    );
    for (i, name) in args.metrics.iter().enumerate() {
        ensure!(found.contains(name), "--metrics: there is no metric '{name}' (there are: {})", found.join(", "));
        ensure!(!args.metrics[..i].contains(name), "--metrics names '{name}' twice");
    }
    Ok(if args.metrics.is_empty() { found } else { args.metrics.clone() })
}

/// What a reader of the numbers should know, on standard error.
fn notes(common: &Common, tables: &[Scored], metrics: &[String], comparisons: &[Comparison]) {
    for table in tables {
        for (metric, &nulls) in metrics.iter().zip(&table.nulls).filter(|(_, nulls)| **nulls > 0) {
            let images = text::count(nulls, "image");
            common.say(format!("winrate: note: {}: {images} without a score of {metric} left out", table.table));
        }
    }
    for c in comparisons.iter().filter(|c| c.other_seeds > 0) {
        let prompts = text::count(c.other_seeds, "prompt");
        common.say(format!(
            "winrate: note: {} and {} drew {prompts} from different seeds; common seeds make the comparison sharper",
            c.table_a, c.table_b
        ));
    }
}

fn as_text(args: &Args, metrics: &[String], comparisons: &[Comparison]) -> String {
    let by = args.by.unwrap_or(By::Set).name();
    let grouped = comparisons.iter().any(|c| c.rows.len() > 1);
    let mut header = vec!["".to_owned()];
    header.extend(grouped.then(|| by.to_owned()));
    header.push("n".into());
    header.extend(metrics.iter().cloned());
    let (mut rates, mut means) = (vec![header.clone()], vec![header]);
    for c in comparisons {
        for row in &c.rows {
            let mut head = vec![format!("{} vs {}", c.a, c.b)];
            head.extend(grouped.then(|| row.group.clone().unwrap_or_else(|| "all".into())));
            head.push(row.n.to_string());
            let rate = |cell: &compare::Cell| {
                let (low, high) = stats::wilson(cell.wins.wins, row.n);
                let ties = if cell.wins.ties > 0 { format!(", ties {}", cell.wins.ties) } else { String::new() };
                format!("{:.1} % [{:.1}, {:.1}]{ties}", 100.0 * cell.wins.rate(), 100.0 * low, 100.0 * high)
            };
            let mean = |cell: &compare::Cell| match cell.change_sd() {
                Some(change) => format!("{:.4} ({change:+.2})", cell.mean_a),
                None => format!("{:.4} (-)", cell.mean_a),
            };
            rates.push(head.iter().cloned().chain(row.cells.iter().map(rate)).collect());
            means.push(head.iter().cloned().chain(row.cells.iter().map(mean)).collect());
        }
    }
    let left = 1 + grouped as usize;
    format!(
        "win rate, best of {} images a prompt [95 % interval]\n{}\nmean score (change in sd of the baseline)\n{}",
        args.best_of,
        text::table(&rates, left),
        text::table(&means, left)
    )
}

fn as_json(args: &Args, metrics: &[String], tables: &[Scored], comparisons: &[Comparison]) -> Result<String> {
    let tables = tables.iter().map(|t| {
        let nulls: serde_json::Map<_, _> = metrics.iter().cloned().zip(t.nulls.iter().map(|&n| n.into())).collect();
        json!({"table": t.table, "model": t.model, "prompts": t.prompts.len(), "null_scores": nulls})
    });
    let comparisons = comparisons.iter().map(|c| {
        let groups = c.rows.iter().filter(|r| r.group.is_some()).map(|r| r.json(metrics));
        json!({
            "a": c.a, "b": c.b, "table_a": c.table_a, "table_b": c.table_b,
            "all": c.all().json(metrics), "groups": groups.collect::<Vec<_>>(), "other_seeds": c.other_seeds,
        })
    });
    let whole = json!({
        "best_of": args.best_of,
        "by": args.by.unwrap_or(By::Set).name(),
        "metrics": metrics,
        "tables": tables.collect::<Vec<_>>(),
        "comparisons": comparisons.collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string(&whole)?)
}

fn judge(args: &Args, metrics: &[String], comparison: &Comparison) -> Answer {
    let Some(p) = args.require else { return Answer::Yes };
    let cells = metrics.iter().zip(&comparison.all().cells);
    let below: Vec<_> = cells.filter(|(_, cell)| cell.wins.rate() < p).collect();
    for (metric, cell) in &below {
        let (a, b, rate) = (&comparison.a, &comparison.b, cell.wins.rate());
        args.common.say(format!("winrate: {a} vs {b}: {metric} {rate:.4} is below the required {p}"));
    }
    if below.is_empty() { Answer::Yes } else { Answer::No }
}
