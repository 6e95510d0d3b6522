//! log.jsonl: one JSON object an optimiser step, numbers unrounded.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One line. Errors are means over the step's pairs of the mean squared prediction error.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Optimiser steps done, this one included.
    pub step: u64,
    pub loss: f64,
    /// Share of pairs with z > 0: the policy favours the winner more than the reference does.
    pub implicit_acc: f64,
    pub policy_winner_mse: f64,
    pub policy_loser_mse: f64,
    pub reference_winner_mse: f64,
    pub reference_loser_mse: f64,
    pub mean_abs_z: f64,
    /// z of every pair, in batch order (under --replay only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub z: Option<Vec<f64>>,
    /// Of the whole gradient, before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// |theta - theta_base| / |theta_base|, after the step; null where it was not measured.
    pub drift: Option<f64>,
    /// The reference was replaced after this step.
    pub refreshed: bool,
    pub pairs_per_second: f64,
    /// Peak resident memory of the process so far.
    pub memory_mib: f64,
}

pub struct Log {
    path: PathBuf,
    file: fs::File,
}

impl Log {
    /// Opens `out/log.jsonl`, keeping the lines up to `step` of the run that is resumed.
    pub fn open(out: &Path, step: u64) -> Result<Self> {
        #[derive(Deserialize)]
        struct Step {
            step: u64,
        }
        let path = out.join("log.jsonl");
        let kept = fs::read_to_string(&path).unwrap_or_default();
        let before = |line: &&str| serde_json::from_str::<Step>(line).is_ok_and(|l| l.step <= step);
        let kept: String = kept.lines().filter(before).map(|line| format!("{line}\n")).collect();
        pipe::atomic::write(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path);
        Ok(Self { file: file.with_context(|| format!("cannot write {}", path.display()))?, path })
    }

    pub fn write(&mut self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        self.file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Peak resident memory in MiB (0 where the system does not tell).
pub fn peak_memory() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|l| l.trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
