//! train: fine-tune the denoiser of a diffusion model on preference labels with the Diffusion-DPO loss.
//!
//!   train pairs.parquet --labels labels.parquet --base sd15 -o policy --max-train-steps 1000 --refresh-every 125
//!   train pairs.parquet --labels labels.parquet --base sd15 -o policy --resume-from-checkpoint latest

mod args;
mod batches;
mod checkpoints;
mod data;
mod disk;
mod dry_run;
mod flow;
mod gradients;
mod guard;
mod judges;
mod log;
mod loss;
mod method;
mod models;
mod optimiser;
mod pictures;
mod reference;
mod replay;
mod report;
mod run;
mod spikes;
mod start;
mod state;
mod tensorboard;
mod timestep_weights;
mod training_data;
mod upstream;
mod world;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;
use args::Args;
use batches::Batches;
use candle_core::Device;
use disk::Disk;
use gradients::{Execution, Gradients};
use method::{Method, beta_note, small_rate_warning};
use nets::{device, folder, weights::Weights};
use pictures::Pictures;
use pipe::cli::{Answer, Settings, run_with_settings, warn};
use pipe::memory::Memory;
use pipe::stop;
use report::Reporter;
use run::{Run, Update};
use start::{Setup, Start};
use state::State;
use training_data::TrainingData;
use world::{Share, World};

/// The file beside log.jsonl from which `train --config` makes the same run again, from its first step.
const SETTINGS: &str = "config.toml";

#[global_allocator]
static MEMORY: Memory<ops::Pool> = Memory(ops::Pool);

fn main() -> ExitCode {
    MEMORY.0.keep_small_blocks();
    run_with_settings("train", |args, settings| device::on_workers(|| join_and_train(args, &settings)))
}

/// Trains as one of the processes that a launcher started, or alone.
fn join_and_train(args: Args, settings: &Settings) -> Result<Answer> {
    let mut world = World::join()?;
    let answer = train(args, settings, &mut world);
    world.leave(answer)
}

fn train(args: Args, settings: &Settings, world: &mut World) -> Result<Answer> {
    let (dry_run, json) = (args.dry_run, args.common.json);
    let mut run = prepare(args, settings, world)?;
    if dry_run {
        dry_run::report(run, json)?;
        return Ok(Answer::Yes);
    }
    stop::watch()?;

    while let Some(step) = run.next_step() {
        let started = Instant::now();

        // One optimiser step along the gradient of the mean loss over the next pairs, from all micro-batches in all processes.
        let losses = run.take_step(step)?;
        let stop = run.stop_requested(step);
        let saves = stop.is_some() || run.checkpoint_due(step);

        // Trouble is a NaN or a spike: back to the last checkpoint, or the end. Otherwise the reference follows the policy.
        let drift = match run.update(step, &losses, saves)? {
            Update::Done(drift) => drift,
            Update::Trouble(trouble) => {
                run = run.recover(step, &trouble)?;
                continue;
            }
        };

        // A line of log.jsonl.
        run.report(step, &losses, drift, started.elapsed())?;

        // Pictures by the policy as it is now.
        run.draw_pictures(step)?;

        // A checkpoint to continue from.
        if saves {
            run.save()?;
        }

        // A signal ends the run here, between two steps.
        if let Some(signal) = stop {
            return Err(run.stopped(signal));
        }
    }
    run.finish()?;
    Ok(Answer::Yes)
}

/// The settings for [`SETTINGS`]. Without those of a resumption, so that a run that was stopped keeps the same as one that was not.
fn kept(settings: &Settings) -> Option<String> {
    let toml = settings.to_toml(&["resume_from_checkpoint"]);
    toml.map_err(|error| warn(format_args!("this run keeps no {SETTINGS}: {error:#}"))).ok()
}

/// Notes for the user before the run begins.
fn notes(setup: &Setup, data: &TrainingData, method: &Method, state: &State, dry_run: bool) -> Result<Vec<String>> {
    let beta = dry_run.then(|| data.latent_shape()).transpose()?.map(|shape| beta_note(method.objective.beta, shape));
    let farthest = setup.optimiser.learning_rate(setup.pairs_per_step).sum();
    let notes = [
        method.timesteps_note(),
        data.note(setup.pairs_per_step),
        data.flips_note(dry_run),
        data.size_note(),
        beta,
        setup.reference.never_note(setup.optimiser.max_train_steps),
        small_rate_warning(farthest, state.weight_size()?),
    ];
    Ok(notes.into_iter().flatten().collect())
}

fn open_data(args: &Args, device: &Device) -> Result<TrainingData> {
    let (seed, steps) = (args.common.seed, args.optimiser.max_train_steps);
    TrainingData::open(&args.data, args.visits, &args.models, seed, steps, device)
}

/// Opens everything that the run needs. Each part takes its own flags.
fn prepare<'a>(mut args: Args, settings: &Settings, world: &'a mut World) -> Result<Run<'a>> {
    args.common.quiet |= !world.first();
    args.check(world.size())?;
    let mut args = world.first_then_others(|| args.resolve())?;
    let device = device::open(world.device(args.networks.device))?;
    let compute = device::dtype(args.networks.dtype, &device)?;
    world.attach(&device)?;
    let lock = if world.first() { args.lock_outputs()? } else { None };
    let data = open_data(&args, &device)?;
    args.batch = data.batch(args.batch)?;
    let method = Method::open(&args.method, &args.models.base, compute, &device)?;

    let setup = args.setup(data.labels_hash(), compute, &device);
    if args.dry_run {
        dry_run::foresee(&setup)?;
    }
    let (origin, out) = (args.origin(&method), args.output()?);
    let start = || setup.start(&data, origin, &args.checkpoints, out.as_deref(), args.dry_run);
    let start = world.first_then_others(start)?;
    if world.size() > 1 {
        world.agree(&start.identity()?)?;
    }
    let Start { state, checkpoints, message } = start;
    let settings = lock.as_ref().and_then(|_| kept(settings));

    let execution = Execution::of(&state, &args.gradients, compute, &device);
    let most_pairs = execution.most_pairs().filter(|_| args.data.replay.is_none()); // one entry of a replay file is one micro-batch
    let share = Share::new(&args.batch, most_pairs, world.rank(), world.size());
    let learning_rate = setup.optimiser.learning_rate(setup.pairs_per_step);
    let base = Weights::open(&folder::denoiser(&setup.models.base)?)?;
    let (done, steps) = (state.counters.step, setup.optimiser.max_train_steps);
    let mut reporter = Reporter::new(args.log, &args.common, &checkpoints.out, done, steps, world.first());
    reporter.settings = settings.map(|settings| (checkpoints.out.join(SETTINGS), settings));
    let disk = Disk::of(&setup, &state, &checkpoints, &base, if args.dry_run { 0 } else { checkpoints.there() });
    let writes = lock.is_some() && !args.dry_run;
    let space = if writes { disk.check(&checkpoints.out)? } else { None };
    let notes = notes(&setup, &data, &method, &state, args.dry_run)?;
    [space, world.note(&share), message].into_iter().flatten().chain(notes).for_each(|note| reporter.say(note));

    let mut batches = Batches::new(data, share, steps, &method.process, &device, args.loader)?;
    batches.go_to(done, state.counters.skipped)?;
    let side = args.visits.resolution;
    let pictures = match &lock {
        Some(_) => Pictures::begin(&args.pictures, &setup.models, side, setup.seed, &checkpoints.out, &device)?,
        None => None,
    };
    Ok(Run {
        world,
        setup,
        method,
        execution,
        learning_rate,
        spikes: args.spikes,
        state,
        batches,
        gradients: Gradients::default(),
        checkpoints,
        disk,
        pictures,
        reporter,
        base,
        dump: args.gradients.dump_gradients.filter(|_| world.first()),
        logs_z: args.data.replay.is_some(),
        rollbacks: 0,
        lock,
    })
}
