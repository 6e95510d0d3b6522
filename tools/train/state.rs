//! Checkpoints of a run: what is published (unet/), what only a resumption needs (state/), and which is the newest.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use nets::{
    base::unet_folder,
    checkpoint::{self, Params, Weights, read_json},
    optim::AdamW,
    unet::{Trainable, UNet},
};
use pipe::{atomic, origin::Origin};
use serde::{Deserialize, Serialize};

use crate::args::SaveDtype;

/// The counters of a run, and what must be the same for a resumption to be the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Optimiser steps done.
    pub step: u64,
    pub seed: u64,
    /// Pairs an optimiser step.
    pub effective_batch: usize,
    /// SHA-256 of the labels, or of the replay file.
    pub labels: String,
    /// SHA-256 of the reference's weights at the start, or "refreshed" when state/ holds them.
    pub reference: String,
}

/// Everything that moves during a run.
pub struct State {
    pub policy: Trainable,
    pub reference: Trainable,
    pub adam: AdamW,
    pub counters: Counters,
}

const REFRESHED: &str = "refreshed";

impl State {
    /// theta_reference <- theta, in place.
    pub fn refresh_reference(&mut self) -> Result<()> {
        for (name, reference) in &self.reference.params {
            reference.set(&self.policy.params[name].as_detached_tensor())?;
        }
        self.counters.reference = REFRESHED.into();
        Ok(())
    }

    /// Writes a checkpoint folder: state/ first, unet/ last, so that a folder with weights is whole.
    pub fn write(&self, folder: &Path, config_of: &Path, save: SaveDtype, origin: &Origin) -> Result<()> {
        let state = folder.join("state");
        let mut kept = BTreeMap::new();
        for (prefix, moments) in [("m", &self.adam.m), ("v", &self.adam.v)] {
            kept.extend(moments.iter().map(|(n, t)| (format!("{prefix}.{n}"), t.as_detached_tensor())));
        }
        if self.counters.reference == REFRESHED {
            kept.extend(detached(&self.reference.params).map(|(n, t)| (format!("reference.{n}"), t)));
        }
        // Published weights may be rounded; the run goes on from these.
        let rounded = save != SaveDtype::F32;
        if rounded {
            kept.extend(detached(&self.policy.params).map(|(n, t)| (format!("policy.{n}"), t)));
        }
        checkpoint::write(&state.join("optimizer.safetensors"), &kept, Default::default())?;
        let counters = serde_json::to_string_pretty(&self.counters)? + "\n";
        atomic::write(&state.join("counters.json"), counters.as_bytes())?;
        let dtype = match save {
            SaveDtype::F32 => DType::F32,
            SaveDtype::F16 => DType::F16,
            SaveDtype::Bf16 => DType::BF16,
        };
        let published = detached(&self.policy.params).map(|(n, t)| Ok((n, t.to_dtype(dtype)?)));
        checkpoint::write_model(&folder.join("unet"), config_of, &published.collect::<Result<_>>()?, origin)
    }

    /// Takes policy, moments, counters and (once refreshed) the reference from a checkpoint folder. `reference_given`:
    /// the command line names a reference, which then stays.
    ///
    /// # Errors
    /// No checkpoint of `train`; another seed, batch, labels or reference, with which it would not be the same run.
    pub fn resume(&mut self, folder: &Path, reference_given: bool) -> Result<()> {
        let theirs: Counters = read_json(&folder.join("state/counters.json"))
            .with_context(|| format!("{} is not a checkpoint of `train`", folder.display()))?;
        let ours = &self.counters;
        let same = [
            ("--seed", theirs.seed == ours.seed),
            (
                "batch (--train_batch_size times --gradient_accumulation_steps)",
                theirs.effective_batch == ours.effective_batch,
            ),
            ("--labels", theirs.labels == ours.labels),
            (
                "--reference (the run measured against a reference that its state does not hold: name it)",
                reference_given || theirs.reference == REFRESHED || theirs.reference == ours.reference,
            ),
        ];
        for (what, same) in same {
            ensure!(
                same,
                "{} was made with another {what}; to begin a new run from its weights, give it as --policy instead",
                folder.display()
            );
        }
        let kept = Weights::open(&folder.join("state/optimizer.safetensors"))?;
        let unet = Weights::open(&folder.join("unet"))?;
        for (name, var) in &self.policy.params {
            let held = format!("policy.{name}");
            let tensor = if kept.has(&held) { kept.get(&held, var.dims())? } else { unet.get(name, var.dims())? };
            var.set(&tensor.to_dtype(DType::F32)?.to_device(var.device())?)?;
        }
        for (prefix, moments) in [("m", &self.adam.m), ("v", &self.adam.v)] {
            for (name, var) in moments {
                var.set(&kept.get(&format!("{prefix}.{name}"), var.dims())?.to_device(var.device())?)?;
            }
        }
        let reference = match (reference_given, theirs.reference == REFRESHED) {
            (false, true) => {
                for (name, var) in &self.reference.params {
                    var.set(&kept.get(&format!("reference.{name}"), var.dims())?.to_device(var.device())?)?;
                }
                REFRESHED.to_owned()
            }
            _ => ours.reference.clone(),
        };
        self.counters = Counters { reference, ..theirs };
        Ok(())
    }
}

fn detached(params: &Params) -> impl Iterator<Item = (String, Tensor)> + '_ {
    params.iter().map(|(n, v)| (n.clone(), v.as_detached_tensor()))
}

/// A UNet from a checkpoint or base folder, and the SHA-256 of its weights. The reference sees its variables untracked.
pub fn open_unet(path: &Path, device: &Device, detached: bool) -> Result<(Trainable, String)> {
    let folder = unet_folder(path)?;
    Ok((UNet::open_variables(&folder, device, detached)?, Weights::open(&folder)?.hash()?))
}

/// `out/checkpoint-<step>`
pub fn checkpoint_path(out: &Path, step: u64) -> PathBuf {
    out.join(format!("checkpoint-{step}"))
}

/// Whole checkpoints in `out`, the oldest first.
fn checkpoints(out: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|e| {
            let step = e.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok()?;
            Some((step, e.path()))
        })
        .filter(|(_, p)| is_whole(p))
        .collect();
    all.sort();
    all
}

fn is_whole(folder: &Path) -> bool {
    folder.join("unet").join(checkpoint::DIFFUSERS_WEIGHTS).is_file() && folder.join("state/counters.json").is_file()
}

/// The newest checkpoint in `out`: one of `checkpoint-<step>`, or `out` itself where a run ended.
pub fn latest(out: &Path) -> Option<PathBuf> {
    if is_whole(out) {
        return Some(out.to_owned());
    }
    checkpoints(out).pop().map(|(_, path)| path)
}

/// Removes all but the newest `limit` checkpoints.
pub fn prune(out: &Path, limit: usize) -> Result<()> {
    let all = checkpoints(out);
    for (_, path) in &all[..all.len().saturating_sub(limit)] {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
