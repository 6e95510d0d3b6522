//! sample: draw images for prompts with a Stable Diffusion model.
//!
//!   sample prompts.parquet --base sd15 -o images.parquet -n 5
//!   echo "a photo of a cat" > cat.txt && sample cat.txt --base sd15 --unet policy -o cats.parquet --steps 30

mod draw;
mod rows;

use std::{
    ops::Range,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use draw::{Drawing, Painter, Settings};
use nets::{
    conditioning::TimeIds,
    device, folder, hub,
    process::Spacing,
    sampler::{GivenNoise, Noise, Sampling, Scheduler},
    weights::Weights,
    write,
};
use pipe::{
    atomic,
    cli::{Answer, Common, Hub, Networks, Sharding, named, run},
    id,
    job::{Job, Keep, Spec},
    origin::{InputOrigin, Origin},
    parts::Tables,
    prompt_source, schema,
    shard::target,
};
use rows::{Artist, Image};

/// Draw images for prompts with a Stable Diffusion model.
///
/// The initial noise of an image follows from --seed, its prompt and its number k, and is the same for every model, so
/// that two models can be compared image by image.
#[derive(Parser, Debug)]
#[command(
    name = "sample",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  sample prompts.parquet --base sd15 -o base.parquet -n 5
  sample prompts.parquet --base sd15 --unet policy -o policy.parquet -n 5 --steps 50 --guidance 7.5
  sample prompts.parquet --base sdxl --scheduler euler --steps 30 --guidance 5 --negative 'blurry, text' -o xl.parquet

The samplers are set up by the base's scheduler_config.json as diffusers' classes of the same names set themselves up.
Each PNG carries its settings under the key `parameters`, as AUTOMATIC1111's web UI writes them.

Exit status: 0 done, 2 trouble, 128 + N after signal N."
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
    /// How the noise is removed
    #[arg(long, default_value_t = Scheduler::Ddim, value_parser = named::<Scheduler>())]
    scheduler: Scheduler,
    /// Take Karras' sigmas with dpmpp, euler or euler-a [default: as the base's scheduler_config.json says]
    #[arg(long)]
    karras: bool,
    /// The training timesteps to visit [default: as the base's scheduler_config.json says]
    #[arg(long, value_parser = named::<Spacing>())]
    spacing: Option<Spacing>,
    /// Sampling steps an image
    #[arg(long, value_name = "N", default_value_t = 50)]
    steps: usize,
    /// Weight of the prompt against the empty prompt (classifier-free guidance); 1 or less: no guidance
    #[arg(long, value_name = "X", default_value_t = 7.5)]
    guidance: f64,
    /// What the images should not show, in place of the empty prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    negative: Option<String>,
    /// SDXL: original height and width, crop top and left, target height and width that the UNet is told, in pixels
    /// [default: H,W,0,0,H,W of the image]
    #[arg(long, value_name = "H,W,TOP,LEFT,H,W")]
    time_ids: Option<TimeIds>,
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
    /// Noise from a safetensors file: `latents` (N, C, h, w), the initial noise, row k for the k-th image (prompt, then k);
    /// where it is there, `step_noise` (steps, N, C, h, w), the noise that euler-a adds
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Write the final `latents` (N, C, h, w), f32, as the UNet sees them
    #[arg(long, value_name = "FILE")]
    dump_latents: Option<PathBuf>,
    #[command(flatten)]
    hub: Hub,
    #[command(flatten)]
    networks: Networks,
    #[command(flatten)]
    sharding: Sharding,
    #[command(flatten)]
    common: Common,
}

/// Networks allocate a result per operation; the pool reuses the memory of large ones.
#[global_allocator]
static POOL: ops::Pool = ops::Pool;

fn main() -> ExitCode {
    run("sample", |args| device::on_workers(|| sample(args)))
}

fn sample(args: Args) -> Result<Answer> {
    let out = args.sharding.output_beside(&args.common, &args.prompts)?;
    ensure!(args.n > 0, "-n is 0: no image to draw");
    ensure!(args.batch > 0, "--batch is 0: no image to draw");
    ensure!(args.guidance.is_finite(), "--guidance must be a number, it is {}", args.guidance);
    let settings = Settings {
        sampling: Sampling { scheduler: args.scheduler, steps: args.steps, karras: args.karras, spacing: args.spacing },
        guidance: args.guidance,
        negative: args.negative.clone(),
        time_ids: args.time_ids,
    };
    ensure!(
        args.negative.is_none() || settings.guided(),
        "--negative says what guidance leads away from: it needs a --guidance above 1, not {}",
        args.guidance
    );
    let whole_only = args.sharding.shard.is_none() || (args.latents.is_none() && args.dump_latents.is_none());
    ensure!(whole_only, "--latents and --dump-latents hold every image in order; they do not go with --shard");
    if let Some(file) = &args.dump_latents {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ensure!(!file.is_dir(), "cannot write {}: it is a folder", file.display());
        atomic::probe(folder)?;
    }
    let resolve = |arg: &PathBuf| args.hub.folder(arg, hub::resolve);
    let base = resolve(&args.base)?;
    let unet = args.unet.as_ref().map(resolve).transpose()?;
    let device = device::open(args.networks.device)?;
    let dtype = device::dtype(args.networks.dtype, &device)?;
    let prompts = prompt_source::read(&args.prompts, None)?;
    ensure!(!prompts.prompts.is_empty(), "there is no prompt to draw");
    let unet_of = folder::denoiser(unet.as_deref().unwrap_or(&base))?;
    let painter = Painter::open(&base, &unet_of, settings.clone(), dtype, &device)?;
    let given = args.latents.as_ref().map(|path| GivenNoise::open(path)).transpose()?;
    let total = prompts.prompts.len() * args.n as usize;
    let latent = painter.latent_size(args.height, args.width, given.as_ref())?;
    if let Some(given) = &given {
        let rows = given.latents.dim(0)?;
        ensure!(
            rows == total,
            "--latents holds {rows} rows for {} prompts with {} images each",
            prompts.prompts.len(),
            args.n
        );
    }

    let name = args.name.clone().unwrap_or_else(|| name_of(&unet_of));
    let weights = Weights::open(&unet_of)?;
    let unet_hash = weights.hash()?;
    // What decides the pictures, then what decides the table.
    let mut origin = Origin::new("sample")
        .arg("scheduler", args.scheduler.to_string())
        .arg("steps", args.steps)
        .arg("guidance", args.guidance)
        .arg("negative", args.negative.clone())
        .arg("latent_size", serde_json::json!(latent))
        .model("unet", unet_hash.clone())
        .model("vae", Weights::open(&base.join("vae"))?.hash()?)
        .model("scheduler", id::file_hash(&base.join("scheduler/scheduler_config.json"))?);
    for part in painter.text_encoders() {
        origin = origin.model(part, Weights::open(&base.join(part))?.hash()?);
    }
    if let Some(TimeIds(ids)) = args.time_ids {
        origin = origin.arg("time_ids", serde_json::json!(ids));
    }
    if args.karras {
        origin = origin.arg("karras", true);
    }
    if let Some(spacing) = args.spacing {
        origin = origin.arg("spacing", spacing.to_string());
    }
    if let Some(path) = &args.latents {
        origin = origin.arg("latents", id::file_hash(path)?);
    }
    // How the policy came to be, so that `winrate` knows which metrics voted on its labels.
    let policy = weights.origin().map(|o| InputOrigin { sha256: Some(unet_hash.clone()), origin: Some(o.into()) });
    let artist = Artist {
        name: name.clone(),
        unet: unet_hash,
        content: origin.to_json(),
        sampler: painter.sampler_label(),
        settings,
    };
    let origin = origin
        .arg("n", args.n)
        .arg("name", name.clone())
        .arg("seed", args.common.seed)
        .inputs(prompts.origins)
        .inputs(policy);

    // An image is row `prompt * n + k`; `--shard` takes a range of rows.
    let rows = args.sharding.shard.map_or(0..total, |s| s.range(total));
    let mut job = Job::open(Spec {
        tool: "sample",
        tables: Tables::file(&target(out, args.sharding.shard), schema::images())?,
        origin,
        cut: format!("rows {rows:?} by {}", args.batch),
        keep: Keep::Parts,
        rows: Some(rows.len()),
        quiet: args.common.quiet,
    })?;
    let mut next = rows.start;
    if args.dump_latents.is_none() {
        job.resume(|part| {
            next += part[0].len();
            Ok(true)
        })?;
    }
    let batch = args.batch;
    let parts = (next..rows.end).step_by(batch).map(move |from| Ok(from..(from + batch).min(rows.end)));
    let mut finals = vec![];
    let drawn = job.run(parts, |part: Range<usize>| {
        let images: Vec<Image> =
            part.clone().map(|row| Image::of(row, args.n, args.common.seed, &prompts.prompts)).collect();
        let noise = Noise::new(images.iter().map(|i| i.seed).collect(), part.clone(), given.as_ref())?;
        let texts: Vec<&str> = images.iter().map(|i| i.prompt.prompt.as_str()).collect();
        let Drawing { latents, images: drawn } = painter.draw(&texts, &noise, latent)?;
        if args.dump_latents.is_some() {
            finals.push(latents.to_device(&Device::Cpu)?);
        }
        Ok(vec![artist.table(&images, &drawn)?])
    })?;
    if let Some(path) = &args.dump_latents {
        let latents = Tensor::cat(&finals, 0)?.to_dtype(DType::F32)?;
        write::tensors(path, &[("latents".to_owned(), latents)].into(), Default::default())?;
    }
    let drawn = drawn[0];
    args.common.say(format_args!("{drawn} images of {} prompts by {name}", prompts.prompts.len()));
    Ok(Answer::Yes)
}

/// `runs/policy/unet` -> `policy`
fn name_of(unet: &Path) -> String {
    let folder = if unet.ends_with("unet") { unet.parent().unwrap_or(unet) } else { unet };
    let named = folder.file_name().or(unet.file_name());
    named.map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}
