//! Weights without knowing the truth: estimates how often each voter is right from how often the voters agree (Dawid and Skene,
//! 1979).
//!
//! The model: one image of each pair is the better one, either with probability 1/2, and it is not known which. Voter m finds it with
//! probability p_m, independently of the others. EM alternates q = P(image 0 is better | votes) = sigma(sum of w_m s_m) and
//! p_m = mean of q over the votes of m, with w_m = logit p_m. Swapping the two images of a pair only changes signs.
//!
//! Voters that share a backbone make common mistakes, which plain EM takes for the truth. So independence is tested first
//! (chi-squared over the patterns of votes). Where it fails, w_m = lambda_m logit p_m, with
//! lambda_m = 1 / (1 + sum over k of r_mk) and r_mk = (c_mk - c) / (1 - c), where c_mk is the correlation of the votes of m and k,
//! and c the least correlation of any two voters: agreement beyond the least is attributed to what two voters share. A copy of a
//! voter then weighs half, and so does the original.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use pipe::text;
use serde_json::{Value, json};
use statrs::distribution::{ChiSquared, ContinuousCDF};

/// How often each combination of votes occurred, which is all that a fit needs from a table of any size.
#[derive(Default)]
pub struct Patterns {
    voters: usize,
    /// Two bits per voter: 0 no vote, 1 image 0, 2 image 1.
    counts: BTreeMap<u64, u64>,
}

/// The estimates, one number per voter.
pub struct Fit {
    /// p_m.
    pub accuracy: Vec<f64>,
    /// lambda_m; all 1 if the voters err independently.
    pub discount: Vec<f64>,
    /// w_m, at least 0: a voter that is wrong more often than right has no weight.
    pub weights: Vec<f64>,
    /// The test of independent errors: chi-squared and its degrees of freedom (0: it cannot be tested).
    pub chi_squared: f64,
    pub freedom: usize,
}

/// The probability below which independent errors are no longer assumed.
const GIVEN_UP: f64 = 0.001;
const ROUNDS: usize = 20_000;
const CLOSE: f64 = 1e-10;

impl Patterns {
    pub fn new(voters: usize) -> Result<Self> {
        ensure!((3..=16).contains(&voters), "--fit needs 3 to 16 voters, which check each other; there are {voters}");
        Ok(Self { voters, counts: BTreeMap::new() })
    }

    pub fn add(&mut self, s: impl Iterator<Item = Option<i8>>) {
        let code = |s_m| match s_m {
            Some(1) => 1,
            Some(-1) => 2,
            _ => 0,
        };
        *self.counts.entry(s.fold(0, |key, s_m| key << 2 | code(s_m))).or_default() += 1;
    }

    /// Every combination of votes (0: none) and how often it occurred.
    fn unpacked(&self) -> Vec<(Vec<f64>, f64)> {
        let votes =
            |key: u64| (0..self.voters).rev().map(move |m| [0.0, 1.0, -1.0, 0.0][(key >> (2 * m) & 3) as usize]);
        self.counts.iter().map(|(&key, &n)| (votes(key).collect(), n as f64)).collect()
    }

    pub fn fit(&self, names: &[String]) -> Result<Fit> {
        let patterns = self.unpacked();
        for m in 0..self.voters {
            ensure!(
                patterns.iter().any(|(s, _)| s[m] != 0.0),
                "--fit: {} never votes; leave it out (--metrics names the others, and without --human-voter people do not vote)",
                names[m]
            );
        }
        let alone = vec![1.0; self.voters];
        let mut accuracy = em(&patterns, &alone);
        let (chi_squared, freedom) = misfit(&patterns, &accuracy);
        let discount = if is_unlikely(chi_squared, freedom) { discount(&patterns, self.voters) } else { alone };
        if discount.iter().any(|&l| l < 1.0) {
            accuracy = em(&patterns, &discount);
        }
        let weights = weights(&accuracy, &discount).into_iter().map(|w| w.max(0.0)).collect();
        Ok(Fit { accuracy, discount, weights, chi_squared, freedom })
    }
}

fn weights(accuracy: &[f64], discount: &[f64]) -> Vec<f64> {
    accuracy.iter().zip(discount).map(|(p, lambda)| lambda * (p / (1.0 - p)).ln()).collect()
}

/// p_m by EM. It starts from voters that are all right more often than not. One vote each way is added to every voter's, so that
/// no p_m is 0 or 1.
fn em(patterns: &[(Vec<f64>, f64)], discount: &[f64]) -> Vec<f64> {
    let mut p = vec![0.7; discount.len()];
    for _ in 0..ROUNDS {
        let w = weights(&p, discount);
        let (mut right, mut all) = (vec![1.0; p.len()], vec![2.0; p.len()]);
        for (s, n) in patterns {
            let z: f64 = w.iter().zip(s).map(|(w_m, s_m)| w_m * s_m).sum();
            let q = 1.0 / (1.0 + (-z).exp());
            for (m, &s_m) in s.iter().enumerate().filter(|(_, s_m)| **s_m != 0.0) {
                right[m] += n * if s_m > 0.0 { q } else { 1.0 - q };
                all[m] += n;
            }
        }
        let next: Vec<f64> = right.iter().zip(&all).map(|(right, all)| right / all).collect();
        let moved = next.iter().zip(&p).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        p = next;
        if moved < CLOSE {
            break;
        }
    }
    p
}

/// Chi-squared of the patterns in which all voted, against independent errors. A pattern and its mirror image count as one.
fn misfit(patterns: &[(Vec<f64>, f64)], p: &[f64]) -> (f64, usize) {
    let full: BTreeMap<Vec<bool>, f64> =
        patterns.iter().filter(|(s, _)| !s.contains(&0.0)).fold(BTreeMap::new(), |mut full, (s, n)| {
            *full.entry(s.iter().map(|s_m| s_m == &s[0]).collect()).or_default() += n;
            full
        });
    let n: f64 = full.values().sum();
    let expected = |same: &[bool]| {
        let all =
            |right: bool| p.iter().zip(same).map(|(p, &s)| if s == right { *p } else { 1.0 - p }).product::<f64>();
        n * (all(true) + all(false))
    };
    let mut chi_squared = 0.0;
    for bits in 0..1u64 << (p.len() - 1) {
        let same: Vec<bool> = (0..p.len()).map(|m| m == 0 || bits >> (m - 1) & 1 == 1).collect();
        let (seen, expected) = (full.get(&same).copied().unwrap_or(0.0), expected(&same));
        if expected > 0.0 {
            chi_squared += (seen - expected).powi(2) / expected;
        }
    }
    (chi_squared, (1usize << (p.len() - 1)) - 1 - p.len().min((1 << (p.len() - 1)) - 1))
}

/// Whether chi-squared with `freedom` degrees of freedom is so large by chance in one of 1,000 cases or fewer.
fn is_unlikely(chi_squared: f64, freedom: usize) -> bool {
    ChiSquared::new(freedom as f64).is_ok_and(|distribution| distribution.sf(chi_squared) < GIVEN_UP)
}

/// lambda_m.
fn discount(patterns: &[(Vec<f64>, f64)], voters: usize) -> Vec<f64> {
    let correlation = |m: usize, k: usize| {
        let of = |f: fn(f64) -> f64| patterns.iter().map(|(s, n)| n * f(s[m] * s[k])).sum::<f64>();
        let both = of(f64::abs);
        if both > 0.0 { of(|x| x) / both } else { 0.0 }
    };
    let pairs = (0..voters).flat_map(|m| (0..m).map(move |k| (m, k)));
    let least = pairs.map(|(m, k)| correlation(m, k)).fold(1.0, f64::min).max(0.0);
    let shared = |m, k| if least < 1.0 { ((correlation(m, k) - least) / (1.0 - least)).max(0.0) } else { 1.0 };
    (0..voters).map(|m| 1.0 / (1.0 + (0..voters).filter(|&k| k != m).map(|k| shared(m, k)).sum::<f64>())).collect()
}

impl Fit {
    pub fn text(&self, voters: &[String]) -> String {
        let mut rows = vec![["fitted voter", "right", "discount", "weight"].map(String::from).to_vec()];
        for (m, voter) in voters.iter().enumerate() {
            let right = format!("{:.1} %", 100.0 * self.accuracy[m]);
            rows.push(vec![
                voter.clone(),
                right,
                format!("{:.2}", self.discount[m]),
                format!("{:.3}", self.weights[m]),
            ]);
        }
        let discounted = self.discount.iter().any(|&l| l < 1.0);
        let tested = match (self.freedom, discounted) {
            (0, _) => "whether voters err independently cannot be tested with three voters".into(),
            (f, true) => format!(
                "voters err together (chi-squared {:.1} of {f}), so those that agree most are discounted",
                self.chi_squared
            ),
            (f, false) => format!("no sign that voters err together (chi-squared {:.1} of {f})", self.chi_squared),
        };
        format!("\n{}{tested}\n", text::table(&rows, 1))
    }

    pub fn json(&self, voters: &[String]) -> Value {
        let by_name = |values: &[f64]| {
            voters.iter().cloned().zip(values.iter().map(|&x| x.into())).collect::<serde_json::Map<_, _>>()
        };
        json!({
            "accuracy": by_name(&self.accuracy), "discount": by_name(&self.discount), "weights": by_name(&self.weights),
            "chi_squared": self.chi_squared, "freedom": self.freedom,
        })
    }
}

#[cfg(test)]
mod tests {
    use pipe::seed::{Draws, draws};

    use super::*;

    const PAIRS: u64 = 20_000;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|m| format!("m{m}")).collect()
    }

    /// Votes of a world in which image 0 or 1 is better by a coin.
    fn fit(voters: usize, votes: impl Fn(i8, &mut Draws) -> Vec<Option<i8>>) -> Fit {
        let mut patterns = Patterns::new(voters).unwrap();
        for i in 0..PAIRS {
            let mut draws = draws(3, "world", "", i);
            let truth = 1 - 2 * draws.below(2) as i8;
            patterns.add(votes(truth, &mut draws).into_iter());
        }
        patterns.fit(&names(voters)).unwrap()
    }

    fn right(truth: i8, p: f64, draws: &mut Draws) -> Option<i8> {
        Some(if draws.uniform() < p { truth } else { -truth })
    }

    fn close(ours: &[f64], known: &[f64], tolerance: f64) {
        let near = ours.iter().zip(known).all(|(a, b)| (a - b).abs() < tolerance);
        assert!(near && ours.len() == known.len(), "{ours:?}, known {known:?}");
    }

    #[test]
    fn independent_voters_are_found_as_they_are() {
        for p in [&[0.9, 0.8, 0.7, 0.6][..], &[0.65; 4], &[0.8, 0.75, 0.7, 0.65, 0.6], &[0.85, 0.7, 0.6]] {
            let fit = fit(p.len(), |truth, draws| p.iter().map(|&p| right(truth, p, draws)).collect());
            close(&fit.accuracy, p, 0.02);
            assert!(fit.discount.iter().all(|&l| l == 1.0), "{p:?}: chi-squared {}", fit.chi_squared);
            let logit: Vec<f64> = fit.accuracy.iter().map(|p| (p / (1.0 - p)).ln()).collect();
            close(&fit.weights, &logit, 1e-9);
        }
    }

    #[test]
    fn missing_votes_are_no_votes() {
        let p = [0.85, 0.75, 0.65, 0.7];
        let fit = fit(4, |truth, draws| {
            let vote = |&p: &f64| right(truth, p, draws).filter(|_| draws.uniform() < 0.8);
            p.iter().map(vote).collect()
        });
        close(&fit.accuracy, &p, 0.03);
    }

    #[test]
    fn a_copy_adds_nothing() {
        let fit = fit(4, |truth, draws| {
            let first = right(truth, 0.7, draws);
            vec![first, first, right(truth, 0.7, draws), right(truth, 0.7, draws)]
        });
        // By plain EM the copies would be right always, and decide alone.
        close(&fit.accuracy, &[0.7; 4], 0.03);
        close(&fit.discount, &[0.5, 0.5, 1.0, 1.0], 0.05);
    }

    /// Three voters that say in half of the pairs what their common backbone says, and one or two others; all right in 70 %.
    #[test]
    fn voters_that_err_together_are_discounted() {
        for others in [1, 2] {
            let fit = fit(3 + others, |truth, draws| {
                let backbone = right(truth, 0.7, draws);
                let mut votes: Vec<_> =
                    (0..3).map(|_| if draws.uniform() < 0.5 { backbone } else { right(truth, 0.7, draws) }).collect();
                votes.extend((0..others).map(|_| right(truth, 0.7, draws)));
                votes
            });
            close(&fit.accuracy, &vec![0.7; 3 + others], 0.04);
            assert!(
                fit.discount[..3].iter().all(|&l| l < 0.75) && fit.discount[3..].iter().all(|&l| l > 0.9),
                "{:?}",
                fit.discount
            );
            // The three do not outvote the others merely by their number.
            assert!(fit.weights[3] > fit.weights[0], "{:?}", fit.weights);
        }
    }

    #[test]
    fn a_voter_that_contradicts_is_not_listened_to() {
        let fit =
            fit(4, |truth, draws| vec![0.8, 0.75, 0.7, 0.35].into_iter().map(|p| right(truth, p, draws)).collect());
        assert!(fit.weights[3] == 0.0 && (fit.accuracy[3] - 0.35).abs() < 0.02, "{:?}", fit.accuracy);
        assert!(Patterns::new(2).is_err());
    }
}
