//! Reports the steps of a run: to log.jsonl, to the progress bar or, without a terminal, now and then as a line; and its end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use pipe::progress::{self, ProgressBar};
use pipe::{atomic, cli::Common, text::duration};
use serde_json::json;

use crate::judges::Picture;
use crate::log::{Line, Log, LogFlags};
use crate::pictures::Drawn;
use crate::{loss::Pair, method::saturation_warning};

/// Time between two lines about a run without a terminal: a day of them can still be read.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

pub struct Reporter {
    flags: LogFlags,
    common: Common,
    /// `None` in a process that writes nothing.
    log: Option<Log>,
    bar: ProgressBar,
    /// Steps of the whole run. A hidden bar does not know them.
    steps: u64,
    warned: bool,
    began: Instant,
    /// The last time that a line was printed, and the number of steps of this call since then.
    said: (Instant, u32),
    loss: Option<f64>,
    /// The settings of the run and their file, which is written with the first line of the log.
    pub settings: Option<(PathBuf, String)>,
}

impl Reporter {
    /// Reports on a run of `steps` steps, of which `done` are finished. `writes`: whether this process writes the log in `out`.
    pub fn new(flags: LogFlags, common: &Common, out: &Path, done: u64, steps: u64, writes: bool) -> Self {
        let log = writes.then(|| Log::new(out, done, flags.report_to));
        let bar = progress::bar("train", Some(steps), common.quiet);
        bar.set_position(done);
        bar.reset_eta(); // the steps before a resumption took no time
        let began = Instant::now();
        let (common, said) = (common.clone(), (began, 0));
        Self { flags, common, log, bar, steps, warned: false, began, said, loss: None, settings: None }
    }

    pub fn say(&self, message: impl std::fmt::Display) {
        self.common.say(message);
    }

    /// Whether the drift is to be measured after this step.
    pub fn drift_due(&self, step: u64) -> bool {
        self.flags.drift_every > 0 && step.is_multiple_of(self.flags.drift_every)
    }

    pub fn report(&mut self, line: &Line, pairs: &[Pair]) -> Result<()> {
        if self.loss.is_none() {
            self.write_settings()?;
        }
        self.log.iter_mut().try_for_each(|log| log.write(line))?;
        self.say_notes();
        // The first steps may swing.
        let warning = saturation_warning(pairs.iter().map(|p| &p.loss)).filter(|_| !self.warned && line.step > 10);
        if let Some(warning) = warning {
            self.say(format_args!("step {}: {warning}", line.step));
            self.warned = true;
        }
        self.loss = Some(line.loss);
        self.bar.set_message(format!("loss {:.4}", line.loss));
        self.bar.inc(1);
        self.say_progress(line);
        Ok(())
    }

    /// Where no bar is shown, a line now and then.
    fn say_progress(&mut self, line: &Line) {
        let (since, steps) = (self.said.0.elapsed(), self.said.1 + 1);
        self.said.1 = steps;
        if !self.bar.is_hidden() || since < BETWEEN_LINES {
            return;
        }
        self.say(progress_line(line.step, self.steps, line.loss, since.as_secs_f64() / f64::from(steps)));
        self.said = (Instant::now(), 0);
    }

    /// Pictures of the base, once, and of the policy after `step`.
    pub fn pictures(&mut self, step: u64, base: &[Picture], drawn: &Drawn) -> Result<()> {
        let name = |i: usize, model: &str| format!("pictures/{i:02}/{model}");
        let base = base.iter().enumerate().map(|(i, picture)| (name(i, "base"), picture));
        let all: Vec<_> =
            base.chain(drawn.pictures.iter().enumerate().map(|(i, picture)| (name(i, "policy"), picture))).collect();
        let numbers: Vec<_> = drawn.rates.iter().map(|(metric, rate)| (format!("winrate/{metric}"), *rate)).collect();
        if let [(_, _), ..] = &drawn.rates[..] {
            let rates: Vec<_> = drawn.rates.iter().map(|(m, rate)| format!("{m} {:.0} %", 100.0 * rate)).collect();
            self.say(format_args!("step {step}: win rate over the base: {}", rates.join(", ")));
        }
        self.log.iter_mut().try_for_each(|log| log.pictures(step, &all, &numbers))
    }

    fn say_notes(&mut self) {
        let notes: Vec<String> = self.log.iter_mut().flat_map(|log| log.notes.drain(..)).collect();
        notes.iter().for_each(|note| self.say(note));
    }

    fn write_settings(&self) -> Result<()> {
        self.settings.iter().try_for_each(|(file, settings)| atomic::write(file, settings.as_bytes()))
    }

    /// Makes sure that the log and the settings are where they should be, beside a checkpoint.
    pub fn keep_log(&mut self) -> Result<()> {
        if self.settings.as_ref().is_some_and(|(file, _)| !file.exists()) {
            self.write_settings()?;
        }
        self.log.iter_mut().try_for_each(Log::keep)?;
        self.say_notes();
        Ok(())
    }

    pub fn go_back(&mut self, out: &Path, done: u64) {
        self.log = self.log.take().map(|_| Log::new(out, done, self.flags.report_to));
        self.bar.set_position(done);
    }

    /// The last line of a run of `steps` steps.
    pub fn finish(mut self, out: &Path, steps: u64) -> Result<()> {
        self.keep_log()?;
        self.bar.finish_and_clear();
        let (out, seconds) = (out.display(), self.began.elapsed().as_secs_f64());
        if self.common.json {
            let output = out.to_string();
            return self
                .common
                .answer(json!({ "output": output, "steps": steps, "loss": self.loss, "seconds": seconds }));
        }
        let loss = self.loss.map_or(String::new(), |loss| format!("the last loss is {loss:.4}, "));
        self.say(format_args!("{out} holds the policy after {steps} steps: {loss}{}", duration(seconds)));
        Ok(())
    }
}

/// `per_step`: seconds.
fn progress_line(step: u64, steps: u64, loss: f64, per_step: f64) -> String {
    let left = duration(per_step * steps.saturating_sub(step) as f64);
    format!("step {step} of {steps}: loss {loss:.4}, {} per step, {left} left", duration(per_step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_knows_how_far_the_run_is() {
        let line = progress_line(14, 120, 0.5739, 4.6);
        assert!(line.starts_with("step 14 of 120: loss 0.5739") && line.ends_with("8 min 7 s left"), "{line}");
    }
}
