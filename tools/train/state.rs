//! Checkpoints of a run: what is published (unet/), what only a resumption needs (state/), and which is the newest.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use nets::{
    base::unet_folder,
    checkpoint::{self, Params, Weights},
    optim::{self, AdamW},
    unet::{Trainable, UNet},
};
use pipe::{atomic, origin::Origin};
use serde::{Deserialize, Serialize};

type Map = serde_json::Map<String, serde_json::Value>;

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
    /// SHA-256 of the reference that the command line named, if it did.
    pub named: Option<String>,
}

/// Everything that moves during a run.
pub struct State {
    pub policy: Trainable,
    pub reference: Trainable,
    pub adam: AdamW,
    pub counters: Counters,
}

const REFRESHED: &str = "refreshed";

/// The one file in state/, so that moments, reference and counters appear together.
const STATE: &str = "state/optimizer.safetensors";

/// The metadata of that file.
#[derive(Serialize, Deserialize)]
struct Saved {
    counters: Counters,
    /// The origin of the weights that belong to it: a folder in which the two differ is not whole.
    origin: Origin,
}

impl Saved {
    const KEY: &str = "train";

    fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(STATE);
        let text = checkpoint::metadata(&file)?.remove(Self::KEY);
        let text = text.with_context(|| format!("{} was not written by `train`", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} was not written by this `train`", file.display()))
    }
}

impl State {
    /// theta_reference <- theta, in place.
    pub fn refresh_reference(&mut self) -> Result<()> {
        for (name, reference) in &self.reference.params {
            reference.set(&self.policy.params[name].as_detached_tensor())?;
        }
        self.counters.reference = REFRESHED.into();
        Ok(())
    }

    /// |theta - theta_base| / |theta_base| over all tensors.
    pub fn drift(&self, base: &Weights) -> Result<f64> {
        let (mut moved, mut size) = (BTreeMap::new(), BTreeMap::new());
        for (name, var) in &self.policy.params {
            let theta0 = base.get(name, var.dims())?.to_dtype(DType::F32)?.to_device(var.device())?;
            moved.insert(name.clone(), (var.as_detached_tensor() - &theta0)?);
            size.insert(name.clone(), theta0);
        }
        Ok(optim::global_norm(&moved)? / optim::global_norm(&size)?.max(f64::MIN_POSITIVE))
    }

    /// Writes a checkpoint folder. The new weights are on the disk before state/ changes, and get their name after it: a
    /// run that is killed anywhere in between leaves the old checkpoint or the new one (`complete`).
    pub fn write(&self, folder: &Path, config_of: &Path, save: SaveDtype, origin: &Origin) -> Result<()> {
        let origin = origin.clone().arg("step", self.counters.step);
        let mut kept = BTreeMap::new();
        for (prefix, moments) in [("m", &self.adam.m), ("v", &self.adam.v)] {
            kept.extend(moments.iter().map(|(n, t)| (format!("{prefix}.{n}"), t.as_detached_tensor())));
        }
        if self.counters.reference == REFRESHED {
            kept.extend(detached(&self.reference.params).map(|(n, t)| (format!("reference.{n}"), t)));
        }
        // Published weights may be rounded; the run goes on from these.
        if save != SaveDtype::F32 {
            kept.extend(detached(&self.policy.params).map(|(n, t)| (format!("policy.{n}"), t)));
        }
        let dtype = match save {
            SaveDtype::F32 => DType::F32,
            SaveDtype::F16 => DType::F16,
            SaveDtype::Bf16 => DType::BF16,
        };
        let published = detached(&self.policy.params).map(|(n, t)| Ok((n, t.to_dtype(dtype)?)));
        let next = folder.join(NEXT);
        checkpoint::write_model(&next, config_of, &published.collect::<Result<_>>()?, &origin)?;
        let saved = serde_json::to_string(&Saved { counters: self.counters.clone(), origin })?;
        checkpoint::write(&folder.join(STATE), &kept, [(Saved::KEY.to_owned(), saved)].into())?;
        adopt(folder)
    }

    /// Takes policy, moments, counters and (once refreshed) the reference from a checkpoint folder. A reference that the
    /// command line names now and did not name then goes before the state's.
    ///
    /// # Errors
    /// No checkpoint of `train`; another seed, batch, labels or reference, with which it would not be the same run.
    pub fn resume(&mut self, folder: &Path) -> Result<()> {
        let say = || format!("{} is not a whole checkpoint of `train`", folder.display());
        let theirs = complete(folder).with_context(say)?.counters;
        let named = self.counters.named.is_some() && self.counters.named != theirs.named;
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
                named || theirs.reference == REFRESHED || theirs.reference == ours.reference,
            ),
        ];
        for (what, same) in same {
            ensure!(
                same,
                "{} was made with another {what}; to begin a new run from its weights, give it as --policy instead",
                folder.display()
            );
        }
        let kept = Weights::open(&folder.join(STATE))?;
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
        let refreshed = !named && theirs.reference == REFRESHED;
        if refreshed {
            for (name, var) in &self.reference.params {
                var.set(&kept.get(&format!("reference.{name}"), var.dims())?.to_device(var.device())?)?;
            }
        }
        let reference = if refreshed { REFRESHED.to_owned() } else { ours.reference.clone() };
        self.counters = Counters { reference, named: ours.named.clone().or(theirs.named.clone()), ..theirs };
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
            complete(&e.path()).is_ok_and(|saved| saved.counters.step == step).then(|| (step, e.path()))
        })
        .collect();
    all.sort();
    all
}

/// Where new weights wait until state/ is theirs.
const NEXT: &str = "unet.partial";

/// Gives the waiting weights their name.
fn adopt(folder: &Path) -> Result<()> {
    let (next, unet) = (folder.join(NEXT), folder.join("unet"));
    fs::create_dir_all(&unet).with_context(|| format!("cannot write {}", unet.display()))?;
    for file in ["config.json", checkpoint::DIFFUSERS_WEIGHTS] {
        if next.join(file).exists() {
            atomic::rename(&next.join(file), &unet.join(file))?;
        }
    }
    fs::remove_dir_all(&next).with_context(|| format!("cannot remove {}", next.display()))
}

/// The counters of a checkpoint folder; finishes a write that was killed between state/ and unet/.
///
/// # Errors
/// State and weights do not belong together, or are missing.
fn complete(folder: &Path) -> Result<Saved> {
    let saved = Saved::read(folder)?;
    let of = |unet: &str| Weights::open(&folder.join(unet)).ok().and_then(|w| w.origin());
    if of("unet").as_ref() != Some(&saved.origin) {
        let theirs = of(NEXT).as_ref() == Some(&saved.origin);
        ensure!(theirs, "the weights in {} do not belong to its state/", folder.join("unet").display());
        adopt(folder)?;
    }
    Ok(saved)
}

/// The newest checkpoint in `out`: one of `checkpoint-<step>`, or `out` itself where a run ended.
///
/// # Errors
/// It was made with other settings than `origin` says: to go on from it must be asked for by its name.
pub fn latest(out: &Path, origin: &Origin) -> Result<Option<PathBuf>> {
    let ended = complete(out).ok().map(|saved| (saved.counters.step, out.to_owned()));
    let Some((_, newest)) = checkpoints(out).into_iter().chain(ended).max() else { return Ok(None) };
    let theirs = complete(&newest)?.origin;
    if let Some(what) = difference(origin, &theirs) {
        bail!(
            "{} was made with another {what}: name it with --resume_from_checkpoint to go on from it all the same, or \
             choose another folder with -o",
            newest.display()
        );
    }
    Ok(Some(newest))
}

/// The first setting, model or input in which two runs differ.
fn difference(ours: &Origin, theirs: &Origin) -> Option<String> {
    let other = |a: &Map, b: &Map| {
        let differs = |key: &&String| *key != "step" && a.get(*key) != b.get(*key);
        a.keys().chain(b.keys()).find(differs).cloned()
    };
    other(&ours.args, &theirs.args)
        .or_else(|| other(&ours.models, &theirs.models))
        .or_else(|| (ours.inputs != theirs.inputs).then(|| "input table".into()))
}

/// Removes all but the newest `limit` checkpoints.
pub fn prune(out: &Path, limit: usize) -> Result<()> {
    let all = checkpoints(out);
    for (_, path) in &all[..all.len().saturating_sub(limit)] {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
