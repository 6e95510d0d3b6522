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
    datatypes::{DataType, Field, Metadata},
};
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use half::f16;
use nets::{
    base::{self, PromptEncoder},
    checkpoint::Weights,
    image::{self, Rgb, TrainCrop},
    vae::Vae,
};
use pipe::{
    atomic::{self, partial_path},
    cli::{Answer, Common, run},
    id,
    origin::Origin,
    progress,
    schema::{self, pairs},
    stop,
    table::{Inputs, Output},
};
use rayon::prelude::*;

/// Run the VAE and the text encoder over pairs once.
///
/// Writes a folder: latents.parquet (mean and logvar of each distinct image's posterior, f16, so that training still
/// samples it), captions.parquet (the text encoder's states of each distinct caption, the empty one first) and
/// pairs.parquet (which images and captions belong together).
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
    /// Stable Diffusion folder with the VAE and the text encoder
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// Side of the training images in pixels: the short side is resized to it, the middle is kept
    #[arg(long, value_name = "N", default_value_t = 512)]
    resolution: usize,
    /// Whether to store mirrored images too, for the flips of `train --augment`
    #[arg(long, value_enum, default_value_t = Augment::None)]
    augment: Augment,
    /// Images that go through the VAE at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Augment {
    None,
    PairFlip,
    IndependentFlip,
}

fn main() -> ExitCode {
    run("encode", encode)
}

fn encode(args: Args) -> Result<Answer> {
    let out = args.common.output()?.clone();
    args.common
        .refuse_shard("the cache holds each distinct image once; run `encode` on each pairs table by itself instead")?;
    ensure!(out.as_os_str() != "-", "the cache is a folder; name one with -o");
    let device = base::device(args.common.device)?;
    let dtype = base::dtype(args.common.dtype, &device)?;
    let mut inputs = Inputs::open(&args.pairs)?;
    inputs.require(&pairs::NEEDED, "expected a pairs table with Pick-a-Pic's columns")?;
    let vae = Vae::open(&args.base.join("vae"), dtype, &device)?;
    let text = PromptEncoder::open(&args.base, dtype, &device)?;
    let factor = vae.config.factor();
    ensure!(args.resolution % factor == 0, "--resolution {} is not a multiple of the VAE's {factor}", args.resolution);
    let origin = Origin::new("encode")
        .arg("resolution", args.resolution)
        .arg("flips", args.augment != Augment::None)
        .model("vae", Weights::open(&args.base.join("vae"))?.hash()?)
        .model("text_encoder", Weights::open(&args.base.join("text_encoder"))?.hash()?)
        .inputs(inputs.origins()?);
    stop::watch()?;

    // The whole folder appears at once; what was there before goes only then.
    let folder = partial_path(&out);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
    }
    let mut cache = Cache::create(&folder, &args, &vae, &text, origin)?;
    let bar = progress::bar("encode", inputs.rows().map(|n| n as u64), args.common.quiet);
    for rows in inputs.read(Some(&[&pairs::NEEDED[..], &[pairs::RANKING_ID]].concat()), 0..usize::MAX, 64)? {
        let rows = rows?;
        cache.add(&rows, &args, &vae, &text)?;
        bar.inc(rows.len() as u64);
        stop::check()?;
    }
    let (images, captions) = cache.finish(&args, &vae)?;
    if out.exists() {
        ensure!(
            out.join("latents.parquet").is_file(),
            "{} exists and is not a cache; choose another folder",
            out.display()
        );
        std::fs::remove_dir_all(&out).with_context(|| format!("cannot replace {}", out.display()))?;
    }
    atomic::rename(&folder, &out)?;
    args.common.say(format_args!("{images} distinct images and {captions} distinct captions in {}", out.display()));
    Ok(Answer::Yes)
}

/// The three tables being written, and what they already hold.
struct Cache {
    latents: Output,
    captions: Output,
    pairs: Output,
    seen_images: HashSet<[u8; 32]>,
    seen_captions: HashSet<[u8; 32]>,
    waiting: Vec<Waiting>,
}

/// An image on its way to the VAE.
struct Waiting {
    uid: String,
    flipped: bool,
    pixels: Vec<f32>, // (3, side, side)
    crop: TrainCrop,
}

impl Cache {
    fn create(folder: &Path, args: &Args, vae: &Vae, text: &PromptEncoder, origin: Origin) -> Result<Self> {
        let side = args.resolution / vae.config.factor();
        let shape = format!("[{},{side},{side}]", vae.config.latent_channels);
        let latents = schema::latents().with_metadata(Metadata::default().with("latent_shape", shape));
        let empty = text.states(&[""])?;
        let (_, tokens, width) = empty.dims3()?;
        let captions =
            schema::captions().with_metadata(Metadata::default().with("state_shape", format!("[{tokens},{width}]")));
        let mut cache = Self {
            latents: Output::create(&folder.join("latents.parquet"), latents, &origin)?,
            captions: Output::create(&folder.join("captions.parquet"), captions, &origin)?,
            pairs: Output::create(&folder.join("pairs.parquet"), schema::pair_list(), &origin)?,
            seen_images: HashSet::new(),
            seen_captions: HashSet::new(),
            waiting: vec![],
        };
        cache.write_captions(vec![String::new()], text)?;
        Ok(cache)
    }

    fn add(&mut self, rows: &pipe::column::Rows, args: &Args, vae: &Vae, text: &PromptEncoder) -> Result<()> {
        let captions = rows.text(pairs::CAPTION)?;
        let uids = [rows.text(pairs::UID[0])?, rows.text(pairs::UID[1])?];
        let ranking = rows.text_if_there(pairs::RANKING_ID)?;
        let bytes = [rows.bytes(pairs::JPG[0])?, rows.bytes(pairs::JPG[1])?];

        let pair_id = |i: usize| {
            let ranking = if ranking.is_valid(i) { ranking.value(i) } else { "" };
            id::pair_id(captions.value(i), uids[0].value(i), uids[1].value(i), ranking)
        };
        let ids = StringArray::from_iter_values((0..rows.len()).map(pair_id));
        let keys: Vec<ArrayRef> =
            vec![Arc::new(ids), Arc::new(captions.clone()), Arc::new(uids[0].clone()), Arc::new(uids[1].clone())];
        self.pairs.write(&RecordBatch::try_new(self.pairs.schema.clone(), keys)?)?;

        let new: Vec<String> = captions
            .iter()
            .flatten()
            .filter(|c| self.seen_captions.insert(id::sha256(c.as_bytes())))
            .map(String::from)
            .collect();
        if !new.is_empty() {
            self.write_captions(new, text)?;
        }

        let new: Vec<(usize, usize)> = (0..rows.len())
            .flat_map(|i| [(i, 0), (i, 1)])
            .filter(|&(i, side)| self.seen_images.insert(id::sha256(uids[side].value(i).as_bytes())))
            .collect();
        let decoded: Vec<Vec<Waiting>> = new
            .par_iter()
            .map(|&(i, side)| {
                ensure!(bytes[side].is_valid(i), "{}: '{}' is null; there is no image", rows.at(i), pairs::JPG[side]);
                let rgb = image::decode(bytes[side].value(i))
                    .with_context(|| format!("{}, '{}'", rows.at(i), pairs::JPG[side]))?;
                let prepare = |rgb: &Rgb, flipped| {
                    let (pixels, crop) = image::dpo_train(rgb, args.resolution);
                    Waiting { uid: uids[side].value(i).to_owned(), flipped, pixels, crop }
                };
                let mut all = vec![prepare(&rgb, false)];
                if args.augment != Augment::None {
                    all.push(prepare(&rgb.mirrored(), true));
                }
                Ok(all)
            })
            .collect::<Result<_>>()?;
        self.waiting.extend(decoded.into_iter().flatten());
        while self.waiting.len() >= args.batch.max(1) {
            let batch = self.waiting.drain(..args.batch.max(1)).collect();
            self.write_latents(batch, args, vae)?;
        }
        Ok(())
    }

    fn write_latents(&mut self, batch: Vec<Waiting>, args: &Args, vae: &Vae) -> Result<()> {
        let (n, side) = (batch.len(), args.resolution);
        let pixels: Vec<f32> = batch.iter().flat_map(|w| w.pixels.iter().copied()).collect();
        let posterior = vae.encode(&Tensor::from_vec(pixels, (n, 3, side, side), &Device::Cpu)?)?;
        let int = |f: &dyn Fn(&Waiting) -> usize| -> ArrayRef {
            Arc::new(Int32Array::from_iter_values(batch.iter().map(|w| f(w) as i32)))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(batch.iter().map(|w| &w.uid))),
            Arc::new(BooleanArray::from_iter(batch.iter().map(|w| Some(w.flipped)))),
            Arc::new(halves(&posterior.mean)?),
            Arc::new(halves(&posterior.logvar)?),
            int(&|w| w.crop.top),
            int(&|w| w.crop.left),
            int(&|w| w.crop.original_height),
            int(&|w| w.crop.original_width),
        ];
        self.latents.write(&RecordBatch::try_new(self.latents.schema.clone(), columns)?)
    }

    fn write_captions(&mut self, captions: Vec<String>, text: &PromptEncoder) -> Result<()> {
        for chunk in captions.chunks(64) {
            self.seen_captions.extend(chunk.iter().map(|c| id::sha256(c.as_bytes())));
            let states = text.states(chunk)?;
            let columns: Vec<ArrayRef> =
                vec![Arc::new(StringArray::from_iter_values(chunk)), Arc::new(halves(&states)?)];
            self.captions.write(&RecordBatch::try_new(self.captions.schema.clone(), columns)?)?;
        }
        Ok(())
    }

    fn finish(mut self, args: &Args, vae: &Vae) -> Result<(usize, usize)> {
        if !self.waiting.is_empty() {
            let rest = std::mem::take(&mut self.waiting);
            self.write_latents(rest, args, vae)?;
        }
        self.pairs.finish()?;
        let captions = self.captions.finish()? - 1; // less the empty one
        let images = self.latents.finish()?;
        Ok((if args.augment == Augment::None { images } else { images / 2 }, captions))
    }
}

/// (B, ...) -> one list of half-precision numbers a row.
fn halves(x: &Tensor) -> Result<ListArray> {
    let rows = x.dim(0)?;
    let values = x.to_device(&Device::Cpu)?.to_dtype(DType::F16)?.flatten_all()?.to_vec1::<f16>()?;
    let lengths = std::iter::repeat_n(values.len() / rows.max(1), rows);
    let item = Arc::new(Field::new("item", DataType::Float16, false));
    Ok(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(Float16Array::from(values)), None)?)
}
