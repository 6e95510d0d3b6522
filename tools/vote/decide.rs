//! The rule over a batch: a decision a pair, and whose votes it hangs on.

use crate::{
    ballot::Ballot,
    rule::{Decision, Pair, Rule, Ties},
};

/// How pairs are decided; the same for all.
#[derive(Clone)]
pub struct Judge {
    pub rule: Rule,
    pub ties: Ties,
    pub seed: u64,
}

#[derive(Clone, Copy)]
pub struct Decided {
    pub decision: Decision,
    /// Bit m: S would be another, had voter m voted the other way (a pivot). None where S = 0.
    pub by: u64,
}

impl Judge {
    pub fn decide(&self, ballot: &Ballot) -> Vec<Decided> {
        let voters = ballot.scores.len();
        let (mut s, mut d) = (vec![None; voters], vec![0.0; voters]);
        let pairs = (0..ballot.len()).map(|i| {
            for (m, scores) in ballot.scores.iter().enumerate() {
                (s[m], d[m]) = (scores.s[i], scores.d[i]);
            }
            let (id, label_0) = (ballot.ids.value(i), ballot.label_0[i]);
            let pair = Pair { id, s: &s, d: &d, label_0 };
            if let Some(m) = self.rule.alone(self.seed, &pair) {
                let decision = Rule::Single(m).decide(self.ties, self.seed, &pair);
                return Decided { decision, by: u64::from(decision.preference != 0) << m };
            }
            let decision = self.rule.decide(self.ties, self.seed, &pair);
            let mut by = 0;
            for m in (0..voters).filter(|_| decision.preference != 0) {
                if s[m] == Some(decision.preference) {
                    // Voter m changes its mind, and back.
                    (s[m], d[m]) = (Some(-decision.preference), -d[m]);
                    let otherwise = self.rule.prefers(self.seed, &Pair { id, s: &s, d: &d, label_0 });
                    by |= u64::from(otherwise != Some(decision.preference)) << m;
                    (s[m], d[m]) = (Some(decision.preference), -d[m]);
                }
            }
            Decided { decision, by }
        });
        pairs.collect()
    }
}
