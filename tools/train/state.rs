//! Checkpoints of a run: what is published (unet/), what only a resumption needs (state/), and which is the newest.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use nets::{
    folder,
    lora::{self, Adapter, LoraConfig},
    optim::Optimizer,
    params::Params,
    unet::Trainable,
    weights::{self, Weights},
    write,
};
use pipe::{
    atomic,
    id::{hex, sha256},
    origin::Origin,
};
use serde::{Deserialize, Serialize};

type Map = serde_json::Map<String, serde_json::Value>;

use crate::{calm::Usual, reference::Reference};

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
    /// The adapters that are trained, where not the whole UNet is.
    #[serde(default)]
    pub lora: Option<LoraConfig>,
    /// The usual loss, to tell a spike by.
    #[serde(default)]
    pub usual: Usual,
    /// Steps whose pairs were passed over after a spike.
    #[serde(default)]
    pub skipped: u64,
}

/// How far the policy has come, as a share of the base's norm.
#[derive(Clone, Copy, Debug)]
pub struct Drift {
    /// |theta - theta_base| / |theta_base|
    pub base: f64,
    /// |theta - theta_reference| / |theta_base|
    pub reference: f64,
}

impl Drift {
    fn new(from_base: f64, from_reference: f64, size: f64) -> Self {
        let share = |square: f64| (square / size.max(f64::MIN_POSITIVE)).sqrt();
        Self { base: share(from_base), reference: share(from_reference) }
    }
}

/// Everything that moves during a run.
pub struct State {
    pub policy: Trainable,
    pub reference: Reference,
    pub optimizer: Optimizer,
    pub counters: Counters,
}

/// How weights are published.
pub struct Recipe {
    /// The UNet that training began with: its config.json, and under the adapters its weights.
    pub unet: PathBuf,
    pub dtype: DType,
    /// Adapters and base in one, too.
    pub merge: bool,
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
    /// Adapters are published merged into a UNet, too.
    #[serde(default)]
    merged: bool,
}

impl Saved {
    const KEY: &str = "train";

    /// All that the folder publishes.
    fn published(&self) -> impl Iterator<Item = &'static Published> {
        [self.counters.published()].into_iter().chain(self.merged.then_some(&UNET))
    }

    fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(STATE);
        let text = weights::metadata(&file)?.remove(Self::KEY);
        let text = text.with_context(|| format!("{} was not written by `train`", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} was not written by this `train`", file.display()))
    }
}

impl State {
    /// Moves the reference by `rate` of the way to the policy; from then on it is no longer what the command line named.
    pub fn move_reference(&mut self, rate: f64, scratch: &Path) -> Result<()> {
        self.reference.follow(&self.policy.params, rate, scratch)?;
        self.counters.reference = REFRESHED.into();
        Ok(())
    }

    /// SHA-256 of the weights of policy and reference, as they are now.
    pub fn hash(&self) -> Result<String> {
        let mut hashes = vec![];
        let mut add = |tensor: &Tensor| -> Result<()> {
            let values = tensor.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            hashes.extend(sha256(&bytes));
            Ok(())
        };
        for (name, var) in &self.policy.params {
            add(var)?;
            add(&self.reference.get(name, var.dims())?)?;
        }
        Ok(hex(&sha256(&hashes)))
    }

    /// How far the policy is from the base and from the reference of now.
    pub fn drift(&self, base: &Weights) -> Result<Drift> {
        let (mut from_base, mut from_reference, mut size) = (0.0, 0.0, 0.0);
        if let Some(config) = &self.counters.lora {
            for name in base.names() {
                size += ops::sum_of_squares(&base.raw(&name)?.to_dtype(DType::F32)?)?;
            }
            for module in lora::modules(self.policy.params.keys()) {
                let names = Adapter::names(&module);
                let [a, b] = names.each_ref().map(|name| &self.policy.params[name]);
                let policy = Adapter { a: a.as_detached_tensor(), b: b.as_detached_tensor(), scale: config.scale() };
                let moved = policy.delta()?;
                from_base += ops::sum_of_squares(&moved)?;
                let (a, b) = (self.reference.get(&names[0], a.dims())?, self.reference.get(&names[1], b.dims())?);
                let reference = Adapter { a, b, scale: config.scale() };
                from_reference += ops::sum_of_squares(&(moved - reference.delta()?)?)?;
            }
            return Ok(Drift::new(from_base, from_reference, size));
        }
        for (name, var) in &self.policy.params {
            let theta = var.as_detached_tensor();
            let theta0 = base.get(name, var.dims())?.to_dtype(DType::F32)?.to_device(var.device())?;
            from_base += ops::sum_of_squares(&(&theta - &theta0)?)?;
            from_reference += ops::sum_of_squares(&(theta - self.reference.get(name, var.dims())?)?)?;
            size += ops::sum_of_squares(&theta0)?;
        }
        Ok(Drift::new(from_base, from_reference, size))
    }

    /// The root mean square of the trained weights.
    pub fn weight_size(&self) -> Result<f64> {
        let (mut sum, mut n) = (0.0, 0);
        for var in self.policy.params.values() {
            sum += ops::sum_of_squares(&var.as_detached_tensor())?;
            n += var.elem_count();
        }
        Ok((sum / n as f64).sqrt())
    }

    /// Writes a checkpoint folder. The new weights are on the disk before state/ changes, and get their name after it: a
    /// run that is killed anywhere in between leaves the old checkpoint or the new one (`complete`).
    pub fn write(&self, folder: &Path, recipe: &Recipe, origin: &Origin) -> Result<()> {
        let origin = origin.clone().arg("step", self.counters.step);
        let mut kept: BTreeMap<_, _> = detached(&self.optimizer.moments).collect();
        if self.counters.reference == REFRESHED {
            for (name, var) in &self.policy.params {
                kept.insert(format!("reference.{name}"), self.reference.get(name, var.dims())?);
            }
        }
        // Published weights may be rounded; the run goes on from these.
        if recipe.dtype != DType::F32 {
            kept.extend(detached(&self.policy.params).map(|(n, t)| (format!("policy.{n}"), t)));
        }
        let published = detached(&self.policy.params).map(|(n, t)| Ok((n, t.to_dtype(recipe.dtype)?)));
        let published = published.collect::<Result<BTreeMap<_, _>>>()?;
        match &self.counters.lora {
            None => write::model(&folder.join(UNET.next), &recipe.unet, &published, &origin)?,
            Some(config) => lora::write(
                &folder.join(LORA.next),
                config,
                self.policy.unet.config.kohya_naming(),
                &published,
                &origin,
            )?,
        }
        let merges = self.counters.lora.as_ref().filter(|_| recipe.merge);
        if let Some(config) = merges {
            let base = Weights::open(&recipe.unet)?;
            let adapters = detached(&self.policy.params).collect();
            let merged = lora::merged(&base, config, &adapters)?.into_iter();
            let merged = merged.map(|(n, t)| Ok((n, t.to_dtype(recipe.dtype)?))).collect::<Result<_>>()?;
            write::model(&folder.join(UNET.next), &recipe.unet, &merged, &origin)?;
        }
        let saved = Saved { counters: self.counters.clone(), origin, merged: merges.is_some() };
        let text = serde_json::to_string(&saved)?;
        write::tensors(&folder.join(STATE), &kept, [(Saved::KEY.to_owned(), text)].into())?;
        saved.published().try_for_each(|which| adopt(folder, which))
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
            ("--lora_rank, --lora_alpha or --lora_targets", theirs.lora == ours.lora),
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
        let which = theirs.published();
        let published = Weights::open(&folder.join(which.folder).join(which.main))?;
        for (name, var) in &self.policy.params {
            let held = format!("policy.{name}");
            let name = format!("{}{name}", which.prefix);
            let tensor =
                if kept.has(&held) { kept.get(&held, var.dims())? } else { published.get(&name, var.dims())? };
            var.set(&tensor.to_dtype(DType::F32)?.to_device(var.device())?)?;
        }
        for (name, var) in &self.optimizer.moments {
            let other = || format!("{} was made with another --optimizer", folder.display());
            let moment = kept.get(name, var.dims()).with_context(other)?;
            ensure!(moment.dtype() == var.dtype(), "{} was made with another --moments", folder.display());
            var.set(&moment.to_device(var.device())?)?;
        }
        let refreshed = !named && theirs.reference == REFRESHED;
        if refreshed {
            self.reference.restore(&folder.join(STATE))?;
        }
        let reference = if refreshed { REFRESHED.to_owned() } else { ours.reference.clone() };
        self.counters = Counters { reference, named: ours.named.clone().or(theirs.named.clone()), ..theirs };
        Ok(())
    }
}

fn detached(params: &Params) -> impl Iterator<Item = (String, Tensor)> + '_ {
    params.iter().map(|(n, v)| (n.clone(), v.as_detached_tensor()))
}

/// `out/checkpoint-<step>`
pub fn checkpoint_path(out: &Path, step: u64) -> PathBuf {
    out.join(format!("checkpoint-{step}"))
}

/// Folders called `checkpoint-<step>` in `out`, whole or not, the oldest first.
fn called_checkpoints(out: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    let step = |name: &str| name.strip_prefix("checkpoint-")?.parse().ok();
    let mut all: Vec<_> = entries.filter_map(|e| Some((step(e.file_name().to_str()?)?, e.path()))).collect();
    all.sort();
    all
}

/// Whole checkpoints in `out`, the oldest first.
fn checkpoints(out: &Path) -> Vec<(u64, PathBuf)> {
    let mut all = called_checkpoints(out);
    all.retain(|(step, path)| complete(path).is_ok_and(|saved| saved.counters.step == *step));
    all
}

/// # Errors
/// A run from the start would mix its checkpoints with those that are in `out`.
pub fn refuse_earlier(out: &Path) -> Result<()> {
    if let Some((_, path)) = called_checkpoints(out).pop() {
        bail!(
            "{} is of an earlier run: add --resume_from_checkpoint latest to go on with that, choose another folder with -o, \
             or remove it",
            path.display()
        );
    }
    Ok(())
}

/// Removes what a kill left of checkpoints that were being written: folders without state/, and weights that wait for one. What
/// may be anybody else's stays.
pub fn tidy(out: &Path) -> Result<()> {
    let waiting = [UNET.next, LORA.next];
    let names = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name());
    let half = |folder: &Path| {
        let ours = |name: std::ffi::OsString| name == "state" || waiting.iter().any(|next| name == *next);
        folder.is_dir() && names(folder).all(ours) && !folder.join(STATE).exists()
    };
    let halves = called_checkpoints(out).into_iter().map(|(_, path)| path).filter(|path| half(path));
    let _ = complete(out); // weights that wait beside their state/ get their name
    let waiting = waiting.map(|name| out.join(name)).into_iter().filter(|path| path.is_dir());
    for path in halves.chain(waiting) {
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// What a checkpoint folder publishes.
struct Published {
    folder: &'static str,
    /// Where new weights wait until state/ is theirs.
    next: &'static str,
    /// Its files, the last of them `main`, whose metadata hold the origin.
    files: [&'static str; 2],
    main: &'static str,
    /// Before the names of tensors.
    prefix: &'static str,
}

const UNET: Published = Published {
    folder: "unet",
    next: "unet.partial",
    files: ["config.json", folder::DIFFUSERS_WEIGHTS],
    main: folder::DIFFUSERS_WEIGHTS,
    prefix: "",
};

const LORA: Published = Published {
    folder: "lora",
    next: "lora.partial",
    files: [lora::KOHYA_FILE, folder::ADAPTERS],
    main: folder::ADAPTERS,
    prefix: "unet.",
};

impl Counters {
    /// What a checkpoint of this run publishes.
    fn published(&self) -> &'static Published {
        if self.lora.is_some() { &LORA } else { &UNET }
    }
}

/// # Errors
/// The folder holds what a run of the other kind published, beside which this one's would be taken for the same.
pub fn refuse_other_kind(out: &Path, lora: bool) -> Result<()> {
    let [whole, adapters] = [UNET.folder, LORA.folder].map(|name| out.join(name).is_dir());
    let other = if lora { whole && !adapters } else { adapters };
    let of = if lora { "a whole UNet" } else { "adapters" };
    ensure!(!other, "{} holds {of} of another run; choose another folder with -o", out.display());
    Ok(())
}

/// Gives the waiting weights their name.
fn adopt(folder: &Path, which: &Published) -> Result<()> {
    let (next, now) = (folder.join(which.next), folder.join(which.folder));
    fs::create_dir_all(&now).with_context(|| format!("cannot write {}", now.display()))?;
    for file in which.files {
        if next.join(file).exists() {
            atomic::rename(&next.join(file), &now.join(file))?;
        }
    }
    fs::remove_dir_all(&next).with_context(|| format!("cannot remove {}", next.display()))
}

/// The counters of a checkpoint folder; finishes a write that was killed between state/ and the weights.
///
/// # Errors
/// State and weights do not belong together, or are missing.
fn complete(folder: &Path) -> Result<Saved> {
    let saved = Saved::read(folder)?;
    for which in saved.published() {
        let of = |name: &str| Weights::open(&folder.join(name).join(which.main)).ok().and_then(|w| w.origin());
        if of(which.folder).as_ref() != Some(&saved.origin) {
            let theirs = of(which.next).as_ref() == Some(&saved.origin);
            ensure!(theirs, "the weights in {} do not belong to its state/", folder.join(which.folder).display());
            adopt(folder, which)?;
        }
    }
    Ok(saved)
}

/// The newest of the checkpoints that a run keeps on its way.
pub fn newest(out: &Path) -> Option<PathBuf> {
    checkpoints(out).pop().map(|(_, path)| path)
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
