//! Every setting of a training run, under Diffusion-DPO's own names where it has one.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::{Result, ensure};
use clap::Parser;
use nets::{
    folder, hub, json,
    lora::LoraConfig,
    optim::{AdafactorConfig, AdamWConfig, LrSchedule, Rule},
    unet::UNetConfig,
};
use pipe::{
    augment::Augment,
    cli::{Common, Networks, named},
    device::Dtype,
};

use crate::{
    calm::OnSpike,
    gradients::Checkpointing,
    guard::Guard,
    log::ReportTo,
    loss::{Form, Objective},
    method::{ErrorOf, Timesteps},
    pasted::Pasted,
    reference::{Mode, Place},
};

const EXAMPLES: &str = "\
Examples:
  train pairs.parquet --labels labels.parquet --base sd15 -o out --max_train_steps 2000 --train_batch_size 1 \\
        --gradient_accumulation_steps 64 --learning_rate 1e-8 --scale_lr --lr_warmup_steps 500 --refresh-every 125
  train latents/ --labels labels.parquet --base sd15 -o out --resume_from_checkpoint latest

The output is a checkpoint folder: unet/ (loads in diffusers), state/ (what --resume_from_checkpoint needs) and log.jsonl.

Networks compute in f32, on a GPU also in bf16; --dtype f16 is refused, because small gradients would become 0. Weights, gradients \
and losses are f32 always, and so are the moments on a GPU.";

/// The checkpoint that is the newest in the output folder.
pub const LATEST: &str = "latest";

/// Fine-tune a Stable Diffusion UNet on preference labels with the Diffusion-DPO loss.
#[derive(Parser, Clone, Debug)]
#[command(name = "train", version, after_help = EXAMPLES)]
pub struct Args {
    /// What to train on: pairs tables, one `encode` folder, or an images table whose uids the labels name
    #[arg(value_name = "DATA")]
    pub data: Vec<PathBuf>,
    /// Labels table from `vote`: which image of each pair is preferred; pairs of weight 0 are left out
    #[arg(long, value_name = "LABELS")]
    pub labels: Option<PathBuf>,
    /// Stable Diffusion folder or hub id: text encoder, VAE, scheduler, and the UNet to start from
    #[arg(long, alias = "pretrained-model-name-or-path", value_name = "DIR")]
    pub base: PathBuf,
    /// A VAE to use instead of the base's own (SDXL's that works in half precision, for one)
    #[arg(long, alias = "pretrained-vae-model-name-or-path", value_name = "DIR")]
    pub vae: Option<PathBuf>,
    /// Checkpoint to start from instead of the base's own UNet
    #[arg(long, value_name = "DIR")]
    pub policy: Option<PathBuf>,
    /// Checkpoint to measure against instead of the base's own UNet
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    /// Go on from a checkpoint folder of `train`, or `latest`: the newest in the output folder, if there is one
    #[arg(long, visible_alias = "resume", value_name = "DIR|latest")]
    pub resume_from_checkpoint: Option<PathBuf>,
    /// Inputs of every step from a safetensors file instead of DATA and LABELS: `<i>.latents`, `<i>.noise`,
    /// `<i>.timesteps` with the winners first, and the captions in the metadata key `prompts`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "labels"])]
    pub replay: Option<PathBuf>,
    /// Write the gradient of every tensor in the first step of this call, before clipping
    #[arg(long, value_name = "FILE")]
    pub dump_gradients: Option<PathBuf>,

    /// Optimiser steps in all, those before a resumption included
    #[arg(long, visible_alias = "steps", value_name = "N", default_value_t = 2000, help_heading = "Optimisation")]
    pub max_train_steps: u64,
    /// Pairs that go through the networks of one process at once, at most: networks of less than 50 million weights take four on
    /// the CPU, which is as fast, so that the split of a step changes nothing
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Optimisation")]
    pub train_batch_size: NonZeroUsize,
    /// Such batches an optimiser step, over all processes: each takes an equal share
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Optimisation")]
    pub gradient_accumulation_steps: NonZeroUsize,
    /// Compute activations twice instead of keeping them
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_value_t = Checkpointing::Auto,
          default_missing_value = "on", require_equals = true, help_heading = "Optimisation", value_parser = named::<Checkpointing>())]
    pub gradient_checkpointing: Checkpointing,
    /// Where to keep the reference's weights; the same bits either way
    #[arg(long, value_name = "WHERE", default_value_t = Place::Auto, help_heading = "Optimisation", value_parser = named::<Place>())]
    pub reference_weights: Place,
    /// Learning rate; Diffusion-DPO's 1e-8 is meant with --scale_lr
    #[arg(long, visible_alias = "lr", value_name = "X", default_value_t = 1e-8, help_heading = "Optimisation")]
    pub learning_rate: f64,
    /// Multiply the learning rate by the pairs an optimiser step
    #[arg(long, help_heading = "Optimisation")]
    pub scale_lr: bool,
    /// How the learning rate goes (diffusers' schedules)
    #[arg(long, default_value_t = LrSchedule::ConstantWithWarmup, help_heading = "Optimisation", value_parser = named::<LrSchedule>())]
    pub lr_scheduler: LrSchedule,
    /// Steps over which the learning rate rises from 0
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Optimisation")]
    pub lr_warmup_steps: u64,
    /// Length of a linear or cosine schedule, where it is not --max_train_steps
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub lr_total_steps: Option<u64>,
    /// How a gradient becomes a step [default: adamw]
    #[arg(long, help_heading = "Optimisation", value_parser = named::<OptimizerName>())]
    pub optimizer: Option<OptimizerName>,
    /// The same as --optimizer adafactor
    #[arg(long, conflicts_with = "optimizer", help_heading = "Optimisation")]
    pub use_adafactor: bool,
    /// How AdamW's moments are stored; bf16 halves them, on the CPU alone
    #[arg(long, default_value_t = Moments::F32, help_heading = "Optimisation", value_parser = named::<Moments>())]
    pub moments: Moments,
    #[arg(long, value_name = "X", default_value_t = 0.9, help_heading = "Optimisation")]
    pub adam_beta1: f64,
    #[arg(long, value_name = "X", default_value_t = 0.999, help_heading = "Optimisation")]
    pub adam_beta2: f64,
    #[arg(long, value_name = "X", default_value_t = 1e-8, help_heading = "Optimisation")]
    pub adam_epsilon: f64,
    /// Weight decay, of Adafactor too
    #[arg(long, value_name = "X", default_value_t = 1e-2, help_heading = "Optimisation")]
    pub adam_weight_decay: f64,
    /// Gradients longer than this are scaled down to it [default: 1 for AdamW; Adafactor bounds its updates itself]
    #[arg(long, value_name = "X", help_heading = "Optimisation")]
    pub max_grad_norm: Option<f64>,

    /// What is minimised
    #[arg(long, default_value_t = Form::Dpo, help_heading = "Method", value_parser = named::<Form>())]
    pub loss: Form,
    /// The same as --loss sft
    #[arg(long, conflicts_with = "loss", help_heading = "Method")]
    pub sft: bool,
    /// Strength of the tie to the reference, in Diffusion-DPO's code convention (mean squared errors, with the 1/2)
    #[arg(long, visible_alias = "beta", value_name = "X", default_value_t = 5000.0, help_heading = "Method")]
    pub beta_dpo: f64,
    /// Probability that a label is wrong (conservative DPO); the best z is then finite
    #[arg(long, value_name = "P", default_value_t = 0.0, help_heading = "Method")]
    pub label_smoothing: f64,
    /// `sdpo`: scale the loser's gradient so that the winner's error cannot rise to first order; `sdpo:MU` keeps the share
    /// MU of its fall
    #[arg(long, value_name = "none|sdpo[:MU]", default_value = "none", help_heading = "Method")]
    pub guard: Guard,
    /// What the squared error is taken of in a v-prediction model
    #[arg(long, default_value_t = ErrorOf::Prediction, help_heading = "Method", value_parser = named::<ErrorOf>())]
    pub error: ErrorOf,
    /// Which timesteps the pairs are noised to
    #[arg(long, default_value_t = Timesteps::Auto, help_heading = "Method", value_parser = named::<Timesteps>())]
    pub timesteps: Timesteps,
    /// `frozen` (plain Diffusion-DPO), `hard:K` (the reference becomes the policy after every K-th optimiser step) or
    /// `ema:RATE` (after every step it goes this share of the way to the policy)
    #[arg(long, value_name = "MODE", default_value = "frozen", help_heading = "Method")]
    pub reference_mode: Mode,
    /// The same as --reference-mode hard:K (0: frozen)
    #[arg(long, value_name = "K", conflicts_with = "reference_mode", help_heading = "Method")]
    pub refresh_every: Option<u64>,
    /// Train low-rank adapters of this rank beside a frozen UNet, instead of all its weights
    #[arg(long, alias = "rank", value_name = "R", help_heading = "LoRA")]
    pub lora_rank: Option<NonZeroUsize>,
    /// Adapters count ALPHA / R times [default: R]
    #[arg(long, value_name = "ALPHA", requires = "lora_rank", help_heading = "LoRA")]
    pub lora_alpha: Option<f64>,
    /// The linear layers that get one, under PEFT's names
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "to_q,to_k,to_v,to_out.0")]
    #[arg(requires = "lora_rank", help_heading = "LoRA")]
    pub lora_targets: Vec<String>,
    /// Write unet/ too, base and adapters in one, for `sample --unet`
    #[arg(long, requires = "lora_rank", help_heading = "LoRA")]
    pub merge: bool,
    /// Share of captions replaced by the empty prompt, so that guidance keeps working
    #[arg(long, value_name = "P", default_value_t = 0.2, help_heading = "Method")]
    pub proportion_empty_prompts: f64,

    /// Side of the training images in pixels [default: what the UNet was made for]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub resolution: Option<usize>,
    /// Mirror images at random: each by itself (Diffusion-DPO), both of a pair together, or not
    #[arg(long, default_value_t = Augment::IndependentFlip, help_heading = "Data", value_parser = named::<Augment>())]
    pub augment: Augment,

    /// Keep a checkpoint in OUT_DIR/checkpoint-STEP every N steps (0: only at the end)
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = "Checkpoints")]
    pub checkpointing_steps: u64,
    /// Keep only the newest N of them
    #[arg(long, value_name = "N", help_heading = "Checkpoints")]
    pub checkpoints_total_limit: Option<NonZeroUsize>,
    /// How to store the published unet/; state/ keeps f32
    #[arg(long, default_value_t = Dtype::F32, help_heading = "Checkpoints", value_parser = named::<Dtype>())]
    pub save_dtype: Dtype,
    /// Log the distance from the base every N steps: it reads all weights
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Checkpoints")]
    pub drift_every: u64,

    /// What to do when the loss is no number, or above --spike times the usual
    #[arg(long, default_value_t = OnSpike::Stop, help_heading = "Runs", value_parser = named::<OnSpike>())]
    pub on_spike: OnSpike,
    /// How far above its mean over some 50 steps a loss is a spike; single losses of small batches go to ten times
    #[arg(long, value_name = "X", default_value_t = 20.0, help_heading = "Runs")]
    pub spike: f64,
    /// Where the numbers of each step go besides log.jsonl
    #[arg(long, default_value_t = ReportTo::None, help_heading = "Runs", value_parser = named::<ReportTo>())]
    pub report_to: ReportTo,
    /// Threads that read and prepare the data ahead (0: none); no result depends on it
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Runs")]
    pub dataloader_num_workers: usize,
    /// Take two steps, print what a run would take, and write nothing: -o is not needed
    #[arg(long, help_heading = "Runs")]
    pub dry_run: bool,

    /// Fetch models that are named by a hub id (org/name[@revision]) and are not in the cache
    #[arg(long)]
    pub allow_download: bool,
    #[command(flatten)]
    pub pasted: Pasted,
    #[command(flatten)]
    pub networks: Networks,
    #[command(flatten)]
    pub common: Common,
}

impl Args {
    /// Pairs an optimiser step.
    pub fn effective_batch(&self) -> usize {
        self.train_batch_size.get() * self.gradient_accumulation_steps.get()
    }

    /// What clap cannot see.
    pub fn check(&self) -> Result<()> {
        self.pasted.refuse()?;
        let sound = |x: f64| x >= 0.0 && x.is_finite();
        ensure!(self.max_train_steps > 0, "--max_train_steps is 0: nothing to do");
        ensure!(
            self.beta_dpo > 0.0 && self.beta_dpo.is_finite(),
            "--beta_dpo must be above 0, it is {}",
            self.beta_dpo
        );
        for (flag, value) in [
            ("--learning_rate", self.learning_rate),
            ("--adam_weight_decay", self.adam_weight_decay),
            ("--adam_epsilon", self.adam_epsilon),
            ("--lora_alpha", self.lora_alpha.unwrap_or_default()),
        ] {
            ensure!(sound(value), "{flag} must not be below 0, it is {value}");
        }
        ensure!(
            self.max_grad_norm.is_none_or(|norm| norm > 0.0),
            "--max_grad_norm must be above 0, it is {}; inf scales no gradient down",
            self.max_grad_norm.unwrap_or_default()
        );
        for (flag, value) in [("--adam_beta1", self.adam_beta1), ("--adam_beta2", self.adam_beta2)] {
            ensure!((0.0..1.0).contains(&value), "{flag} must lie between 0 and 1, it is {value}");
        }
        ensure!(
            (0.0..=1.0).contains(&self.proportion_empty_prompts),
            "--proportion_empty_prompts is a share between 0 and 1, it is {}",
            self.proportion_empty_prompts
        );
        ensure!(self.spike > 1.0, "--spike must be above 1, it is {}", self.spike);
        ensure!(
            (0.0..0.5).contains(&self.label_smoothing),
            "--label_smoothing is a probability below 0.5, it is {}",
            self.label_smoothing
        );
        let sft = self.objective().form == Form::Sft;
        ensure!(
            !sft || self.guard == Guard::None,
            "--guard holds the loser's gradient back, and with --loss sft the loser has none: leave one of them out"
        );
        ensure!(
            self.lora_rank.is_none() || self.reference_weights != Place::File,
            "--reference_weights file is for a reference that is a UNet of its own; with --lora_rank it shares the policy's: \
             leave it out"
        );
        ensure!(
            self.replay.is_none() || self.gradient_accumulation_steps.get() == 1,
            "--replay brings its own batches, one a step: leave out --gradient_accumulation_steps"
        );
        Ok(())
    }

    /// Where the VAE lies.
    pub fn vae_folder(&self) -> PathBuf {
        match &self.vae {
            Some(path) if path.join("vae").is_dir() => path.join("vae"),
            Some(path) => path.clone(),
            None => self.base.join("vae"),
        }
    }

    /// Side of the training images: as given, or the side that the UNet was made for, `factor` pixels a latent.
    pub fn resolution(&self, factor: usize) -> Result<usize> {
        match self.resolution {
            Some(side) => Ok(side),
            None => Ok(json::read::<UNetConfig>(&folder::unet(&self.base)?.join("config.json"))?.sample_size * factor),
        }
    }

    /// With hub ids replaced by the folders they stand for.
    pub fn with_models(self) -> Result<Self> {
        let resolve = |arg: &PathBuf| hub::resolve(arg, self.allow_download);
        let (base, policy) = (resolve(&self.base)?, self.policy.as_ref().map(resolve).transpose()?);
        let reference = self.reference.as_ref().map(resolve).transpose()?;
        let vae = self.vae.as_ref().map(resolve).transpose()?;
        self.pasted.check(&base)?;
        Ok(Self { base, vae, policy, reference, ..self })
    }

    /// Name, warm-up and, where it matters, length of the learning-rate schedule.
    pub fn schedule(&self) -> (String, u64, Option<u64>) {
        let ends = matches!(self.lr_scheduler, LrSchedule::Linear | LrSchedule::Cosine);
        let total = self.lr_total_steps.unwrap_or(self.max_train_steps);
        (format!("{:?}", self.lr_scheduler), self.lr_warmup_steps, ends.then_some(total))
    }

    /// How the reference moves.
    pub fn reference_mode(&self) -> Mode {
        match self.refresh_every {
            None => self.reference_mode,
            Some(0) => Mode::Frozen,
            Some(k) => Mode::Hard(k),
        }
    }

    /// The adapters to train, if not the whole UNet.
    pub fn lora(&self) -> Option<LoraConfig> {
        let rank = self.lora_rank?.get();
        Some(LoraConfig { rank, alpha: self.lora_alpha.unwrap_or(rank as f64), targets: self.lora_targets.clone() })
    }

    pub fn objective(&self) -> Objective {
        let form = if self.sft { Form::Sft } else { self.loss };
        Objective { form, beta: self.beta_dpo, smoothing: self.label_smoothing }
    }

    pub fn rule(&self) -> Rule {
        match self.optimizer {
            None | Some(OptimizerName::Adamw) if !self.use_adafactor => Rule::AdamW(AdamWConfig {
                beta1: self.adam_beta1,
                beta2: self.adam_beta2,
                eps: self.adam_epsilon,
                weight_decay: self.adam_weight_decay,
            }),
            _ => Rule::Adafactor(AdafactorConfig { weight_decay: self.adam_weight_decay }),
        }
    }

    /// The norm above which gradients are scaled down; Diffusion-DPO's code leaves Adafactor's alone.
    pub fn longest_gradient(&self) -> f64 {
        let usual = if matches!(self.rule(), Rule::AdamW(_)) { 1.0 } else { f64::INFINITY };
        self.max_grad_norm.unwrap_or(usual)
    }

    /// What the same command needs besides, to go on from its newest checkpoint.
    pub fn flags_to_go_on(&self) -> &'static str {
        match &self.resume_from_checkpoint {
            Some(path) if path.as_os_str() == LATEST => "",
            _ => "--resume_from_checkpoint latest",
        }
    }

    /// How far above the usual a loss is a spike, if that matters.
    pub fn spike_factor(&self) -> Option<f64> {
        (self.on_spike != OnSpike::Ignore).then_some(self.spike)
    }

    /// Learning rate of the step after `done` finished ones.
    pub fn rate(&self, done: u64) -> f64 {
        let scale = if self.scale_lr { self.effective_batch() as f64 } else { 1.0 };
        let total = self.lr_total_steps.unwrap_or(self.max_train_steps);
        self.learning_rate * scale * self.lr_scheduler.factor(done, self.lr_warmup_steps, total)
    }
}

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OptimizerName {
        Adamw = "adamw",
        /// As transformers', scale_parameter and relative_step off: a quarter of AdamW's memory; Diffusion-DPO's choice for SDXL
        Adafactor = "adafactor",
    }
}

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Moments {
        F32 = "f32",
        Bf16 = "bf16",
    }
}
