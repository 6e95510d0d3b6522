//! log.jsonl: one JSON object per optimiser step, with unrounded numbers.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use pipe::{atomic, cli::named};
use serde::{Deserialize, Serialize};

use crate::{judges::Picture, loss::Pair, tensorboard::Events};

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
    pub step: u64,
    pub loss: f64,
    /// Share of pairs with z > 0: the policy favours the winner more than the reference does. A pair with z = 0 is half a pair,
    /// as in Diffusion-DPO's code.
    pub implicit_acc: f64,
    pub policy_winner_mse: f64,
    pub policy_loser_mse: f64,
    pub reference_winner_mse: f64,
    pub reference_loser_mse: f64,
    pub mean_abs_z: f64,
    /// |policy's prediction| / |reference's prediction|, the mean over images. Above 1, images become oversaturated (NormGuard, arXiv
    /// 2606.27771).
    pub norm_ratio: f64,
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
    pub memory_mib: f64,
}

impl Line {
    /// The numbers that follow from the losses of a step.
    pub fn of(step: u64, pairs: &[Pair], took: Duration) -> Self {
        Self {
            step,
            loss: mean(pairs, |p| p.loss.loss),
            implicit_acc: mean(pairs, |p| if p.loss.z == 0.0 { 0.5 } else { f64::from(p.loss.z > 0.0) }),
            policy_winner_mse: mean(pairs, |p| p.errors.policy_winner),
            policy_loser_mse: mean(pairs, |p| p.errors.policy_loser),
            reference_winner_mse: mean(pairs, |p| p.errors.reference_winner),
            reference_loser_mse: mean(pairs, |p| p.errors.reference_loser),
            mean_abs_z: mean(pairs, |p| p.loss.z.abs()),
            norm_ratio: mean(pairs, |p| p.norm_ratio),
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
    /// Messages to the user about the log of an earlier run.
    pub notes: Vec<String>,
}

impl Log {
    /// `out/log.jsonl`. When a run is resumed, lines up to `step` are kept. Nothing is written before the first line.
    pub fn new(out: &Path, step: u64, report_to: ReportTo) -> Self {
        Self { out: out.to_owned(), path: out.join("log.jsonl"), step, report_to, files: None, notes: vec![] }
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
        self.step = line.step;
        let Some((file, events)) = &mut self.files else { return Ok(()) };
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))?;
        let Some(events) = events else { return Ok(()) };
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)?;
        let numbers = fields.into_iter().filter(|(name, _)| name != "step");
        let numbers: Vec<_> = numbers.filter_map(|(name, value)| Some((name, value.as_f64()?))).collect();
        events.add(line.step, &numbers)
    }

    /// Pictures and their win rates, for TensorBoard.
    pub fn pictures(&mut self, step: u64, pictures: &[(String, &Picture)], numbers: &[(String, f64)]) -> Result<()> {
        let Some((_, Some(events))) = &mut self.files else { return Ok(()) };
        events.add(step, numbers)?;
        pictures.iter().try_for_each(|(name, p)| events.add_picture(step, name, [p.height, p.width], &p.png))
    }

    /// Writes the log again if somebody has removed or replaced it, or its folder, during the run: the open file still has
    /// every line.
    pub fn keep(&mut self) -> Result<()> {
        let place = |about: fs::Metadata| (about.dev(), about.ino());
        let Some((file, _)) = &mut self.files else { return Ok(()) };
        let there = fs::metadata(&self.path).map(place).ok();
        if there == Some(place(file.metadata()?)) {
            return Ok(());
        }
        let name = self.path.display();
        let mut lines = vec![];
        file.rewind().and_then(|()| file.read_to_end(&mut lines)).with_context(|| format!("cannot read {name}"))?;
        let theirs = there.map(|_| atomic::set_aside(&self.path)).transpose()?;
        atomic::write(&self.path, &lines)?;
        self.notes.push(match theirs {
            Some(theirs) => {
                format!("warning: {name} was replaced during the run; that file is {} now", theirs.display())
            }
            None => format!("warning: {name} was removed during the run and is written again"),
        });
        self.files = None; // opened again with the next line
        Ok(())
    }

    fn open(&mut self) -> Result<File> {
        let before = match fs::read(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => vec![],
            read => read.with_context(|| format!("cannot read {}", self.path.display()))?,
        };
        let (kept, damaged) = lines_up_to(self.step, &before);
        if damaged {
            let (name, whole) = (self.path.display(), atomic::set_aside(&self.path)?);
            self.notes
                .push(format!("warning: some lines of {name} are damaged; the file as it was is {}", whole.display()));
        }
        atomic::write(&self.path, &kept)?;
        let file = OpenOptions::new().read(true).append(true).open(&self.path);
        file.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The lines of a log up to `step`, and whether others are damaged. The half line that a killed run leaves at the end is not.
fn lines_up_to(step: u64, log: &[u8]) -> (Vec<u8>, bool) {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let (mut kept, mut damaged) = (vec![], false);
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Step>(line) {
            Ok(line_step) if line_step.step <= step => kept.extend([line.trim_ascii_end(), b"\n"].concat()),
            Ok(_) => {}
            Err(_) => damaged |= line.ends_with(b"\n") || !line.starts_with(b"{"),
        }
    }
    (kept, damaged)
}

/// Peak resident memory in MiB (0 where the system does not report it).
pub fn peak_memory() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|l| l.trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::lines_up_to;

    #[test]
    fn only_sound_lines_are_kept_and_half_a_line_at_the_end_is_no_damage() {
        let log = |text: &[u8]| lines_up_to(2, text);
        let two = b"{\"step\":1}\n{\"step\":2}\n";
        assert_eq!(log(b"{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"ste"), (two.to_vec(), false));
        assert_eq!(log(b"{\"step\":1}\r\n{\"step\":2}"), (two.to_vec(), false));
        assert_eq!(log(b"\xff\n{\"step\":1}\n{\"step\xff\":2}\n{\"step\":2}\n"), (two.to_vec(), true));
        assert_eq!(log(&[two, &[0; 40][..]].concat()), (two.to_vec(), true));
        assert_eq!(log(b""), (vec![], false));
    }
}
