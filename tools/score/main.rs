//! score: rate images with published metrics, each image and each caption once.
//!
//!   score pairs.parquet -o scores.parquet --models scorers/
//!   score images.parquet -o scored.parquet --metrics clip,aesthetic --model clip=CLIP-H/ --model aesthetic=CLIP-L/,head.pth

mod cache;
mod engine;
mod models;
mod options;
mod rows;
mod summary;
mod verify;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Result, ensure};
use arrow::{
    array::{ArrayRef, Float32Array, RecordBatch},
    datatypes::SchemaRef,
};
use candle_core::DType;
use clap::Parser;
use engine::{Bad, Engine, Parallel};
use nets::{
    device,
    scorer::{self, Metric},
};
use options::Choices;
use pipe::{
    atomic::create_parent,
    cli::{Answer, Common, Networks, Sharding, run},
    column::Rows,
    origin::Origin,
    parts::Work,
    place, progress,
    shard::target,
    stop,
    table::{Inputs, Output},
};
use rows::Kind;
use summary::Summary;

/// Rate images with published metrics: HPS, CLIP, PickScore, LAION's aesthetic predictor.
///
/// Takes a pairs table (scores: two columns a metric) or an images table (scored: one column a metric). Scores are raw:
/// cosines, and the head's answer. They do not depend on batch size, threads or shards. What is finished is kept in
/// OUT.partial/, so that the same command goes on where it was stopped; it then counts images and captions in the rows that
/// were left alone, scores and labels in all. For an evaluation by others than those that voted there are also clip-l (OpenAI's
/// ViT-L/14) and colourfulness, which needs no model: judges, that do not vote unless `vote --metrics` names them.
#[derive(Parser, Debug)]
#[command(
    name = "score",
    version,
    after_help = "\
Examples:
  score pairs.parquet -o scores.parquet --models scorers/
  score pairs.parquet -o - --models scorers/ --metrics hps,clip | vote - -o labels.parquet
  score images.parquet -o scored.parquet --metrics clip,aesthetic \\
    --model clip=CLIP-ViT-H-14 --model aesthetic=clip-vit-large-patch14,head.pth
  score pairs.parquet -o scores.parquet --models scorers/ --verify 100

Exit status: 0 done, 1 the scores differ (--verify), 2 trouble."
)]
struct Args {
    /// Pairs or images tables, or folders of their parts
    #[arg(required = true, value_name = "TABLE")]
    tables: Vec<PathBuf>,
    /// Metrics, in the order of their columns
    #[arg(long, value_name = "M,...", value_delimiter = ',', default_value = "hps,clip,pickscore,aesthetic")]
    metrics: Vec<String>,
    /// Folder with a model for each metric: DIR/hps, DIR/clip, ...
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Where one metric's model lies: a weight file, a folder or a hub id; for `aesthetic` also the head
    #[arg(long, value_name = "M=TOWER[,HEAD]")]
    model: Vec<String>,
    #[command(flatten)]
    choices: Choices,
    /// Images that go through a model at once [default: 4 on a CPU, 64 on a GPU]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Keep rows whose image or caption cannot be read, without scores, and count them
    #[arg(long)]
    skip_bad: bool,
    /// Score N random rows of the existing output again and compare
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    verify: Option<u32>,
    /// Fetch models that are named by a hub id (org/name[@revision]) and are not in the cache
    #[arg(long)]
    allow_download: bool,
    #[command(flatten)]
    networks: Networks,
    #[command(flatten)]
    sharding: Sharding,
    #[command(flatten)]
    common: Common,
}

/// Rows of a part, which a killed run loses at most: 64, and on a GPU enough to fill several batches of `batch` images.
fn part_rows(on_cpu: bool, batch: usize) -> usize {
    if on_cpu { 64 } else { batch.saturating_mul(4).max(64) }
}

fn main() -> ExitCode {
    run("score", |args| device::on_workers(|| score(args)))
}

fn score(args: Args) -> Result<Answer> {
    let common = &args.common;
    let output =
        if args.verify.is_some() { common.output()? } else { args.sharding.output_beside(common, &args.tables)? };
    let shard = args.sharding.shard;
    let out = target(output, shard);
    let kept = args.verify.is_none() && !place::is_stream(&out);
    let metrics = models::metrics(&args.metrics)?;
    ensure!(args.batch != Some(0), "--batch is 0: no image to score");
    let device = device::open(args.networks.device)?;
    let options = scorer::Options {
        dtype: device::dtype(args.networks.dtype, &device)?,
        chosen: args.choices.0.clone(),
        batch: args.batch.unwrap_or(if device.is_cpu() { 4 } else { 64 }),
        device,
    };
    let mut inputs = Inputs::open(&args.tables)?;
    let kind = Kind::of(&inputs)?;
    let sources = models::files(&metrics, args.models.as_deref(), &args.model, args.allow_download)?;
    if kept {
        ensure!(!out.is_dir(), "cannot write {}: it is a folder", out.display());
        create_parent(&out)?;
    }
    let scorers = models::open(&metrics, &sources, &options)?;
    let range = inputs.range(shard)?;
    let origin = origin(&args, &metrics, &scorers, &options).inputs(inputs.origins_of(&range)?);
    let parallel = if options.device.is_cpu() { Parallel::Batches } else { Parallel::Decoding };
    let bad = if args.skip_bad { Bad::Skip } else { Bad::Refuse };
    let part_rows = part_rows(options.device.is_cpu(), options.batch);
    let folder = match out.parent() {
        Some(folder) if kept => folder.join("."),
        _ => std::env::temp_dir(),
    };
    let mut engine = Engine::new(scorers, kind, &folder, options.batch, parallel, bad)?;
    if let Some(n) = args.verify {
        ensure!(shard.is_none(), "--verify draws its own rows; leave out --shard");
        return verify::verify(&mut engine, kind, &inputs, &out, n as usize, common);
    }
    stop::watch()?;

    let schema = kind.schema(&metrics);
    // What a pipe brings cannot be told from what it brought before: nothing of it is kept for another run.
    let mut work = match inputs.rows() {
        Some(_) => Work::open(&out, schema.clone(), origin, &format!("rows {range:?} by {part_rows}"))?,
        None => Work::Stream(Box::new(Output::create(&out, schema.clone(), &origin)?)),
    };
    let schema = Arc::new(schema);
    let mut summary = Summary::new(&metrics, kind);
    let mut parts = 0;
    while let Some(mut part) = work.get(parts)? {
        for rows in part.read(None, 0..usize::MAX, part_rows)? {
            summary.add_kept(&rows?)?;
        }
        parts += 1;
    }
    let total = inputs.rows().map(|rows| range.end.min(rows).saturating_sub(range.start) as u64);
    let bar = progress::bar("score", total, common.quiet);
    bar.inc(summary.rows as u64);
    let rest = range.start.saturating_add(summary.rows)..range.end;
    for rows in read_ahead(inputs.read(Some(&kind.columns()), rest, part_rows)?) {
        let rows = rows?;
        let scores = engine.score(&rows)?;
        let batch = table(kind, &schema, &rows, &scores)?;
        summary.add(&batch)?;
        work.put(parts, &batch)?;
        parts += 1;
        bar.inc(rows.len() as u64);
        stop::check()?;
    }
    ensure!(summary.rows > 0 || shard.is_some(), "{} has no rows", inputs.name());
    let done = engine.finish();
    work.finish(parts)?;
    bar.finish_and_clear();
    summary.tell(common, &done)?;
    Ok(Answer::Yes)
}

/// What decided the scores. Batch, threads and device do not.
fn origin(args: &Args, metrics: &[&Metric], scorers: &models::Scorers, options: &scorer::Options) -> Origin {
    let names: Vec<&str> = metrics.iter().map(|m| m.name).collect();
    let mut origin = Origin::new("score").arg("metrics", names);
    for choice in scorer::choices(|m| metrics.iter().any(|asked| asked.name == m.name)) {
        if let Some(value) = choice.of(&options.chosen) {
            origin = origin.arg(&choice.name.replace('-', "_"), value);
        }
    }
    origin = origin.arg("skip_bad", args.skip_bad);
    if options.dtype != DType::F32 {
        origin = origin.arg("dtype", options.dtype.as_str());
    }
    scorers.iter().fold(origin, |origin, (name, scorer)| origin.model(name, scorer.id.as_str()))
}

fn table(kind: Kind, schema: &SchemaRef, rows: &Rows, scores: &[Vec<Option<f32>>]) -> Result<RecordBatch> {
    let mut columns = kind.keys(rows)?;
    let sides = kind.image_columns().len();
    for scores in scores {
        for side in 0..sides {
            let column: ArrayRef = Arc::new(scores.iter().skip(side).step_by(sides).copied().collect::<Float32Array>());
            columns.push(column);
        }
    }
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

/// The batches, the next one being read while one is scored.
fn read_ahead(batches: pipe::table::Batches) -> impl Iterator<Item = Result<Rows>> {
    use std::sync::mpsc::{RecvTimeoutError, sync_channel};
    let (send, receive) = sync_channel(0);
    std::thread::spawn(move || {
        for rows in batches {
            if send.send(rows).is_err() {
                return;
            }
        }
    });
    std::iter::from_fn(move || {
        loop {
            match receive.recv_timeout(std::time::Duration::from_millis(200)) {
                Ok(rows) => return Some(rows),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => match stop::check() {
                    Ok(()) => continue,
                    Err(stopped) => return Some(Err(stopped)),
                },
            }
        }
    })
}
