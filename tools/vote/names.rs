//! Rules as they stand on the command line, where metrics have names and weights are not yet known.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result, ensure};

use crate::{
    rule::{Rule, Ties},
    scales::{Scale, Scales},
};

#[derive(Clone, Debug, PartialEq)]
pub enum RuleName {
    Majority,
    Single(String),
    Random,
    Sum,
    Zsum,
    Minmax,
    Soft,
    Unanimous,
    Quorum(usize),
    Weighted,
    Human,
}

impl RuleName {
    /// The tie policy in force: people who say "equal" are not overruled.
    pub fn ties(&self, asked: Ties) -> Ties {
        if *self == RuleName::Human { Ties::Abstain } else { asked }
    }

    /// Whether `--weights` means anything to it.
    pub fn weighs(&self) -> bool {
        matches!(self, RuleName::Sum | RuleName::Zsum | RuleName::Minmax | RuleName::Soft | RuleName::Weighted)
    }

    /// What it divides a metric's differences by; `None` for a rule that needs no scale.
    pub fn scale(&self) -> Option<fn(&Scale) -> f64> {
        match self {
            RuleName::Zsum => Some(|s| s.sd),
            RuleName::Minmax => Some(|s| s.max - s.min),
            _ => None,
        }
    }

    /// Puts numbers for names. `weights`: one a metric, 1 where none were given; `scales` where the rule needs them.
    ///
    /// # Errors
    /// The rule names a metric that is not there, or asks for more votes than there are voters.
    pub fn over(&self, metrics: &[String], weights: Vec<f64>, scales: &Scales) -> Result<Rule> {
        Ok(match self {
            RuleName::Majority => Rule::Majority,
            RuleName::Random => Rule::Random,
            RuleName::Unanimous => Rule::Unanimous,
            RuleName::Human => Rule::Human,
            RuleName::Sum => Rule::Sum(weights),
            RuleName::Soft => Rule::Soft(weights),
            RuleName::Weighted => Rule::Weighted(weights),
            RuleName::Zsum | RuleName::Minmax => {
                let scale = self.scale().context("a normalised sum has a scale")?;
                // A metric without spread says the same of every image, and adds nothing.
                let divided = metrics
                    .iter()
                    .zip(weights)
                    .map(|(m, w)| scales.get(m).map(scale).map_or(0.0, |x| if x > 0.0 { w / x } else { 0.0 }));
                Rule::Sum(divided.collect())
            }
            RuleName::Single(name) => Rule::Single(metrics.iter().position(|m| m == name).with_context(|| {
                format!("--rule {self}: there is no metric '{name}' (there are: {})", metrics.join(", "))
            })?),
            RuleName::Quorum(k) => {
                ensure!(*k <= metrics.len(), "--rule {self}: only {} vote ({})", metrics.len(), metrics.join(", "));
                Rule::Quorum(*k)
            }
        })
    }
}

impl FromStr for RuleName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match (text, text.split_once(':')) {
            ("majority", _) => RuleName::Majority,
            ("random", _) => RuleName::Random,
            ("sum", _) => RuleName::Sum,
            ("zsum", _) => RuleName::Zsum,
            ("minmax", _) => RuleName::Minmax,
            ("soft", _) => RuleName::Soft,
            ("unanimous", _) => RuleName::Unanimous,
            ("weighted", _) => RuleName::Weighted,
            ("human", _) => RuleName::Human,
            (_, Some(("single", metric))) if !metric.is_empty() => RuleName::Single(metric.to_owned()),
            (_, Some(("quorum", k))) => match k.parse() {
                Ok(k) if k > 0 => RuleName::Quorum(k),
                _ => return Err("quorum takes a number of votes from 1, as in quorum:3".into()),
            },
            _ => {
                return Err("expected `majority`, `single:METRIC` (as in single:hps), `random`, `sum`, `zsum`, `minmax`, `soft`, \
                            `unanimous`, `quorum:K` (as in quorum:3), `weighted` or `human`"
                    .into());
            }
        })
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            RuleName::Majority => "majority",
            RuleName::Single(metric) => return write!(f, "single:{metric}"),
            RuleName::Random => "random",
            RuleName::Sum => "sum",
            RuleName::Zsum => "zsum",
            RuleName::Minmax => "minmax",
            RuleName::Soft => "soft",
            RuleName::Unanimous => "unanimous",
            RuleName::Quorum(k) => return write!(f, "quorum:{k}"),
            RuleName::Weighted => "weighted",
            RuleName::Human => "human",
        })
    }
}

/// `hps=0.5`: a number for a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub metric: String,
    pub value: f64,
}

impl FromStr for Given {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (metric, value) = text.split_once('=').unwrap_or_default();
        match value.parse() {
            Ok(value) if f64::is_finite(value) && value >= 0.0 && !metric.is_empty() => {
                Ok(Given { metric: metric.into(), value })
            }
            _ => Err("expected METRIC=NUMBER, the number from 0 up, as in hps=0.5".into()),
        }
    }
}

/// The numbers given to `flag`, one a metric; `None` for a metric that was not named.
///
/// # Errors
/// A name that is no metric, or that stands twice.
pub fn one_each(flag: &str, given: &[Given], metrics: &[String]) -> Result<Vec<Option<f64>>> {
    for (i, g) in given.iter().enumerate() {
        let name = &g.metric;
        ensure!(metrics.contains(name), "{flag}: there is no metric '{name}' (there are: {})", metrics.join(", "));
        ensure!(given[..i].iter().all(|other| other.metric != *name), "{flag} names '{name}' twice");
    }
    Ok(metrics.iter().map(|m| given.iter().find(|g| g.metric == *m).map(|g| g.value)).collect())
}
