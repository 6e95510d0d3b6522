//! `--dry-run`: measures two steps and prints what the whole run would take. Nothing is written.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Result, ensure};
use candle_core::DType;
use nets::optim::UpdateRule;
use nets::params::count;
use nets::{folder, weights::Weights};
use pipe::memory;
use pipe::stdout::print;
use pipe::text::{bytes, count as counted, duration};
use serde_json::json;

use crate::{log::peak_memory, run::Run, start::Setup};

pub fn report(mut run: Run, as_json: bool) -> Result<()> {
    let seconds = time_step(&mut run)?;
    match run.world.first() {
        true if as_json => print(format!("{}\n", json(&run, seconds))),
        true => print(text(&run, seconds)),
        false => Ok(()),
    }
}

/// Refuses, before anything is loaded, a run whose weights, gradients and moments alone are more than this machine's memory: measuring
/// it would end the program without a word.
pub fn foresee(setup: &Setup) -> Result<()> {
    let total = memory::of_machine();
    if !setup.device.is_cpu() || total == 0 {
        return Ok(());
    }
    let models = &setup.models;
    let start = models.policy.as_ref().filter(|path| folder::adapters(path).is_none()).unwrap_or(&models.base);
    let weights = Weights::open(&folder::denoiser(start)?)?;
    let size = |name: &String| weights.dims(name).unwrap_or_default().iter().product::<usize>();
    let n: usize = weights.names().iter().map(size).sum();
    let per_moment = if setup.optimiser.moments() == DType::F32 { 4 } else { 2 };
    let [policy, gradients, moments] = match (setup.lora.config(), setup.optimiser.rule()) {
        (Some(_), _) => [4 * n, 0, 0], // adapters are small
        (None, UpdateRule::AdamW(_)) => [4 * n, 4 * n, 2 * per_moment * n],
        (None, UpdateRule::Adafactor(_)) => [4 * n, 4 * n, 0],
    };
    let all = policy + gradients + moments;
    let gib = |bytes: usize| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
    let advice = match setup.lora.config() {
        Some(_) => "",
        None => ": --lora-rank trains adapters, --use-adafactor has small moments, --moments bf16 halves AdamW's",
    };
    ensure!(
        all <= total,
        "{n} weights take {} without reference, activations and encoders (weights {}, gradients {}, moments {}), and this machine has \
         {}{advice}",
        gib(all),
        gib(policy),
        gib(gradients),
        gib(moments),
        gib(total)
    );
    Ok(())
}

/// Seconds that a step takes: the second of two, because the first warms up.
fn time_step(run: &mut Run) -> Result<f64> {
    let (done, all) = (run.state.counters.step, run.steps());
    ensure!(done + 2 <= all, "--dry-run takes 2 steps, but --max-train-steps is {all} and {done} are finished");
    let mut seconds = 0.0;
    for step in [done + 1, done + 2] {
        let started = Instant::now();
        run.take_step(step)?;
        run.follow(step)?;
        seconds = started.elapsed().as_secs_f64();
    }
    Ok(seconds)
}

/// The part of the memory, in MiB, that is known without measuring.
fn known_memory(run: &Run) -> [(&'static str, f64); 4] {
    let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
    let trained = mib(4 * count(&run.state.policy.params));
    [
        ("parameters trained, f32", trained),
        ("reference", mib(run.state.reference.in_memory())),
        ("gradients, f32", trained),
        ("moments", mib(run.state.optimizer.bytes())),
    ]
}

fn json(run: &Run, seconds: f64) -> serde_json::Value {
    json!({
        "trained_parameters": count(&run.state.policy.params),
        "pairs_per_step": run.setup.pairs_per_step,
        "learning_rate": run.learning_rate.highest(),
        "learning_rates_summed": run.learning_rate.sum(),
        "peak_memory_mib": peak_memory(),
        "memory_mib": BTreeMap::from(known_memory(run)),
        "checkpoint_bytes": run.disk.checkpoint,
        "checkpoints_at_once": run.disk.at_once,
        "seconds_per_step": seconds,
        "steps_per_hour": 3600.0 / seconds,
        "hours": run.steps() as f64 * seconds / 3600.0,
    })
}

fn text(run: &Run, seconds: f64) -> String {
    let (peak, known, pairs) = (peak_memory(), known_memory(run), run.setup.pairs_per_step);
    let rest = peak - known.iter().map(|(_, mib)| mib).sum::<f64>();
    let mut lines = vec![
        format!("{} parameters are trained", count(&run.state.policy.params)),
        match run.batches.per_step() {
            1 => format!("{} per step, all at once", counted(pairs, "pair")),
            times => {
                format!("{} per step: {} at once, {times} times", counted(pairs, "pair"), run.batches.pairs_at_once())
            }
        },
        format!(
            "learning rate: {:.3e} at its highest, {:.3e} summed over all steps",
            run.learning_rate.highest(),
            run.learning_rate.sum()
        ),
        format!("peak memory: {} (measured)", mib(peak)),
    ];
    lines.extend(known.iter().map(|(name, size)| format!("  {name}: {}", mib(*size))));
    lines.push(format!("  activations, encoders and other frozen networks: {}", mib(rest.max(0.0))));
    lines.push(format!("disk: {} per checkpoint, {} at once", bytes(run.disk.checkpoint), run.disk.at_once));
    let (per_hour, steps) = (3600.0 / seconds, run.steps());
    let all = duration(steps as f64 * seconds);
    lines.push(format!("{seconds:.2} s per step, {per_hour:.1} steps per hour: {all} for {steps} steps"));
    lines.join("\n") + "\n"
}

/// A size with two digits at least.
fn mib(size: f64) -> String {
    let digits = if size < 1.0 { 2 } else { usize::from(size < 10.0) };
    format!("{size:.digits$} MiB")
}
