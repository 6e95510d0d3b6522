//! encode: run the VAE and the text encoder over pairs once, so that training reads latents instead of images.
//!
//!   encode pairs.parquet --base sd15 -o latents/
//!   train latents/ --labels labels.parquet --base sd15 -o policy

mod encoder;
mod seen;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Parser;
use encoder::{Encoder, EncoderFlags};
use nets::{device, folder, hub, single};
use pipe::cli::{Answer, Common, Diffusion, Networks, Sharding, run};
use pipe::job::{Job, Keep, Spec};
use pipe::memory::Memory;
use pipe::{pairs::PairKeys, parts::Tables, schema::pairs, table::Inputs, text::count};
use seen::Seen;
use serde_json::json;

/// Run the VAE and the text encoder over pairs once.
///
/// Writes three tables into a folder: latents.parquet (mean and logvar of each distinct image's posterior, f16, from which
/// training samples), captions.parquet (the text encoder's states of each distinct caption, the empty one first, f16) and
/// pairs.parquet (which images and captions belong together). Other files in the folder stay. The same command continues a
/// killed run.
///
/// With --shard each of the three is a folder of parts. Every shard holds the images of its own pairs: an image in pairs of two
/// shards is encoded twice.
#[derive(Parser, Debug)]
#[command(
    name = "encode",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  encode pairs.parquet --base sd15 -o latents/
  encode pairs.parquet --base sd15 --augment independent-flip -o latents/

Exit status: 0 done, 2 trouble, 128 + N after signal N."
)]
#[command(mut_arg("output", |output| output.help("The folder to write the three tables in")))]
#[command(mut_arg("seed", |seed| seed.hide(true)))] // nothing is drawn
struct Args {
    /// Pairs tables
    #[arg(required = true, value_name = "PAIRS")]
    pairs: Vec<PathBuf>,
    /// Stable Diffusion folder, hub id or single file with the VAE and the text encoder
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    #[command(flatten)]
    encoder: EncoderFlags,
    #[command(flatten)]
    files: Diffusion,
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
    run("encode", |args| device::on_workers(|| ops::unchanged(|| encode(args))))
}

/// Pairs per part; a killed run loses at most one part.
const PART: usize = 64;

fn encode(args: Args) -> Result<Answer> {
    let out = args.sharding.output_beside(&args.common, &args.pairs)?;
    ensure!(out.as_os_str() != "-", "the cache is a folder; name one with -o");
    let base = args.files.folder(&args.base, None, hub::resolve, single::folder)?;
    folder::model(&base)?;
    let mut inputs = Inputs::open(&args.pairs)?;
    inputs.require(&pairs::NEEDED, "expected a pairs table with Pick-a-Pic's columns")?;
    let range = inputs.range(args.sharding.shard)?;
    let encoder = Encoder::open(&base, args.encoder, args.networks)?;
    let origin = encoder.origin(&base)?;
    let tables = Tables::folder(&origin, out, args.sharding.shard, encoder.tables())?;

    let mut job = Job::open(Spec {
        tool: "encode",
        tables,
        origin: origin.inputs(inputs.origins_of(&range)?),
        cut: format!("{PART} pairs a part"),
        keep: Keep::Parts,
        rows: inputs.rows_in(&range),
        quiet: args.common.quiet,
    })?;
    let columns = [&pairs::NEEDED[..], &PairKeys::columns(&inputs)].concat();
    let mut rows = inputs.read(Some(&columns), range, PART)?;
    let mut seen = Seen::default();
    // A pipe has no content hash: its rows must be those of the finished parts.
    job.resume(|part| seen.add_part(part, rows.next().transpose()?.as_ref()))?;
    let counts = job.run(rows, |rows| encoder.encode(&rows, &mut seen))?;

    let [pairs, captions, latents] = counts[..] else { return Ok(Answer::Yes) };
    let (images, captions) = (latents / encoder.versions().len(), captions.saturating_sub(1)); // without the empty caption
    if args.common.json {
        let resolution = encoder.resolution;
        let summary = json!({ "pairs": pairs, "images": images, "captions": captions, "resolution": resolution });
        args.common.answer(summary)?;
    } else {
        let (images, captions) = (count(images, "distinct image"), count(captions, "distinct caption"));
        args.common.say(format_args!("{images} and {captions} in {}", out.display()));
    }
    Ok(Answer::Yes)
}
