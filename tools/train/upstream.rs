//! The flags of Diffusion-DPO's and diffusers' scripts, so that their launch lines can be pasted: some are translated into ours,
//! some are refused with what to do instead, and some have no effect.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use pipe::device::{Device, Dtype};
use pipe::{augment::Augment, cli::Networks};

use crate::optimiser::{OptimiserFlags, OptimizerName};
use crate::{data::VisitFlags, models::ModelFlags, training_data::DataFlags};

/// Flags of Diffusion-DPO's, diffusers' and kohya's scripts for what is done in another way here, and how.
const REPLACED: [(&str, &str); 21] = [
    ("num-train-epochs", "--max-train-steps sets the length of a run"),
    ("use-8bit-adam", "--moments bf16 halves AdamW's memory, --optimizer adafactor takes a quarter of it"),
    ("use-ema", "--reference-mode ema:RATE averages the reference; the policy is published as it is"),
    ("random-crop", "images are cropped in the middle"),
    ("max-train-samples", "`prompts` and `vote` make smaller tables"),
    ("enable-xformers-memory-efficient-attention", "attention never holds all its scores at once: leave it out"),
    ("train-method", "--loss names it"),
    ("train-data-dir", "DATA names the pairs tables themselves"),
    ("split", "DATA names the files of the split themselves"),
    ("choice-model", "`score` and `vote --rule single:METRIC` make such labels, for --labels"),
    ("dreamlike-pairs-only", "name the pairs of those models alone as DATA"),
    ("remove-ties", "`vote` gives ties the weight 0, and such pairs are left out"),
    ("run-validation", "`sample`, `score` and `winrate` compare checkpoints"),
    ("validation-steps", "`sample`, `score` and `winrate` compare checkpoints"),
    ("validation-prompts", "`sample` draws prompts"),
    ("cache-latents", "`encode` makes a folder of latents, which is then DATA"),
    ("cache-latents-to-disk", "`encode` makes a folder of latents, which is then DATA"),
    ("cache-text-encoder-outputs-to-disk", "`encode` stores them with the latents; its folder is then DATA"),
    ("save-state", "checkpoints always hold it, in state/"),
    ("min-snr-gamma", "--error sets the weights of timesteps"),
    ("noise-offset", "noise always has mean 0 here"),
];

/// The replaced flags that a command line has.
#[derive(Clone, Debug)]
struct Replaced(Vec<(&'static str, &'static str)>);

impl clap::Args for Replaced {
    fn augment_args(command: clap::Command) -> clap::Command {
        // With a value or without.
        command.args(REPLACED.map(|(flag, _)| clap::Arg::new(flag).long(flag).hide(true).num_args(0..=1)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Replaced {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let used = |(flag, _): &(&str, &str)| matches.value_source(flag).is_some();
        Ok(Self(REPLACED.into_iter().filter(used).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// All these flags. None of them is shown by --help.
#[derive(clap::Args, Clone, Debug)]
pub struct UpstreamFlags {
    #[arg(long, hide = true, conflicts_with = "policy")]
    unet_init: Option<PathBuf>,
    #[arg(long, hide = true, conflicts_with = "augment")]
    no_hflip: bool,
    #[command(flatten)]
    replaced: Replaced,
    #[arg(long, hide = true, conflicts_with = "data")]
    dataset_name: Option<PathBuf>,
    #[arg(long, hide = true)]
    sdxl: bool,
    #[arg(long, hide = true, value_parser = ["no", "fp16", "bf16"], conflicts_with = "dtype")]
    mixed_precision: Option<String>,
    #[arg(long, hide = true)]
    cache_dir: Option<PathBuf>,
    #[arg(long, hide = true)]
    allow_tf32: bool,
}

impl UpstreamFlags {
    /// Refuses flags for what is done in another way here, and precision that training cannot have.
    pub fn check(&self, networks: &Networks) -> Result<()> {
        if let Some((flag, instead)) = self.replaced.0.first() {
            bail!("--{flag} is not a flag of this program: {instead}");
        }
        let precision = self.mixed_precision.as_deref();
        ensure!(
            precision != Some("fp16"),
            "--mixed-precision fp16: small gradients would become 0; bf16 has the range of f32"
        );
        ensure!(
            precision != Some("bf16") || networks.device != Device::Cpu,
            "--mixed-precision bf16: the CPU computes in f32 only; leave the flag out, or name a GPU with --device cuda"
        );
        Ok(())
    }

    /// Refuses a base that is not the kind of model that the launch line takes it for.
    pub fn check_base(&self, models: &ModelFlags) -> Result<()> {
        let base = &models.base;
        ensure!(
            !self.sdxl || base.join("text_encoder_2").is_dir(),
            "--sdxl: {} is not an SDXL model, because it has no text_encoder_2/",
            base.display()
        );
        Ok(())
    }

    /// Sets our flags to what these mean, and returns notes for the user.
    pub fn translate(
        &self,
        data: &mut DataFlags,
        models: &mut ModelFlags,
        visits: &mut VisitFlags,
        optimiser: &mut OptimiserFlags,
        networks: &mut Networks,
    ) -> Result<Vec<String>> {
        let mut notes = vec![];
        if let Some(path) = &self.dataset_name {
            ensure!(
                path.exists(),
                "--dataset-name {}: there is no such file; name the Parquet files of the data set as DATA, score them with \
                 `score`, and name what `vote` makes of the scores as --labels (`vote --rule human` for people's labels)",
                path.display()
            );
            data.data = vec![path.clone()];
        }
        if let Some(path) = &self.unet_init {
            // In Diffusion-DPO, policy and reference both start from it.
            models.reference.get_or_insert_with(|| path.clone());
            models.policy = Some(path.clone());
        }
        if self.no_hflip {
            visits.augment = Augment::None;
        }
        if self.sdxl && optimiser.optimizer.is_none() && !optimiser.use_adafactor {
            optimiser.optimizer = Some(OptimizerName::Adafactor);
            optimiser.max_grad_norm.get_or_insert(1.0);
            let clipped = "Adafactor with gradients clipped at 1, as in Diffusion-DPO's code";
            notes.push(format!("--sdxl: {clipped}; --optimizer adamw selects AdamW"));
        }
        if self.mixed_precision.as_deref() == Some("bf16") {
            networks.dtype = Dtype::Bf16;
        }
        let unused = [("--cache-dir", self.cache_dir.is_some()), ("--allow-tf32", self.allow_tf32)];
        notes.extend(unused.iter().filter(|(_, used)| *used).map(|(flag, _)| format!("{flag} has no effect here")));
        Ok(notes)
    }
}
