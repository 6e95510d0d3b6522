//! refresh-ref: makes the next reference from a policy and the current reference, or a whole model in one file.
//!
//!   refresh-ref --policy out --reference sd15 -o reference
//!   refresh-ref --policy out --reference reference --rate 0.5 -o reference
//!   refresh-ref --policy out --reference sd15 -o out.safetensors --save-dtype f16

use std::alloc::System;
use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use clap::Parser;
use nets::denoiser::Config;
use nets::weights::{self, Weights};
use nets::{device, folder, hub, single, write};
use pipe::cli::{Answer, Common, Diffusion, named, run, share};
use pipe::device::{Device, Dtype};
use pipe::memory::Memory;
use pipe::origin::{InputOrigin, Origin};
use pipe::{lock, place};

/// Make the next reference: theta_ref + rate * (theta - theta_ref)
///
/// With rate 1 the policy is copied (BalancedDPO's hard refresh). Below 1 the reference is an exponential moving average of the
/// policies (TR-DPO's soft update).
///
/// With `-o FILE.safetensors` the result is a whole model in one file, as Civitai, kohya's scripts and web UIs have it: VAE and text
/// encoders are those of --base.
#[derive(Parser, Debug)]
#[command(
    name = "refresh-ref",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  refresh-ref --policy out --reference sd15 -o reference
  refresh-ref --policy out --reference reference --rate 0.5 -o reference
  refresh-ref --policy out --reference sd15 -o out.safetensors --save-dtype f16

Exit status: 0 done, 2 trouble."
)]
#[command(mut_arg("output", |output| output.help("The folder to write the reference in, or FILE.safetensors for a whole model in one file")))]
#[command(mut_arg("seed", |seed| seed.hide(true)))] // nothing is drawn
struct Args {
    /// Checkpoint folder of the policy, or a model in one file
    #[arg(long, value_name = "DIR")]
    policy: PathBuf,
    /// Checkpoint folder of the current reference, or a model in one file
    #[arg(long, value_name = "DIR")]
    reference: PathBuf,
    /// How far the reference moves towards the policy, from 0 to 1
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = share())]
    rate: f64,
    #[command(flatten)]
    files: Diffusion,
    /// Model whose VAE and text encoders go into FILE.safetensors [default: that of --reference]
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Number format of all that is written [default: f32; the VAE and the text encoders in FILE.safetensors as they are stored]
    #[arg(long, value_parser = named::<Dtype>())]
    save_dtype: Option<Dtype>,
    /// Where the average is computed
    #[arg(long, help_heading = "Common options", default_value_t = Device::Cpu, value_parser = named::<Device>())]
    device: Device,
    #[command(flatten)]
    common: Common,
}

#[global_allocator]
static MEMORY: Memory = Memory(System);

fn main() -> ExitCode {
    run("refresh-ref", refresh)
}

fn refresh(args: Args) -> Result<Answer> {
    let out = args.common.output()?;
    ensure!(out.as_os_str() != "-", "a checkpoint is a folder; name one with -o, or FILE.safetensors");
    let other_file = out.extension().is_some_and(|end| ["ckpt", "pt", "pth", "bin"].iter().any(|other| end == *other));
    ensure!(!other_file, "{}: a model in one file is written as .safetensors", out.display());
    let device = device::open(args.device)?;
    let model = |arg: &PathBuf| args.files.folder(arg, None, hub::resolve, single::folder);
    let reference_model = model(&args.reference)?;
    let (policy_folder, reference_folder) =
        (folder::denoiser(&model(&args.policy)?)?, folder::denoiser(&reference_model)?);
    let one_file = out.extension().is_some_and(|end| end == "safetensors");
    let base = match (&args.base, one_file) {
        (_, false) => {
            ensure!(args.base.is_none(), "--base is for -o FILE.safetensors; {} is a folder", out.display());
            None
        }
        (Some(base), true) => Some(model(base)?),
        (None, true) => Some(reference_model),
    };
    let part = Config::read(&policy_folder)?.part;
    let target = if one_file { out.clone() } else { out.join(part) };
    let files = [&args.policy, &args.reference].into_iter().chain(&args.base).filter(|_| one_file);
    place::refuse_inputs(&target, files.chain([&policy_folder]))?;
    let _lock = if one_file { None } else { Some(lock::Folder::lock(out, out)?) };
    let (policy, reference) = (Weights::open(&policy_folder)?, Weights::open(&reference_folder)?);

    let dtype = args.save_dtype.map(weights::dtype);
    let mut moved: BTreeMap<String, Tensor> = BTreeMap::new();
    for name in policy.names() {
        let theta = policy.floats(&name)?.to_dtype(DType::F32)?.to_device(&device)?;
        let theta_ref = reference.get(&name, theta.dims()).context("policy and reference differ in architecture")?;
        let next = match args.rate {
            1.0 => theta, // exactly, not up to rounding
            rate => {
                let theta_ref = theta_ref.to_dtype(DType::F32)?.to_device(&device)?;
                (&theta_ref + ((theta - &theta_ref)? * rate)?)?
            }
        };
        moved.insert(name, next.to_dtype(dtype.unwrap_or(DType::F32))?);
    }
    let lost = reference.names().into_iter().find(|n| !moved.contains_key(n));
    ensure!(lost.is_none(), "{}: tensor '{}' is missing", policy.name, lost.unwrap_or_default());

    let input = |w: &Weights| -> Result<InputOrigin> {
        Ok(InputOrigin { sha256: Some(w.hash()?), origin: w.origin().map(Box::new) })
    };
    let origin = Origin::new("refresh-ref").arg("rate", args.rate).inputs([input(&policy)?, input(&reference)?]);
    let tensors = moved.len();
    match base {
        Some(base) => single::write(out, &base, &policy_folder, moved, dtype, &origin)?,
        None => write::model(&target, &policy_folder, &moved, &origin)?,
    }
    let (out, rate) = (out.display().to_string(), args.rate);
    if args.common.json {
        args.common.answer(serde_json::json!({ "output": out, "tensors": tensors, "rate": rate }))?;
    } else {
        args.common.say(format_args!(
            "{out} holds the reference after a step of {rate} towards the policy, {tensors} tensors"
        ));
    }
    Ok(Answer::Yes)
}
