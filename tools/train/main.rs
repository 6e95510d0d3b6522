//! train: fine-tune a Stable Diffusion UNet on preference labels with the Diffusion-DPO loss.
//!
//!   train pairs.parquet --labels labels.parquet --base sd15 -o policy --max_train_steps 1000 --refresh-every 125
//!   train pairs.parquet --labels labels.parquet --base sd15 -o policy --resume_from_checkpoint latest

mod ahead;
mod args;
mod calm;
mod data;
mod dry_run;
mod gradients;
mod guard;
mod log;
mod loss;
mod method;
mod pasted;
mod reference;
mod replay;
mod source;
mod start;
mod state;
mod tensorboard;
mod world;

use std::{path::Path, process::ExitCode, time::Instant};

use ahead::Batches;
use anyhow::{Result, ensure};
use args::Args;
use candle_core::DType;
use gradients::{Plan, Sum};
use log::{Line, Log};
use method::Method;
use nets::{device, folder, noise::Schedule, params, weights::Weights, write};
use pipe::{
    atomic,
    cli::{Answer, run},
    progress,
    stop::{self, Stopped},
};
use source::Source;
use state::State;
use world::World;

fn main() -> ExitCode {
    run("train", |args| device::on_workers(|| together(args)))
}

/// As one of the processes that a launcher started, which usually is the only one.
fn together(args: Args) -> Result<Answer> {
    let mut world = World::join()?;
    let answer = train(args, &mut world);
    world.leave(answer)
}

fn train(mut args: Args, world: &mut World) -> Result<Answer> {
    args.common.quiet |= !world.first();
    let out = match &args.common.output {
        None if args.dry_run => None,
        _ => Some(args.common.output()?.clone()),
    };
    ensure!(out.as_ref().is_none_or(|out| out.as_os_str() != "-"), "a checkpoint is a folder; name one with -o");
    args.check()?;
    let mut args = world.first_then_others(|| args.unpasted()?.with_models())?;
    let device = device::open(world.device(args.networks.device))?;
    let compute = device::dtype(args.networks.dtype, &device)?;
    ensure!(compute != DType::F16, "--dtype f16: small gradients would become 0; bf16 keeps the range of f32");
    world.attach(&device)?;
    if world.first() {
        out.iter().try_for_each(|out| atomic::probe(out))?;
        args.dump_gradients.iter().try_for_each(|file| atomic::probe(folder_of(file)))?;
    }
    let source = Source::open(&args, &device)?;
    if let Some(pairs) = source.pairs_a_step() {
        let one = args.train_batch_size.get() == 1 || args.train_batch_size == pairs;
        ensure!(one, "--train_batch_size {}: each step of the --replay file has {pairs} pairs", args.train_batch_size);
        args.train_batch_size = pairs;
    }
    let schedule = Schedule::open(&args.base)?;
    args.timesteps = args.timesteps.of(&schedule);
    let method = Method::new(&args, args.timesteps.trained(schedule));
    method::tell_timesteps(&method.schedule, &args.common);
    let mut share = world.share(&args)?;
    let start = || start::start(&args, &source, out.as_deref(), &device);
    let (mut state, recipe, origin) = world.first_then_others(start)?;
    if world.size() > 1 {
        world.agree(&start::identity(&state, &origin)?)?;
        args.common.say(format_args!("{} processes with {} pairs each a step", world.size(), share.pairs()));
    }
    source.describe(&args);
    advise(&args, &source, &state)?;
    let base_weights = Weights::open(&folder::unet(&args.base)?)?;
    let plan = Plan::of(&state, args.gradient_checkpointing, compute, &device);
    if args.replay.is_none() {
        share.at_once = plan.pairs_at_once(share.at_once); // an entry of the file is a micro-batch as it is
    }
    let at_once = share.at_once;
    let mut batches = Batches::new(source, share, &args, &method.schedule, &device);
    batches.go_to(&state.counters)?;
    let Some(out) = out.filter(|_| !args.dry_run) else {
        if world.first() {
            dry_run::report(&args, plan, at_once, &mut state, &mut batches, &method)?;
        }
        return Ok(Answer::Yes);
    };
    let mut log = Log::new(&out, state.counters.step, args.report_to);
    let bar = progress::bar("train", Some(args.max_train_steps), args.common.quiet);
    bar.set_position(state.counters.step);
    let mut sum = Sum::default();
    let (mut warned, mut rollbacks) = (false, 0);
    let mut dump = args.dump_gradients.as_ref().filter(|_| world.first());
    stop::watch()?;

    while state.counters.step < args.max_train_steps {
        let step = state.counters.step;
        let began = Instant::now();
        let lr = args.rate(step);

        sum.take(plan, &state, &mut batches, &args, &method)?;
        let (pairs, grads) = (world.gather_pairs(std::mem::take(&mut sum.pairs)), &mut sum.grads);
        world.sum(grads)?;
        if let Some(path) = dump.take() {
            write::tensors(path, grads, Default::default())?;
        }

        let grad_norm = params::global_norm(grads)?;
        let loss = log::mean(&pairs, |(_, p)| p.loss);
        let mut trouble = state.counters.usual.trouble(loss, grad_norm, args.spike_factor());
        let last = step + 1 == args.max_train_steps;
        let stopped = world.stop_requested().filter(|_| !last);
        let due = args.checkpointing_steps > 0 && (step + 1) % args.checkpointing_steps == 0;
        let saves = last || due || stopped.is_some();
        let measures = saves || (args.drift_every > 0 && (step + 1) % args.drift_every == 0);
        let rate = args.reference_mode().rate_after(step + 1);
        let mut drift = None;

        // One optimiser step, unless something is no number any more or far from what is usual.
        if trouble.is_none() {
            state.counters.usual.add(loss);
            params::clip(grads, grad_norm, args.longest_gradient())?;
            state.optimizer.step(&state.policy.params, grads, step + 1, lr)?;
            state.counters.step = step + 1;
            // After a refresh reference and policy are one: the next z is 0, the next loss ln 2.
            if let Some(rate) = rate {
                state.move_reference(rate, &out)?;
            }
            drift = if measures { Some(state.drift(&base_weights)?) } else { None };
            let lost = drift.filter(|d| !d.base.is_finite());
            trouble = lost.map(|_| "the weights are no numbers any more".into());
        }
        if let Some(trouble) = trouble {
            rollbacks += 1;
            let back = || calm::recover(&args, state, &out, step + 1, &trouble, rollbacks, &device);
            state = world.first_then_others(back)?;
            batches.go_to(&state.counters)?;
            log = Log::new(&out, state.counters.step, args.report_to);
            bar.set_position(state.counters.step);
            continue;
        }
        let every_z = args.replay.is_some();
        let line = Line::of(step + 1, &pairs, every_z, began.elapsed()).with(grad_norm, lr, drift, rate == Some(1.0));
        if world.first() {
            log.write(&line)?;
        }
        if let Some(warning) = method::saturated(pairs.iter().map(|(_, p)| p)).filter(|_| !warned && step >= 10) {
            args.common.say(format_args!("step {}: {warning}", step + 1));
            warned = true;
        }
        bar.set_message(format!("loss {loss:.4}"));
        bar.inc(1);

        if saves {
            grads.clear(); // a checkpoint may need the room
        }
        if saves && !last {
            rollbacks = 0;
            if world.first() {
                state.write(&state::checkpoint_path(&out, step + 1), &recipe, &origin)?;
                args.checkpoints_total_limit.map_or(Ok(()), |limit| state::prune(&out, limit.get()))?;
            }
        }
        if let Some(stopped) = stopped {
            return Err(Stopped(stopped.0, args.flags_to_go_on()).into());
        }
    }
    if world.first() {
        state.write(&out, &recipe, &origin)?;
    }
    Ok(Answer::Yes)
}

/// Where a file lies, or will.
fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What a person should know of the settings before the first step.
fn advise(args: &Args, source: &Source, state: &State) -> Result<()> {
    args.common.say(method::beta_elsewhere(args.beta_dpo, source.latent_numbers()?));
    let path = (0..args.max_train_steps).map(|step| args.rate(step)).sum();
    let size = if state.counters.lora.is_none() { state.weight_size()? } else { 0.0 }; // adapters begin at 0
    if let Some(warning) = method::too_small_a_step(path, size) {
        args.common.say(warning);
    }
    Ok(())
}
