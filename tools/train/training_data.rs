//! Where the inputs of a step come from: pairs and labels, or a replay file.

use std::{ops::Range, path::PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use nets::{denoiser::Config, process::Process, prompt::PromptEncoder, weights::Weights};
use pipe::origin::Origin;

use crate::data::{Batch, Data, VisitFlags};
use crate::{models::ModelFlags, replay::Replay, world::BatchFlags};

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Data")]
pub struct DataFlags {
    /// Training data: pairs tables, one folder of `encode`, or an images table with the uids that the labels name
    #[arg(value_name = "DATA", help_heading = None)]
    pub data: Vec<PathBuf>,
    /// Labels table from `vote`, which says which image of each pair is preferred; pairs of weight 0 are left out
    #[arg(long, help_heading = None, value_name = "LABELS")]
    pub labels: Option<PathBuf>,
    /// Take the inputs of every step from a safetensors file instead of DATA and LABELS: `<i>.latents`, `<i>.noise` and
    /// `<i>.timesteps` with the winners first, and the captions in the metadata key `prompts`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "labels"])]
    pub replay: Option<PathBuf>,
}

impl DataFlags {
    pub fn labels_from_stdin(&self) -> bool {
        self.labels.as_ref().is_some_and(|labels| labels.as_os_str() == "-")
    }

    /// Refuses DATA from a pipe.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.data.iter().all(|data| data.as_os_str() != "-"),
            "DATA cannot come from standard input, because pairs are visited in random order: write a Parquet file first"
        );
        Ok(())
    }
}

pub enum TrainingData {
    Pairs(Box<Data>),
    Replay(Box<Replay>),
}

impl TrainingData {
    pub fn open(
        flags: &DataFlags,
        visits: VisitFlags,
        models: &ModelFlags,
        seed: u64,
        steps: u64,
        device: &Device,
    ) -> Result<Self> {
        if let Some(path) = &flags.replay {
            let text = PromptEncoder::open(&models.base, DType::F32, device).context("--base")?;
            return Ok(Self::Replay(Box::new(Replay::open(path, &models.vae_folder(), text, steps)?)));
        }
        let labels = flags.labels.as_ref().context("--labels is missing; name what `vote` wrote (or use --replay)")?;
        ensure!(!flags.data.is_empty(), "DATA is missing; name pairs tables, a folder of `encode` or an images table");
        Ok(Self::Pairs(Box::new(Data::open(&flags.data, labels, visits, seed, models, device)?)))
    }

    /// The inputs of micro-batch `i` of this process's part of the run, from 0, which consists of `samples`.
    pub fn make_batch(&mut self, i: u64, samples: Range<u64>, process: &Process, device: &Device) -> Result<Batch> {
        match self {
            Self::Replay(replay) => replay.batch(i, process, device),
            Self::Pairs(data) => data.batch(samples, process, device),
        }
    }

    pub fn note(&self, pairs_per_step: usize) -> Option<String> {
        let Self::Pairs(data) = self else { return None };
        let (pairs, abstained, unlabelled) = (data.len(), data.labelled.abstained, data.labelled.unlabelled);
        Some(format!(
            "{pairs} pairs are used; {abstained} abstain and {unlabelled} have no label; {pairs_per_step} pairs per step"
        ))
    }

    /// A warning if the images have another size than the UNet was made for.
    pub fn size_note(&self) -> Option<String> {
        match self {
            Self::Replay(_) => None,
            Self::Pairs(data) => data.size_note(),
        }
    }

    /// A note where mirrored images were asked for, or `always`, and there are none.
    pub fn flips_note(&self, always: bool) -> Option<String> {
        let asked = |data: &Data| always || data.asks_for_flips();
        let lacks = matches!(self, Self::Pairs(data) if data.lacks_flips() && asked(data));
        lacks.then(|| "the cache holds no mirrored images: none are used (`encode --augment` makes them)".into())
    }

    /// The flags of the batch; a replay file sets its size.
    pub fn batch(&self, flags: BatchFlags) -> Result<BatchFlags> {
        match self {
            Self::Replay(replay) => flags.of_replay(replay.pairs),
            Self::Pairs(_) => Ok(flags),
        }
    }

    /// Refuses a denoiser that was made for other text encoders or other latents than these.
    pub fn check(&self, denoiser: &Config) -> Result<()> {
        denoiser.check_text(match self {
            Self::Replay(replay) => replay.conditioning.widths()?,
            Self::Pairs(data) => data.captions.widths(),
        })?;
        let [channels, ..] = self.latent_shape()?;
        let [takes, gives] = denoiser.channels;
        ensure!(channels == takes, "the denoiser takes latents of {takes} channels, but these have {channels}");
        ensure!(channels == gives, "the denoiser predicts {gives} channels, but latents have {channels}");
        Ok(())
    }

    pub fn latent_shape(&self) -> Result<[usize; 3]> {
        match self {
            Self::Replay(replay) => replay.latent_shape(),
            Self::Pairs(data) => Ok(data.latent_shape()),
        }
    }

    pub fn labels_hash(&self) -> &str {
        match self {
            Self::Replay(replay) => &replay.hash,
            Self::Pairs(data) => &data.labels_hash,
        }
    }

    /// Adds the data, and the frozen networks that prepare them, to the origin of the weights.
    pub fn describe(&self, origin: Origin, models: &ModelFlags) -> Result<Origin> {
        let data = match self {
            Self::Replay(replay) => return Ok(origin.arg("replay", replay.hash.clone())),
            Self::Pairs(data) => data,
        };
        let mut origin = data.describe(origin);
        for (role, folder) in models.frozen_networks() {
            origin = origin.model(role, Weights::open(&folder)?.hash()?);
        }
        Ok(origin)
    }
}
