//! A run and the parts of its steps, which main.rs puts in order.

use std::{mem, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use nets::{params, weights::Weights, write};
use pipe::stop::Stopped;

use crate::disk::Disk;
use crate::gradients::{Execution, Gradients};
use crate::log::{Line, mean};
use crate::pictures::Pictures;
use crate::spikes::{OnSpike, SpikeFlags};
use crate::state::{Drift, State};
use crate::{
    batches::Batches, checkpoints::Checkpoints, loss::Pair, method::Method, optimiser::LearningRate, report::Reporter,
    start::Setup, world::World,
};

/// How often a run may go back to the same checkpoint.
const MOST_ROLLBACKS: usize = 3;

pub struct Run<'a> {
    pub world: &'a World,
    pub setup: Setup,
    pub method: Method,
    pub execution: Execution,
    pub learning_rate: LearningRate,
    pub spikes: SpikeFlags,
    pub state: State,
    pub batches: Batches,
    pub gradients: Gradients,
    pub checkpoints: Checkpoints,
    pub disk: Disk,
    /// Only in the process that writes.
    pub pictures: Option<Pictures>,
    pub reporter: Reporter,
    pub base: Weights,
    /// Where to write the gradients of the first step.
    pub dump: Option<PathBuf>,
    pub logs_z: bool,
    /// Since the last checkpoint.
    pub rollbacks: usize,
    /// Held until the end: one run at a time writes in the folder.
    pub lock: Option<pipe::lock::Folder>,
}

/// The losses of a step in all processes, and the norm of its gradient.
pub struct Losses {
    pub pairs: Vec<Pair>,
    pub mean: f64,
    pub grad_norm: f64,
    /// What is wrong with the step, if anything is: the policy is then not to be used.
    pub trouble: Option<String>,
}

pub enum Update {
    /// The weights have moved; the drift, where it was measured.
    Done(Option<Drift>),
    /// Something is NaN, or the loss is a spike; why.
    Trouble(String),
}

impl Run<'_> {
    pub fn steps(&self) -> u64 {
        self.setup.optimiser.max_train_steps
    }

    /// The number of the step to take next, from 1; `None` when all are done.
    pub fn next_step(&self) -> Option<u64> {
        let done = self.state.counters.step;
        (done < self.steps()).then_some(done + 1)
    }

    /// Moves the policy along the gradient of the mean loss over the next batch of pairs, summed over micro-batches and processes.
    /// Where something is wrong with that, the caller learns it before anybody uses the policy.
    pub fn take_step(&mut self, step: u64) -> Result<Losses> {
        let Self { gradients, state, batches, method, world, .. } = self;
        gradients.compute(self.execution, state, batches, method, self.setup.pairs_per_step)?;
        world.sum(&mut gradients.grads)?;
        if let Some(file) = self.dump.take() {
            write::tensors(&file, &gradients.grads, Default::default())?;
        }
        let (most, lr) = (self.setup.optimiser.max_norm(), self.learning_rate.at(step));
        let State { policy, optimizer, counters, .. } = state;
        let judge = |pairs: Vec<Pair>, grad_norm: f64| {
            let pairs = world.gather_pairs(pairs);
            let mean = mean(&pairs, |p| p.loss.loss);
            let trouble = self.spikes.trouble(&counters.losses, mean, grad_norm);
            Losses { pairs, mean, grad_norm, trouble }
        };
        if self.execution.queues {
            // All work of the step waits in the GPU's queue before this program waits for the GPU.
            let clip = params::clip_on_gpu(&gradients.grads, most)?;
            optimizer.step_to(&policy.params, &gradients.grads, Some(&clip), step, lr)?;
            let grad_norm = gradients.read(&clip.norm, method)?;
            return Ok(judge(mem::take(&mut gradients.pairs), grad_norm));
        }
        let losses = judge(mem::take(&mut gradients.pairs), params::global_norm(&gradients.grads)?);
        if losses.trouble.is_none() {
            params::clip(&mut gradients.grads, losses.grad_norm, most)?;
            optimizer.step(&policy.params, &gradients.grads, step, lr)?;
        }
        Ok(losses)
    }

    /// The signal that asks the run to stop after this step. The last step is not stopped: the run ends anyway.
    pub fn stop_requested(&self, step: u64) -> Option<Stopped> {
        self.world.stop_requested().filter(|_| step < self.steps())
    }

    /// Whether a checkpoint is to be written after this step. After the last step, `finish` writes one.
    pub fn checkpoint_due(&self, step: u64) -> bool {
        step < self.steps() && self.checkpoints.due(step)
    }

    /// Ends a step: the reference follows the policy, unless something is wrong.
    pub fn update(&mut self, step: u64, losses: &Losses, saves: bool) -> Result<Update> {
        if let Some(trouble) = &losses.trouble {
            return Ok(Update::Trouble(trouble.clone()));
        }
        self.state.counters.losses.add(losses.mean);
        if self.method.timestep_weights {
            self.state.counters.margins.get_or_insert_default().add(&losses.pairs);
        }
        self.follow(step)?;
        if !saves && step < self.steps() && !self.reporter.drift_due(step) {
            return Ok(Update::Done(None));
        }
        let drift = self.state.drift(&self.base)?;
        Ok(match drift.base.is_finite() {
            true => Update::Done(Some(drift)),
            false => Update::Trouble("the weights are not finite".into()),
        })
    }

    /// Moves the reference after the policy, which has taken this step.
    pub fn follow(&mut self, step: u64) -> Result<()> {
        let state = &mut self.state;
        state.counters.step = step;
        // After a hard refresh reference and policy are equal: the next z is 0, the next loss ln 2.
        match self.setup.reference.mode().rate_after(step) {
            Some(rate) => state.move_reference(rate, &self.checkpoints.out),
            None => Ok(()),
        }
    }

    /// Goes back to the newest checkpoint, past the pairs up to those of this step. The run ends with an error where that was
    /// asked for, where there is no checkpoint, or where going back has not helped before.
    pub fn recover(mut self, step: u64, trouble: &str) -> Result<Self> {
        let out = self.checkpoints.out.display();
        let newest = self.checkpoints.newest();
        let kept = match &newest {
            Some(path) => format!("the last checkpoint is kept, {}", path.display()),
            None => format!("there is no checkpoint in {out} yet"),
        };
        ensure!(
            self.spikes.on_spike == OnSpike::Rollback,
            "step {step}: {trouble}; {kept}. A smaller --learning-rate or --beta-dpo may help, or --on-spike rollback"
        );
        ensure!(
            self.rollbacks < MOST_ROLLBACKS,
            "step {step}: {trouble}, after going back {MOST_ROLLBACKS} times; {kept}"
        );
        let newest = newest.with_context(|| format!("step {step}: {trouble}, and {kept} to go back to"))?;
        self.reporter.say(format_args!(
            "step {step}: {trouble}; continuing from {}, past the pairs up to this step",
            newest.display()
        ));
        let skipped = self.state.counters.skipped;
        drop(self.state); // there may be no memory for two
        self.state = self.world.first_then_others(|| self.setup.restore(&newest))?;
        let counters = &mut self.state.counters;
        counters.skipped = skipped + step - counters.step;
        self.batches.go_to(counters.step, counters.skipped)?;
        self.reporter.go_back(&self.checkpoints.out, counters.step);
        self.rollbacks += 1;
        Ok(self)
    }

    pub fn report(&mut self, step: u64, losses: &Losses, drift: Option<Drift>, took: Duration) -> Result<()> {
        let line = Line {
            z: self.logs_z.then(|| losses.pairs.iter().map(|p| p.loss.z).collect()),
            grad_norm: losses.grad_norm,
            lr: self.learning_rate.at(step),
            drift: drift.map(|d| d.base),
            drift_reference: drift.map(|d| d.reference),
            refreshed: self.setup.reference.mode().rate_after(step) == Some(1.0),
            ..Line::of(step, &losses.pairs, took)
        };
        self.reporter.report(&line, &losses.pairs)
    }

    /// Draws with the policy, where pictures are due.
    pub fn draw_pictures(&mut self, step: u64) -> Result<()> {
        let last = self.steps();
        let Some(pictures) = self.pictures.as_mut().filter(|pictures| pictures.due(step, last)) else { return Ok(()) };
        let drawn = pictures.draw_policy(step, &self.state, &self.checkpoints.unet)?;
        self.reporter.pictures(step, &pictures.take_base(), &drawn)
    }

    pub fn save(&mut self) -> Result<()> {
        self.gradients.grads.clear(); // the checkpoint may need the memory
        self.rollbacks = 0;
        if !self.world.first() {
            return Ok(());
        }
        self.checkpoints.add(&self.state)?;
        self.reporter.keep_log()
    }

    /// The error with which a run ends that a signal has stopped.
    pub fn stopped(&self, signal: Stopped) -> anyhow::Error {
        Stopped(signal.0, self.checkpoints.flags.flags_to_continue()).into()
    }

    pub fn finish(mut self) -> Result<()> {
        self.gradients.grads.clear();
        if !self.world.first() {
            return Ok(());
        }
        self.checkpoints.finish(&self.state)?;
        self.reporter.keep_log()?;
        let out = self.checkpoints.out.display();
        ensure!(
            self.lock.as_ref().is_none_or(pipe::lock::Folder::is_there),
            "{out} was removed or replaced during the run: it holds the policy after {} steps and its log, and no longer what \
             was in it before",
            self.state.counters.step
        );
        self.reporter.finish(&self.checkpoints.out, self.state.counters.step)
    }
}
