//! How often two voters agree, and how much of that is more than chance.

use serde_json::{Map, Value, json};

/// Counts of pairs on which both voters preferred an image. A vote is 1 for image 0, -1 for image 1; anything else is no vote.
#[derive(Clone, Copy, Default)]
pub struct Agreement {
    both_0: usize,
    both_1: usize,
    /// The first voter preferred image 0, the second image 1.
    apart_01: usize,
    apart_10: usize,
}

impl Agreement {
    pub fn add(&mut self, a: &[Option<i8>], b: &[Option<i8>]) {
        for pair in a.iter().zip(b) {
            self.both_0 += (pair == (&Some(1), &Some(1))) as usize;
            self.both_1 += (pair == (&Some(-1), &Some(-1))) as usize;
            self.apart_01 += (pair == (&Some(1), &Some(-1))) as usize;
            self.apart_10 += (pair == (&Some(-1), &Some(1))) as usize;
        }
    }

    /// Pairs on which both voted.
    pub fn pairs(&self) -> usize {
        self.agree() + self.apart_01 + self.apart_10
    }

    fn agree(&self) -> usize {
        self.both_0 + self.both_1
    }

    /// Share of the pairs on which both said the same; `None` if they never both voted.
    pub fn share(&self) -> Option<f64> {
        (self.pairs() > 0).then(|| self.agree() as f64 / self.pairs() as f64)
    }

    /// Cohen's kappa: (share - chance) / (1 - chance), where chance is the share that two independent voters with the same
    /// frequencies would have. `None` where chance is 1: both always prefer the same image.
    pub fn kappa(&self) -> Option<f64> {
        let n = self.pairs() as f64;
        let (a_0, b_0) = ((self.both_0 + self.apart_01) as f64 / n, (self.both_0 + self.apart_10) as f64 / n);
        let chance = a_0 * b_0 + (1.0 - a_0) * (1.0 - b_0);
        self.share().filter(|_| chance < 1.0).map(|share| (share - chance) / (1.0 - chance))
    }

    /// "83.1 % (0.66)": share and kappa.
    pub fn text(&self) -> String {
        match (self.share(), self.kappa()) {
            (None, _) => "-".into(),
            (Some(share), None) => format!("{:.1} %", 100.0 * share),
            (Some(share), Some(kappa)) => format!("{:.1} % ({kappa:.2})", 100.0 * share),
        }
    }

    pub fn json(&self) -> Map<String, Value> {
        let json = json!({"pairs": self.pairs(), "agree": self.agree(), "share": self.share(), "kappa": self.kappa()});
        json.as_object().cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kappa_is_agreement_beyond_chance() {
        let votes = |text: &str| -> Vec<Option<i8>> {
            text.chars()
                .map(|c| match c {
                    '+' => Some(1),
                    '-' => Some(-1),
                    '0' => Some(0),
                    _ => None,
                })
                .collect()
        };
        let of = |a: &str, b: &str| {
            let mut agreement = Agreement::default();
            agreement.add(&votes(a), &votes(b));
            agreement
        };
        // sklearn.metrics.cohen_kappa_score([1, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 1]) = 0.25
        let agreement = of("+++--+ 0+", "+-+-+++0 ");
        assert_eq!((agreement.pairs(), agreement.share()), (6, Some(4.0 / 6.0)));
        assert!((agreement.kappa().unwrap() - 0.25).abs() < 1e-12, "{:?}", agreement.kappa());
        assert_eq!(agreement.text(), "66.7 % (0.25)");
        assert_eq!(of("++", "++").kappa(), None);
        assert_eq!(of("0 ", "++").text(), "-");
    }
}
