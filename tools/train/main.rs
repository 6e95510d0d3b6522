//! train: fine-tune a Stable Diffusion UNet on preference labels with the Diffusion-DPO loss.
//!
//!   train pairs.parquet --labels labels.parquet --base sd15 -o policy --max_train_steps 1000 --refresh-every 125
//!   train pairs.parquet --labels labels.parquet --base sd15 -o policy --resume_from_checkpoint latest

mod args;
mod data;
mod log;
mod loss;
mod replay;
mod state;

use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use args::Args;
use candle_core::{Device, Tensor};
use data::{Batch, Data, Visits};
use log::{Line, Log, peak_memory};
use loss::{Errors, PairLoss, dpo_loss};
use nets::{
    base::{self, PromptEncoder, unet_folder},
    checkpoint::{self, Params, Weights},
    noise::Schedule,
    optim::{self, AdamW, AdamWConfig, Grads},
    unet::UNet,
    vae::Vae,
};
use pipe::{
    cli::{Answer, run},
    id::file_hash,
    origin::{InputOrigin, Origin},
    progress, stop,
    table::Inputs,
};
use replay::Replay;
use state::{Counters, State};

fn main() -> ExitCode {
    run("train", train)
}

fn train(args: Args) -> Result<Answer> {
    let out = args.common.output()?.clone();
    args.common.refuse_shard("one training run is one job")?;
    check(&args)?;
    let device = base::device(args.common.device)?;
    base::dtype(args.common.dtype, &device)?;
    let mut source = Source::open(&args, &device)?;
    let schedule = Schedule::open(&args.base)?;
    let text = PromptEncoder::open(&args.base, candle_core::DType::F32, &device)?;
    let (mut state, origin) = start(&args, &source, &device)?;
    if let Some(checkpoint) = resumption(&args, &out) {
        state.resume(&checkpoint, args.reference.is_some())?;
        args.common.say(format_args!("going on after step {} of {}", state.counters.step, checkpoint.display()));
    }
    source.describe(&args);
    let config_of = unet_folder(args.policy.as_deref().unwrap_or(&args.base))?;
    let base_weights = Weights::open(&unet_folder(&args.base)?)?;
    let mut log = Log::open(&out, state.counters.step)?;
    let bar = progress::bar("train", Some(args.max_train_steps), args.common.quiet);
    bar.set_position(state.counters.step);
    stop::watch()?;

    for step in state.counters.step..args.max_train_steps {
        let began = Instant::now();
        let lr = args.rate(step);

        // The gradient of the mean loss over the step's pairs, summed over micro-batches.
        let mut grads = Grads::new();
        let mut pairs: Vec<(Errors, PairLoss)> = vec![];
        for micro in 0..args.gradient_accumulation_steps.get() as u64 {
            let batch = source.batch(&args, step, micro, &schedule, &device)?;
            let scale = 1.0 / (batch.labels.len() * args.gradient_accumulation_steps.get()) as f64;
            pairs.extend(accumulate(&mut grads, &state, &batch, &schedule, &text, args.beta_dpo, scale)?);
        }
        if let Some(path) = args.dump_gradients.as_ref().filter(|_| step == 0) {
            checkpoint::write(path, &grads, Default::default())?;
        }

        // One optimiser step, unless something is no number any more.
        let grad_norm = optim::global_norm(&grads)?;
        let loss = mean(&pairs, |(_, p)| p.loss);
        ensure!(
            loss.is_finite() && grad_norm.is_finite(),
            "step {}: the loss is {loss} and the gradient's norm {grad_norm}; the last checkpoint is kept. A smaller \
             --learning_rate or --beta_dpo may help",
            step + 1
        );
        optim::clip(&mut grads, grad_norm, args.max_grad_norm)?;
        state.adam.step(&state.policy.params, &grads, step + 1, lr)?;
        state.counters.step = step + 1;

        // Every K steps the reference becomes the policy: the next z is 0, the next loss ln 2.
        let refreshed = args.refresh_every > 0 && (step + 1) % args.refresh_every == 0;
        if refreshed {
            state.refresh_reference()?;
        }

        let last = step + 1 == args.max_train_steps;
        let measure = last || (args.drift_every > 0 && (step + 1) % args.drift_every == 0);
        let drift = if measure { Some(drift(&state.policy.params, &base_weights)?) } else { None };
        let seconds = began.elapsed().as_secs_f64();
        log.write(&line(step + 1, &pairs, args.replay.is_some(), grad_norm, lr, drift, refreshed, seconds))?;
        bar.set_message(format!("loss {loss:.4}"));
        bar.inc(1);

        let stopped = stop::requested();
        let due = args.checkpointing_steps > 0 && (step + 1) % args.checkpointing_steps == 0;
        if !last && (due || stopped.is_some()) {
            state.write(&state::checkpoint_path(&out, step + 1), &config_of, args.save_dtype, &origin)?;
            if let Some(limit) = args.checkpoints_total_limit {
                state::prune(&out, limit)?;
            }
        }
        if let Some(stopped) = stopped.filter(|_| !last) {
            return Err(stopped.into());
        }
    }
    state.write(&out, &config_of, args.save_dtype, &origin)?;
    Ok(Answer::Yes)
}

/// One micro-batch: adds `scale` times the gradient of the sum of its pairs' losses.
fn accumulate(
    grads: &mut Grads,
    state: &State,
    batch: &Batch,
    schedule: &Schedule,
    text: &PromptEncoder,
    beta: f64,
    scale: f64,
) -> Result<Vec<(Errors, PairLoss)>> {
    let b = batch.labels.len();
    let noisy = schedule.add_noise(&batch.latents, &batch.noise, &batch.timesteps)?; // (2B, C, h, w)
    let target = schedule.target(&batch.latents, &batch.noise, &batch.timesteps)?; // (2B, C, h, w)
    let states = text.states(&batch.captions)?; // (B, T, D)
    let context = Tensor::cat(&[&states, &states], 0)?; // (2B, T, D)
    let timesteps: Vec<f32> = batch.timesteps.iter().map(|&t| t as f32).collect();
    let errors = |unet: &UNet| -> Result<Tensor> {
        let prediction = unet.forward(&noisy, &timesteps, &context, None)?;
        Ok((prediction - &target)?.sqr()?.flatten_from(1)?.mean(1)?) // (2B)
    };

    // The same arithmetic for both, so that equal weights give equal errors to the last bit.
    let reference = errors(&state.reference.unet)?.to_vec1::<f32>()?;
    let policy = errors(&state.policy.unet)?;
    let values = policy.to_vec1::<f32>()?;
    let pairs: Vec<(Errors, PairLoss)> = (0..b)
        .map(|i| {
            let e = Errors {
                policy_winner: values[i] as f64,
                policy_loser: values[b + i] as f64,
                reference_winner: reference[i] as f64,
                reference_loser: reference[b + i] as f64,
            };
            (e, dpo_loss(e, batch.labels[i], beta))
        })
        .collect();

    // dL/dtheta = sum_i dL/de_i de_i/dtheta
    let side = |k: usize| pairs.iter().map(move |(_, p)| (p.gradient[k] * scale) as f32);
    let weights = Tensor::from_vec(side(0).chain(side(1)).collect::<Vec<_>>(), 2 * b, policy.device())?;
    let store = (policy * weights)?.sum_all()?.backward()?;
    for (name, gradient) in optim::gradients(&state.policy.params, store)? {
        match grads.get_mut(&name) {
            Some(sum) => *sum = (&*sum + gradient)?,
            None => drop(grads.insert(name, gradient)),
        }
    }
    Ok(pairs)
}

/// Where the inputs of a step come from.
enum Source {
    Pairs { data: Box<Data>, vae: Box<Vae>, inputs: Vec<InputOrigin>, labels: String },
    Replay { replay: Replay, hash: String },
}

impl Source {
    fn open(args: &Args, device: &Device) -> Result<Self> {
        if let Some(path) = &args.replay {
            return Ok(Source::Replay { replay: Replay::open(path)?, hash: file_hash(path)? });
        }
        let labels = args.labels.as_ref().context("--labels is missing; name what `vote` wrote (or use --replay)")?;
        ensure!(!args.data.is_empty(), "no DATA was named: pairs tables, an `encode` folder or an images table");
        let visits = Visits {
            seed: args.common.seed,
            resolution: args.resolution,
            augment: args.augment,
            empty_prompts: args.proportion_empty_prompts,
        };
        let data = Data::open(&args.data, labels, visits)?;
        let vae = Vae::open(&args.base.join("vae"), candle_core::DType::F32, device)?;
        let tables = match &args.data[..] {
            [one] if one.join("latents.parquet").is_file() => {
                vec![one.join("latents.parquet"), one.join("pairs.parquet")]
            }
            many => many.to_vec(),
        };
        let mut inputs = Inputs::open(&[labels.clone()])?.origins()?;
        let labels = inputs.first().and_then(|l| l.sha256.clone()).unwrap_or_default();
        inputs.extend(Inputs::open(&tables)?.origins()?);
        let factor = vae.config.factor();
        ensure!(
            args.resolution % factor == 0,
            "--resolution {} is not a multiple of the VAE's {factor}",
            args.resolution
        );
        Ok(Source::Pairs { data: Box::new(data), vae: Box::new(vae), inputs, labels })
    }

    /// Micro-batch `micro` of optimiser step `step`. Samples are counted, not batches.
    fn batch(&mut self, args: &Args, step: u64, micro: u64, schedule: &Schedule, device: &Device) -> Result<Batch> {
        match self {
            Source::Replay { replay, .. } => replay.batch(step, device),
            Source::Pairs { data, vae, .. } => {
                let size = args.train_batch_size.get() as u64;
                let from = step * args.effective_batch() as u64 + micro * size;
                data.batch(from, from + size, vae, schedule.config.num_train_timesteps as u64, device)
            }
        }
    }

    fn describe(&self, args: &Args) {
        if let Source::Pairs { data, .. } = self {
            args.common.say(format_args!(
                "{} pairs have a say; {} abstain, {} have no label; {} pairs a step",
                data.len(),
                data.abstained,
                data.unlabelled,
                args.effective_batch()
            ));
            if data.lacks_flips() {
                args.common.say("the cache holds no mirrored images: none are used (`encode --augment` makes them)");
            }
        }
    }

    fn labels_hash(&self) -> &str {
        match self {
            Source::Replay { hash, .. } => hash,
            Source::Pairs { labels, .. } => labels,
        }
    }
}

/// Policy, reference and fresh moments, and the origin of what will be written.
fn start(args: &Args, source: &Source, device: &Device) -> Result<(State, Origin)> {
    let (policy, policy_hash) = state::open_unet(args.policy.as_ref().unwrap_or(&args.base), device, false)?;
    let (reference, reference_hash) = state::open_unet(args.reference.as_ref().unwrap_or(&args.base), device, true)?;
    for (name, var) in &policy.params {
        let same = reference.params.get(name).is_some_and(|r| r.dims() == var.dims());
        ensure!(same, "policy and reference differ in architecture: tensor '{name}' has no counterpart of its shape");
    }
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
    };
    let mut origin = Origin::new("train")
        .arg("max_train_steps", args.max_train_steps)
        .arg("effective_batch", args.effective_batch())
        .arg("learning_rate", args.learning_rate)
        .arg("scale_lr", args.scale_lr)
        .arg("lr_scheduler", format!("{:?}", args.lr_scheduler))
        .arg("lr_warmup_steps", args.lr_warmup_steps)
        .arg("adam", serde_json::json!([config.beta1, config.beta2, config.eps, config.weight_decay]))
        .arg("max_grad_norm", args.max_grad_norm)
        .arg("beta_dpo", args.beta_dpo)
        .arg("refresh_every", args.refresh_every)
        .arg("seed", args.common.seed)
        .model("policy", policy_hash)
        .model("reference", reference_hash);
    origin = match source {
        Source::Replay { hash, .. } => origin.arg("replay", hash.clone()),
        Source::Pairs { inputs, .. } => origin
            .arg("proportion_empty_prompts", args.proportion_empty_prompts)
            .arg("resolution", args.resolution)
            .arg("augment", format!("{:?}", args.augment))
            .model("vae", Weights::open(&args.base.join("vae"))?.hash()?)
            .model("text_encoder", Weights::open(&args.base.join("text_encoder"))?.hash()?)
            .inputs(inputs.clone()),
    };
    Ok((State { policy, reference, adam, counters }, origin))
}

fn resumption(args: &Args, out: &Path) -> Option<std::path::PathBuf> {
    match args.resume_from_checkpoint.as_deref() {
        Some(path) if path.as_os_str() == "latest" => state::latest(out),
        path => path.map(Path::to_owned),
    }
}

/// |theta - theta_base| / |theta_base| over all tensors.
fn drift(params: &Params, base: &Weights) -> Result<f64> {
    let (mut moved, mut size) = (BTreeMap::new(), BTreeMap::new());
    for (name, var) in params {
        let theta0 = base.get(name, var.dims())?.to_dtype(candle_core::DType::F32)?.to_device(var.device())?;
        moved.insert(name.clone(), (var.as_detached_tensor() - &theta0)?);
        size.insert(name.clone(), theta0);
    }
    Ok(optim::global_norm(&moved)? / optim::global_norm(&size)?.max(f64::MIN_POSITIVE))
}

fn mean(pairs: &[(Errors, PairLoss)], f: impl Fn(&(Errors, PairLoss)) -> f64) -> f64 {
    pairs.iter().map(f).sum::<f64>() / pairs.len() as f64
}

#[allow(clippy::too_many_arguments)]
fn line(
    step: u64,
    pairs: &[(Errors, PairLoss)],
    every_z: bool,
    grad_norm: f64,
    lr: f64,
    drift: Option<f64>,
    refreshed: bool,
    seconds: f64,
) -> Line {
    Line {
        step,
        loss: mean(pairs, |(_, p)| p.loss),
        implicit_acc: mean(pairs, |(_, p)| if p.z > 0.0 { 1.0 } else { 0.0 }),
        policy_winner_mse: mean(pairs, |(e, _)| e.policy_winner),
        policy_loser_mse: mean(pairs, |(e, _)| e.policy_loser),
        reference_winner_mse: mean(pairs, |(e, _)| e.reference_winner),
        reference_loser_mse: mean(pairs, |(e, _)| e.reference_loser),
        mean_abs_z: mean(pairs, |(_, p)| p.z.abs()),
        z: every_z.then(|| pairs.iter().map(|(_, p)| p.z).collect()),
        grad_norm,
        lr,
        drift,
        refreshed,
        pairs_per_second: pairs.len() as f64 / seconds,
        memory_mib: peak_memory(),
    }
}

/// What clap cannot see.
fn check(args: &Args) -> Result<()> {
    ensure!(args.beta_dpo > 0.0 && args.beta_dpo.is_finite(), "--beta_dpo must be above 0, it is {}", args.beta_dpo);
    ensure!(args.learning_rate >= 0.0 && args.learning_rate.is_finite(), "--learning_rate is {}", args.learning_rate);
    ensure!(
        (0.0..=1.0).contains(&args.proportion_empty_prompts),
        "--proportion_empty_prompts is a share between 0 and 1, it is {}",
        args.proportion_empty_prompts
    );
    let one_a_step = args.train_batch_size.get() == 1 && args.gradient_accumulation_steps.get() == 1;
    if args.replay.is_some() && !one_a_step {
        bail!(
            "--replay brings its own batches, one a step: leave out --train_batch_size and --gradient_accumulation_steps"
        );
    }
    Ok(())
}
