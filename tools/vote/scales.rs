//! The divisors of `zsum` and `minmax`: how widely each metric's scores are spread, in this table or in another.

use std::path::{Path, PathBuf};
use std::{collections::BTreeMap, str::FromStr};

use anyhow::{Context, Result, ensure};
use pipe::moments::Moments;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The spread of one metric's scores. An image counts once for each pair that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    pub sd: f64,
    pub min: f64,
    pub max: f64,
}

/// By metric.
pub type Scales = BTreeMap<String, Scale>;

#[derive(Clone, Debug, PartialEq)]
pub enum ScalesFrom {
    /// A first pass over the table itself.
    Data,
    File(PathBuf),
}

impl FromStr for ScalesFrom {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "data" { ScalesFrom::Data } else { ScalesFrom::File(text.into()) })
    }
}

impl Scale {
    /// `None` if nothing was scored. The sd of a single score is 0.
    pub fn of(scores: &Moments) -> Option<Self> {
        let (min, max) = scores.range()?;
        Some(Self { sd: scores.sd().unwrap_or(0.0), min, max })
    }
}

/// Reads the scales of `metrics` from a JSON file: `{"hps": {"sd": 0.013, "min": 0.22, "max": 0.31}, ...}`, or what
/// `vote --json` printed for another table, which holds the same under `voters`.
pub fn read(path: &Path, metrics: &[String]) -> Result<Scales> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let whole: Value = serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))?;
    let all = whole.get("voters").unwrap_or(&whole);
    let mut scales = Scales::new();
    for metric in metrics {
        let scale = all.get(metric).and_then(|s| Scale::deserialize(s).ok());
        let scale = scale.with_context(|| format!("{name}: no sd, min and max of {metric}"))?;
        let Scale { sd, min, max } = scale;
        let sound = [sd, min, max].iter().all(|x| x.is_finite()) && sd > 0.0 && max > min;
        ensure!(sound, "{name}: {metric} has sd {sd}, min {min} and max {max}: no spread");
        scales.insert(metric.clone(), scale);
    }
    Ok(scales)
}
