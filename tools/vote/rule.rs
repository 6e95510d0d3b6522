//! The vote rule: from the scores of two images to one preference. Pure functions in the paper's letters.
//!
//! A preference is an i8: 1 for image 0 (the paper's x^1), -1 for image 1 (x^2), 0 for neither.

use pipe::seed;

/// Eq. 6: s_m = sign(m_0 - m_1). The paper leaves sign(0) open; here an equal score is no vote, and neither is a difference of
/// at most `margin`, which is 0 unless asked for.
pub fn s(m_0: f32, m_1: f32, margin: f64) -> i8 {
    let d = f64::from(m_0) - f64::from(m_1);
    (d > margin) as i8 - (d < -margin) as i8
}

/// Eq. 7: S = sign(sum over m of s_m), 0 where as many metrics prefer one image as the other.
/// `None` where no metric has scored the pair.
pub fn majority(s: &[Option<i8>]) -> Option<i8> {
    let sum: i32 = s.iter().flatten().map(|&s_m| i32::from(s_m)).sum();
    s.iter().any(Option::is_some).then_some(sum.signum() as i8)
}

/// What people said, `label_0`: the probability that image 0 is better; above one half it is.
pub fn human(label_0: f32) -> i8 {
    s(label_0, 0.5, 0.0)
}

/// How votes become a preference. A metric is the number of its column, its weight w_m stands under the same number.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// Eq. 7.
    Majority,
    /// One metric alone.
    Single(usize),
    /// One metric alone, drawn for each pair among those that scored it.
    Random,
    /// sign(sum of w_m (m_0 - m_1)): the paper's vanilla row; with 1/sd or 1/(max - min) in w_m, its normalised one.
    Sum(Vec<f64>),
    /// As `Weighted`, but what is learned is the share of the votes: target = (weights for image 0) / (all weights that voted).
    Soft(Vec<f64>),
    /// All that scored the pair prefer the same image.
    Unanimous,
    /// At least so many metrics prefer the image, and fewer the other.
    Quorum(usize),
    /// sign(sum of w_m s_m).
    Weighted(Vec<f64>),
    /// People alone.
    Human,
}

pipe::names! {
    /// Who decides where S = 0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Ties {
        /// Nobody: weight 0, and so exactly no gradient in Eq. 9
        Abstain = "abstain",
        /// Image 1 wins, as the paper's "otherwise" says to the letter
        Second = "second",
        /// Image 0 wins, as in Diffusion-DPO's code, which keeps the order of equal images
        First = "first",
        /// The human label of the pair; where that ties or is missing, nobody
        Human = "human",
        /// A coin of the pair's own, from --seed and pair_id
        Random = "random",
        /// Both halves: target 0.5 with weight 1, which holds the policy to the reference on this pair
        Soft = "soft",
    }
}

/// One pair, as a rule sees it.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    pub id: &'a str,
    /// s_m of every metric; `None` where it did not score both images.
    pub s: &'a [Option<i8>],
    /// m_0 - m_1 of every metric; 0 where s_m is no vote.
    pub d: &'a [f64],
    pub label_0: Option<f32>,
}

/// What comes out for one pair.
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
    /// The rule said S = 0; what `Ties` made of it is in the target.
    Tied,
    /// There was nothing to go by, no score or no label, so no tie policy is asked either.
    Nothing,
}

impl Rule {
    /// S by this rule; `None` where the pair has nothing to go by.
    pub fn prefers(&self, seed: u64, pair: &Pair) -> Option<i8> {
        let scored = pair.s.iter().any(Option::is_some);
        let for_image = |image: i8| pair.s.iter().filter(|&&s_m| s_m == Some(image)).count();
        let of_either = |enough: &dyn Fn(i8) -> bool| i8::from(enough(1)) - i8::from(enough(-1));
        match self {
            Rule::Majority => majority(pair.s),
            Rule::Single(_) | Rule::Random => self.alone(seed, pair).and_then(|m| pair.s[m]),
            Rule::Sum(w) => scored.then(|| sign(w.iter().zip(pair.d).map(|(w_m, d_m)| w_m * d_m))),
            Rule::Soft(w) | Rule::Weighted(w) => scored.then(|| sign(weighed(w, pair.s))),
            Rule::Unanimous => scored.then(|| of_either(&|i| pair.s.iter().flatten().all(|&s_m| s_m == i))),
            Rule::Quorum(k) => scored.then(|| of_either(&|i| for_image(i) >= *k && for_image(i) > for_image(-i))),
            Rule::Human => pair.label_0.map(human),
        }
    }

    /// The one metric that decides this pair, where the rule leaves it to one. Drawn by --seed and pair_id.
    pub fn alone(&self, seed: u64, pair: &Pair) -> Option<usize> {
        let scored = || (0..pair.s.len()).filter(|&m| pair.s[m].is_some());
        match self {
            Rule::Single(m) => Some(*m),
            Rule::Random => {
                let n = scored().count() as u64;
                scored().nth(if n > 1 { seed::draws(seed, "metric", pair.id, 0).below(n) as usize } else { 0 })
            }
            _ => None,
        }
    }

    /// The rule, then the tie policy.
    pub fn decide(&self, ties: Ties, seed: u64, pair: &Pair) -> Decision {
        let (preference, (target, weight), reason) = match self.prefers(seed, pair) {
            Some(0) => (0, ties.settle(seed, pair), Reason::Tied),
            Some(preference) => (preference, self.label(preference, pair), Reason::Preferred),
            None => (0, label(0), Reason::Nothing),
        };
        Decision { preference, target, weight, reason }
    }

    fn label(&self, preference: i8, pair: &Pair) -> (f32, f32) {
        let Rule::Soft(w) = self else { return label(preference) };
        let (sum, all) = weighed(w, pair.s).fold((0.0, 0.0), |(sum, all), x| (sum + x, all + x.abs()));
        ((0.5 + 0.5 * sum / all) as f32, 1.0)
    }
}

impl Ties {
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
fn label(preference: i8) -> (f32, f32) {
    ((1.0 + f32::from(preference)) / 2.0, preference.abs().into())
}

fn weighed<'a>(w: &'a [f64], s: &'a [Option<i8>]) -> impl Iterator<Item = f64> + 'a {
    w.iter().zip(s).map(|(w_m, s_m)| w_m * f64::from(s_m.unwrap_or(0)))
}

/// The sign of a sum; 0 also where only rounding keeps it from 0, as in 0.1 + 0.2 - 0.3.
fn sign(terms: impl Iterator<Item = f64>) -> i8 {
    let (sum, size) = terms.fold((0.0, 0.0_f64), |(sum, size), x| (sum + x, size + x.abs()));
    if sum.abs() <= 1e-12 * size { 0 } else { sum.signum() as i8 }
}
