//! sample: draw images for prompts with a Stable Diffusion model.
//!
//!   sample prompts.parquet --base sd15 -o images.parquet -n 5
//!   echo "a photo of a cat" > cat.txt && sample cat.txt --base sd15 --unet policy -o cats.parquet --steps 30

mod draw;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use draw::{Drawing, Painter};
use nets::{
    base::{self, unet_folder},
    checkpoint::{self, Weights},
    hub,
};
use pipe::{
    cli::{Answer, Common, run},
    id,
    origin::{InputOrigin, Origin},
    parts::Work,
    progress,
    prompt_source::{self, Prompt},
    schema, seed, stop,
    table::target,
};

/// Draw images for prompts with a Stable Diffusion model.
///
/// The initial noise of an image follows from --seed, its prompt and its number k, and is the same for every model, so
/// that two models can be compared image by image.
#[derive(Parser, Debug)]
#[command(
    name = "sample",
    version,
    after_help = "\
Examples:
  sample prompts.parquet --base sd15 -o base.parquet -n 5
  sample prompts.parquet --base sd15 --unet policy -o policy.parquet -n 5 --steps 50 --guidance 7.5"
)]
struct Args {
    /// Prompts: anything that `prompts` reads (tables, tsv, json, txt, `-`)
    #[arg(required = true, value_name = "PROMPTS")]
    prompts: Vec<PathBuf>,
    /// Stable Diffusion folder or hub id: text encoder, VAE, scheduler, UNet
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// Checkpoint whose UNet draws instead of the base's
    #[arg(long, value_name = "DIR")]
    unet: Option<PathBuf>,
    /// Images a prompt
    #[arg(short = 'n', long = "images-per-prompt", value_name = "N", default_value_t = 1)]
    n: u32,
    /// How the noise is taken away
    #[arg(long, value_enum, default_value_t = Scheduler::Ddim)]
    scheduler: Scheduler,
    /// UNet calls an image
    #[arg(long, value_name = "N", default_value_t = 50)]
    steps: usize,
    /// Weight of the prompt against the empty prompt (classifier-free guidance); 1 or less: no guidance
    #[arg(long, value_name = "X", default_value_t = 7.5)]
    guidance: f64,
    /// Height in pixels [default: what the UNet was made for]
    #[arg(long, value_name = "N")]
    height: Option<usize>,
    /// Width in pixels [default: what the UNet was made for]
    #[arg(long, value_name = "N")]
    width: Option<usize>,
    /// Images that go through the UNet at once, and that a killed run loses
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// What column `model` says [default: the name of the checkpoint folder]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Initial noise from a safetensors file: `latents` (N, C, h, w), row k for the k-th image (prompt, then k)
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Write the final `latents` (N, C, h, w), f32, as the UNet sees them
    #[arg(long, value_name = "FILE")]
    dump_latents: Option<PathBuf>,
    /// Fetch models that are named by a hub id (org/name[@revision]) and are not in the cache
    #[arg(long)]
    allow_download: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scheduler {
    /// Deterministic DDIM (eta 0)
    Ddim,
}

fn main() -> ExitCode {
    run("sample", |args| base::on_workers(|| sample(args)))
}

fn sample(args: Args) -> Result<Answer> {
    let out = args.common.output()?;
    ensure!(args.n > 0, "-n is 0: no image to draw");
    ensure!(args.batch > 0, "--batch is 0: no image to draw");
    ensure!(args.guidance.is_finite(), "--guidance must be a number, it is {}", args.guidance);
    let whole_only = args.common.shard.is_none() || (args.latents.is_none() && args.dump_latents.is_none());
    ensure!(whole_only, "--latents and --dump-latents hold every image in order; they do not go with --shard");
    let resolve = |arg: &PathBuf| hub::resolve(arg, args.allow_download);
    let base = resolve(&args.base)?;
    let unet = args.unet.as_ref().map(resolve).transpose()?;
    let device = base::device(args.common.device)?;
    let dtype = base::dtype(args.common.dtype, &device)?;
    let prompts = prompt_source::read(&args.prompts, None)?;
    ensure!(!prompts.prompts.is_empty(), "there is no prompt to draw");
    let unet_of = unet_folder(unet.as_deref().unwrap_or(&base))?;
    let painter = Painter::open(&base, &unet_of, args.steps, dtype, &device)?;
    let given = args.latents.as_ref().map(|path| read_latents(path)).transpose()?;
    let total = prompts.prompts.len() * args.n as usize;
    let latent = painter.latent_size(args.height, args.width, given.as_ref())?;
    if let Some(given) = &given {
        let rows = given.dim(0)?;
        ensure!(
            rows == total,
            "--latents holds {rows} rows for {} prompts with {} images each",
            prompts.prompts.len(),
            args.n
        );
    }

    let name = args.name.clone().unwrap_or_else(|| name_of(&unet_of));
    let unet = Weights::open(&unet_of)?;
    let unet_hash = unet.hash()?;
    let mut origin = Origin::new("sample")
        .arg("n", args.n)
        .arg("scheduler", format!("{:?}", args.scheduler).to_lowercase())
        .arg("steps", args.steps)
        .arg("guidance", args.guidance)
        .arg("latent_size", serde_json::json!(latent))
        .arg("name", name.clone())
        .arg("seed", args.common.seed)
        .model("unet", unet_hash.clone())
        .model("vae", Weights::open(&base.join("vae"))?.hash()?)
        .model("text_encoder", Weights::open(&base.join("text_encoder"))?.hash()?)
        .inputs(prompts.origins)
        // How the policy came to be, so that `winrate` knows which metrics voted on its labels.
        .inputs(
            unet.origin().map(|origin| InputOrigin { sha256: Some(unet_hash.clone()), origin: Some(origin.into()) }),
        );
    if let Some(path) = &args.latents {
        origin = origin.arg("latents", id::file_hash(path)?);
    }
    stop::watch()?;

    // An image is row `prompt * n + k`; `--shard` takes a range of rows.
    let rows = args.common.shard.map_or(0..total, |s| s.range(total));
    let parts: Vec<_> = rows.clone().step_by(args.batch).map(|from| from..(from + args.batch).min(rows.end)).collect();
    let mut work = Work::open(
        &target(out, args.common.shard),
        schema::images(),
        origin,
        &format!("rows {rows:?} by {}", args.batch),
    )?;
    let bar = progress::bar("sample", Some(rows.len() as u64), args.common.quiet);
    let mut finals = vec![];
    for (i, part) in parts.iter().enumerate() {
        if args.dump_latents.is_none() && work.has(i) {
            bar.inc(part.len() as u64);
            continue;
        }
        let images: Vec<Image> = part.clone().map(|row| Image::of(row, &args, &prompts.prompts)).collect();
        let noise = match &given {
            Some(given) => given.narrow(0, part.start, part.len())?,
            None => noise(&images, latent)?,
        };
        let texts: Vec<&str> = images.iter().map(|i| i.prompt.prompt.as_str()).collect();
        let Drawing { latents, pngs } = painter.draw(&texts, &noise, args.guidance)?;
        if !work.has(i) {
            work.put(i, &table(&images, &pngs, &name, &unet_hash)?)?;
        }
        finals.push(latents.to_device(&Device::Cpu)?);
        bar.inc(part.len() as u64);
        stop::check()?;
    }
    if let Some(path) = &args.dump_latents {
        let latents = Tensor::cat(&finals, 0)?.to_dtype(DType::F32)?;
        checkpoint::write(path, &[("latents".to_owned(), latents)].into(), Default::default())?;
    }
    let drawn = work.finish(parts.len())?;
    args.common.say(format_args!("{drawn} images of {} prompts by {name}", prompts.prompts.len()));
    Ok(Answer::Yes)
}

/// One image to draw.
struct Image<'a> {
    prompt: &'a Prompt,
    k: u32,
    seed: u64,
}

impl<'a> Image<'a> {
    fn of(row: usize, args: &Args, prompts: &'a [Prompt]) -> Self {
        let (prompt, k) = (&prompts[row / args.n as usize], (row % args.n as usize) as u32);
        let seed = seed::draws(args.common.seed, "image", &prompt.prompt_id, k as u64).next_u64();
        Self { prompt, k, seed }
    }
}

/// Standard normal noise (B, C, h, w), each image from its own seed.
fn noise(images: &[Image], [c, h, w]: [usize; 3]) -> Result<Tensor> {
    let all: Vec<f32> = images.iter().flat_map(|i| seed::draws(i.seed, "latents", "", 0).normals(c * h * w)).collect();
    Ok(Tensor::from_vec(all, (images.len(), c, h, w), &Device::Cpu)?)
}

fn table(images: &[Image], pngs: &[Vec<u8>], model: &str, unet: &str) -> Result<RecordBatch> {
    let text =
        |f: &dyn Fn(&Image) -> Option<String>| -> ArrayRef { Arc::new(StringArray::from_iter(images.iter().map(f))) };
    let uid = |i: &Image| {
        let parts = [unet.as_bytes(), i.prompt.prompt.as_bytes(), &i.seed.to_le_bytes()];
        id::hex(&id::sha256_of(&parts)[..16])
    };
    let columns: Vec<ArrayRef> = vec![
        text(&|i| Some(i.prompt.prompt_id.clone())),
        text(&|i| Some(i.prompt.prompt.clone())),
        text(&|i| Some(i.prompt.set.clone())),
        text(&|i| i.prompt.category.clone()),
        text(&|i| i.prompt.challenge.clone()),
        text(&|i| Some(uid(i))),
        Arc::new(UInt32Array::from_iter_values(images.iter().map(|i| i.k))),
        Arc::new(UInt64Array::from_iter_values(images.iter().map(|i| i.seed))),
        text(&|_| Some(model.to_owned())),
        Arc::new(BinaryArray::from_iter_values(pngs)),
    ];
    Ok(RecordBatch::try_new(Arc::new(schema::images()), columns)?)
}

fn read_latents(path: &Path) -> Result<Tensor> {
    let say = || format!("{} is not a whole safetensors file", path.display());
    let mut all = candle_core::safetensors::load(path, &Device::Cpu).with_context(say)?;
    let latents = all.remove("latents").with_context(|| format!("{}: tensor 'latents' is missing", path.display()))?;
    ensure!(latents.rank() == 4, "{}: 'latents' has shape {:?}, expected (N, C, h, w)", path.display(), latents.dims());
    Ok(latents.to_dtype(DType::F32)?)
}

/// `runs/policy/unet` -> `policy`
fn name_of(unet: &Path) -> String {
    let folder = if unet.ends_with("unet") { unet.parent().unwrap_or(unet) } else { unet };
    let named = folder.file_name().or(unet.file_name());
    named.map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}
