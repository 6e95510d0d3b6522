//! log.jsonl: one JSON object per optimiser step, with unrounded numbers.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::{io::Write, time::Duration};

use anyhow::{Context, Result};
use pipe::cli::named;
use serde::{Deserialize, Serialize};

use crate::{loss::Pair, tensorboard::Events};

#[derive(clap::Args, Clone, Copy, Debug)]
pub struct LogFlags {
    /// Log the distance of the policy from the base every N steps (0: at checkpoints only); measuring it reads all weights
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Checkpoints")]
    pub drift_every: u64,
    /// Where to write the numbers of each step besides log.jsonl
    #[arg(long, default_value_t = ReportTo::None, help_heading = "Runs", value_parser = named::<ReportTo>())]
    pub report_to: ReportTo,
}

pipe::names! {
    /// Where the numbers of each step go besides log.jsonl.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ReportTo {
        None = "none",
        /// Event files in OUT_DIR/tensorboard/
        Tensorboard = "tensorboard",
    }
}

/// One line. Errors are means over the step's pairs of the mean squared prediction error.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    /// Optimiser steps done, including this one.
    pub step: u64,
    pub loss: f64,
    /// Share of pairs with z > 0: the policy favours the winner more than the reference does.
    pub implicit_acc: f64,
    pub policy_winner_mse: f64,
    pub policy_loser_mse: f64,
    pub reference_winner_mse: f64,
    pub reference_loser_mse: f64,
    pub mean_abs_z: f64,
    /// z of every pair in batch order (under --replay only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub z: Option<Vec<f64>>,
    /// Norm of the whole gradient, before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// |theta - theta_base| / |theta_base| after the step; null where it was not measured.
    pub drift: Option<f64>,
    /// The same distance from the present reference; 0 right after the reference was replaced.
    pub drift_reference: Option<f64>,
    /// Whether the reference was replaced after this step.
    pub refreshed: bool,
    pub pairs_per_second: f64,
    /// Peak resident memory of the process so far.
    pub memory_mib: f64,
}

impl Line {
    /// The numbers that follow from the losses of a step.
    pub fn of(step: u64, pairs: &[Pair], took: Duration) -> Self {
        Self {
            step,
            loss: mean(pairs, |(_, p)| p.loss),
            implicit_acc: mean(pairs, |(_, p)| if p.z > 0.0 { 1.0 } else { 0.0 }),
            policy_winner_mse: mean(pairs, |(e, _)| e.policy_winner),
            policy_loser_mse: mean(pairs, |(e, _)| e.policy_loser),
            reference_winner_mse: mean(pairs, |(e, _)| e.reference_winner),
            reference_loser_mse: mean(pairs, |(e, _)| e.reference_loser),
            mean_abs_z: mean(pairs, |(_, p)| p.z.abs()),
            pairs_per_second: pairs.len() as f64 / took.as_secs_f64(),
            memory_mib: peak_memory(),
            ..Self::default()
        }
    }
}

pub fn mean(pairs: &[Pair], f: impl Fn(&Pair) -> f64) -> f64 {
    pairs.iter().map(f).sum::<f64>() / pairs.len() as f64
}

pub struct Log {
    out: PathBuf,
    path: PathBuf,
    step: u64,
    report_to: ReportTo,
    files: Option<(File, Option<Events>)>,
}

impl Log {
    /// `out/log.jsonl`. Of the run that is resumed, the lines up to `step` are kept. Nothing is written before the first line.
    pub fn new(out: &Path, step: u64, report_to: ReportTo) -> Self {
        Self { out: out.to_owned(), path: out.join("log.jsonl"), step, report_to, files: None }
    }

    pub fn write(&mut self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        if self.files.is_none() {
            let events = match self.report_to {
                ReportTo::None => None,
                ReportTo::Tensorboard => Some(Events::create(&self.out, self.step)?),
            };
            self.files = Some((self.open()?, events));
        }
        let Some((file, events)) = &mut self.files else { return Ok(()) };
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))?;
        let Some(events) = events else { return Ok(()) };
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)?;
        let numbers = fields.into_iter().filter(|(name, _)| name != "step");
        let numbers: Vec<_> = numbers.filter_map(|(name, value)| Some((name, value.as_f64()?))).collect();
        events.add(line.step, &numbers)
    }

    fn open(&self) -> Result<File> {
        #[derive(Deserialize)]
        struct Step {
            step: u64,
        }
        let kept = fs::read_to_string(&self.path).unwrap_or_default();
        let before = |line: &&str| serde_json::from_str::<Step>(line).is_ok_and(|l| l.step <= self.step);
        let kept: String = kept.lines().filter(before).map(|line| format!("{line}\n")).collect();
        pipe::atomic::write(&self.path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&self.path);
        file.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Peak resident memory in MiB (0 where the system does not report it).
pub fn peak_memory() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|l| l.trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
