//! winrate: on how many prompts one model's best image scores higher than another's.
//!
//!   winrate policy.parquet base.parquet
//!   winrate balanced.parquet diffusion-dpo.parquet base.parquet --by category --json -o winrates.json

mod bootstrap;
mod compare;
mod judges;
mod prompt;
mod scored;
mod seeds;
mod sign;
mod stats;
mod sums;
mod tables;
mod walk;

use std::alloc::System;
use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode, thread::available_parallelism};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use pipe::cli::{self, Answer, Common, named};
use pipe::memory::Memory;
use pipe::winrates::{Comparison, Table, Winrates};
use pipe::{atomic, grid::Format, metrics, names::Names, place, stdout::print, table::Inputs, text};

use bootstrap::Bootstrap;
use compare::{compare, correct};
use judges::TableVoters;
use prompt::Prompt;
use scored::{By, Reading, Wanted};
use seeds::Pooling;
use sums::{Groups, Model, Pair};
use tables::Results;

/// Compute on how many prompts one model's best image scores higher than another's
///
/// Each table holds the scored images of one model. For each prompt and metric, the model's best image counts. The win rate is
/// the share of prompts where the candidate's best image is strictly better than the baseline's, with its 95 % Wilson
/// interval. Two more tables follow, which a few lucky images cannot change much: the win rate by the mean of each prompt's
/// images, and the change of the mean score. A model is only marked as ahead if an exact sign test, corrected for all rates
/// of the table, says so. Every table is compared with every later one, so name the candidate first and the baselines after
/// it.
///
/// Tables that have the same prompts in the same order, as `sample` and `score` write them, are read side by side, and memory
/// grows by only 8 bytes per prompt. Tables in different orders, and what comes from a pipe, are held in memory.
#[derive(Parser)]
#[command(name = "winrate", version, max_term_width = 100, after_help = EXAMPLES)]
struct Args {
    /// Scored tables of the same prompts, two or more (Parquet, Arrow, a folder of parts, or `-`)
    #[arg(required = true, value_name = "TABLE")]
    tables: Vec<PathBuf>,
    /// Metrics to compare, separated by commas [default: every metric of the first table]
    #[arg(long, value_name = "M,...", value_delimiter = ',')]
    metrics: Vec<String>,
    /// Images per prompt that count, the first by k; the paper takes the best of 5
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    best_of: u32,
    /// Column by whose values prompts are grouped, one row per value [default: set, if there are several]
    #[arg(long, value_name = "COLUMN", value_parser = named::<By>())]
    by: Option<By>,
    /// Metrics that had no vote in training and only judge; they are marked as held out
    ///
    /// Metrics that are known from the origin of the tables to have had no vote are marked anyway.
    #[arg(long, help_heading = "Statistics", value_name = "M,...", value_delimiter = ',')]
    held_out: Vec<String>,
    /// Print mean scores instead (the paper's Table V)
    #[arg(long, help_heading = "Views", group = "view")]
    means: bool,
    /// Print mean, min, max and sd of the images' scores instead (the paper's Table VI)
    ///
    /// The last line of a model, which the paper does not have, is the sd among the images of one prompt: what the best of n
    /// chooses from.
    #[arg(long, help_heading = "Views", group = "view")]
    stats: bool,
    /// Print every win rate with its counts, intervals and probabilities instead, one per line
    #[arg(long, help_heading = "Views", group = "view")]
    tests: bool,
    /// Tables whose images have the same `model` are training seeds of that model, and each rate is the mean over them
    ///
    /// Prints the mean over seeds and prompts, with an interval for other training seeds and other prompts: Student's interval
    /// over the seeds, widened by the variation between prompts that all seeds share. With three seeds it is wide, as it must
    /// be; in simulations it covers the true value at least 93 % of the time. With one seed it only covers the prompts. The i-th table
    /// of a model is compared with the i-th table of the other; a single table is compared with every seed of the other.
    #[arg(long, help_heading = "Views", group = "view", conflicts_with_all = ["by", "require"])]
    seeds: bool,
    /// Compare only with these models, not with every later table
    #[arg(long, help_heading = "Statistics", value_name = "MODEL,...", value_delimiter = ',')]
    against: Vec<String>,
    /// Layout of the tables; --json prints everything at once
    ///
    /// The win rates as CSV are those of --tests, since a cell holds one number.
    #[arg(long, value_name = "LAYOUT", default_value_t = Format::Text, conflicts_with = "json", value_parser = named::<Format>())]
    format: Format,
    /// Resamples of the bootstrap, at most a million; with 10000, another seed moves the ends of an interval by about 2 % of its
    /// width
    #[arg(long, help_heading = "Statistics", value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    resamples: u32,
    /// Exit with 1 if a win rate of the first table over the last, on all prompts, is below P (0 to 1)
    #[arg(long, help_heading = "Statistics", value_name = "P")]
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
  winrate ours-seed0.parquet ours-seed1.parquet dpo-seed0.parquet \\
          dpo-seed1.parquet base.parquet --seeds --against base

Exit status: 0 done, 1 a rate is below --require, 2 trouble.";

#[global_allocator]
static MEMORY: Memory = Memory(System);

fn main() -> ExitCode {
    cli::run("winrate", run)
}

fn run(args: Args) -> Result<Answer> {
    let common = &args.common;
    check(&args)?;
    let mut inputs = Inputs::open_each(&args.tables)?;
    let metrics = metrics(&args, &inputs)?;
    let (voted, held_out) = judges(&args, &inputs, &metrics)?;
    let Counted { models, pairs, groups, pooled } = count(&args, &mut inputs, &metrics)?;
    let mut comparisons = compare(&groups, &models, &pairs, &metrics)?;
    correct(&mut comparisons, |cell| &mut cell.best);
    correct(&mut comparisons, |cell| &mut cell.mean_of_n);
    let described = models.iter().zip(voted).enumerate().map(|(i, (Model { table, model }, (_, voted)))| {
        let (null_scores, scores) = groups.all.describe(i, &metrics);
        Table { table: table.clone(), model: model.clone(), prompts: groups.all.n, null_scores, scores, voted }
    });
    let tables: Vec<Table> = described.collect();
    notes(common, &tables, &comparisons);
    let winrates = Winrates {
        best_of: args.best_of,
        by: args.by.unwrap_or(By::Set).name().to_owned(),
        seeds: pooled.into_iter().map(|pooling| pooling.close(&metrics)).collect(),
        metrics,
        held_out,
        seed: args.common.seed,
        resamples: args.resamples,
        tables,
        comparisons,
    };
    let out = match common.json {
        true => serde_json::to_string(&winrates)? + "\n",
        false => shown(&args, &Results { winrates: &winrates, by: args.by, models: &models, groups: &groups }),
    };
    match common.output.as_deref().filter(|o| o.as_os_str() != "-") {
        Some(path) => atomic::write(path, out.as_bytes())?,
        None => print(out)?,
    }
    let (first, last) = (&models[0].table, &models[models.len() - 1].table);
    let judged = winrates.comparisons.iter().find(|c| c.table_a == *first && c.table_b == *last);
    Ok(judged.map_or(Answer::Yes, |comparison| judge(&args, comparison)))
}

fn check(args: &Args) -> Result<()> {
    ensure!(args.require.is_none_or(|p| (0.0..=1.0).contains(&p)), "--require takes a share from 0 to 1, such as 0.5");
    if let Some(output) = &args.common.output {
        place::refuse_inputs(output, &args.tables)?;
    }
    let (first, alone) = (args.tables[0].display(), args.tables.len() == 1);
    let enough = !alone || args.means || args.stats;
    ensure!(enough, "{first} alone has nothing to be compared with; name a second table after it");
    ensure!(
        !alone || args.require.is_none(),
        "--require needs a win rate, and {first} alone has none; name a second table after it"
    );
    Ok(())
}

fn metrics(args: &Args, inputs: &[Inputs]) -> Result<Vec<String>> {
    let found = metrics::of_images(inputs[0].schema());
    ensure!(
        !found.is_empty(),
        "{} has no metric (a column of floating-point numbers); `winrate` reads what `score` writes of an images table",
        inputs[0].name()
    );
    metrics::choose(&args.metrics, found)
}

/// The metrics that voted on the labels behind each table, and those that only judge. Warns where a scorer is not known.
fn judges(args: &Args, inputs: &[Inputs], metrics: &[String]) -> Result<(Vec<TableVoters>, Vec<String>)> {
    let named = || args.tables.iter().map(|path| path.display().to_string());
    let scorers = inputs.iter().map(|input| judges::scorers(input, metrics)).collect::<Result<Vec<_>>>()?;
    let unknown = judges::same_scorers(&named().zip(scorers).collect::<Vec<_>>(), metrics)?;
    if !unknown.is_empty() && args.tables.len() > 1 {
        args.common.say(format!(
            "winrate: warning: the origin of some table does not name the scorer of {}; make sure that it was the same for all",
            unknown.join(", ")
        ));
    }
    let voted: Vec<_> = named().zip(inputs.iter().map(judges::voted).collect::<Result<Vec<_>>>()?).collect();
    let held_out = judges::held_out(&args.held_out, metrics, &voted)?;
    Ok((voted, held_out))
}

/// The counts of all tables.
struct Counted {
    models: Vec<Model>,
    pairs: Vec<Pair>,
    groups: Groups,
    pooled: Vec<Pooling>,
}

/// Reads all tables: side by side where their prompts are in the same order, and else as a whole. A pipe cannot be read again, so
/// it is read as a whole.
fn count(args: &Args, inputs: &mut [Inputs], metrics: &[String]) -> Result<Counted> {
    let files = inputs.iter().all(|input| input.rows().is_some());
    if let Some(counted) = count_by(args, inputs, metrics, files)? {
        return Ok(counted);
    }
    count_by(args, inputs, metrics, false)?.context("the tables cannot be joined")
}

fn count_by(args: &Args, inputs: &mut [Inputs], metrics: &[String], side_by_side: bool) -> Result<Option<Counted>> {
    let wanted = Wanted { metrics, by: args.by.unwrap_or(By::Set), images: args.best_of as usize };
    let open = |(path, inputs): (&PathBuf, &mut Inputs)| Reading::open(path, inputs, wanted);
    let mut tables = args.tables.iter().zip(inputs).map(open).collect::<Result<Vec<_>>>()?;
    let named = |reading: &Reading| Model { table: reading.table.clone(), model: reading.model.clone() };
    let models: Vec<Model> = tables.iter().map(named).collect();
    check_models(args, &models)?;
    let pairs = if args.seeds { vec![] } else { pairs(args, &models) };
    let mut pooled = if args.seeds { pool(args, &models, metrics.len())? } else { vec![] };
    let threads = args.common.threads.or_else(|| available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let bootstrap = Bootstrap { seed: args.common.seed, resamples: args.resamples, threads };
    let mut groups = Groups::new(&models, args.by, &pairs, metrics.len(), bootstrap)?;
    let mut contents = seeds::Contents::new(models.len());
    let mut each = |prompts: &[&Prompt]| {
        contents.add(prompts);
        pooled.iter_mut().for_each(|pooling| pooling.add(prompts));
        groups.add(prompts)
    };
    match side_by_side {
        true if !walk::side_by_side(&mut tables, &mut each)? => return Ok(None),
        true => {}
        false => walk::joined(tables, &mut each)?,
    }
    if args.seeds {
        contents.refuse_alike(&models)?;
    }
    groups.close()?;
    Ok(Some(Counted { models, pairs, groups, pooled }))
}

/// Checks what the flags say of the models.
fn check_models(args: &Args, models: &[Model]) -> Result<()> {
    for name in &args.against {
        let models = models.iter().map(|t| t.model.as_str()).collect::<Vec<_>>();
        ensure!(
            models[1..].contains(&name.as_str()),
            "--against: no table after the first is of the model '{name}' (models: {})",
            models.join(", ")
        );
    }
    let last = &models[models.len() - 1];
    ensure!(
        args.require.is_none() || is_asked(args, &last.model),
        "--require judges the first table over the last, {}, but --against leaves out its model '{}'; name that too, or another table last",
        last.table,
        last.model
    );
    Ok(())
}

fn is_asked(args: &Args, model: &str) -> bool {
    args.against.is_empty() || args.against.iter().any(|name| name == model)
}

/// Every table against every later one, in the paper's order: everything against the last table, then against the one before it.
fn pairs(args: &Args, models: &[Model]) -> Vec<Pair> {
    let baselines = (1..models.len()).rev().filter(|&b| is_asked(args, &models[b].model));
    baselines.flat_map(|b| (0..b).rev().map(move |a| (a, b))).collect()
}

/// Every model, its seeds together, against every later one, in the same order.
fn pool(args: &Args, tables: &[Model], metrics: usize) -> Result<Vec<Pooling>> {
    let models = seeds::models(tables);
    let mut pooled = vec![];
    for (j, b) in models.iter().enumerate().skip(1).rev().filter(|(_, b)| is_asked(args, b.model)) {
        for a in models[..j].iter().rev() {
            pooled.push(Pooling::new(a, b, metrics)?);
        }
    }
    ensure!(!pooled.is_empty(), "all tables are of one model, '{}', so there is nothing to compare", models[0].model);
    Ok(pooled)
}

/// Notes for the reader of the numbers, on standard error.
fn notes(common: &Common, tables: &[Table], comparisons: &[Comparison]) {
    for table in tables {
        for (metric, nulls) in table.null_scores.0.iter().filter(|(_, nulls)| *nulls > 0) {
            let images = text::count(*nulls, "image");
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
    let csv = args.format == Format::Csv;
    let grids = match () {
        _ if args.means => vec![results.means()],
        _ if args.stats => vec![results.stats()],
        _ if args.seeds && csv => vec![results.seeds_by_number()],
        _ if args.seeds => results.seeds(),
        _ if args.tests || csv => vec![results.tests()],
        _ => results.rates(),
    };
    grids.iter().map(|grid| grid.write(args.format)).collect::<Vec<_>>().join("\n")
}

fn judge(args: &Args, comparison: &Comparison) -> Answer {
    let Some(p) = args.require else { return Answer::Yes };
    let below: Vec<_> = comparison.all.metrics.0.iter().filter(|(_, cell)| cell.best.rate < p).collect();
    for (metric, cell) in &below {
        let (a, b, rate) = (&comparison.a, &comparison.b, cell.best.rate);
        args.common.say(format!("winrate: {a} vs {b}: {metric} {rate:.4} is below the required {p}"));
    }
    if below.is_empty() { Answer::Yes } else { Answer::No }
}
