//! `rehearse models`: the data folder of an experiment, with models of the published sizes and layouts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use nets::pickle::write as torch;
use nets::scorer::{self, Layout};
use nets::tokenizer::{self, wordpiece};
use nets::weights::{Shapes, dtype};
use nets::{denoiser, text, text_classifier, vae, write};
use pipe::cli::named;
use pipe::device::Dtype;
use pipe::text::{bytes, duration};
use pipe::{atomic, place};
use serde_json::Value;

use crate::configs::{self, Base, Size};
use crate::{data, numbers};

/// Make the data folder of an experiment: models with random weights, pairs and prompts
///
/// The files are those that the top of pipelines/sd15.mk tells to fetch, under the same names, with the published configurations, number
/// formats and tensor names. What exists is kept. The same seed gives the same bytes.
#[derive(clap::Args)]
pub struct Args {
    /// The folder to make
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The base model
    #[arg(long, value_parser = named::<Base>())]
    base: Base,
    /// Number format of the base model: its repository has both
    #[arg(long, default_value_t = Dtype::F32, value_parser = named::<Dtype>())]
    base_dtype: Dtype,
    /// Scorers, separated by commas
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "hps,clip,pickscore,aesthetic")]
    metrics: Vec<String>,
    /// Size of the networks
    #[arg(long, default_value_t = Size::Published, value_parser = named::<Size>())]
    size: Size,
    /// Pairs of images
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Prompts in each of the three published files
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    prompts: u16,
    /// Seed of all random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl Args {
    /// Refuses a folder whose files were made with other settings: they would be kept.
    fn same_as_before(&self) -> Result<()> {
        let (path, now) = (self.folder.join("made-with.json"), self.settings().to_string());
        let Ok(before) = std::fs::read_to_string(&path) else {
            return atomic::write(&path, now.as_bytes());
        };
        ensure!(
            before == now,
            "{} holds the models of another rehearsal, {before}, and this one is {now}: remove the folder (make clean-rehearse), or name another",
            self.folder.display()
        );
        Ok(())
    }

    fn settings(&self) -> Value {
        serde_json::json!({
            "base": self.base.to_string(), "base_dtype": self.base_dtype.to_string(), "size": self.size.to_string(),
            "metrics": self.metrics, "pairs": self.pairs, "prompts": self.prompts, "seed": self.seed,
        })
    }
}

/// A weight file that does not exist yet.
struct File {
    path: PathBuf,
    dtype: DType,
    format: Format,
    shapes: Shapes,
}

#[derive(Clone, Copy)]
enum Format {
    Safetensors,
    /// torch's pickle; the tensors lie in a dict under this key.
    Torch(Option<&'static str>),
}

pub fn make(args: &Args) -> Result<()> {
    ensure!(args.base_dtype != Dtype::Bf16, "--base-dtype: these models are published in f32 and f16");
    args.same_as_before()?;
    let mut files = base(args)?;
    for metric in &args.metrics {
        files.extend(scorer(args, metric)?);
    }
    files.extend(safe(args)?);
    let need: u64 = files.iter().map(File::bytes).sum();
    let free = place::free(&args.folder)?;
    ensure!(
        need < free,
        "the models take {} and {} has {} left; make room, or put RUNS=DIR on another disk before `make rehearse`",
        bytes(need),
        args.folder.display(),
        bytes(free)
    );
    for file in files {
        let began = Instant::now();
        file.write(args.seed)?;
        let (size, took) = (bytes(file.bytes()), duration(began.elapsed().as_secs_f64()));
        eprintln!("rehearse: {} with random weights: {size} in {took}", file.path.display());
    }
    data::pairs(&args.folder, args.base.side(), args.pairs.into(), args.seed)?;
    data::prompts(&args.folder, args.prompts.into())
}

impl File {
    /// The file `path`, unless it exists.
    fn missing(
        path: PathBuf,
        dtype: DType,
        format: Format,
        shapes: impl FnOnce() -> Result<Shapes>,
    ) -> Result<Option<Self>> {
        let new = || shapes().with_context(|| format!("cannot make {}", path.display()));
        if path.exists() { Ok(None) } else { Ok(Some(Self { shapes: new()?, path, dtype, format })) }
    }

    fn bytes(&self) -> u64 {
        let numbers: usize = self.shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
        (numbers * self.dtype.size_in_bytes()) as u64
    }

    fn write(&self, seed: u64) -> Result<()> {
        let tensors: Vec<(&str, DType, &[usize])> =
            self.shapes.iter().map(|(name, shape)| (&name[..], self.dtype, &shape[..])).collect();
        // The same names occur in several models.
        let seed =
            pipe::seed::draws(seed, "file", &self.path.file_name().unwrap_or_default().to_string_lossy(), 0).next_u64();
        let fill = |name: &str, file: &mut dyn std::io::Write| {
            numbers::write(name, &self.shapes[name], self.dtype, seed, file)
        };
        match self.format {
            Format::Safetensors => {
                let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
                write::stream(&self.path, tensors, metadata, fill)
            }
            Format::Torch(under) => torch::stream(&self.path, &tensors, under, fill),
        }
    }
}

/// The base model's configurations, and its weight files.
fn base(args: &Args) -> Result<Vec<File>> {
    let base = args.base;
    let folder = args.folder.join(base.to_string());
    for (path, config) in base.configs() {
        json(&folder.join(path), args.size.of(config))?;
        if path.ends_with("special_tokens_map.json") {
            vocabulary(place::folder_of(&folder.join(path)))?;
        }
    }
    let variant = if args.base_dtype == Dtype::F16 { ".fp16" } else { "" };
    let file = |part: &str, stem: &str, shapes: &dyn Fn(&Path) -> Result<Shapes>| {
        let at = folder.join(part);
        let path = at.join(format!("{stem}{variant}.safetensors"));
        File::missing(path, dtype(args.base_dtype), Format::Safetensors, || shapes(&at))
    };
    let two = base == Base::Sdxl;
    let files = [
        file("unet", "diffusion_pytorch_model", &denoiser::shapes)?,
        // Before SDXL the VAE's attention had the names of 2022.
        file("vae", "diffusion_pytorch_model", &|at| vae::shapes(at, !two))?,
        file("text_encoder", "model", &|at| text::shapes(at, false))?,
        if two { file("text_encoder_2", "model", &|at| text::shapes(at, true))? } else { None },
    ];
    Ok(files.into_iter().flatten().collect())
}

/// The files of one metric, as published.
fn scorer(args: &Args, metric: &str) -> Result<Vec<File>> {
    let folder = args.folder.join("models").join(metric);
    let config = |name: &str, config| json(&folder.join(name), args.size.of(config));
    let file = |name: &str, dtype, format, layout| {
        File::missing(folder.join(name), dtype, format, || scorer::shapes(&folder, layout))
    };
    let (plain, under) = (Format::Torch(None), Format::Torch(Some("state_dict")));
    let files = match metric {
        "hps" => {
            // It is published without a configuration.
            if args.size == Size::Tiny {
                config("open_clip_config.json", configs::open_clip())?;
            }
            vec![file("HPS_v2_compressed.pt", DType::F16, under, Layout::OpenClip)?]
        }
        "clip" => {
            config("open_clip_config.json", configs::open_clip())?;
            vec![file("open_clip_pytorch_model.bin", DType::F32, plain, Layout::OpenClip)?]
        }
        "pickscore" | "aesthetic" => {
            let tower = if metric == "pickscore" { configs::clip_h() } else { configs::clip_l() };
            config("config.json", tower)?;
            config("preprocessor_config.json", configs::preprocessor())?;
            vocabulary(&folder)?;
            let tower = file("model.safetensors", DType::F32, Format::Safetensors, Layout::HuggingFace)?;
            let head = folder.join("sac+logos+ava1-l14-linearMSE.pth");
            let head = || File::missing(head, DType::F32, plain, || Ok(head_shapes(args.size)));
            vec![tower, if metric == "aesthetic" { head()? } else { None }]
        }
        other => {
            anyhow::bail!("--metrics: {other} is none of hps, clip, pickscore and aesthetic, which the paper uses")
        }
    };
    Ok(files.into_iter().flatten().collect())
}

/// LAION's head on the image tower of CLIP-L.
fn head_shapes(size: Size) -> Shapes {
    let width = size.of(configs::clip_l())["projection_dim"].as_u64().unwrap_or_default() as usize;
    let layers = [(0, 1024, width), (2, 128, 1024), (4, 64, 128), (6, 16, 64), (7, 1, 16)];
    let of = |(n, out, inner): (usize, usize, usize)| {
        [(format!("layers.{n}.weight"), vec![out, inner]), (format!("layers.{n}.bias"), vec![out])]
    };
    layers.into_iter().flat_map(of).collect()
}

/// The classifier of prompts.
fn safe(args: &Args) -> Result<Option<File>> {
    let folder = args.folder.join("models/safe");
    json(&folder.join("config.json"), args.size.of(configs::safe()))?;
    data::keep(&folder.join("vocab.txt"), wordpiece::UNCASED.as_bytes())?;
    let path = folder.join("pytorch_model.bin");
    File::missing(path, DType::F32, Format::Torch(None), || text_classifier::shapes(&folder))
}

fn vocabulary(folder: &Path) -> Result<()> {
    tokenizer::clip_files().iter().try_for_each(|(name, text)| data::keep(&folder.join(name), text.as_bytes()))
}

fn json(path: &Path, content: Value) -> Result<()> {
    data::keep(path, serde_json::to_string_pretty(&content)?.as_bytes())
}
