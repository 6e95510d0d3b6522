//! refresh-ref: makes the next reference from a policy and the current reference.
//!
//!   refresh-ref --policy out --reference sd15 -o reference
//!   refresh-ref --policy out --reference reference --rate 0.5 -o reference

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use clap::Parser;
use nets::{device, folder, hub, weights::Weights, write};
use pipe::cli::{Answer, Common, Hub, named, run, share};
use pipe::device::Device;
use pipe::origin::{InputOrigin, Origin};
use pipe::{lock, place};

/// Make the next reference: theta_ref + rate * (theta - theta_ref)
///
/// With rate 1 the policy is copied (BalancedDPO's hard refresh). Below 1 the reference is an exponential moving average of the
/// policies (TR-DPO's soft update).
#[derive(Parser, Debug)]
#[command(
    name = "refresh-ref",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  refresh-ref --policy out --reference sd15 -o reference
  refresh-ref --policy out --reference reference --rate 0.5 -o reference

Exit status: 0 done, 2 trouble."
)]
#[command(mut_arg("output", |output| output.help("The folder to write the reference in")))]
#[command(mut_arg("seed", |seed| seed.hide(true)))] // nothing is drawn
struct Args {
    /// Checkpoint folder of the policy
    #[arg(long, value_name = "DIR")]
    policy: PathBuf,
    /// Checkpoint folder of the current reference
    #[arg(long, value_name = "DIR")]
    reference: PathBuf,
    /// How far the reference moves towards the policy, from 0 to 1
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = share())]
    rate: f64,
    #[command(flatten)]
    hub: Hub,
    /// Where the average is computed
    #[arg(long, default_value_t = Device::Cpu, value_parser = named::<Device>())]
    device: Device,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    run("refresh-ref", refresh)
}

fn refresh(args: Args) -> Result<Answer> {
    let out = args.common.output()?;
    ensure!(out.as_os_str() != "-", "a checkpoint is a folder; name one with -o");
    let device = device::open(args.device)?;
    let folder = |arg: &PathBuf| folder::denoiser(&args.hub.folder(arg, hub::resolve)?);
    let (policy_folder, reference_folder) = (folder(&args.policy)?, folder(&args.reference)?);
    place::refuse_inputs(&out.join(nets::folder::DENOISER), [&policy_folder])?;
    let _lock = lock::Folder::lock(out, out)?;
    let (policy, reference) = (Weights::open(&policy_folder)?, Weights::open(&reference_folder)?);

    let mut moved: BTreeMap<String, Tensor> = BTreeMap::new();
    for name in policy.names() {
        let theta = policy.raw(&name)?.to_dtype(DType::F32)?.to_device(&device)?;
        let theta_ref = reference.get(&name, theta.dims()).context("policy and reference differ in architecture")?;
        let next = match args.rate {
            1.0 => theta, // exactly, not up to rounding
            rate => {
                let theta_ref = theta_ref.to_dtype(DType::F32)?.to_device(&device)?;
                (&theta_ref + ((theta - &theta_ref)? * rate)?)?
            }
        };
        moved.insert(name, next);
    }
    let lost = reference.names().into_iter().find(|n| !moved.contains_key(n));
    ensure!(lost.is_none(), "{}: tensor '{}' is missing", policy.name, lost.unwrap_or_default());

    let input = |w: &Weights| -> Result<InputOrigin> {
        Ok(InputOrigin { sha256: Some(w.hash()?), origin: w.origin().map(Box::new) })
    };
    let origin = Origin::new("refresh-ref").arg("rate", args.rate).inputs([input(&policy)?, input(&reference)?]);
    write::model(&out.join(nets::folder::DENOISER), &policy_folder, &moved, &origin)?;
    let (out, tensors, rate) = (out.display().to_string(), moved.len(), args.rate);
    if args.common.json {
        args.common.answer(serde_json::json!({ "output": out, "tensors": tensors, "rate": rate }))?;
    } else {
        args.common.say(format_args!(
            "{out} holds the reference after a step of {rate} towards the policy, {tensors} tensors"
        ));
    }
    Ok(Answer::Yes)
}
