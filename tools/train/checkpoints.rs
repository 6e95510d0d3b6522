//! The checkpoint folders of a run: what is published (unet/, transformer/ or lora/), what only a resumption needs (state/), which checkpoint
//! is the newest, and which may be removed.

use std::path::{Path, PathBuf};
use std::{collections::BTreeMap, ffi::OsString, fs, num::NonZeroUsize};

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use nets::weights::{self, Weights};
use nets::{folder, lora, modelspec::ModelSpec, write};
use pipe::{atomic, cli::named, device::Dtype, origin::Origin};
use serde::{Deserialize, Serialize};

use crate::reference::{detached, whole};
use crate::state::{Counters, REFRESHED, State};

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Checkpoints")]
pub struct CheckpointFlags {
    /// Continue from a checkpoint folder of `train`; `checkpoint-STEP` may lie in the output folder. `latest`, or no value: the
    /// newest in the output folder, if there is one
    #[arg(long, visible_alias = "resume", value_name = "DIR|latest", num_args = 0..=1, default_missing_value = LATEST)]
    resume_from_checkpoint: Option<PathBuf>,
    /// Write a checkpoint to OUT_DIR/checkpoint-STEP every N steps (0: only at the end)
    #[arg(long, value_name = "N", default_value_t = 500)]
    checkpointing_steps: u64,
    /// Keep only the newest N of these checkpoints. A checkpoint from a stopped run is also kept, until the next regular one
    #[arg(long, value_name = "N")]
    checkpoints_total_limit: Option<NonZeroUsize>,
    /// Number format of the published unet/; state/ always keeps f32
    #[arg(long, default_value_t = Dtype::F32, value_parser = named::<Dtype>())]
    save_dtype: Dtype,
}

/// The value of --resume-from-checkpoint that means the newest checkpoint in the output folder.
const LATEST: &str = "latest";

impl CheckpointFlags {
    pub fn resumes(&self) -> bool {
        self.resume_from_checkpoint.is_some()
    }

    fn resumes_latest(&self) -> bool {
        self.resume_from_checkpoint.as_ref().is_some_and(|path| path.as_os_str() == LATEST)
    }

    /// The flags that must be added to this command so that it continues from its newest checkpoint.
    pub fn flags_to_continue(&self) -> &'static str {
        if self.resumes_latest() { "" } else { "--resume-from-checkpoint latest" }
    }

    /// The checkpoint to continue from, if one was asked for and, in case of `latest`, exists.
    pub fn resumption(&self, out: Option<&Path>, origin: &Origin) -> Result<Option<PathBuf>> {
        if self.resumes_latest() {
            let no_output = "--resume-from-checkpoint latest is the newest in the output folder: name it with -o";
            return latest(out.context(no_output)?, origin);
        }
        let Some(named) = &self.resume_from_checkpoint else { return Ok(None) };
        let inside = out.zip(named.file_name()).map(|(out, name)| out.join(name)).filter(|inside| inside.is_dir());
        let is_name = named.components().count() == 1;
        if let Some(inside) = inside.as_ref().filter(|_| is_name) {
            let both = named.exists() && named.canonicalize()? != inside.canonicalize()?;
            let (named, inside) = (named.display(), inside.display());
            ensure!(!both, "--resume-from-checkpoint {named}: there is also {inside}; write {inside}, or ./{named}");
        }
        let found = inside.as_ref().filter(|_| is_name).unwrap_or(named);
        let hint = match &inside {
            Some(inside) if inside != found => format!(" (there is {})", inside.display()),
            _ => String::new(),
        };
        sound(found).with_context(|| format!("{} is not a whole checkpoint of `train`{hint}", found.display()))?;
        Ok(Some(found.clone()))
    }
}

pub struct Checkpoints {
    pub out: PathBuf,
    pub flags: CheckpointFlags,
    pub origin: Origin,
    /// The UNet that training started from: its config.json, and with adapters its weights.
    pub unet: PathBuf,
    pub base: PathBuf,
    /// Also publish the UNet with the adapters added to its weights.
    pub merge: bool,
}

impl Checkpoints {
    pub fn due(&self, step: u64) -> bool {
        self.flags.checkpointing_steps > 0 && step.is_multiple_of(self.flags.checkpointing_steps)
    }

    /// Writes `checkpoint-<step>` and removes the oldest beyond the limit.
    pub fn add(&self, state: &State) -> Result<()> {
        self.write(&self.out.join(format!("checkpoint-{}", state.counters.step)), state)?;
        self.prune()
    }

    /// Writes the last checkpoint of the run, into the output folder itself.
    pub fn finish(&self, state: &State) -> Result<()> {
        self.write(&self.out, state)
    }

    pub fn newest(&self) -> Option<PathBuf> {
        complete_checkpoints(&self.out).pop().map(|(_, path)| path)
    }

    /// Puts the output folder in order before a run continues in it after `step` steps: removes what a killed run left of
    /// unfinished checkpoints, and weights that wait for their state/. Files that may belong to somebody else stay.
    /// A folder of somebody else that the run would write is an error.
    pub fn tidy(&self, step: u64) -> Result<()> {
        let (unfinished, others): (Vec<_>, _) =
            named_checkpoints(&self.out).into_iter().partition(|(_, path)| unfinished(path));
        if let Some((_, path)) = others.iter().find(|(theirs, path)| *theirs > step && !path.join(STATE).exists()) {
            bail!("{} has no {STATE} of `train`, and this run would write there: move it elsewhere", path.display());
        }
        let _ = complete(&self.out); // renames weights that wait beside their state/
        let waiting = Published::all().map(|which| self.out.join(which.next())).filter(|path| path.is_dir());
        unfinished.into_iter().map(|(_, path)| path).chain(waiting).try_for_each(|path| remove(&path))?;
        // A run that continues from its newest checkpoint no longer needs the older ones.
        if self.flags.resumes_latest() { self.prune() } else { Ok(()) }
    }

    /// How many regular checkpoints a run writes from step `done` to step `last`, which has one of its own.
    pub fn to_come(&self, done: u64, last: u64) -> u64 {
        let up_to = |step: u64| step.checked_div(self.flags.checkpointing_steps).unwrap_or(0);
        up_to(last.saturating_sub(1)).saturating_sub(up_to(done))
    }

    /// How many regular checkpoints are kept at most.
    pub fn limit(&self) -> Option<usize> {
        self.flags.checkpoints_total_limit.map(NonZeroUsize::get)
    }

    /// How many regular checkpoints are there.
    pub fn there(&self) -> usize {
        complete_checkpoints(&self.out).into_iter().filter(|(step, _)| self.due(*step)).count()
    }

    fn prune(&self) -> Result<()> {
        let Some(limit) = self.flags.checkpoints_total_limit else { return Ok(()) };
        let all = complete_checkpoints(&self.out);
        // A stop writes a checkpoint at any step. It does not replace a regular checkpoint, so the run ends as if it had not been stopped.
        let (regular, of_stops): (Vec<_>, Vec<_>) = all.into_iter().partition(|(step, _)| self.due(*step));
        let newest = regular.last().map_or(0, |(step, _)| *step);
        let old = &regular[..regular.len().saturating_sub(limit.get())];
        old.iter().chain(of_stops.iter().filter(|(step, _)| *step < newest)).try_for_each(|(_, path)| remove(path))
    }

    /// Writes a checkpoint folder. The new weights are on the disk before state/ changes, and are renamed into place after it:
    /// a run that is killed anywhere in between leaves the old checkpoint or the new one (see `complete`).
    fn write(&self, folder: &Path, state: &State) -> Result<()> {
        let origin = self.origin.clone().arg("step", state.counters.step);
        let mut kept: BTreeMap<_, _> = detached(&state.optimizer.moments).collect();
        if state.counters.reference == REFRESHED {
            for (name, var) in &state.policy.params {
                kept.insert(format!("reference.{name}"), state.reference.get(name, var.dims())?);
            }
            kept.extend(state.policy.constants.iter().map(|(n, t)| (format!("reference.{n}"), t.clone())));
        }
        // Published weights may be rounded; the run continues from these.
        let dtype = self.dtype();
        if dtype != DType::F32 {
            kept.extend(detached(&state.policy.params).map(|(n, t)| (format!("policy.{n}"), t)));
        }
        let waiting = self.publish(folder, state, &origin)?;
        let saved = Saved { counters: state.counters.clone(), origin, merged: self.merge, summed: true };
        let text = serde_json::to_string(&saved)?;
        write::tensors(&folder.join(STATE), &kept, [(Saved::KEY.to_owned(), text)].into())?;
        waiting.into_iter().try_for_each(|(which, files)| adopt(folder, &which, &files))
    }

    /// Writes the weights under the names at which they wait for their state/. Returns the files that wait.
    fn publish(&self, folder: &Path, state: &State, origin: &Origin) -> Result<Vec<(Published, Vec<&'static str>)>> {
        let rounded = |tensors: BTreeMap<String, candle_core::Tensor>| {
            let tensors = tensors.into_iter().map(|(n, t)| Ok((n, t.to_dtype(self.dtype())?)));
            tensors.collect::<Result<BTreeMap<_, _>>>()
        };
        let of_whole = state.counters.whole();
        let next = folder.join(of_whole.next());
        let Some(config) = &state.counters.lora else {
            write::model(&next, &self.unet, &rounded(whole(&state.policy))?, origin)?;
            return Ok(vec![(of_whole, of_whole.files.to_vec())]);
        };
        let trained: BTreeMap<_, _> = detached(&state.policy.params).collect();
        let adapters = rounded(trained.clone())?;
        let spec = ModelSpec::open(&self.unet, &self.base)?.lora("LoRA");
        let denoiser = &state.policy.denoiser.config;
        let files = lora::write(&folder.join(LORA.next()), config, denoiser, &adapters, &spec, origin)?;
        let mut waiting = vec![(LORA, files)];
        if self.merge {
            let merged = lora::merged(&Weights::open(&self.unet)?, config, &trained)?;
            write::model(&next, &self.unet, &rounded(merged)?, origin)?;
            waiting.push((of_whole, of_whole.files.to_vec()));
        }
        Ok(waiting)
    }

    pub fn dtype(&self) -> DType {
        weights::dtype(self.flags.save_dtype)
    }
}

/// Takes policy, moments, counters and (once refreshed) the reference from a checkpoint folder. If the command line names
/// a new reference, it replaces the saved one. A run with another seed, batch, labels or reference is refused.
pub fn resume(state: &mut State, folder: &Path) -> Result<()> {
    let name = folder.display();
    let theirs = complete(folder).with_context(|| format!("{name} is not a whole checkpoint of `train`"))?.counters;
    refuse_other_run(&state.counters, &theirs, folder)?;
    let kept = Weights::open(&folder.join(STATE))?;
    let which = theirs.published();
    let prefix = if theirs.lora.is_some() { format!("{}.", theirs.part) } else { String::new() };
    let published = Weights::open(&folder.join(which.folder).join(which.main))?;
    for (name, var) in &state.policy.params {
        let exact = format!("policy.{name}");
        let tensor = match kept.has(&exact) {
            true => kept.get(&exact, var.dims())?,
            false => published.get(&format!("{prefix}{name}"), var.dims())?,
        };
        var.set(&tensor.to_dtype(DType::F32)?.to_device(var.device())?)?;
    }
    for (moment, var) in &state.optimizer.moments {
        let saved = kept.get(moment, var.dims());
        let saved = saved.with_context(|| format!("{name} was made with another --optimizer"))?;
        ensure!(saved.dtype() == var.dtype(), "{name} was made with another --moments");
        var.set(&saved.to_device(var.device())?)?;
    }
    let ours = state.counters.clone();
    let refreshed = !names_new_reference(&ours, &theirs) && theirs.reference == REFRESHED;
    if refreshed {
        state.reference.restore(&folder.join(STATE))?;
    }
    let reference = if refreshed { REFRESHED.to_owned() } else { ours.reference };
    state.counters = Counters { reference, named: ours.named.or(theirs.named.clone()), ..theirs };
    Ok(())
}

fn names_new_reference(ours: &Counters, theirs: &Counters) -> bool {
    ours.named.is_some() && ours.named != theirs.named
}

fn refuse_other_run(ours: &Counters, theirs: &Counters, folder: &Path) -> Result<()> {
    let same_reference = theirs.reference == REFRESHED || theirs.reference == ours.reference;
    let checks = [
        ("--seed", theirs.seed == ours.seed),
        (
            "batch (--train-batch-size times --gradient-accumulation-steps)",
            theirs.effective_batch == ours.effective_batch,
        ),
        ("--labels", theirs.labels == ours.labels),
        ("--lora-rank, --lora-alpha or --lora-targets", theirs.lora == ours.lora),
        (
            "--reference, which its state does not hold: name that reference",
            names_new_reference(ours, theirs) || same_reference,
        ),
    ];
    for (what, same) in checks {
        ensure!(
            same,
            "{} was made with another {what}; to start a new run from its weights, give it as --policy instead",
            folder.display()
        );
    }
    Ok(())
}

/// The one file in state/, so that moments, reference and counters appear together.
const STATE: &str = "state/optimizer.safetensors";

#[derive(Serialize, Deserialize)]
pub struct Saved {
    counters: Counters,
    /// The origin of the weights that belong to the state. A folder in which the two differ is not a whole checkpoint.
    origin: Origin,
    /// Whether the UNet with the adapters added to its weights is published too.
    #[serde(default)]
    merged: bool,
    #[serde(default)]
    summed: bool,
}

impl Saved {
    const KEY: &str = "train";

    fn published(&self) -> impl Iterator<Item = Published> {
        [self.counters.published()].into_iter().chain(self.merged.then(|| self.counters.whole()))
    }

    fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(STATE);
        let text = weights::metadata(&file)?.remove(Self::KEY);
        let text = text.with_context(|| format!("{} was not written by `train`", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} was not written by this `train`", file.display()))
    }
}

/// What a checkpoint publishes: a denoiser under the name of its folder, or its adapters.
#[derive(Clone, Copy)]
struct Published {
    folder: &'static str,
    /// The files in the folder; the last is `main`, whose metadata hold the origin.
    files: [&'static str; 2],
    main: &'static str,
}

const LORA: Published =
    Published { folder: "lora", files: [lora::KOHYA_FILE, folder::ADAPTERS], main: folder::ADAPTERS };

impl Published {
    const fn whole(folder: &'static str) -> Self {
        Self { folder, files: ["config.json", folder::DIFFUSERS_WEIGHTS], main: folder::DIFFUSERS_WEIGHTS }
    }

    /// All kinds of them.
    fn all() -> impl Iterator<Item = Self> {
        folder::DENOISERS.into_iter().map(Self::whole).chain([LORA])
    }

    /// Where new weights wait for their state/: a name that only an unfinished write leaves.
    fn next(&self) -> String {
        format!("{}.partial", self.folder)
    }
}

impl Counters {
    /// What a checkpoint of this run publishes.
    fn published(&self) -> Published {
        if self.lora.is_some() { LORA } else { self.whole() }
    }

    /// How the whole denoiser is published.
    fn whole(&self) -> Published {
        let part = folder::DENOISERS.into_iter().find(|part| *part == self.part);
        Published::whole(part.unwrap_or(folder::DENOISER))
    }
}

/// Renames the waiting `files` into place. One that has vanished is an error.
fn adopt(folder: &Path, which: &Published, files: &[&str]) -> Result<()> {
    let (next, now) = (folder.join(which.next()), folder.join(which.folder));
    fs::create_dir_all(&now).with_context(|| format!("cannot write {}", now.display()))?;
    files.iter().try_for_each(|file| atomic::rename(&next.join(file), &now.join(file)))?;
    remove(&next)
}

/// Reads the state of a checkpoint folder, after finishing a write that was killed between state/ and the weights.
fn complete(folder: &Path) -> Result<Saved> {
    let saved = Saved::read(folder)?;
    for which in saved.published() {
        let belong = |name: &str| -> Result<()> {
            let file = folder.join(name).join(which.main);
            if Weights::open(&file)?.origin().as_ref() != Some(&saved.origin) {
                weights::check(&file)?;
                bail!("the weights in {} do not belong to its state/", folder.join(name).display());
            }
            Ok(())
        };
        if let Err(error) = belong(which.folder) {
            belong(&which.next()).map_err(|_| error)?;
            let there = |file: &&str| folder.join(which.next()).join(file).exists();
            adopt(folder, &which, &which.files.into_iter().filter(there).collect::<Vec<_>>())?;
        }
        // Adapters of a transformer have no file for kohya's scripts.
        let needed = |file: &str| file != lora::KOHYA_FILE || saved.counters.part == folder::DENOISER;
        let lacks = which.files.into_iter().find(|file| needed(file) && !folder.join(which.folder).join(file).exists());
        ensure!(lacks.is_none(), "{} lacks {}", folder.join(which.folder).display(), lacks.unwrap_or_default());
    }
    Ok(saved)
}

/// As `complete`, for a checkpoint to continue from: the numbers are those that were written.
pub fn sound(folder: &Path) -> Result<Saved> {
    let saved = complete(folder)?;
    let weights = saved.published().map(|which| folder.join(which.folder).join(which.main));
    for file in weights.chain([folder.join(STATE)]) {
        let carries = weights::check(&file)?;
        ensure!(carries || !saved.summed, "{} is damaged: it has lost its checksum", file.display());
    }
    Ok(saved)
}

/// Whether a killed run left this folder before its state/ was written.
fn unfinished(folder: &Path) -> bool {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let ours = |name: OsString| name == "state" || Published::all().any(|which| name == *which.next());
    folder.is_dir() && names.into_iter().all(ours) && !folder.join(STATE).exists()
}

/// Folders called `checkpoint-<step>` in `out`, complete or not, the oldest first.
fn named_checkpoints(out: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    let step = |name: &str| name.strip_prefix("checkpoint-")?.parse().ok();
    let mut all: Vec<_> = entries.filter_map(|e| Some((step(e.file_name().to_str()?)?, e.path()))).collect();
    all.sort();
    all
}

/// Complete checkpoints in `out`, the oldest first.
fn complete_checkpoints(out: &Path) -> Vec<(u64, PathBuf)> {
    let mut all = named_checkpoints(out);
    all.retain(|(step, path)| complete(path).is_ok_and(|saved| saved.counters.step == *step));
    all
}

/// The newest checkpoint in `out`: one of `checkpoint-<step>`, or `out` itself where a run ended.
/// If it was made with other settings than `origin`, the checkpoint to continue from must be named.
fn latest(out: &Path, origin: &Origin) -> Result<Option<PathBuf>> {
    let mut all = named_checkpoints(out);
    all.retain(|(_, path)| !unfinished(path));
    if let Some(weights) = lost_weights(out) {
        // Whoever removes the weights of a run that ended asks for them again.
        let last = all.last().map_or_else(|| "nothing".into(), |(_, path)| path.display().to_string());
        eprintln!("warning: {} was removed; the run continues from {last}", weights.display());
    } else if published(out).next().is_some() {
        // A run ended here. Where its step cannot be read, nobody knows that another is newer.
        all.push((complete(out).map_or(u64::MAX, |saved| saved.counters.step), out.to_owned()));
        all.sort();
    }
    let Some((step, newest)) = all.pop() else { return Ok(None) };
    let checked = |step: u64, path: &Path| {
        let saved = sound(path)?;
        let theirs = saved.counters.step;
        ensure!(theirs == step, "its state/ is that of step {theirs}");
        Ok(saved)
    };
    let saved = checked(step, &newest).with_context(|| {
        let older = all.iter().rev().find(|(step, path)| checked(*step, path).is_ok());
        let advice = match older {
            Some((_, path)) => {
                format!("to continue from the one before it, add --resume-from-checkpoint {}", path.display())
            }
            None => "there is no other: choose another folder with -o to start anew".into(),
        };
        format!("{} is not a whole checkpoint of `train` ({advice})", newest.display())
    })?;
    if let Some(what) = difference(origin, &saved.origin) {
        let newest = newest.display();
        bail!(
            "{newest} was made with another {what}: to continue from it all the same, add --resume-from-checkpoint {newest}; to \
             start anew, choose another folder with -o"
        );
    }
    Ok(Some(newest))
}

type Map = serde_json::Map<String, serde_json::Value>;

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

/// Refuses an `out` that holds what an earlier run published, which a new run would replace or be mixed with.
pub fn refuse_earlier(out: &Path) -> Result<()> {
    let checkpoint = named_checkpoints(out).pop().map(|(_, path)| path);
    if let Some(path) = checkpoint.or_else(|| published(out).next()) {
        bail!(
            "{} belongs to an earlier run: add --resume-from-checkpoint latest to continue that run, choose another folder with \
             -o, or move {} elsewhere",
            path.display(),
            out.display()
        );
    }
    Ok(())
}

/// The weights that a run has published in `out` and that lie neither there nor beside it.
fn lost_weights(out: &Path) -> Option<PathBuf> {
    let saved = Saved::read(out).ok()?;
    let lost =
        |which: &Published| ![which.folder, &which.next()].iter().any(|name| out.join(name).join(which.main).exists());
    saved.published().find(lost).map(|which| out.join(which.folder).join(which.main))
}

/// What a run that ended in `out` has left there.
fn published(out: &Path) -> impl Iterator<Item = PathBuf> {
    Published::all().map(|which| which.folder).chain([STATE]).map(|name| out.join(name)).filter(|path| path.exists())
}

/// Refuses weights that a run of the other kind published, which would be taken for those of this run.
pub fn refuse_other_kind(out: &Path, lora: bool) -> Result<()> {
    let adapters = out.join(LORA.folder).is_dir();
    let whole = folder::DENOISERS.iter().any(|part| out.join(part).is_dir());
    let other = if lora { whole && !adapters } else { adapters };
    let what = if lora { "a whole denoiser" } else { "adapters" };
    ensure!(!other, "{} holds {what} of another run; choose another folder with -o", out.display());
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}
