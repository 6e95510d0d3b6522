//! How a run begins: the models, fresh moments or those of a checkpoint, and the origin of what will be written.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use nets::{
    folder,
    lora::{Adapters, LoraConfig},
    optim::Optimizer,
    unet::{Trainable, UNet},
    weights::Weights,
};
use pipe::{device::Dtype, origin::Origin};

use crate::{
    args::{Args, LATEST, Moments},
    calm::Usual,
    reference::Reference,
    source::Source,
    state::{self, Counters, Recipe, State},
};

/// Policy, reference and moments, as new or as the checkpoint to go on from left them.
///
/// # Errors
/// They do not fit each other or the data; `out`, which only a dry run lacks, holds another run.
pub fn start(args: &Args, source: &Source, out: Option<&Path>, device: &Device) -> Result<(State, Recipe, Origin)> {
    if let Some(out) = out {
        state::refuse_other_kind(out, args.lora_rank.is_some())?;
    }
    if let Some(out) = out.filter(|_| args.resume_from_checkpoint.is_none() && !args.dry_run) {
        state::refuse_earlier(out)?;
    }
    let (mut state, [policy_hash, reference_hash], unet) = fresh(args, source.labels_hash(), device)?;
    let say = || format!("{} and {}", args.policy.as_ref().unwrap_or(&args.base).display(), args.base.display());
    source.check(&state.policy.unet.config).with_context(say)?;
    let origin = Origin::new("train")
        .arg("effective_batch", args.effective_batch())
        .arg("learning_rate", args.learning_rate)
        .arg("scale_lr", args.scale_lr)
        .arg("lr_scheduler", serde_json::json!(args.schedule()))
        .arg("optimizer", format!("{:?}", args.rule()))
        .arg("moments", format!("{:?}", args.moments))
        .arg("max_grad_norm", args.longest_gradient().to_string())
        .arg("loss", format!("{:?}", args.objective().form))
        .arg("beta_dpo", args.beta_dpo)
        .arg("label_smoothing", args.label_smoothing)
        .arg("guard", format!("{:?}", args.guard))
        .arg("error", format!("{:?}", args.error))
        .arg("timesteps", format!("{:?}", args.timesteps))
        .arg("reference_mode", args.reference_mode().to_string())
        .arg("seed", args.common.seed)
        .model("policy", policy_hash)
        .model("reference", reference_hash);
    let origin = match args.lora() {
        None => origin,
        Some(config) => {
            let base = Weights::open(&unet)?.hash()?;
            origin.arg("lora", serde_json::to_value(&config)?).model("adapted", base)
        }
    };
    let origin = source.describe_origin(origin, args)?;
    let dtype = match args.save_dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    };
    let recipe = Recipe { unet, dtype, merge: args.merge };

    if let Some(checkpoint) = resumption(args, out, &origin)? {
        state.resume(&checkpoint)?;
        let (done, all) = (state.counters.step, args.max_train_steps);
        ensure!(
            done <= all,
            "{} has {done} steps behind it, and --max_train_steps is {all}: name more, or an earlier checkpoint",
            checkpoint.display()
        );
        args.common.say(match done == all {
            true => format!(
                "{} has all {all} steps of --max_train_steps behind it: there is nothing to do",
                checkpoint.display()
            ),
            false => format!("going on after step {done} of {}", checkpoint.display()),
        });
    }
    if let Some(out) = out.filter(|_| args.resume_from_checkpoint.is_some() && !args.dry_run) {
        state::tidy(out)?;
        // Of a run that goes on from its newest checkpoint, the older ones are over.
        let limit = args.checkpoints_total_limit.filter(|_| args.flags_to_go_on().is_empty());
        limit.map_or(Ok(()), |limit| state::prune(out, limit.get()))?;
    }
    Ok((state, recipe, origin))
}

/// The state that a checkpoint of the same run holds. From the models up: a reference that has been refreshed since is gone.
pub fn again(args: &Args, labels: &str, device: &Device, checkpoint: &Path) -> Result<State> {
    let mut state = fresh(args, labels, device)?.0;
    state.resume(checkpoint)?;
    Ok(state)
}

/// A state before the first step, the hashes of policy and reference, and the folder of the UNet that is trained.
fn fresh(args: &Args, labels: &str, device: &Device) -> Result<(State, [String; 2], PathBuf)> {
    let Models { policy, reference, hashes, unet } = match args.lora() {
        None => whole(args, device)?,
        Some(config) => adapted(args, &config, device)?,
    };
    let dtype = match args.moments {
        Moments::F32 => DType::F32,
        Moments::Bf16 => DType::BF16,
    };
    let optimizer = Optimizer::new(&policy.params, args.rule(), dtype)?;
    let counters = Counters {
        step: 0,
        seed: args.common.seed,
        effective_batch: args.effective_batch(),
        labels: labels.to_owned(),
        reference: hashes[1].clone(),
        named: args.reference.as_ref().map(|_| hashes[1].clone()),
        lora: args.lora(),
        usual: Usual::default(),
        skipped: 0,
    };
    Ok((State { policy, reference, optimizer, counters }, hashes, unet))
}

/// The checkpoint to go on from, if one was asked for and, for `latest`, is there.
fn resumption(args: &Args, out: Option<&Path>, origin: &Origin) -> Result<Option<PathBuf>> {
    match args.resume_from_checkpoint.as_deref() {
        Some(path) if path.as_os_str() == LATEST => state::latest(
            out.context("--resume_from_checkpoint latest is the newest in the output folder: name it with -o")?,
            origin,
        ),
        path => Ok(path.map(Path::to_owned)),
    }
}

/// The networks of a run.
struct Models {
    policy: Trainable,
    reference: Reference,
    /// SHA-256 of the weights of policy and reference.
    hashes: [String; 2],
    /// The folder of the UNet that training began with.
    unet: PathBuf,
}

/// All weights of the policy are trained; the reference is a second UNet.
fn whole(args: &Args, device: &Device) -> Result<Models> {
    let folders = [&args.policy, &args.reference].map(|path| folder::unet(path.as_ref().unwrap_or(&args.base)));
    let [unet, other] = folders;
    let (unet, other) = (unet?, other?);
    let policy = UNet::open_variables(&unet, device, false)?;
    let reference = Reference::open(&other, &policy.params, args.reference_mode(), args.reference_weights, device)?;
    let hashes = [Weights::open(&unet)?.hash()?, Weights::open(&other)?.hash()?];
    Ok(Models { policy, reference, hashes, unet })
}

/// Adapters are trained beside a frozen UNet, which the reference shares: it is the same with adapters of its own, which at
/// first add nothing.
fn adapted(args: &Args, config: &LoraConfig, device: &Device) -> Result<Models> {
    let adapters = [&args.policy, &args.reference].map(|path| path.as_deref().and_then(folder::adapters));
    let under = args.policy.as_ref().filter(|_| adapters[0].is_none()).unwrap_or(&args.base);
    let unet = folder::unet(under)?;
    let [policy, reference] = UNet::open_adapted(&unet, config, args.common.seed, device)
        .context("cannot add the adapters of --lora-rank and --lora-targets")?;
    let base = Weights::open(&unet)?.hash()?;
    let mut hashes = [base.clone(), base.clone()];
    for ((file, hash), network) in adapters.iter().zip(&mut hashes).zip([&policy, &reference]) {
        let Some(file) = file else { continue };
        let given = Adapters::open(file)?;
        let (rank, alpha) = (given.config.rank, given.config.alpha);
        let same = rank == config.rank && alpha == config.alpha;
        ensure!(
            same,
            "{}: its adapters have rank {rank} and alpha {alpha}; give --lora_rank and --lora_alpha",
            file.display()
        );
        given.fill(&network.params).context("--lora-targets names other layers than the file")?;
        *hash = pipe::id::file_hash(file)?;
    }
    if let (Some(path), None) = (&args.reference, &adapters[1]) {
        let theirs = Weights::open(&folder::unet(path)?)?.hash()?;
        ensure!(
            theirs == base,
            "with --lora_rank the reference is the UNet under the adapters, or that with adapters of its own: --reference {} \
             is another UNet",
            path.display()
        );
    }
    Ok(Models { policy, reference: Reference::Held(reference), hashes, unet })
}

/// What several processes must have in common before they begin, by name and content.
pub fn identity(state: &State, origin: &Origin) -> Result<[(&'static str, String); 4]> {
    Ok([
        ("settings", serde_json::to_string(&origin.args)?),
        ("data or labels", serde_json::to_string(&origin.inputs)?),
        ("steps behind it (is the output folder on a disk that all share?)", state.counters.step.to_string()),
        ("weights", serde_json::to_string(&origin.models)? + &state.hash()?),
    ])
}
