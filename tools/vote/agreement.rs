//! How often two voters say the same, and how much of that is more than habit.

use serde_json::{Map, Value, json};

/// How often two voters, where both voted, said the same or not.
#[derive(Clone, Copy, Default)]
pub struct Agreement {
    both_0: usize,
    both_1: usize,
    /// The first said image 0, the second image 1.
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

    pub fn pairs(&self) -> usize {
        self.agree() + self.apart_01 + self.apart_10
    }

    fn agree(&self) -> usize {
        self.both_0 + self.both_1
    }

    fn share(&self) -> Option<f64> {
        (self.pairs() > 0).then(|| self.agree() as f64 / self.pairs() as f64)
    }

    /// Cohen's kappa: agreement beyond what the two would have by chance with the same habits.
    fn kappa(&self) -> Option<f64> {
        let n = self.pairs() as f64;
        let (a_0, b_0) = ((self.both_0 + self.apart_01) as f64 / n, (self.both_0 + self.apart_10) as f64 / n);
        let chance = a_0 * b_0 + (1.0 - a_0) * (1.0 - b_0);
        self.share().filter(|_| chance < 1.0).map(|share| (share - chance) / (1.0 - chance))
    }

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
