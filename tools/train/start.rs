//! How a run begins: the models, fresh moments or those of a checkpoint, and the origin of what will be written.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use candle_core::Device;
use nets::optim::{AdamW, AdamWConfig};
use pipe::origin::Origin;

use crate::{
    args::Args,
    source::Source,
    state::{self, Counters, State},
};

/// Policy, reference and moments, as new or as the checkpoint to go on from left them.
pub fn start(args: &Args, source: &Source, out: &Path, device: &Device) -> Result<(State, Origin)> {
    let (policy, policy_hash) = state::open_unet(args.policy.as_ref().unwrap_or(&args.base), device, false)?;
    let (reference, reference_hash) = state::open_unet(args.reference.as_ref().unwrap_or(&args.base), device, true)?;
    for (name, var) in &policy.params {
        let same = reference.params.get(name).is_some_and(|r| r.dims() == var.dims());
        ensure!(same, "policy and reference differ in architecture: tensor '{name}' has no counterpart of its shape");
    }
    let extra = reference.params.keys().find(|name| !policy.params.contains_key(*name));
    ensure!(
        extra.is_none(),
        "policy and reference differ in architecture: the policy has no tensor '{}'",
        extra.map_or("", |n| n)
    );
    let config = AdamWConfig {
        beta1: args.adam_beta1,
        beta2: args.adam_beta2,
        eps: args.adam_epsilon,
        weight_decay: args.adam_weight_decay,
    };
    let adam = AdamW::new(&policy.params, config)?;
    let counters = Counters {
        step: 0,
        seed: args.common.seed,
        effective_batch: args.effective_batch(),
        labels: source.labels_hash().to_owned(),
        reference: reference_hash.clone(),
        named: args.reference.as_ref().map(|_| reference_hash.clone()),
    };
    let origin = Origin::new("train")
        .arg("effective_batch", args.effective_batch())
        .arg("learning_rate", args.learning_rate)
        .arg("scale_lr", args.scale_lr)
        .arg("lr_scheduler", serde_json::json!(args.schedule()))
        .arg("adam", serde_json::json!([config.beta1, config.beta2, config.eps, config.weight_decay]))
        .arg("max_grad_norm", args.max_grad_norm)
        .arg("beta_dpo", args.beta_dpo)
        .arg("refresh_every", args.refresh_every)
        .arg("seed", args.common.seed)
        .model("policy", policy_hash)
        .model("reference", reference_hash);
    let origin = source.describe_origin(origin, args)?;

    let mut state = State { policy, reference, adam, counters };
    if let Some(checkpoint) = resumption(args, out, &origin)? {
        state.resume(&checkpoint)?;
        args.common.say(format_args!("going on after step {} of {}", state.counters.step, checkpoint.display()));
    }
    Ok((state, origin))
}

/// The checkpoint to go on from, if one was asked for and, for `latest`, is there.
fn resumption(args: &Args, out: &Path, origin: &Origin) -> Result<Option<PathBuf>> {
    match args.resume_from_checkpoint.as_deref() {
        Some(path) if path.as_os_str() == "latest" => state::latest(out, origin),
        path => Ok(path.map(Path::to_owned)),
    }
}
