//! Diffusion-DPO's launch lines, which can be pasted: flags that are said otherwise here, or mean nothing.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use pipe::{augment::Augment, device::Dtype};

use crate::args::{Args, OptimizerName};

/// Flags of Diffusion-DPO, diffusers and kohya's scripts that ask for what is done otherwise here, and how. (`_` and `-` are the
/// same in a flag.)
const ELSEWHERE: [(&str, &str); 21] = [
    ("num-train-epochs", "a run is as long as --max_train_steps says"),
    ("use-8bit-adam", "--moments bf16 halves AdamW's memory, --optimizer adafactor takes a quarter of it"),
    ("use-ema", "--reference-mode ema:RATE averages the reference; the policy is published as it is"),
    ("random-crop", "images are cropped in the middle"),
    ("max-train-samples", "`prompts` and `vote` make smaller tables"),
    ("enable-xformers-memory-efficient-attention", "attention never holds all its scores here: leave it out"),
    ("train-method", "--loss names it"),
    ("train-data-dir", "DATA names the pairs tables themselves"),
    ("split", "DATA names the files of the split themselves"),
    ("choice-model", "`score` and `vote --rule single:METRIC` make such labels, for --labels"),
    ("dreamlike-pairs-only", "give the pairs of those models alone as DATA"),
    ("remove-ties", "`vote` gives ties the weight 0, and they are left out"),
    ("run-validation", "`sample`, `score` and `winrate` compare checkpoints"),
    ("validation-steps", "`sample`, `score` and `winrate` compare checkpoints"),
    ("validation-prompts", "`sample` draws prompts"),
    ("cache-latents", "`encode` makes a folder of latents, which is then DATA"),
    ("cache-latents-to-disk", "`encode` makes a folder of latents, which is then DATA"),
    ("cache-text-encoder-outputs-to-disk", "`encode` keeps them beside the latents; its folder is then DATA"),
    ("save-state", "checkpoints always hold it, in state/"),
    ("min-snr-gamma", "--error chooses how timesteps are weighed"),
    ("noise-offset", "noise is standard normal here"),
];

/// Those of them that a command line has.
#[derive(Clone, Debug)]
struct Elsewhere(Vec<(&'static str, &'static str)>);

impl clap::Args for Elsewhere {
    fn augment_args(command: clap::Command) -> clap::Command {
        // With a value or without.
        command.args(ELSEWHERE.map(|(flag, _)| clap::Arg::new(flag).long(flag).hide(true).num_args(0..=1)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Elsewhere {
    fn from_arg_matches(given: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let there = |(flag, _): &(&str, &str)| given.value_source(flag).is_some();
        Ok(Self(ELSEWHERE.into_iter().filter(there).collect()))
    }

    fn update_from_arg_matches(&mut self, given: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(given)?;
        Ok(())
    }
}

/// Those flags.
#[derive(clap::Args, Clone, Debug)]
pub struct Pasted {
    #[arg(long, hide = true, conflicts_with = "policy")]
    unet_init: Option<PathBuf>,
    #[arg(long, hide = true, conflicts_with = "augment")]
    no_hflip: bool,
    #[command(flatten)]
    elsewhere: Elsewhere,
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

impl Pasted {
    /// # Errors
    /// A flag that is known elsewhere: what to do instead.
    pub fn refuse(&self) -> Result<()> {
        match self.elsewhere.0.first() {
            Some((flag, instead)) => bail!("--{} is not a flag of this program: {instead}", flag.replace('-', "_")),
            None => Ok(()),
        }
    }

    /// # Errors
    /// The base is not what the launch line takes it for.
    pub fn check(&self, base: &Path) -> Result<()> {
        ensure!(
            !self.sdxl || base.join("text_encoder_2").is_dir(),
            "--sdxl: {} is no SDXL model, it has no text_encoder_2/",
            base.display()
        );
        Ok(())
    }
}

impl Args {
    /// With what was pasted said as it is said here, and what means nothing here named.
    ///
    /// # Errors
    /// The data set is a name on the hub and no file.
    pub fn unpasted(mut self) -> Result<Self> {
        let Pasted { dataset_name, mixed_precision, cache_dir, allow_tf32, unet_init, no_hflip, sdxl, .. } =
            self.pasted.clone();
        if let Some(path) = dataset_name {
            ensure!(
                path.exists(),
                "--dataset_name {}: there is no such file; name the data set's Parquet files, and with --labels what `vote` \
                 makes of what `score` makes of them (`vote --rule human` for people's labels)",
                path.display()
            );
            self.data = vec![path];
        }
        if let Some(path) = unet_init {
            // There, reference and policy begin with it.
            self.reference = self.reference.or_else(|| Some(path.clone()));
            self.policy = Some(path);
        }
        if no_hflip {
            self.augment = Augment::None;
        }
        if sdxl && self.optimizer.is_none() && !self.use_adafactor {
            self.optimizer = Some(OptimizerName::Adafactor);
            self.max_grad_norm = self.max_grad_norm.or(Some(1.0));
            self.common.say(
                "--sdxl: Adafactor on gradients clipped at 1, as in Diffusion-DPO's code; --optimizer adamw takes AdamW",
            );
        }
        match mixed_precision.as_deref() {
            Some("fp16") => self.networks.dtype = Dtype::F16,
            Some("bf16") => self.networks.dtype = Dtype::Bf16,
            _ => {}
        }
        for (flag, given) in [("--cache_dir", cache_dir.is_some()), ("--allow_tf32", allow_tf32)] {
            if given {
                self.common.say(format_args!("{flag} means nothing here"));
            }
        }
        Ok(self)
    }
}
