//! The vote rule: from the scores of two images to one preference. Pure functions in the paper's letters.
//!
//! A preference is an i8: 1 for image 0 (the paper's x^1), -1 for image 1 (x^2), 0 for neither.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result};
use pipe::seed;

/// Eq. 6: s_m = sign(m_0 - m_1). The paper leaves sign(0) open; here an equal score is no vote.
pub fn s(m_0: f32, m_1: f32) -> i8 {
    (m_0 > m_1) as i8 - (m_0 < m_1) as i8
}

/// Eq. 7: S = sign(sum over m of s_m), 0 where as many metrics prefer one image as the other.
/// `None` where no metric has scored the pair.
pub fn majority(s: &[Option<i8>]) -> Option<i8> {
    let sum: i32 = s.iter().flatten().map(|&s_m| i32::from(s_m)).sum();
    s.iter().any(Option::is_some).then_some(sum.signum() as i8)
}

/// What people said, `label_0`: the probability that image 0 is better; above one half it is.
pub fn human(label_0: f32) -> i8 {
    s(label_0, 0.5)
}

/// How votes become a preference. On the command line a metric is a name, in the loop the number of its column.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule<Metric = String> {
    Majority,
    Single(Metric),
    Human,
}

/// Who decides where S = 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Ties {
    /// Nobody: weight 0, and so exactly no gradient in Eq. 9
    Abstain,
    /// Image 1 wins, as the paper's "otherwise" says to the letter
    Second,
    /// Image 0 wins, as in Diffusion-DPO's code, which keeps the order of equal images
    First,
    /// The human label of the pair; where that ties or is missing, nobody
    Human,
    /// A coin of the pair's own, from --seed and pair_id
    Random,
}

/// One pair, as a rule sees it.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    pub id: &'a str,
    /// s_m of every metric; `None` where it did not score both images.
    pub s: &'a [Option<i8>],
    pub label_0: Option<f32>,
}

/// What comes out for one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The probability that image 0 is preferred.
    pub target: f32,
    /// 0: the pair abstains.
    pub weight: f32,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The rule preferred an image.
    Preferred,
    /// The rule said S = 0; what `Ties` made of it is in the target.
    Tied,
    /// There was nothing to go by, no score or no label, so no tie policy is asked either.
    Nothing,
}

impl Rule<usize> {
    /// S by this rule; `None` where the pair has nothing to go by.
    pub fn prefers(&self, pair: &Pair) -> Option<i8> {
        match *self {
            Rule::Majority => majority(pair.s),
            Rule::Single(m) => pair.s[m],
            Rule::Human => pair.label_0.map(human),
        }
    }

    /// The rule, then the tie policy.
    pub fn decide(&self, ties: Ties, seed: u64, pair: &Pair) -> Decision {
        let (preference, reason) = match self.prefers(pair) {
            Some(0) => (ties.prefers(seed, pair), Reason::Tied),
            Some(preference) => (preference, Reason::Preferred),
            None => (0, Reason::Nothing),
        };
        Decision { target: (1.0 + preference as f32) / 2.0, weight: preference.abs().into(), reason }
    }
}

impl Ties {
    pub fn prefers(self, seed: u64, pair: &Pair) -> i8 {
        match self {
            Ties::Abstain => 0,
            Ties::Second => -1,
            Ties::First => 1,
            Ties::Human => pair.label_0.map_or(0, human),
            Ties::Random => 1 - 2 * seed::draws(seed, "tie", pair.id, 0).below(2) as i8,
        }
    }
}

impl Rule {
    /// The tie policy in force: people who say "equal" are not overruled.
    pub fn ties(&self, asked: Ties) -> Ties {
        if *self == Rule::Human { Ties::Abstain } else { asked }
    }

    /// Puts numbers for names.
    ///
    /// # Errors
    /// The rule names a metric that is not among `metrics`.
    pub fn over(&self, metrics: &[String]) -> Result<Rule<usize>> {
        Ok(match self {
            Rule::Majority => Rule::Majority,
            Rule::Human => Rule::Human,
            Rule::Single(name) => Rule::Single(metrics.iter().position(|m| m == name).with_context(|| {
                format!("--rule {self}: there is no metric '{name}' (there are: {})", metrics.join(", "))
            })?),
        })
    }
}

impl FromStr for Rule {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "majority" => Ok(Rule::Majority),
            None if text == "human" => Ok(Rule::Human),
            Some(("single", metric)) if !metric.is_empty() => Ok(Rule::Single(metric.to_owned())),
            _ => Err("expected `majority`, `single:METRIC` (as in single:hps) or `human`".into()),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Rule::Majority => f.write_str("majority"),
            Rule::Single(metric) => write!(f, "single:{metric}"),
            Rule::Human => f.write_str("human"),
        }
    }
}
