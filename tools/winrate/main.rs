//! winrate: on how many prompts one model's best image scores higher than another's.
//!
//!   winrate policy.parquet base.parquet
//!   winrate balanced.parquet diffusion-dpo.parquet base.parquet --by category --json -o winrates.json

mod bootstrap;
mod compare;
mod json;
mod judges;
mod layout;
mod scored;
mod seeds;
mod sign;
mod stats;
mod tables;

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use pipe::{
    atomic,
    cli::{self, Answer, Common, named},
    place,
    table::Inputs,
    text,
};

use bootstrap::Bootstrap;
use compare::{By, Comparison, compare, correct};
use layout::Format;
use scored::Scored;
use seeds::Pooled;
use tables::Results;

/// Tell on how many prompts one model's best image scores higher than another's
///
/// Each table holds one model's images, scored. Of each prompt's images the best under a metric stands for the model;
/// the win rate is the share of prompts where the candidate's is strictly better, with its 95 % Wilson interval. The same by
/// the mean of each prompt's images, and the change of the mean score, stand below it: a few lucky images cannot lift them.
/// Nobody is called ahead unless an exact sign test, corrected for all rates of the table, says so. Every table is compared
/// with every later one, so name the candidate first and the baselines after it.
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
    #[arg(long, value_name = "COLUMN", value_parser = named::<By>())]
    by: Option<By>,
    /// Metrics that judge here and had no vote in training, to be marked so
    ///
    /// Metrics that are known to be such, by the origin of the tables, are marked without it.
    #[arg(long, value_name = "M,...", value_delimiter = ',')]
    held_out: Vec<String>,
    /// Print mean scores instead: the paper's Table V
    #[arg(long, group = "view")]
    means: bool,
    /// Print mean, min, max and sd of the images' scores instead: the paper's Table VI
    ///
    /// The last line of a model, beyond the paper, is the sd among the images of one prompt: what the
    /// best of n has to choose from.
    #[arg(long, group = "view")]
    stats: bool,
    /// Print every win rate with its counts, intervals and probabilities instead, one a line
    #[arg(long, group = "view")]
    tests: bool,
    /// Tables whose images have the same `model` are training seeds of that model: take them together
    ///
    /// Prints the mean of the seeds, over all prompts, with an interval that says what another training and other prompts
    /// could have given: Student's over the seeds, and beside it what prompts do to all seeds alike. With three seeds it is
    /// wide, as it must be: in simulations it holds the truth at least 93 times of 100. With one seed it tells of prompts
    /// only. The i-th table of a model is compared with the i-th of the other; a single table with every seed of the other.
    #[arg(long, group = "view", conflicts_with_all = ["by", "require"])]
    seeds: bool,
    /// Compare with these models only, not with every later one
    #[arg(long, value_name = "MODEL,...", value_delimiter = ',')]
    against: Vec<String>,
    /// How tables are laid out; --json has everything at once
    ///
    /// A CSV of the win rates is that of --tests, since a cell holds one number.
    #[arg(long, value_name = "LAYOUT", default_value_t = Format::Text, conflicts_with = "json", value_parser = named::<Format>())]
    format: Format,
    /// Draws of the bootstrap; the ends of an interval are then sure to about a fiftieth of its width
    #[arg(long, value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u32).range(100..))]
    resamples: u32,
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
  winrate policy.parquet base.parquet --means --format latex
  winrate policy.parquet base.parquet --metrics hps,clip --require 0.5
  winrate ours-seed0.parquet ours-seed1.parquet dpo-seed0.parquet dpo-seed1.parquet base.parquet --seeds --against base

Exit status: 0 done, 1 a rate is below --require, 2 trouble.";

fn main() -> ExitCode {
    cli::run("winrate", run)
}

fn run(args: Args) -> Result<Answer> {
    let common = &args.common;
    ensure!(args.require.is_none_or(|p| (0.0..=1.0).contains(&p)), "--require takes a share from 0 to 1, such as 0.5");
    let named: Vec<_> = args.tables.iter().map(|path| path.display().to_string()).collect();
    if let Some(output) = &common.output {
        place::refuse_inputs(output, &args.tables)?;
    }
    let enough = args.tables.len() > 1 || args.means || args.stats;
    ensure!(enough, "{} alone has nothing to be compared with; name a second table after it", named[0]);
    let judges_nothing = args.require.is_some() && args.tables.len() == 1;
    ensure!(
        !judges_nothing,
        "--require asks for a win rate, and {} alone has none; name a second table after it",
        named[0]
    );
    let inputs = Inputs::open_each(&args.tables)?;
    let metrics = metrics(&args, &inputs)?;
    let of_tables = |about: Vec<_>| named.iter().cloned().zip(about).collect::<Vec<_>>();
    let scorers = inputs.iter().map(|input| judges::scorers(input, &metrics)).collect::<Result<_>>()?;
    let untold = judges::same_scorers(&of_tables(scorers), &metrics)?;
    if !untold.is_empty() && args.tables.len() > 1 {
        common.say(format!(
            "winrate: warning: not every table tells which scorer gave {}; make sure that it was the same",
            untold.join(", ")
        ));
    }
    let voted: Vec<_> =
        named.iter().cloned().zip(inputs.iter().map(judges::voted).collect::<Result<Vec<_>>>()?).collect();
    let held_out = judges::held_out(&args.held_out, &metrics, &voted)?;

    let n = args.best_of as usize;
    let tables = args.tables.iter().zip(inputs).map(|(path, input)| Scored::read(path, input, &metrics, n));
    let tables = tables.collect::<Result<Vec<_>>>()?;
    for name in &args.against {
        let models = tables.iter().map(|t| t.model.as_str()).collect::<Vec<_>>();
        ensure!(
            models[1..].contains(&name.as_str()),
            "--against: no table after the first is of the model '{name}' (models: {})",
            models.join(", ")
        );
    }
    let last = &tables[tables.len() - 1];
    ensure!(
        args.require.is_none() || is_asked(&args, &last.model),
        "--require judges the first table over the last, {}, but --against leaves out its model '{}'; name that too, or another table last",
        last.table,
        last.model
    );
    compare::groups(&tables[0], args.by)?;
    let bootstrap = Bootstrap { seed: common.seed, resamples: args.resamples };
    // The paper's order: everything against the last table, then against the one before it.
    let mut comparisons = vec![];
    for (j, b) in tables.iter().enumerate().skip(1).rev().filter(|(_, b)| !args.seeds && is_asked(&args, &b.model)) {
        for a in tables[..j].iter().rev() {
            comparisons.push(compare(a, b, metrics.len(), args.by, bootstrap)?);
        }
    }
    let pooled = if args.seeds { pooled(&args, &tables, metrics.len())? } else { vec![] };
    correct(&mut comparisons, |cell| &mut cell.best);
    correct(&mut comparisons, |cell| &mut cell.mean);
    notes(common, &tables, &metrics, &comparisons);

    let results = Results {
        metrics: &metrics,
        held_out: &held_out,
        best_of: args.best_of,
        by: args.by,
        tables: &tables,
        comparisons: &comparisons,
        pooled: &pooled,
    };
    let out = if common.json { json::whole(&results, &voted, bootstrap)? + "\n" } else { shown(&args, &results) };
    match common.output.as_deref().filter(|o| o.as_os_str() != "-") {
        Some(path) => atomic::write(path, out.as_bytes())?,
        None => std::io::stdout().write_all(out.as_bytes()).context("cannot print the win rates")?,
    }
    let (first, last) = (&tables[0].table, &tables[tables.len() - 1].table);
    let judged = comparisons.iter().find(|c| c.table_a == *first && c.table_b == *last);
    Ok(judged.map_or(Answer::Yes, |comparison| judge(&args, &metrics, comparison)))
}

fn is_asked(args: &Args, model: &str) -> bool {
    args.against.is_empty() || args.against.iter().any(|name| name == model)
}

/// Every model, its seeds together, against every later one; in the paper's order as above.
fn pooled(args: &Args, tables: &[Scored], metrics: usize) -> Result<Vec<Pooled>> {
    let models = seeds::models(tables);
    let mut pooled = vec![];
    for (j, b) in models.iter().enumerate().skip(1).rev().filter(|(_, b)| is_asked(args, b.name)) {
        for a in models[..j].iter().rev() {
            pooled.push(seeds::compare(a, b, metrics)?);
        }
    }
    ensure!(!pooled.is_empty(), "all tables are of one model, '{}', so there is nothing to compare", models[0].name);
    Ok(pooled)
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

fn shown(args: &Args, results: &Results) -> String {
    let format = args.format;
    let grids = match () {
        _ if args.means => vec![results.means(format)],
        _ if args.stats => vec![results.stats(format)],
        _ if args.seeds => seeds::grids(results, format),
        _ if args.tests || format == Format::Csv => vec![results.tests(format)],
        _ => results.rates(),
    };
    grids.iter().map(|grid| grid.show(format)).collect::<Vec<_>>().join("\n")
}

fn judge(args: &Args, metrics: &[String], comparison: &Comparison) -> Answer {
    let Some(p) = args.require else { return Answer::Yes };
    let cells = metrics.iter().zip(&comparison.all().cells);
    let below: Vec<_> = cells.filter(|(_, cell)| cell.best.wins.rate() < p).collect();
    for (metric, cell) in &below {
        let (a, b, rate) = (&comparison.a, &comparison.b, cell.best.wins.rate());
        args.common.say(format!("winrate: {a} vs {b}: {metric} {rate:.4} is below the required {p}"));
    }
    if below.is_empty() { Answer::Yes } else { Answer::No }
}
