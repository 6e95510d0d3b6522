//! The command line: the flags of every part of a run, under Diffusion-DPO's own names where it has one, and the checks that
//! concern several parts.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use clap::Parser;
use nets::folder;
use pipe::cli::{Common, Networks};
use pipe::{atomic, device::Dtype, lock, origin::Origin, place};

use crate::method::{Method, MethodFlags};
use crate::models::{LoraFlags, ModelFlags};
use crate::pictures::PictureFlags;
use crate::reference::{Place, ReferenceFlags};
use crate::spikes::{OnSpike, SpikeFlags};
use crate::{
    batches::LoaderFlags, checkpoints::CheckpointFlags, data::VisitFlags, gradients::GradientFlags, log::LogFlags,
    optimiser::OptimiserFlags, start::Setup, training_data::DataFlags, upstream::UpstreamFlags, world::BatchFlags,
};

const EXAMPLES: &str = "\
Examples:
  train pairs.parquet --labels labels.parquet --base sd15 -o out \\
        --max-train-steps 2000 --gradient-accumulation-steps 64 --scale-lr \\
        --learning-rate 1e-8 --lr-warmup-steps 500 --refresh-every 125
  train latents/ --labels labels.parquet --base sd15 -o out \\
        --resume-from-checkpoint latest

The output is a checkpoint folder: unet/ or transformer/ (loads in diffusers), state/ (needed by --resume-from-checkpoint) and log.jsonl.

Networks compute in f32, on a GPU also in bf16; --dtype f16 is refused, because small gradients would become 0. Weights, gradients \
and losses are always f32; AdamW's moments are unless --moments says otherwise.

Flags may be written with _ instead of -, so that launch lines of Diffusion-DPO and diffusers can be pasted.

Exit status: 0 done, 2 trouble, 128 + N after signal N.";

/// Fine-tune the denoiser of Stable Diffusion, SDXL, Stable Diffusion 3 or FLUX on preference labels with the Diffusion-DPO loss.
#[derive(Parser, Clone, Debug)]
#[command(name = "train", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(mut_arg("output", |output| output.help("The folder to write checkpoints in")))]
pub struct Args {
    #[command(flatten)]
    pub data: DataFlags,
    #[command(flatten)]
    pub models: ModelFlags,
    #[command(flatten)]
    pub method: MethodFlags,
    #[command(flatten)]
    pub optimiser: OptimiserFlags,
    #[command(flatten)]
    pub batch: BatchFlags,
    #[command(flatten)]
    pub gradients: GradientFlags,
    #[command(flatten)]
    pub reference: ReferenceFlags,
    #[command(flatten)]
    pub visits: VisitFlags,
    #[command(flatten)]
    pub lora: LoraFlags,
    #[command(flatten)]
    pub checkpoints: CheckpointFlags,
    #[command(flatten)]
    pub log: LogFlags,
    #[command(flatten)]
    pub pictures: PictureFlags,
    #[command(flatten)]
    pub spikes: SpikeFlags,
    #[command(flatten)]
    pub loader: LoaderFlags,
    /// Take two steps, print what the whole run would take, and write nothing; -o is not needed
    #[arg(long, help_heading = "Runs")]
    pub dry_run: bool,
    #[command(flatten)]
    upstream: UpstreamFlags,
    #[command(flatten)]
    pub networks: Networks,
    #[command(flatten)]
    pub common: Common,
}

impl Args {
    /// Refuses flags that contradict each other or the number of processes.
    pub fn check(&self, processes: usize) -> Result<()> {
        self.upstream.check(&self.networks)?;
        self.data.check()?;
        self.method.objective()?;
        self.batch.check(processes)?;
        self.check_combinations(processes)
    }

    fn check_combinations(&self, processes: usize) -> Result<()> {
        ensure!(
            self.networks.dtype != Dtype::F16,
            "--dtype f16: small gradients would become 0; bf16 has the range of f32"
        );
        ensure!(
            self.lora.config().is_none() || !matches!(self.reference.reference_weights, Place::File | Place::Narrow),
            "--reference-weights {} is for a reference that is a UNet of its own; with --lora-rank it shares the policy's: leave it out",
            self.reference.reference_weights
        );
        let replay = self.data.replay.is_some();
        ensure!(
            !replay || self.batch.gradient_accumulation_steps.get() == 1,
            "--replay has its own batches, one per step: leave out --gradient-accumulation-steps"
        );
        ensure!(
            !replay || self.spikes.on_spike != OnSpike::Rollback,
            "--on-spike rollback skips steps, and the steps of a --replay file are numbered: leave one of them out"
        );
        for (flag, alone) in [("--replay", replay), ("--labels -", self.data.labels_from_stdin())] {
            ensure!(!alone || processes == 1, "{flag} is for one process, and {processes} were started");
        }
        Ok(())
    }

    /// The flags as they are used: upstream's translated into ours, and hub ids replaced by local folders.
    pub fn resolve(mut self) -> Result<Self> {
        let Self { upstream, data, models, visits, optimiser, networks, common, .. } = &mut self;
        upstream.translate(data, models, visits, optimiser, networks)?.iter().for_each(|note| common.say(note));
        *models = models.resolve()?;
        upstream.check_base(models)?;
        Ok(self)
    }

    /// The output folder, which only a dry run may lack.
    pub fn output(&self) -> Result<Option<PathBuf>> {
        if self.dry_run && self.common.output.is_none() {
            return Ok(None);
        }
        let out = self.common.output()?;
        ensure!(out.as_os_str() != "-", "a checkpoint is a folder; name one with -o");
        Ok(Some(out.clone()))
    }

    /// Makes sure that every output can be written and replaces no input, and locks the output folder, unless this is a dry run.
    pub fn lock_outputs(&self) -> Result<Option<lock::Folder>> {
        let (out, dump) = (self.output()?, self.gradients.dump_gradients.as_deref());
        let models = [Some(&self.models.base), self.models.policy.as_ref(), self.models.reference.as_ref()];
        let tables = self.data.data.iter().chain(&self.data.labels).chain(&self.data.replay);
        let read: Vec<&PathBuf> = models.into_iter().flatten().chain(tables).collect();
        let denoisers = folder::DENOISERS.map(|part| out.as_deref().map(|out| out.join(part)));
        let written: Vec<&Path> =
            [out.as_deref(), dump].into_iter().chain(denoisers.iter().map(Option::as_deref)).flatten().collect();
        place::refuse_overlaps(&written, &read)?;
        out.as_deref().into_iter().chain(dump.map(place::folder_of)).try_for_each(atomic::probe)?;
        out.filter(|_| !self.dry_run).map(|out| lock::Folder::lock(&out, &out)).transpose()
    }

    /// The sources of a state of the run. `labels`: SHA-256 of the labels, or of the replay file.
    pub fn setup(&self, labels: &str, compute: DType, device: &Device) -> Setup {
        Setup {
            models: self.models.clone(),
            lora: self.lora.clone(),
            reference: self.reference.clone(),
            optimiser: self.optimiser.clone(),
            seed: self.common.seed,
            pairs_per_step: self.batch.pairs_per_step(),
            labels: labels.to_owned(),
            compute,
            device: device.clone(),
        }
    }

    pub fn origin(&self, method: &Method) -> Origin {
        let origin = Origin::new("train").arg("effective_batch", self.batch.pairs_per_step());
        let origin = method.describe(self.optimiser.describe(origin));
        origin.arg("reference_mode", self.reference.mode().to_string()).arg("seed", self.common.seed)
    }
}
