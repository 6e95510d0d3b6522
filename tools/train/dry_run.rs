//! `--dry-run`: measures two steps and prints what the whole run would take. Nothing is written.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Result, ensure};
use nets::params::Params;
use pipe::stdout::print;
use serde_json::json;

use crate::{log::peak_memory, run::Run};

/// The first step warms up, the second is timed.
const STEPS: u64 = 2;

/// What a run takes.
struct Needs {
    steps: u64,
    pairs_per_step: usize,
    pairs_at_once: usize,
    micro_batches: usize,
    highest_rate: f64,
    summed_rates: f64,
    seconds_per_step: f64,
    trained: usize,
    /// Peak memory, and what is known of it, in MiB.
    peak: f64,
    known: [(&'static str, f64); 4],
}

/// Takes two steps and prints the report, as text or as JSON.
pub fn report(mut run: Run, json: bool) -> Result<()> {
    let seconds = time_steps(&mut run)?;
    if !run.world.first() {
        return Ok(());
    }
    let needs = Needs::of(&run, seconds);
    print(if json { format!("{}\n", needs.json()) } else { needs.text() })
}

/// Seconds that the last of two steps takes.
fn time_steps(run: &mut Run) -> Result<f64> {
    let (done, all) = (run.state.counters.step, run.steps());
    ensure!(
        done + STEPS <= all,
        "--dry-run takes {STEPS} steps, but --max-train-steps is {all} and {done} are finished"
    );
    let mut seconds = 0.0;
    for step in done + 1..=done + STEPS {
        let started = Instant::now();
        let losses = run.compute_gradients()?;
        run.apply(step, losses.grad_norm)?;
        seconds = started.elapsed().as_secs_f64();
    }
    Ok(seconds)
}

impl Needs {
    fn of(run: &Run, seconds_per_step: f64) -> Self {
        let count = |params: &Params| params.values().map(|p| p.elem_count()).sum::<usize>();
        let (trained, reference) = (count(&run.state.policy.params), run.state.reference.in_memory());
        let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
        let pairs_per_step = run.setup.pairs_per_step;
        Self {
            steps: run.steps(),
            pairs_per_step,
            pairs_at_once: run.batches.pairs_at_once().min(pairs_per_step),
            micro_batches: run.batches.per_step(),
            highest_rate: run.learning_rate.highest(),
            summed_rates: run.learning_rate.sum(),
            seconds_per_step,
            trained,
            peak: peak_memory(),
            known: [
                ("parameters trained, f32", mib(4 * trained)),
                ("reference, f32", mib(4 * reference)),
                ("gradients, f32", mib(4 * trained)),
                ("moments", mib(run.state.optimizer.bytes())),
            ],
        }
    }

    fn steps_per_hour(&self) -> f64 {
        3600.0 / self.seconds_per_step
    }

    fn hours(&self) -> f64 {
        self.steps as f64 / self.steps_per_hour()
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "trained_parameters": self.trained,
            "pairs_a_step": self.pairs_per_step,
            "learning_rate": self.highest_rate,
            "learning_rates_summed": self.summed_rates,
            "peak_memory_mib": self.peak,
            "memory_mib": self.known.iter().copied().collect::<BTreeMap<_, _>>(),
            "seconds_a_step": self.seconds_per_step,
            "steps_an_hour": self.steps_per_hour(),
            "hours": self.hours(),
        })
    }

    fn text(&self) -> String {
        let known: String = self.known.iter().map(|(name, mib)| format!("  {name}: {mib:.0} MiB\n")).collect();
        let rest = self.peak - self.known.iter().map(|(_, mib)| mib).sum::<f64>();
        format!(
            "{} parameters are trained\n\
             {} pairs per step: {} at once, {} times\n\
             learning rate: {:.3e} at its highest, {:.3e} summed over all steps\n\
             peak memory: {:.0} MiB (measured)\n\
             {known}  activations, encoders and other frozen networks: {:.0} MiB\n\
             {:.2} s per step, {:.1} steps per hour: {:.1} hours for {} steps\n",
            self.trained,
            self.pairs_per_step,
            self.pairs_at_once,
            self.micro_batches,
            self.highest_rate,
            self.summed_rates,
            self.peak,
            rest.max(0.0),
            self.seconds_per_step,
            self.steps_per_hour(),
            self.hours(),
            self.steps
        )
    }
}
