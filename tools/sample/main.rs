//! sample: draw images for prompts with a Stable Diffusion model.
//!
//!   sample prompts.parquet --base sd15 -o images.parquet -n 5
//!   echo "a photo of a cat" > cat.txt && sample cat.txt --base sd15 --unet policy -o cats.parquet --steps 30

mod draw;
mod repeats;
mod rows;

use std::path::{Path, PathBuf};
use std::{num::NonZeroUsize, ops::Range, process::ExitCode, sync::Arc};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use draw::{Painter, Settings};
use nets::drawing::Drawing;
use nets::process::{Process, Spacing};
use nets::sampler::{GivenNoise, Noise, Sampling, Scheduler};
use nets::{conditioning::TimeIds, device, folder, hub, lora, single, weights::Weights, write};
use pipe::cli::{Answer, Common, Diffusion, Networks, Sharding, named, number, run};
use pipe::image_column::ImageColumn;
use pipe::job::{Job, Keep, Spec};
use pipe::memory::Memory;
use pipe::origin::{InputOrigin, Origin};
use pipe::prompt_source::{self, Prompt};
use pipe::{atomic, id, parts::Tables, place, schema, shard::target, text::count};
use repeats::Repeats;
use rows::{Artist, Image};
use serde_json::json;

/// Draw images for prompts with a Stable Diffusion model.
///
/// The initial noise of an image depends only on --seed, the prompt and the image's number k. It is the same for every model,
/// so two models can be compared image by image. The same text in two sets is two prompts with the same images.
#[derive(Parser, Debug)]
#[command(
    name = "sample",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  sample prompts.parquet --base sd15 -o base.parquet -n 5
  sample prompts.parquet --base sd15 --unet policy -o policy.parquet -n 5 \\
         --steps 50 --guidance 7.5
  sample prompts.parquet --base sd15.safetensors -o images.parquet
  sample prompts.parquet --base sd15 --lora style.safetensors \\
         --lora-scale 0.8 -o style.parquet
  sample prompts.parquet --base sdxl --scheduler euler --steps 30 --guidance 5 \\
         --negative 'blurry, text' -o xl.parquet
  echo 'a fox in the snow' | sample - --base sd15 -o fox.parquet

The base's scheduler_config.json configures the samplers, as it does diffusers' classes of the same names.
Each PNG carries its settings under the key `parameters`, as AUTOMATIC1111's web UI writes them.

Exit status: 0 done, 2 trouble, 128 + N after signal N."
)]
struct Args {
    /// Prompts: anything that `prompts` reads (tables, tsv, json, txt, `-`)
    #[arg(required = true, value_name = "PROMPTS")]
    prompts: Vec<PathBuf>,
    /// Folder, hub id or single file of a Stable Diffusion or FLUX model: text encoders, VAE, scheduler, UNet or transformer
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// Checkpoint whose UNet or transformer draws instead of the base's
    #[arg(long, visible_alias = "transformer", value_name = "DIR")]
    unet: Option<PathBuf>,
    /// Adapters (LoRA) to draw with: a checkpoint of `train --lora-rank`, or a file of diffusers or of kohya's scripts
    #[arg(long, help_heading = "LoRA", value_name = "PATH")]
    lora: Option<PathBuf>,
    /// How strong these adapters are; 0 draws without them
    #[arg(long, help_heading = "LoRA", value_name = "X", requires = "lora", default_value_t = 1.0, allow_hyphen_values = true, value_parser = number("a number", f64::is_finite))]
    lora_scale: f64,
    /// Images per prompt
    #[arg(short = 'n', long = "images-per-prompt", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// How the noise is removed [default: ddim; flow for Stable Diffusion 3 and FLUX]
    #[arg(long, help_heading = "Sampling", value_parser = named::<Scheduler>())]
    scheduler: Option<Scheduler>,
    /// Take Karras' sigmas with dpmpp, euler or euler-a [default: as the base's scheduler_config.json says]
    #[arg(long, help_heading = "Sampling")]
    karras: bool,
    /// The training timesteps to visit [default: as the base's scheduler_config.json says]
    #[arg(long, help_heading = "Sampling", value_parser = named::<Spacing>())]
    spacing: Option<Spacing>,
    /// Sampling steps per image
    #[arg(long, help_heading = None, value_name = "N", default_value_t = 50)]
    steps: usize,
    /// Weight of the prompt against the empty prompt (classifier-free guidance); 1 or less: no guidance. FLUX.1 [dev] takes it as
    /// an input instead [default: 7.5; 7 for Stable Diffusion 3, 3.5 for FLUX]
    #[arg(long, help_heading = "Sampling", value_name = "X", value_parser = number("a number", f64::is_finite))]
    guidance: Option<f64>,
    /// A description of what the images should not show, in place of the empty prompt
    #[arg(long, help_heading = "Sampling", value_name = "TEXT", allow_hyphen_values = true)]
    negative: Option<String>,
    /// SDXL's conditioning on sizes, in pixels: original height and width, top and left of the crop, target height and width
    /// [default: H,W,0,0,H,W of the image]
    #[arg(long, help_heading = "Sampling", value_name = "H,W,TOP,LEFT,H,W")]
    time_ids: Option<TimeIds>,
    /// Height in pixels [default: the denoiser's own size]
    #[arg(long, help_heading = "Sampling", value_name = "N")]
    height: Option<usize>,
    /// Width in pixels [default: the denoiser's own size]
    #[arg(long, help_heading = "Sampling", value_name = "N")]
    width: Option<usize>,
    /// Images per batch; a killed run loses at most one batch
    #[arg(long, help_heading = "Sampling", value_name = "N", default_value = "8")]
    batch: NonZeroUsize,
    /// Name of the model, for column `model` [default: the name of the checkpoint folder]
    #[arg(long, help_heading = "Sampling", value_name = "NAME")]
    name: Option<String>,
    /// Noise from a safetensors file: `latents` (N, C, h, w), the initial noise of the N images (prompt by prompt, then k), and
    /// optionally `step_noise` (steps, N, C, h, w), the noise that euler-a adds
    #[arg(long, help_heading = "Noise", value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Write the final `latents` (N, C, h, w) to a safetensors file, f32, as the UNet sees them
    #[arg(long, help_heading = "Noise", value_name = "FILE")]
    dump_latents: Option<PathBuf>,
    /// Write the initial noise of all images to a safetensors file, as --latents and diffusers' `latents=` take it
    #[arg(long, help_heading = "Noise", value_name = "FILE")]
    dump_noise: Option<PathBuf>,
    /// How images are written
    #[arg(long, help_heading = "Details", default_value_t = ImageColumn::Bytes, value_parser = named::<ImageColumn>())]
    image_column: ImageColumn,
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
    run("sample", |args| device::on_workers(|| ops::unchanged(|| sample(args))))
}

impl Args {
    fn check(&self) -> Result<()> {
        ensure!(
            self.negative.is_none() || self.guidance.is_none_or(|weight| weight > 1.0),
            "--negative works through guidance: it needs a --guidance above 1, not {}",
            self.guidance.unwrap_or_default()
        );
        let whole_only = self.latents.is_some() || self.dumps().next().is_some();
        ensure!(
            self.sharding.shard.is_none() || !whole_only,
            "--latents, --dump-latents and --dump-noise hold every image in order; they do not go with --shard"
        );
        for file in self.dumps() {
            ensure!(!file.is_dir(), "cannot write {}: it is a folder", file.display());
            atomic::probe(place::folder_of(file))?;
        }
        Ok(())
    }

    /// The files that are written beside the table.
    fn dumps(&self) -> impl Iterator<Item = &PathBuf> {
        self.dump_latents.iter().chain(&self.dump_noise)
    }

    fn settings(&self) -> Settings {
        Settings {
            sampling: Sampling {
                scheduler: self.scheduler,
                steps: self.steps,
                karras: self.karras,
                spacing: self.spacing,
            },
            guidance: self.guidance,
            negative: self.negative.clone(),
            time_ids: self.time_ids,
        }
    }
}

fn sample(args: Args) -> Result<Answer> {
    args.check()?;
    let read: Vec<&PathBuf> = args.prompts.iter().chain(&args.latents).collect();
    let out = target(args.sharding.output_beside(&args.common, &read)?, args.sharding.shard);
    let written: Vec<&Path> = [&out].into_iter().chain(args.dumps()).map(|path| &**path).collect();
    place::refuse_overlaps(&written, &read)?;
    let prompts = prompt_source::read(&args.prompts, None)?;
    let total = prompts.prompts.len() * args.n as usize;
    let model = Model::open(&args, total)?;
    let (artist, origin) = model.describe(&args, &prompts.prompts)?;
    let rows = args.sharding.shard.map_or(0..total, |shard| shard.range(total));
    let table_schema = args.image_column.schema(schema::images());
    let mut job = Job::open(Spec {
        tool: "sample",
        tables: Tables::file(&out, table_schema.clone())?,
        origin: origin.inputs(prompts.origins).inputs(model.policy()?),
        cut: format!("rows {rows:?} by {}", args.batch),
        keep: Keep::Parts,
        rows: Some(rows.len()),
        quiet: args.common.quiet,
    })?;

    let prompts = prompts.prompts;
    let dump = args.dump_latents.is_some();
    // Latents are dumped for all images, so all are drawn; with given noise, no two pictures are the same.
    let mut repeats = if dump || model.given.is_some() { Repeats::default() } else { Repeats::of(&prompts) };
    let mut first = rows.start;
    if !dump {
        job.resume(|part| {
            let images: Vec<Image> = (first..).take(part[0].len()).map(|row| artist.image(row, &prompts)).collect();
            repeats.keep_part(&images, &part[0])?;
            first += images.len();
            Ok(true)
        })?;
    }
    if let Some(path) = &args.dump_noise {
        let seeds = (0..total).map(|row| artist.image(row, &prompts).seed).collect();
        let noise = Noise::new(seeds, 0..total, model.given.as_ref())?.initial(model.latent)?;
        write::tensors(path, &[("latents".to_owned(), noise)].into(), Default::default())?;
    }
    let batch = args.batch.get();
    let table_schema = Arc::new(table_schema);
    let parts = (first..rows.end).step_by(batch).map(move |from| Ok(from..(from + batch).min(rows.end)));
    let mut latents = vec![];
    let counts = job.run(parts, |part: Range<usize>| {
        let images: Vec<Image> = part.clone().map(|row| artist.image(row, &prompts)).collect();
        let pngs = repeats.pictures(&images, |new| {
            let drawing = model.draw(new, part)?;
            if dump {
                latents.push(drawing.latents.to_device(&Device::Cpu)?);
            }
            artist.pngs(new, &drawing.images)
        })?;
        Ok(vec![args.image_column.batch(artist.table(&images, &pngs)?, &table_schema)?])
    })?;
    if let Some(path) = &args.dump_latents {
        let latents = Tensor::cat(&latents, 0)?.to_dtype(DType::F32)?;
        write::tensors(path, &[("latents".to_owned(), latents)].into(), Default::default())?;
    }
    let (images, prompts, name) = (counts[0], prompts.len(), &artist.name);
    if args.common.json {
        let copies = repeats.copies();
        let summary = json!({ "images": images, "prompts": prompts, "model": name, "copies": copies });
        args.common.answer(summary)?;
    } else {
        let (images, prompts) = (count(images, "image"), count(prompts, "prompt"));
        args.common.say(format_args!("{images} of {prompts} by {name}{}", repeats.note()));
    }
    Ok(Answer::Yes)
}

/// The adapters that are drawn with.
struct Lora {
    name: String,
    hash: String,
    /// How they were made, if `train` made them.
    origin: Option<Origin>,
}

impl Lora {
    fn add(path: &Path, scale: f64, base: &Path, denoiser: &Path) -> Result<Self> {
        let file = folder::adapters(path).unwrap_or_else(|| path.to_owned());
        ensure!(
            file.is_file(),
            "--lora {}: there are no adapters; name a file, or a checkpoint folder with lora/{}",
            path.display(),
            folder::ADAPTERS
        );
        lora::add(&file, scale, base, denoiser).context("--lora")?;
        let name = path.canonicalize().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
        let weights = Weights::open(&file)?;
        Ok(Self { name: name.unwrap_or_else(|| "lora".into()), hash: weights.hash()?, origin: weights.origin() })
    }
}

/// The model that draws, and the noise and size that it draws with.
struct Model {
    base: PathBuf,
    unet: PathBuf,
    lora: Option<Lora>,
    weights: Weights,
    painter: Painter,
    given: Option<GivenNoise>,
    /// (C, h, w)
    latent: [usize; 3],
}

impl Model {
    fn open(args: &Args, total: usize) -> Result<Self> {
        let resolve =
            |model: &PathBuf, base: Option<&Path>| args.files.folder(model, base, hub::resolve, single::folder);
        let base = resolve(&args.base, None)?;
        let unet = args.unet.as_ref().map(|unet| resolve(unet, Some(&base))).transpose()?;
        let unet = folder::denoiser(unet.as_deref().unwrap_or(&base))?;
        let lora = args.lora.as_ref().map(|path| Lora::add(path, args.lora_scale, &base, &unet)).transpose()?;
        let device = device::open(args.networks.device)?;
        let dtype = device::dtype(args.networks.dtype, &device)?;
        let painter = Painter::open(&base, &unet, args.settings(), dtype, &device)?;
        let given = args.latents.as_ref().map(|path| GivenNoise::open(path)).transpose()?;
        let latent = painter.latent_size(args.height, args.width, given.as_ref())?;
        if let Some(given) = &given {
            let rows = given.latents.dim(0)?;
            ensure!(rows == total, "--latents holds {rows} rows, but {total} images are to be drawn");
        }
        let weights = Weights::open(&unet)?;
        let adapters = lora.as_ref().and_then(|lora| lora.origin.as_ref()).filter(|_| args.lora_scale > 0.0);
        if let Some((own, adapters)) = weights.origin().zip(adapters) {
            let (flag, model) = args.unet.as_ref().map_or(("--base", &args.base), |unet| ("--unet", unet));
            ensure!(
                !holds(&own, adapters),
                "{flag} {} holds the adapters of --lora already: the same run of `train --merge` made both; leave out one of them",
                model.display()
            );
        }
        Ok(Self { base, unet, lora, weights, painter, given, latent })
    }

    /// Who draws, and the origin of the table without its inputs.
    fn describe(&self, args: &Args, prompts: &[Prompt]) -> Result<(Artist, Origin)> {
        let unet = self.weights.hash()?;
        let hash = |network: &str| Weights::open(&self.base.join(network))?.hash();
        // First what the pictures depend on, then what only the table depends on.
        let mut origin = Origin::new("sample")
            .arg("scheduler", self.painter.scheduler().to_string())
            .arg("steps", args.steps)
            .arg("guidance", self.painter.settings.weight())
            .arg("negative", args.negative.clone())
            .arg("latent_size", serde_json::json!(self.latent))
            .model(self.painter.part(), unet.clone())
            .model("vae", hash("vae")?)
            .model("scheduler", id::file_hash(&self.base.join(Process::FILE))?);
        for network in self.painter.text_encoders() {
            origin = origin.model(network, hash(network)?);
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
        if let Some(lora) = &self.lora {
            origin = origin.arg("lora_scale", args.lora_scale).model("lora", lora.hash.clone());
        }
        let artist = Artist {
            name: args.name.clone().unwrap_or_else(|| match &self.lora {
                Some(lora) => lora.name.clone(),
                None => name_of(args.unet.as_ref().unwrap_or(&args.base), &self.unet),
            }),
            unet,
            content: origin.to_json(),
            sampler: self.painter.sampler_label(),
            settings: self.painter.settings.clone(),
            n: args.n,
            seed: args.common.seed,
            noise: if self.given.is_some() { rows::Noise::given(prompts) } else { rows::Noise::Drawn },
        };
        let name = artist.name.clone();
        origin = origin.arg("n", args.n).arg("name", name).arg("seed", args.common.seed);
        if args.image_column != ImageColumn::Bytes {
            origin = origin.arg("image_column", args.image_column.to_string());
        }
        Ok((artist, origin))
    }

    /// How the policy was made, so that `winrate` knows which metrics voted on its labels.
    fn policy(&self) -> Result<Option<InputOrigin>> {
        let (origin, hash) = match &self.lora {
            Some(lora) => (lora.origin.clone(), lora.hash.clone()),
            None => (self.weights.origin(), self.weights.hash()?),
        };
        Ok(origin.map(|origin| InputOrigin { sha256: Some(hash), origin: Some(Box::new(origin)) }))
    }

    /// Draws `images`, which are those of `rows` or, with noise from seeds, some of them.
    fn draw(&self, images: &[&Image], rows: Range<usize>) -> Result<Drawing> {
        let noise = Noise::new(images.iter().map(|image| image.seed).collect(), rows, self.given.as_ref())?;
        let prompts: Vec<&str> = images.iter().map(|image| image.prompt.prompt.as_str()).collect();
        self.painter.draw(&prompts, &noise, self.latent)
    }
}

/// Whether weights of this origin are merged from adapters of that one: the same run of `train`, at any step, wrote both, perhaps
/// with `refresh-ref` after it.
fn holds(weights: &Origin, adapters: &Origin) -> bool {
    let run = |origin: &Origin| {
        let mut run = origin.clone();
        run.args.shift_remove("step");
        run
    };
    let moved = || weights.inputs.iter().filter_map(|input| input.origin.as_deref());
    run(weights) == run(adapters) || (weights.tool == "refresh-ref" && moved().any(|before| holds(before, adapters)))
}

/// `runs/policy/unet` -> `policy`; a model of the hub has its own name. `arg`: what the user wrote for the folder `unet`.
fn name_of(arg: &Path, unet: &Path) -> String {
    if let Some(name) = hub::name(arg).or_else(|| hub::name(unet)) {
        return name;
    }
    let is_part = folder::DENOISERS.iter().any(|part| unet.ends_with(part));
    let folder = if is_part { unet.parent().unwrap_or(unet) } else { unet };
    let named = folder.file_name().or(unet.file_name());
    named.map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}
