//! encode: run the VAE and the text encoder over pairs once, so that training visits latents instead of images.
//!
//!   encode pairs.parquet --base sd15 -o latents/
//!   train latents/ --labels labels.parquet --base sd15 -o policy

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use arrow::{
    array::{Array, ArrayRef, BooleanArray, Float16Array, Int32Array, ListArray, RecordBatch, StringArray},
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, Metadata, Schema},
};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use half::f16;
use nets::{
    device, hub,
    image::{self, TrainCrop},
    prompt::PromptEncoder,
    vae::Vae,
    weights::Weights,
};
use pipe::{
    atomic,
    augment::Augment,
    cli::{Answer, Common, Networks, Sharding, named, run},
    column::Rows,
    id,
    origin::Origin,
    parts, place, progress,
    schema::{self, images, labels, pairs},
    shard::Shard,
    stop,
    table::{BATCH, Inputs, Output},
};
use rayon::prelude::*;

/// Run the VAE and the text encoder over pairs once.
///
/// Writes a folder: latents.parquet (mean and logvar of each distinct image's posterior, f16, so that training still
/// samples it), captions.parquet (the text encoder's states of each distinct caption, the empty one first, f16) and
/// pairs.parquet (which images and captions belong together). A killed run goes on where it stopped.
///
/// With --shard each of the three is a folder of parts. Every shard holds the images of its own pairs: one that stands in
/// pairs of two shards is encoded twice.
#[derive(Parser, Debug)]
#[command(
    name = "encode",
    version,
    after_help = "\
Examples:
  encode pairs.parquet --base sd15 -o latents/
  encode pairs.parquet --base sd15 --augment independent-flip -o latents/"
)]
struct Args {
    /// Pairs tables
    #[arg(required = true, value_name = "PAIRS")]
    pairs: Vec<PathBuf>,
    /// Stable Diffusion folder or hub id with the VAE and the text encoder
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// Side of the training images in pixels: the short side is resized to it, the middle is kept
    #[arg(long, value_name = "N", default_value_t = 512)]
    resolution: usize,
    /// Whether to store mirrored images too, for the flips of `train --augment`
    #[arg(long, default_value_t = Augment::None, value_parser = named::<Augment>())]
    augment: Augment,
    /// Images that go through the VAE at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    /// Fetch a base that is named by a hub id (org/name[@revision]) and is not in the cache
    #[arg(long)]
    allow_download: bool,
    #[command(flatten)]
    networks: Networks,
    #[command(flatten)]
    sharding: Sharding,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    run("encode", |args| device::on_workers(|| encode(args)))
}

fn encode(args: Args) -> Result<Answer> {
    let out = args.sharding.output_beside(&args.common, &args.pairs)?.clone();
    ensure!(out.as_os_str() != "-", "the cache is a folder; name one with -o");
    ensure!(args.batch > 0, "--batch is 0: no image to encode");
    let whole = out.join("latents.parquet").is_file();
    match args.sharding.shard {
        None => {
            ensure!(!out.exists() || whole, "{} exists and is not a cache; choose another folder", out.display());
            place::refuse_inputs_inside(&out, args.pairs.iter().chain([&args.base]))?;
        }
        Some(_) => ensure!(!whole, "{} holds a whole cache; choose another folder for parts", out.display()),
    }
    let base = hub::resolve(&args.base, args.allow_download)?;
    let device = device::open(args.networks.device)?;
    let dtype = device::dtype(args.networks.dtype, &device)?;
    let mut inputs = Inputs::open(&args.pairs)?;
    inputs.require(&pairs::NEEDED, "expected a pairs table with Pick-a-Pic's columns")?;
    let range = inputs.range(args.sharding.shard)?;
    let vae = Vae::open(&base.join("vae"), dtype, &device)?;
    let text = PromptEncoder::open(&base, dtype, &device)?;
    let factor = vae.config.factor();
    ensure!(
        args.resolution > 0 && args.resolution.is_multiple_of(factor),
        "--resolution {} is not a multiple of the VAE's {factor}",
        args.resolution
    );
    let origin = Origin::new("encode")
        .arg("resolution", args.resolution)
        .arg("flips", args.augment != Augment::None)
        .model("vae", Weights::open(&base.join("vae"))?.hash()?)
        .inputs(inputs.origins_of(&range)?);
    let encoder = |origin: Origin, part: &&str| {
        Ok::<_, anyhow::Error>(origin.model(part, Weights::open(&base.join(part))?.hash()?))
    };
    let origin = text.parts().iter().try_fold(origin, encoder)?;
    stop::watch()?;

    let mut cache = Cache::open(&out, &args, &vae, &text, origin)?;
    let total = inputs.rows().map(|rows| range.end.min(rows).saturating_sub(range.start) as u64);
    let bar = progress::bar("encode", total, args.common.quiet);
    let columns = [&pairs::NEEDED[..], &[pairs::RANKING_ID]].concat();
    let mut chunks = 0;
    for rows in inputs.read(Some(&columns), range, CHUNK)? {
        let rows = rows?;
        cache.add(chunks, &rows, &args, &vae, &text).inspect_err(|_| cache.forget_if_empty(&out))?;
        chunks += 1;
        bar.inc(rows.len() as u64);
        stop::check()?;
    }
    let (images, captions) = cache.finish(chunks, &out, args.sharding.shard)?;
    let images = if args.augment == Augment::None { images } else { images / 2 };
    // Less the empty caption.
    args.common.say(format_args!(
        "{images} distinct images and {} distinct captions in {}",
        captions.saturating_sub(1),
        out.display()
    ));
    Ok(Answer::Yes)
}

/// Pairs that are encoded together, and that a killed run loses.
const CHUNK: usize = 64;

/// The three tables, in parts of a chunk each in `OUT.partial/`, and what they already hold.
struct Cache {
    folder: PathBuf,
    tables: [(&'static str, Schema); 3],
    origin: Origin,
    seen_images: HashSet<[u8; 32]>,
    seen_captions: HashSet<[u8; 32]>,
}

const LATENTS: usize = 0;
const CAPTIONS: usize = 1;
const PAIRS: usize = 2;

/// An image made ready for the VAE.
struct Prepared {
    uid: String,
    flipped: bool,
    pixels: Vec<f32>, // (3, side, side)
    crop: TrainCrop,
}

impl Cache {
    fn open(out: &Path, args: &Args, vae: &Vae, text: &PromptEncoder, origin: Origin) -> Result<Self> {
        let side = args.resolution / vae.config.factor();
        let latent = format!("[{},{side},{side}]", vae.config.latent_channels);
        let ([tokens, width], pooled) = text.shape();
        let mut states = Metadata::default().with("state_shape", format!("[{tokens},{width}]"));
        if let Some(width) = pooled {
            states = states.with("pooled_shape", format!("[{width}]"));
        }
        let tables = [
            ("latents", schema::latents().with_metadata(Metadata::default().with("latent_shape", latent))),
            ("captions", schema::captions(pooled.is_some()).with_metadata(states)),
            ("pairs", schema::pair_list()),
        ];
        let name = |shard: Shard| out.join(shard.file_name()).with_extension("");
        let target = args.sharding.shard.map_or(out.to_owned(), name);
        let folder = parts::folder(&target, &format!("{CHUNK} pairs a part\n{}", origin.to_json()))?;
        Ok(Self { folder, tables, origin, seen_images: HashSet::new(), seen_captions: HashSet::new() })
    }

    fn part(&self, table: usize, chunk: usize) -> PathBuf {
        self.folder.join(format!("{chunk:06}.{}.parquet", self.tables[table].0))
    }

    fn write(&self, table: usize, chunk: usize, batches: &[Vec<ArrayRef>]) -> Result<()> {
        let mut output = Output::create(&self.part(table, chunk), self.tables[table].1.clone(), &self.origin)?;
        for columns in batches {
            output.write(&RecordBatch::try_new(output.schema.clone(), columns.clone())?)?;
        }
        output.finish().map(|_| ())
    }

    /// A text column of a finished part.
    fn read(&self, table: usize, chunk: usize, column: &str) -> Result<Vec<String>> {
        let mut all = vec![];
        for mut part in Inputs::open_each(&[self.part(table, chunk)])? {
            for rows in part.read(Some(&[column]), 0..usize::MAX, BATCH)? {
                all.extend(rows?.text(column)?.iter().flatten().map(String::from));
            }
        }
        Ok(all)
    }

    /// Encodes what is new in a chunk, or takes note of what an earlier run has finished.
    fn add(&mut self, chunk: usize, rows: &Rows, args: &Args, vae: &Vae, text: &PromptEncoder) -> Result<()> {
        let captions = rows.text(pairs::CAPTION)?;
        let uids = [rows.text(pairs::UID[0])?, rows.text(pairs::UID[1])?];
        let ranking = rows.text_if_there(pairs::RANKING_ID)?;
        let pair_id = |i: usize| {
            let ranking = if ranking.is_valid(i) { ranking.value(i) } else { "" };
            id::pair_id(captions.value(i), uids[0].value(i), uids[1].value(i), ranking)
        };
        let ids: Vec<String> = (0..rows.len()).map(pair_id).collect();
        if self.part(PAIRS, chunk).exists() {
            ensure!(self.read(PAIRS, chunk, labels::PAIR_ID)? == ids, parts::other_work(&self.folder));
            let images = self.read(LATENTS, chunk, images::IMAGE_UID)?;
            self.seen_images.extend(images.iter().map(|uid| id::sha256(uid.as_bytes())));
            let captions = self.read(CAPTIONS, chunk, pairs::CAPTION)?;
            self.seen_captions.extend(captions.iter().map(|c| id::sha256(c.as_bytes())));
            return Ok(());
        }

        let empty = (chunk == 0).then_some("");
        let new: Vec<&str> = empty
            .into_iter()
            .chain(captions.iter().flatten())
            .filter(|c| self.seen_captions.insert(id::sha256(c.as_bytes())))
            .collect();
        let states = match new.is_empty() {
            true => vec![],
            false => {
                let told = text.encode(&new)?;
                let mut columns: Vec<ArrayRef> =
                    vec![Arc::new(StringArray::from_iter_values(new)), Arc::new(halves(&told.states)?)];
                if let Some(pooled) = &told.pooled {
                    columns.push(Arc::new(halves(pooled)?));
                }
                vec![columns]
            }
        };

        let flips = if args.augment == Augment::None { &[false][..] } else { &[false, true] };
        let new: Vec<(usize, usize, bool)> = (0..rows.len())
            .flat_map(|i| [(i, 0), (i, 1)])
            .filter(|&(i, side)| self.seen_images.insert(id::sha256(uids[side].value(i).as_bytes())))
            .flat_map(|(i, side)| flips.iter().map(move |&flipped| (i, side, flipped)))
            .collect();
        let bytes = [rows.bytes(pairs::JPG[0])?, rows.bytes(pairs::JPG[1])?];
        let mut latents = vec![];
        for batch in new.chunks(args.batch) {
            let prepared = batch.par_iter().map(|&(i, side, flipped)| -> Result<Prepared> {
                ensure!(bytes[side].is_valid(i), "{}: '{}' is null; there is no image", rows.at(i), pairs::JPG[side]);
                let rgb = image::decode(bytes[side].value(i))
                    .with_context(|| format!("{}, '{}'", rows.at(i), pairs::JPG[side]))?;
                let rgb = if flipped { rgb.mirrored() } else { rgb };
                let (pixels, crop) = image::dpo_train(&rgb, args.resolution);
                Ok(Prepared { uid: uids[side].value(i).to_owned(), flipped, pixels, crop })
            });
            latents.push(posteriors(&prepared.collect::<Result<Vec<_>>>()?, args.resolution, vae)?);
        }

        let [zero, one] = uids;
        let keys: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(ids)),
            Arc::new(captions.clone()),
            Arc::new(zero),
            Arc::new(one),
        ];
        self.write(LATENTS, chunk, &latents)?;
        self.write(CAPTIONS, chunk, &states)?;
        self.write(PAIRS, chunk, &[keys]) // last: a chunk with this part is finished
    }

    /// Bad input in the first chunk leaves nothing.
    fn forget_if_empty(&self, out: &Path) {
        if !self.part(PAIRS, 0).exists() {
            let _ = std::fs::remove_dir_all(&self.folder);
            let _ = std::fs::remove_dir(out); // of a shard, if it is the first
        }
    }

    /// Joins the parts: distinct images and captions. The whole folder appears at once, and what was there before goes only
    /// then; of a shard the latents appear last.
    fn finish(self, chunks: usize, out: &Path, shard: Option<Shard>) -> Result<(usize, usize)> {
        let whole = self.folder.join("whole");
        let mut rows = [0; 3];
        for table in [CAPTIONS, PAIRS, LATENTS] {
            let (name, schema) = &self.tables[table];
            let name = format!("{name}.parquet");
            let file = shard.map_or(whole.join(&name), |shard| out.join(&name).join(shard.file_name()));
            let parts: Vec<_> = (0..chunks).map(|chunk| self.part(table, chunk)).collect();
            rows[table] = parts::join(&parts, &file, schema.clone(), &self.origin)?;
        }
        if shard.is_none() {
            if out.exists() {
                std::fs::remove_dir_all(out).with_context(|| format!("cannot replace {}", out.display()))?;
            }
            atomic::rename(&whole, out)?;
        }
        std::fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))?;
        Ok((rows[LATENTS], rows[CAPTIONS]))
    }
}

/// Rows of latents.parquet.
fn posteriors(batch: &[Prepared], side: usize, vae: &Vae) -> Result<Vec<ArrayRef>> {
    let pixels: Vec<f32> = batch.iter().flat_map(|p| p.pixels.iter().copied()).collect();
    let posterior = vae.encode(&Tensor::from_vec(pixels, (batch.len(), 3, side, side), &Device::Cpu)?)?;
    let int = |f: &dyn Fn(&TrainCrop) -> usize| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values(batch.iter().map(|p| f(&p.crop) as i32)))
    };
    Ok(vec![
        Arc::new(StringArray::from_iter_values(batch.iter().map(|p| &p.uid))),
        Arc::new(BooleanArray::from_iter(batch.iter().map(|p| Some(p.flipped)))),
        Arc::new(halves(&posterior.mean)?),
        Arc::new(halves(&posterior.logvar)?),
        int(&|c| c.top),
        int(&|c| c.left),
        int(&|c| c.original_height),
        int(&|c| c.original_width),
    ])
}

/// (B, ...) -> one list of half-precision numbers a row.
fn halves(x: &Tensor) -> Result<ListArray> {
    let rows = x.dim(0)?;
    let values = x.to_device(&Device::Cpu)?.to_dtype(DType::F16)?.flatten_all()?.to_vec1::<f16>()?;
    let lengths = std::iter::repeat_n(values.len() / rows.max(1), rows);
    let item = Arc::new(Field::new("item", DataType::Float16, false));
    Ok(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(Float16Array::from(values)), None)?)
}
