//! train: fine-tune a Stable Diffusion UNet on preference labels with the Diffusion-DPO loss.
//!
//!   train pairs.parquet --labels labels.parquet --base sd15 -o policy --max_train_steps 1000 --refresh-every 125
//!   train pairs.parquet --labels labels.parquet --base sd15 -o policy --resume_from_checkpoint latest

mod args;
mod data;
mod gradients;
mod log;
mod loss;
mod replay;
mod source;
mod start;
mod state;

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, ensure};
use args::Args;
use gradients::{Sum, abreast};
use log::{Line, Log};
use nets::{
    base::{self, unet_folder},
    checkpoint::{self, Weights},
    noise::Schedule,
    optim,
};
use pipe::{
    atomic,
    cli::{Answer, run},
    progress, stop,
};
use source::Source;

fn main() -> ExitCode {
    run("train", |args| base::on_workers(|| train(args)))
}

fn train(args: Args) -> Result<Answer> {
    let out = args.common.output()?.clone();
    args.common.refuse_shard("one training run is one job")?;
    args.check()?;
    let args = args.with_models()?;
    let device = base::device(args.common.device)?;
    base::dtype(args.common.dtype, &device)?;
    atomic::probe(&out)?;
    let mut source = Source::open(&args, &device)?;
    let schedule = Schedule::open(&args.base)?;
    let (mut state, origin) = start::start(&args, &source, &out, &device)?;
    source.describe(&args);
    let config_of = unet_folder(args.policy.as_deref().unwrap_or(&args.base))?;
    let base_weights = Weights::open(&unet_folder(&args.base)?)?;
    let mut log = Log::new(&out, state.counters.step);
    let bar = progress::bar("train", Some(args.max_train_steps), args.common.quiet);
    bar.set_position(state.counters.step);
    let abreast = abreast(&state, &device);
    stop::watch()?;

    for step in state.counters.step..args.max_train_steps {
        let began = Instant::now();
        let lr = args.rate(step);

        let mut sum = Sum::default();
        let micro_batches = args.gradient_accumulation_steps.get();
        for first in (0..micro_batches).step_by(abreast) {
            let micros = first..(first + abreast).min(micro_batches);
            let batches = micros.map(|m| source.batch(&args, step, m as u64, &schedule, &device));
            let batches = batches.collect::<Result<Vec<_>>>()?;
            let pairs = micro_batches * batches[0].labels.len();
            sum.add(&state, batches, &schedule, args.beta_dpo, pairs)?;
        }
        let Sum { pairs, mut grads } = sum;
        if let Some(path) = args.dump_gradients.as_ref().filter(|_| step == 0) {
            checkpoint::write(path, &grads, Default::default())?;
        }

        // One optimiser step, unless something is no number any more.
        let grad_norm = optim::global_norm(&grads)?;
        let loss = log::mean(&pairs, |(_, p)| p.loss);
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
        let stopped = stop::requested().filter(|_| !last);
        let due = args.checkpointing_steps > 0 && (step + 1) % args.checkpointing_steps == 0;
        let saves = last || due || stopped.is_some();
        let measures = saves || (args.drift_every > 0 && (step + 1) % args.drift_every == 0);
        let drift = if measures { Some(state.drift(&base_weights)?) } else { None };
        ensure!(
            drift.is_none_or(f64::is_finite),
            "step {}: the weights are no numbers any more; the last checkpoint is kept. A smaller --learning_rate may help",
            step + 1
        );
        let every_z = args.replay.is_some();
        log.write(&Line::of(step + 1, &pairs, every_z, began.elapsed()).with(grad_norm, lr, drift, refreshed))?;
        bar.set_message(format!("loss {loss:.4}"));
        bar.inc(1);

        if saves && !last {
            state.write(&state::checkpoint_path(&out, step + 1), &config_of, args.save_dtype, &origin)?;
            if let Some(limit) = args.checkpoints_total_limit {
                state::prune(&out, limit)?;
            }
        }
        if let Some(stopped) = stopped {
            return Err(stopped.into());
        }
    }
    state.write(&out, &config_of, args.save_dtype, &origin)?;
    Ok(Answer::Yes)
}
