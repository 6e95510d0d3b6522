//! `--dry-run`: what a run would take, from two steps of it; nothing is written.

use std::time::Instant;

use anyhow::{Result, ensure};
use pipe::stdout::print;

use crate::{
    ahead::Batches,
    args::Args,
    gradients::{Plan, Sum},
    log::peak_memory,
    method::Method,
    state::State,
};

/// Takes two steps and reports. The first warms up; the second is timed. `at_once`: pairs of a micro-batch.
pub fn report(
    args: &Args,
    plan: Plan,
    at_once: usize,
    state: &mut State,
    batches: &mut Batches,
    method: &Method,
) -> Result<()> {
    const STEPS: u64 = 2;
    let (done, all) = (state.counters.step, args.max_train_steps);
    ensure!(
        all - done.min(all) >= STEPS,
        "--dry-run takes {STEPS} steps; --max_train_steps is {all}, and {done} are done"
    );
    let mut sum = Sum::default();
    let mut seconds = 0.0;
    for t in done + 1..=done + STEPS {
        let began = Instant::now();
        sum.take(plan, state, batches, args, method)?;
        let State { optimizer, policy, .. } = &mut *state;
        optimizer.step(&policy.params, &sum.grads, t, args.rate(t - 1))?;
        if let Some(rate) = args.reference_mode().rate_after(t) {
            state.move_reference(rate, &std::env::temp_dir())?;
        }
        seconds = began.elapsed().as_secs_f64();
    }
    let count = |params: &nets::params::Params| params.values().map(|p| p.elem_count()).sum::<usize>();
    let (trained, reference) = (count(&state.policy.params), state.reference.in_memory());
    let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
    let peak = peak_memory();
    let known = [
        ("parameters trained, f32", mib(4 * trained)),
        ("reference, f32", mib(4 * reference)),
        ("gradients, f32", mib(4 * trained)),
        ("moments", mib(state.optimizer.bytes())),
    ];
    let rest = peak - known.iter().map(|(_, m)| m).sum::<f64>();
    let path: f64 = (0..args.max_train_steps).map(|step| args.rate(step)).sum();
    let hours = args.max_train_steps as f64 * seconds / 3600.0;
    let highest = (0..args.max_train_steps).map(|step| args.rate(step)).fold(0.0, f64::max);
    if args.common.json {
        let report = serde_json::json!({
            "trained_parameters": trained,
            "pairs_a_step": args.effective_batch(),
            "learning_rate": highest,
            "learning_rates_summed": path,
            "peak_memory_mib": peak,
            "memory_mib": known.iter().map(|(name, m)| (name.to_string(), *m)).collect::<std::collections::BTreeMap<_, _>>(),
            "seconds_a_step": seconds,
            "steps_an_hour": 3600.0 / seconds,
            "hours": hours,
        });
        return print(format!("{report}\n"));
    }
    let mut text = format!("{trained} parameters are trained\n");
    text += &format!(
        "{} pairs a step: {} at once, {} times\n",
        args.effective_batch(),
        at_once.min(args.effective_batch()),
        batches.a_step()
    );
    text += &format!("learning rate {highest:.3e} at its highest, {path:.3e} over all steps\n");
    text += &format!("peak memory {peak:.0} MiB (measured)\n");
    for (name, m) in known {
        text += &format!("  {name}: {m:.0} MiB\n");
    }
    text += &format!("  activations, encoders, the frozen rest: {:.0} MiB\n", rest.max(0.0));
    text += &format!(
        "{seconds:.2} s a step, {:.1} steps an hour: {hours:.1} hours for {} steps\n",
        3600.0 / seconds,
        args.max_train_steps
    );
    print(text)
}
