//! `--margin` and `--weights`: a number per metric.

use std::str::FromStr;

use anyhow::{Result, ensure};

/// `hps=0.5`
#[derive(Clone, Debug, PartialEq)]
pub struct PerMetric {
    pub metric: String,
    pub value: f64,
}

impl FromStr for PerMetric {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (metric, value) = text.split_once('=').unwrap_or_default();
        match value.parse() {
            Ok(value) if f64::is_finite(value) && value >= 0.0 && !metric.is_empty() => {
                Ok(PerMetric { metric: metric.into(), value })
            }
            _ => Err("expected METRIC=NUMBER, the number not below 0, as in hps=0.5".into()),
        }
    }
}

/// The numbers given to `flag`, one per metric; `None` for a metric that was not named.
pub fn in_order(flag: &str, given: &[PerMetric], metrics: &[String]) -> Result<Vec<Option<f64>>> {
    for (i, g) in given.iter().enumerate() {
        let name = &g.metric;
        ensure!(metrics.contains(name), "{flag}: there is no metric '{name}' (there are: {})", metrics.join(", "));
        ensure!(given[..i].iter().all(|other| other.metric != *name), "{flag} names '{name}' twice");
    }
    Ok(metrics.iter().map(|m| given.iter().find(|g| g.metric == *m).map(|g| g.value)).collect())
}
