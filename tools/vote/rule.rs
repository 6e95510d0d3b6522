//! The vote rule: from the scores of two images to one preference. Pure functions in the paper's letters.
//!
//! A preference is an i8: 1 for image 0 (the paper's x^1), -1 for image 1 (x^2), 0 for neither.

use anyhow::{Context, Result, ensure};
use pipe::{rule::Rule, seed};

use crate::scales::{Scale, Scales};

/// Eq. 6: s_m = sign(m_0 - m_1). The paper leaves sign(0) open. Here an equal score is no vote, and neither is a difference of
/// at most `margin`, which is 0 by default.
pub fn s(m_0: f32, m_1: f32, margin: f64) -> i8 {
    let d = f64::from(m_0) - f64::from(m_1);
    (d > margin) as i8 - (d < -margin) as i8
}

/// Eq. 7: S = sign(sum over m of s_m), 0 if as many metrics prefer one image as the other.
/// `None` if no metric has scored the pair.
pub fn majority(s: &[Option<i8>]) -> Option<i8> {
    let sum: i32 = s.iter().flatten().map(|&s_m| i32::from(s_m)).sum();
    s.iter().any(Option::is_some).then_some(sum.signum() as i8)
}

/// The human preference: `label_0` is the probability that image 0 is better.
pub fn human(label_0: f32) -> i8 {
    s(label_0, 0.5, 0.0)
}

pipe::names! {
    /// Who decides if S = 0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Ties {
        /// No winner: the weight is 0, and so there is exactly no gradient in Eq. 9
        Abstain = "abstain",
        /// Image 1 wins: the paper's formula taken literally
        Second = "second",
        /// Image 0 wins, as in Diffusion-DPO's code, which keeps the order of equal images
        First = "first",
        /// The human label of the pair decides; if it is a tie or missing, the weight is 0
        Human = "human",
        /// A coin toss, drawn from --seed and pair_id
        Random = "random",
        /// Both halves: target 0.5 with weight 1, which keeps the policy close to the reference on this pair
        Soft = "soft",
    }
}

/// One pair, as a rule sees it.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    pub id: &'a str,
    /// s_m of every metric; `None` if it did not score both images.
    pub s: &'a [Option<i8>],
    /// m_0 - m_1 of every metric; 0 if s_m is not a vote.
    pub d: &'a [f64],
    pub label_0: Option<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// S by the rule, before ties are settled.
    pub preference: i8,
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
    /// The rule said S = 0; the target follows from [`Ties`].
    Tied,
    /// The pair has no score or no label that the rule could use. The tie policy is not asked either.
    Nothing,
}

/// A rule with its numbers.
#[derive(Clone)]
pub struct Tally {
    rule: Rule,
    /// w_m of every metric. For zsum and minmax it is divided by the metric's spread, for single:METRIC it is 0 for the others.
    w: Vec<f64>,
}

/// The divisor of a metric's differences under zsum and minmax; `None` for a rule that needs no scale.
pub fn scale(rule: &Rule) -> Option<fn(&Scale) -> f64> {
    match rule {
        Rule::Zsum => Some(|s| s.sd),
        Rule::Minmax => Some(|s| s.max - s.min),
        _ => None,
    }
}

impl Tally {
    /// The rule over `metrics`, with one weight each (1 if none were given), and `scales` if the rule needs them.
    pub fn new(rule: Rule, metrics: &[String], weights: Vec<f64>, scales: &Scales) -> Result<Self> {
        let w = match (&rule, scale(&rule)) {
            (Rule::Single(name), _) => {
                let m = metrics.iter().position(|m| m == name).with_context(|| {
                    format!(
                        "--rule {rule}: there is no metric '{name}' (there are: {}; judges vote only if --metrics names them)",
                        metrics.join(", ")
                    )
                })?;
                (0..metrics.len()).map(|k| f64::from(u8::from(k == m))).collect()
            }
            (_, Some(scale)) => {
                // A metric without spread gives every image the same score, and adds nothing.
                let spread = |m| scales.get(m).map(scale).filter(|&x| x > 0.0);
                metrics.iter().zip(weights).map(|(m, w)| spread(m).map_or(0.0, |x| w / x)).collect()
            }
            _ => weights,
        };
        if let Rule::Quorum(k) = rule {
            ensure!(k.get() <= metrics.len(), "--rule {rule}: only {} vote ({})", metrics.len(), metrics.join(", "));
        }
        Ok(Self { rule, w })
    }

    /// S by this rule; `None` if the pair has nothing that the rule could use.
    pub fn prefers(&self, seed: u64, pair: &Pair) -> Option<i8> {
        let (w, s, d) = (&self.w, pair.s, pair.d);
        let scored = s.iter().any(Option::is_some);
        let votes = |image: i8| s.iter().filter(|&&s_m| s_m == Some(image)).count();
        let of_either = |enough: &dyn Fn(i8) -> bool| i8::from(enough(1)) - i8::from(enough(-1));
        match &self.rule {
            Rule::Majority => majority(s),
            Rule::Single(_) | Rule::Random => self.alone(seed, pair).and_then(|m| s[m]),
            // S = sign(sum of w_m (m_0 - m_1)): the paper's vanilla row, and its normalised one.
            Rule::Sum | Rule::Zsum | Rule::Minmax => scored.then(|| sign(w.iter().zip(d).map(|(w_m, d_m)| w_m * d_m))),
            // S = sign(sum of w_m s_m).
            Rule::Soft | Rule::Weighted => scored.then(|| sign(weighted(w, s))),
            Rule::Unanimous => scored.then(|| of_either(&|i| s.iter().flatten().all(|&s_m| s_m == i))),
            Rule::Quorum(k) => scored.then(|| of_either(&|i| votes(i) >= k.get() && votes(i) > votes(-i))),
            Rule::Human => pair.label_0.map(human),
        }
    }

    /// The one metric that decides this pair, where the rule leaves it to one; drawn from --seed and pair_id.
    pub fn alone(&self, seed: u64, pair: &Pair) -> Option<usize> {
        let scored = || (0..pair.s.len()).filter(|&m| pair.s[m].is_some());
        match self.rule {
            Rule::Single(_) => self.w.iter().position(|&w_m| w_m > 0.0),
            Rule::Random => {
                let n = scored().count() as u64;
                scored().nth(if n > 1 { seed::draws(seed, "metric", pair.id, 0).below(n) as usize } else { 0 })
            }
            _ => None,
        }
    }

    /// Target and weight of a pair with this S, by the tie policy where S = 0.
    pub fn decide(&self, preference: Option<i8>, ties: Ties, seed: u64, pair: &Pair) -> Decision {
        let (preference, (target, weight), reason) = match preference {
            Some(0) => (0, ties.settle(seed, pair), Reason::Tied),
            Some(preference) => (preference, self.label(preference, pair), Reason::Preferred),
            None => (0, label(0), Reason::Nothing),
        };
        Decision { preference, target, weight, reason }
    }

    /// Target and weight; under soft the target is (weights for image 0) / (all weights that voted).
    fn label(&self, preference: i8, pair: &Pair) -> (f32, f32) {
        if self.rule != Rule::Soft {
            return label(preference);
        }
        let (sum, all) = weighted(&self.w, pair.s).fold((0.0, 0.0), |(sum, all), x| (sum + x, all + x.abs()));
        ((0.5 + 0.5 * sum / all) as f32, 1.0)
    }
}

impl Ties {
    /// The tie policy in force under a rule: people who call two images equal are not overruled.
    pub fn under(self, rule: &Rule) -> Self {
        if *rule == Rule::Human { Ties::Abstain } else { self }
    }

    /// Target and weight of a tied pair.
    fn settle(self, seed: u64, pair: &Pair) -> (f32, f32) {
        label(match self {
            Ties::Soft => return (0.5, 1.0),
            Ties::Abstain => 0,
            Ties::Second => -1,
            Ties::First => 1,
            Ties::Human => pair.label_0.map_or(0, human),
            Ties::Random => 1 - 2 * seed::draws(seed, "tie", pair.id, 0).below(2) as i8,
        })
    }
}

/// S = 1, -1, 0 as target and weight: 1, 0, 0.5 and 1, 1, 0.
pub fn label(preference: i8) -> (f32, f32) {
    ((1.0 + f32::from(preference)) / 2.0, preference.abs().into())
}

/// w_m s_m of every metric.
fn weighted<'a>(w: &'a [f64], s: &'a [Option<i8>]) -> impl Iterator<Item = f64> + 'a {
    w.iter().zip(s).map(|(w_m, s_m)| w_m * f64::from(s_m.unwrap_or(0)))
}

/// The sign of a sum; 0 also if only rounding keeps it from 0, as in 0.1 + 0.2 - 0.3.
fn sign(terms: impl Iterator<Item = f64>) -> i8 {
    let (sum, size) = terms.fold((0.0, 0.0_f64), |(sum, size), x| (sum + x, size + x.abs()));
    if sum.abs() <= 1e-12 * size { 0 } else { sum.signum() as i8 }
}
