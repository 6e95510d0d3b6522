//! How a run starts: with fresh moments, or from a checkpoint.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use nets::{optim::Optimizer, weights::Weights};
use pipe::origin::Origin;

use crate::checkpoints::{self, CheckpointFlags, Checkpoints};
use crate::models::{LoraFlags, ModelFlags, Models};
use crate::state::{Counters, State};
use crate::{optimiser::OptimiserFlags, reference::ReferenceFlags, spikes::LossHistory, training_data::TrainingData};

/// Everything that a state is made from.
pub struct Setup {
    pub models: ModelFlags,
    pub lora: LoraFlags,
    pub reference: ReferenceFlags,
    pub optimiser: OptimiserFlags,
    pub seed: u64,
    pub pairs_per_step: usize,
    /// SHA-256 of the labels, or of the replay file.
    pub labels: String,
    /// The type that the networks compute in.
    pub compute: DType,
    pub device: Device,
}

pub struct Start {
    pub state: State,
    pub checkpoints: Checkpoints,
    pub message: Option<String>,
}

impl Start {
    /// The inputs that must be equal in all processes before they begin, by name and content.
    pub fn identity(&self) -> Result<[(&'static str, String); 5]> {
        let origin = &self.checkpoints.origin;
        let steps = "number of finished steps (is the output folder on a disk that all share?)";
        Ok([
            ("settings", serde_json::to_string(&origin.args)?),
            ("data or labels", serde_json::to_string(&origin.inputs)?),
            ("models", serde_json::to_string(&origin.models)?),
            (steps, self.state.counters.step.to_string()),
            ("weights", self.state.hash()?),
        ])
    }
}

impl Setup {
    /// The state to start from: fresh, or that of the checkpoint to continue from. `settings`: the origin of the weights as far as
    /// the flags decide it. `out`: the output folder; a dry run may have none.
    pub fn start(
        &self,
        data: &TrainingData,
        settings: Origin,
        flags: &CheckpointFlags,
        out: Option<&Path>,
        dry_run: bool,
    ) -> Result<Start> {
        let written = out.filter(|_| !dry_run);
        if let Some(out) = out {
            checkpoints::refuse_other_kind(out, self.lora.config().is_some())?;
        }
        if let Some(out) = written.filter(|_| !flags.resumes()) {
            checkpoints::refuse_earlier(out)?;
        }
        let (mut state, hashes, unet) = self.fresh()?;
        let policy = self.models.policy.as_ref().unwrap_or(&self.models.base);
        let models = || format!("{} and {}", policy.display(), self.models.base.display());
        data.check(&state.policy.denoiser.config).with_context(models)?;
        let origin = data.describe(self.describe(settings, hashes, &unet)?, &self.models)?;
        let resumption = flags.resumption(out, &origin)?;
        let message = match &resumption {
            Some(checkpoint) => Some(self.resume(&mut state, checkpoint)?),
            None if flags.resumes() => Some("there is no checkpoint to continue from: the run begins at step 1".into()),
            None => None,
        };
        let out = written.map_or_else(std::env::temp_dir, Path::to_owned); // a dry run only needs scratch space
        let base = self.models.base.clone();
        let checkpoints = Checkpoints { out, flags: flags.clone(), origin, unet, base, merge: self.lora.merge };
        if written.is_some() && flags.resumes() {
            checkpoints.tidy(state.counters.step)?;
        }
        Ok(Start { state, checkpoints, message })
    }

    /// The state that a checkpoint of the same run holds. The networks are opened again, because a reference that has been
    /// refreshed since is no longer the one at the start.
    pub fn restore(&self, checkpoint: &Path) -> Result<State> {
        let (mut state, ..) = self.fresh()?;
        checkpoints::sound(checkpoint)?;
        checkpoints::resume(&mut state, checkpoint)?;
        Ok(state)
    }

    /// A state before its first step, the SHA-256 of the weights of policy and reference, and the folder of the UNet that training
    /// starts from.
    fn fresh(&self) -> Result<(State, [String; 2], PathBuf)> {
        let lora = self.lora.config();
        let Models { policy, reference, hashes, unet } = match &lora {
            None => Models::whole(&self.models, &self.reference, self.compute, &self.device)?,
            Some(config) => Models::adapted(&self.models, config, self.seed, &self.device)?,
        };
        let optimizer = Optimizer::new(&policy.params, self.optimiser.rule(), self.optimiser.moments())?;
        let counters = Counters {
            step: 0,
            seed: self.seed,
            effective_batch: self.pairs_per_step,
            labels: self.labels.clone(),
            reference: hashes[1].clone(),
            named: self.models.reference.as_ref().map(|_| hashes[1].clone()),
            lora,
            losses: LossHistory::default(),
            skipped: 0,
            part: policy.denoiser.config.part.into(),
            margins: None,
        };
        Ok((State { policy, reference, optimizer, counters }, hashes, unet))
    }

    /// Adds the trained networks to the origin of the weights.
    fn describe(&self, origin: Origin, [policy, reference]: [String; 2], unet: &Path) -> Result<Origin> {
        let origin = origin.model("policy", policy).model("reference", reference);
        let Some(config) = self.lora.config() else { return Ok(origin) };
        let adapted = Weights::open(unet)?.hash()?;
        Ok(origin.arg("lora", serde_json::to_value(&config)?).model("adapted", adapted))
    }

    fn resume(&self, state: &mut State, checkpoint: &Path) -> Result<String> {
        checkpoints::resume(state, checkpoint)?;
        let (done, all, name) = (state.counters.step, self.optimiser.max_train_steps, checkpoint.display());
        ensure!(
            done <= all,
            "{name} has finished {done} steps, and --max-train-steps is {all}: name more steps, or an earlier checkpoint"
        );
        Ok(match done == all {
            true => format!("{name} has finished all {all} steps of --max-train-steps: there is nothing to do"),
            false => format!("continuing after step {done} of {name}"),
        })
    }
}
