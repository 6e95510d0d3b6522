//! Texts: log.jsonl, and the JSON of `winrate`.

use std::{fs, path::Path};

use anyhow::Result;
use pipe::text::count;
use pipe::winrates::Winrates;
use serde_json::Value;

use crate::finding::Finding;

/// The longest text that is read, in bytes: a log of a million steps has half of it.
const LONGEST: u64 = 1 << 30;

/// `None` where the file is neither.
pub fn look_at(path: &Path) -> Result<Option<Finding>> {
    let mut begin = [0; 1];
    let file = fs::File::open(path)?;
    let read = std::os::unix::fs::FileExt::read_at(&file, &mut begin, 0).unwrap_or(0);
    if read == 0 || begin != *b"{" || file.metadata()?.len() > LONGEST {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    let first = text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok());
    if first.is_some_and(|line| line.get("step").is_some() && line.get("loss").is_some()) {
        return Ok(Some(log(&text)));
    }
    Ok(Some(match serde_json::from_str::<Winrates>(&text) {
        Ok(winrates) => {
            let rates = winrates.comparisons.len().max(winrates.seeds.len());
            let metrics = winrates.metrics.join(", ");
            Finding::new("win rates").holds(format!("{}, metrics {metrics}", count(rates, "comparison")))
        }
        Err(_) if serde_json::from_str::<Value>(&text).is_ok() => {
            let mut finding = Finding::new("JSON");
            finding.problem("it is not what `winrate --json` writes, nor another file that is read here");
            finding
        }
        Err(error) => Finding::not_whole("JSON", &error.into()),
    }))
}

/// Every line is the object of a step, and the steps follow each other.
fn log(text: &str) -> Finding {
    let mut finding = Finding::new("log of `train`");
    let (mut last, mut steps) = (None, 0);
    for (i, line) in text.lines().enumerate() {
        let step = serde_json::from_str::<Value>(line).ok().and_then(|line| line.get("step")?.as_u64());
        match (step, last) {
            (None, _) => finding.problem(format!("line {} is damaged", i + 1)),
            (Some(step), Some(before)) if step != before + 1 => {
                finding.problem(format!("line {}: step {step} follows step {before}", i + 1));
            }
            _ => {}
        }
        steps += usize::from(step.is_some());
        last = step.or(last);
    }
    finding.holds(format!("{}, the last is {}", count(steps, "step"), last.unwrap_or_default()))
}
