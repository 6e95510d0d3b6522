//! score: rate images with published metrics, encoding each image and each caption once.
//!
//!   score pairs.parquet -o scores.parquet --models scorers/
//!   score images.parquet -o scored.parquet --metrics clip,aesthetic --model clip=CLIP-H/ --model aesthetic=CLIP-L/,head.pth

mod cache;
mod engine;
mod models;
mod options;
mod panel;
mod rows;
mod summary;
mod verify;

use std::path::{Path, PathBuf};
use std::{process::ExitCode, sync::Arc};

use anyhow::{Result, ensure};
use candle_core::DType;
use clap::Parser;
use engine::{Bad, Engine, Parallel};
use models::ModelFlags;
use nets::device;
use nets::scorer;
use options::Choices;
use panel::Panel;
use pipe::cli::{Answer, Common, Networks, Sharding, run};
use pipe::job::{Job, Keep, Spec};
use pipe::memory::Memory;
use pipe::{atomic::create_parent, origin::Origin, parts::Tables, place, shard::target, table::Inputs};
use rows::Kind;
use summary::Summary;

/// Rate images with published metrics: HPS, CLIP, PickScore, LAION's aesthetic predictor.
///
/// Takes a pairs table (and writes two columns per metric) or an images table (one column per metric). Scores are raw: the
/// cosine, or the answer of the head. They do not depend on batch size, threads or shards. Finished parts are kept in
/// OUT.partial/, and the same command continues where it was stopped. Its summary then counts the scores and labels of all
/// rows, but only the images and captions that this run has read.
///
/// More metrics are judges for an evaluation, which do not vote unless `vote --metrics` names them: imagereward
/// (ImageReward.pt or its safetensors copy), cyclereward (CycleReward-Combo.pth), mps (the safetensors copy of MPS),
/// aesthetic-v2.5 (SigLIP so400m, and the head that its author publishes), clip-l (OpenAI's ViT-L/14), and colourfulness, which
/// needs no model.
#[derive(Parser, Debug)]
#[command(
    name = "score",
    version,
    after_help = "\
Examples:
  score pairs.parquet -o scores.parquet --models scorers/
  score pairs.parquet -o - --models scorers/ --metrics hps,clip \\
        | vote - -o labels.parquet
  score images.parquet -o scored.parquet --metrics clip,aesthetic \\
        --model clip=CLIP-ViT-H-14 \\
        --model aesthetic=clip-vit-large-patch14,head.pth
  score images.parquet -o judged.parquet --metrics imagereward \\
        --model imagereward=ImageReward.pt
  score pairs.parquet -o scores.parquet --models scorers/ --verify 100

Exit status: 0 done, 1 the scores differ (--verify), 2 trouble, 128 + N after signal N."
)]
struct Args {
    /// Pairs or images tables, or folders of their parts
    #[arg(required = true, value_name = "TABLE")]
    tables: Vec<PathBuf>,
    /// Metrics, in the order of their columns
    #[arg(long, value_name = "M,...", value_delimiter = ',', default_value = "hps,clip,pickscore,aesthetic")]
    metrics: Vec<String>,
    #[command(flatten)]
    models: ModelFlags,
    #[command(flatten)]
    choices: Choices,
    /// Images that go through a model together [default: 4 on a CPU, 64 on a GPU]
    #[arg(long, help_heading = "Scoring", value_name = "N")]
    batch: Option<usize>,
    /// Keep rows whose image or caption cannot be read, with null scores, and count them
    #[arg(long, help_heading = "Scoring")]
    skip_bad: bool,
    /// Score N random rows of the existing output again and compare
    #[arg(long, help_heading = "Scoring", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    verify: Option<u32>,
    #[command(flatten)]
    networks: Networks,
    #[command(flatten)]
    sharding: Sharding,
    #[command(flatten)]
    common: Common,
}

#[global_allocator]
static MEMORY: Memory<ops::Pool> = Memory(ops::Pool);

fn main() -> ExitCode {
    MEMORY.0.keep_small_blocks();
    run("score", |args| device::on_workers(|| score(args)))
}

fn score(args: Args) -> Result<Answer> {
    let output = output(&args)?;
    let metrics = models::metrics(&args.metrics)?;
    let options = options(&args)?;
    let mut inputs = Inputs::open(&args.tables)?;
    let kind = Kind::of(&inputs)?;
    let files = args.models.files(&metrics)?;
    let models = files.iter().flat_map(|model| [Some(&model.tower), model.head.as_ref()]).flatten();
    place::refuse_inputs(&output, models)?;
    let scratch = scratch_folder(&args, &output)?;
    let panel = Panel::open(&metrics, &files, &options)?;
    let range = inputs.range(args.sharding.shard)?;
    let origin = origin(&args, &panel, &options).inputs(inputs.origins_of(&range)?);
    let (batch, on_cpu) = (options.batch, options.device.is_cpu());
    let parallel = if on_cpu { Parallel::Batches } else { Parallel::Decoding };
    let bad = if args.skip_bad { Bad::Skip } else { Bad::Refuse };
    let mut engine = Engine::new(panel, kind, &scratch, batch, parallel, bad)?;
    if let Some(n) = args.verify {
        return verify::verify(&mut engine, kind, &inputs, &output, n as usize, &args.common);
    }

    let schema = kind.schema(&metrics);
    let part_rows = part_rows(on_cpu, batch);
    let mut job = Job::open(Spec {
        tool: "score",
        tables: Tables::file(&output, schema.clone())?,
        origin,
        cut: format!("rows {range:?} by {part_rows}"),
        keep: if inputs.rows().is_some() { Keep::Parts } else { Keep::Nothing },
        rows: inputs.rows_in(&range),
        quiet: args.common.quiet,
    })?;
    let mut summary = Summary::new(&metrics, kind);
    job.resume(|part| summary.add_kept(&part[0]).map(|()| true))?;
    let rest = range.start.saturating_add(summary.rows)..range.end;
    let rows = inputs.read(Some(&kind.columns()), rest, part_rows)?;
    let schema = Arc::new(schema);
    job.run(rows, |rows| {
        let batch = kind.table(&schema, &rows, &engine.score(&rows)?)?;
        summary.add(&batch)?;
        Ok(vec![batch])
    })?;
    summary.print(&args.common, &engine.counts)?;
    Ok(Answer::Yes)
}

/// The file that is written, or with `--verify` the table that is checked.
fn output(args: &Args) -> Result<PathBuf> {
    let shard = args.sharding.shard;
    if args.verify.is_some() {
        ensure!(shard.is_none(), "--verify draws its own rows; leave out --shard");
        return args.common.output().cloned();
    }
    let output = target(args.sharding.output_beside(&args.common, &args.tables)?, shard);
    ensure!(!output.is_dir(), "cannot write {}: it is a folder", output.display());
    Ok(output)
}

fn options(args: &Args) -> Result<scorer::Options> {
    ensure!(args.batch != Some(0), "--batch is 0: no image to score");
    let device = device::open(args.networks.device)?;
    Ok(scorer::Options {
        dtype: device::dtype(args.networks.dtype, &device)?,
        chosen: args.choices.0.clone(),
        batch: args.batch.unwrap_or(if device.is_cpu() { 4 } else { 64 }),
        device,
    })
}

/// The folder for temporary files: the output's own, which has room for data, where a file is written.
fn scratch_folder(args: &Args, output: &Path) -> Result<PathBuf> {
    match output.parent() {
        Some(folder) if args.verify.is_none() && !place::is_stream(output) => {
            create_parent(output)?;
            Ok(folder.join("."))
        }
        _ => Ok(std::env::temp_dir()),
    }
}

/// Rows per part, which is the most that a killed run loses: 64, and on a GPU enough to fill several batches of `batch` images.
fn part_rows(on_cpu: bool, batch: usize) -> usize {
    if on_cpu { 64 } else { batch.saturating_mul(4).max(64) }
}

/// The origin: what decides the scores. Batch size, threads and device do not.
fn origin(args: &Args, panel: &Panel, options: &scorer::Options) -> Origin {
    let names: Vec<&str> = panel.members.iter().map(|m| m.name).collect();
    let mut origin = Origin::new("score").arg("metrics", &names[..]);
    for choice in scorer::choices(|m| names.contains(&m.name)) {
        if let Some(value) = choice.of(&options.chosen) {
            origin = origin.arg(&choice.name.replace('-', "_"), value);
        }
    }
    origin = origin.arg("skip_bad", args.skip_bad);
    if options.dtype != DType::F32 {
        origin = origin.arg("dtype", options.dtype.as_str());
    }
    panel.members.iter().fold(origin, |origin, member| origin.model(member.name, member.id.as_str()))
}
