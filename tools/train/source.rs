//! Where the inputs of a step come from: pairs and labels, or a replay file.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use nets::{
    noise::Schedule,
    prompt::{Conditioning, PromptEncoder, TimeIds},
    unet::UNetConfig,
    vae::Vae,
    weights::Weights,
};
use pipe::{
    id::{file_hash, hex, sha256},
    origin::{InputOrigin, Origin},
    table::Inputs,
};

use crate::{
    args::Args,
    data::{Data, Visits, cache_folder},
    loss::Label,
    replay::Replay,
    world::Share,
};

/// The inputs of one micro-batch of B pairs.
pub struct Batch {
    /// Scaled latents, (2B, C, h, w), the preferred images first.
    pub latents: Tensor,
    /// (2B, C, h, w), the same for both images of a pair.
    pub noise: Tensor,
    /// 2B, the same for both images of a pair.
    pub timesteps: Vec<u32>,
    /// What the UNet is told of the B captions; of the empty prompt where a caption was dropped.
    pub told: Conditioning,
    /// 2B, for SDXL: original size, crop and size of each image.
    pub sizes: Vec<TimeIds>,
    /// B, of the images in this order.
    pub labels: Vec<Label>,
}

pub enum Source {
    Pairs { data: Box<Data>, inputs: Vec<InputOrigin>, labels: String },
    Replay { replay: Replay, hash: String },
}

impl Source {
    pub fn open(args: &Args, device: &Device) -> Result<Self> {
        let text = || PromptEncoder::open(&args.base, DType::F32, device);
        if let Some(path) = &args.replay {
            return Ok(Source::Replay {
                replay: Replay::open(path, &args.vae_folder(), text()?)?,
                hash: file_hash(path)?,
            });
        }
        let labels = args.labels.as_ref().context("--labels is missing; name what `vote` wrote (or use --replay)")?;
        ensure!(!args.data.is_empty(), "no DATA was named: pairs tables, an `encode` folder or an images table");
        let vae = Vae::open(&args.vae_folder(), DType::F32, device)?;
        let factor = vae.config.factor();
        let resolution = args.resolution(factor)?;
        ensure!(
            resolution > 0 && resolution.is_multiple_of(factor),
            "--resolution {resolution} is not a multiple of the VAE's {factor}"
        );
        let visits = Visits {
            seed: args.common.seed,
            resolution,
            augment: args.augment,
            empty_prompts: args.proportion_empty_prompts,
        };
        let data = Data::open(&args.data, labels, visits, vae, text)?;
        let tables = match cache_folder(&args.data) {
            Some(folder) => ["latents", "captions", "pairs"].map(|t| folder.join(format!("{t}.parquet"))).to_vec(),
            None => args.data.clone(),
        };
        let mut inputs = Inputs::open(std::slice::from_ref(labels))?.origins()?;
        let labels = one_hash(&inputs);
        inputs.extend(Inputs::open(&tables)?.origins()?);
        let source = Source::Pairs { data: Box::new(data), inputs, labels };
        source.check_cache(args)?;
        Ok(source)
    }

    /// A cache holds what one VAE and one text encoder said; with others the run would be another.
    fn check_cache(&self, args: &Args) -> Result<()> {
        let Source::Pairs { data, inputs, .. } = self else { return Ok(()) };
        let caches = inputs.iter().filter_map(|i| i.origin.as_ref()).filter(|o| o.tool == "encode");
        for cache in caches {
            for (role, folder) in parts(args) {
                let ours = Weights::open(&folder)?.hash()?;
                let same = cache.models.get(role).is_none_or(|theirs| *theirs == ours);
                ensure!(same, "the cache was made with another {role} than that of {}", args.base.display());
            }
        }
        let (theirs, ours) = (data.resolution(), args.resolution);
        ensure!(
            ours.is_none_or(|ours| ours == theirs),
            "the cache holds images of {theirs} pixels: --resolution cannot be {}",
            ours.unwrap_or_default()
        );
        Ok(())
    }

    /// Micro-batch `i` of this process's share of all steps, from 0. Samples are counted, not batches.
    pub fn batch(&mut self, share: &Share, i: u64, schedule: &Schedule, device: &Device) -> Result<Batch> {
        match self {
            Source::Replay { replay, .. } => replay.batch(i, schedule.config.num_train_timesteps, device),
            Source::Pairs { data, .. } => {
                let samples = share.samples(i);
                data.batch(samples.start, samples.end, &schedule.trained, device)
            }
        }
    }

    pub fn describe(&self, args: &Args) {
        if let Source::Pairs { data, .. } = self {
            args.common.say(format_args!(
                "{} pairs have a say; {} abstain, {} have no label; {} pairs a step",
                data.len(),
                data.abstained,
                data.unlabelled,
                args.effective_batch()
            ));
            if data.lacks_flips() {
                args.common.say("the cache holds no mirrored images: none are used (`encode --augment` makes them)");
            }
        }
    }

    /// Pairs a step, where the inputs decide that.
    pub fn pairs_a_step(&self) -> Option<NonZeroUsize> {
        match self {
            Source::Replay { replay, .. } => NonZeroUsize::new(replay.pairs()),
            Source::Pairs { .. } => None,
        }
    }

    /// # Errors
    /// The UNet was made for other text encoders or other latents than there are here.
    pub fn check(&self, unet: &UNetConfig) -> Result<()> {
        let ((width, pooled), channels) = match self {
            Source::Replay { replay, .. } => (replay.told()?, replay.channels()?),
            Source::Pairs { data, .. } => (data.told(), data.channels()),
        };
        unet.check_told(width, pooled)?;
        let takes = unet.in_channels;
        ensure!(channels == takes, "the UNet takes latents of {takes} channels, here they have {channels}");
        let gives = unet.out_channels;
        ensure!(channels == gives, "the UNet predicts {gives} channels, latents have {channels}");
        Ok(())
    }

    /// C h w of a latent.
    pub fn latent_numbers(&self) -> Result<usize> {
        match self {
            Source::Replay { replay, .. } => replay.latent_numbers(),
            Source::Pairs { data, .. } => Ok(data.latent_numbers()),
        }
    }

    /// SHA-256 of the labels, or of the replay file.
    pub fn labels_hash(&self) -> &str {
        match self {
            Source::Replay { hash, .. } => hash,
            Source::Pairs { labels, .. } => labels,
        }
    }

    /// What the inputs add to the origin.
    pub fn describe_origin(&self, origin: Origin, args: &Args) -> Result<Origin> {
        Ok(match self {
            Source::Replay { hash, .. } => origin.arg("replay", hash.clone()),
            Source::Pairs { data, inputs, .. } => {
                let mut origin = origin
                    .arg("proportion_empty_prompts", args.proportion_empty_prompts)
                    .arg("resolution", data.resolution())
                    .arg("augment", format!("{:?}", args.augment))
                    .inputs(inputs.clone());
                for (role, folder) in parts(args) {
                    origin = origin.model(role, Weights::open(&folder)?.hash()?);
                }
                origin
            }
        })
    }
}

/// The networks besides the UNet, and where they lie.
fn parts(args: &Args) -> Vec<(&'static str, PathBuf)> {
    let encoders = ["text_encoder", "text_encoder_2"].map(|role| (role, args.base.join(role)));
    [("vae", args.vae_folder())].into_iter().chain(encoders).filter(|(_, folder)| folder.is_dir()).collect()
}

/// The hash of a file, or of the hashes of its parts.
fn one_hash(parts: &[InputOrigin]) -> String {
    let hashes: Vec<&str> = parts.iter().filter_map(|part| part.sha256.as_deref()).collect();
    match hashes[..] {
        [one] => one.to_owned(),
        _ => hex(&sha256(hashes.join("\n").as_bytes())),
    }
}
