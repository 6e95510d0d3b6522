//! Reports the steps of a run: to log.jsonl, to the progress bar, and once as a warning.

use anyhow::Result;
use pipe::cli::Common;
use pipe::progress::{self, ProgressBar};

use crate::log::{Line, Log, LogFlags};
use crate::{checkpoints::Checkpoints, loss::Pair, method::saturation_warning};

pub struct Reporter {
    flags: LogFlags,
    common: Common,
    /// `None` in a process that writes nothing.
    log: Option<Log>,
    bar: ProgressBar,
    warned: bool,
}

impl Reporter {
    /// Reports on a run of `steps` steps, of which `done` are finished. `writes`: whether this process writes the log.
    pub fn new(
        flags: LogFlags,
        common: &Common,
        checkpoints: &Checkpoints,
        done: u64,
        steps: u64,
        writes: bool,
    ) -> Self {
        let log = writes.then(|| Log::new(&checkpoints.out, done, flags.report_to));
        let bar = progress::bar("train", Some(steps), common.quiet);
        bar.set_position(done);
        Self { flags, common: common.clone(), log, bar, warned: false }
    }

    pub fn say(&self, message: impl std::fmt::Display) {
        self.common.say(message);
    }

    /// Whether the drift is to be measured after this step.
    pub fn drift_due(&self, step: u64) -> bool {
        self.flags.drift_every > 0 && step.is_multiple_of(self.flags.drift_every)
    }

    pub fn report(&mut self, line: &Line, pairs: &[Pair]) -> Result<()> {
        self.log.iter_mut().try_for_each(|log| log.write(line))?;
        // The first steps may swing.
        let warning = saturation_warning(pairs.iter().map(|(_, p)| p)).filter(|_| !self.warned && line.step > 10);
        if let Some(warning) = warning {
            self.say(format_args!("step {}: {warning}", line.step));
            self.warned = true;
        }
        self.bar.set_message(format!("loss {:.4}", line.loss));
        self.bar.inc(1);
        Ok(())
    }

    pub fn go_back(&mut self, checkpoints: &Checkpoints, done: u64) {
        self.log = self.log.take().map(|_| Log::new(&checkpoints.out, done, self.flags.report_to));
        self.bar.set_position(done);
    }
}
