//! The rule over a batch: one decision per pair, and the voters on whom it depends.

use std::sync::Arc;

use crate::arena::Arena;
use crate::ballot::Ballot;
use crate::rule::{Decision, Pair, Reason, Tally, Ties, label};

/// How pairs are decided; the same for all of them.
#[derive(Clone)]
pub struct Judge {
    pub tally: Tally,
    pub ties: Ties,
    pub seed: u64,
    /// Weights of pairs by the models that drew their images; `None`: all the same.
    pub arena: Option<Arc<Arena>>,
}

#[derive(Clone, Copy)]
pub struct Decided {
    pub decision: Decision,
    /// Bit m is set if voter m is a pivot: S would change if this voter voted the other way. No bit is set where S = 0.
    pub pivots: u64,
}

impl Decided {
    /// A preference that no rule and no single voter has made.
    pub fn by_none(preference: i8) -> Self {
        let (target, weight) = label(preference);
        Self { decision: Decision { preference, target, weight, reason: Reason::Preferred }, pivots: 0 }
    }
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
            if let Some(m) = self.tally.alone(self.seed, &pair) {
                let decision = self.tally.decide(s[m], self.ties, self.seed, &pair);
                return Decided { decision, pivots: u64::from(decision.preference != 0) << m };
            }
            let decision = self.tally.decide(self.tally.prefers(self.seed, &pair), self.ties, self.seed, &pair);
            let mut pivots = 0;
            for m in (0..voters).filter(|_| decision.preference != 0) {
                if s[m] == Some(decision.preference) {
                    // Voter m votes the other way, and back.
                    (s[m], d[m]) = (Some(-decision.preference), -d[m]);
                    let otherwise = self.tally.prefers(self.seed, &Pair { id, s: &s, d: &d, label_0 });
                    pivots |= u64::from(otherwise != Some(decision.preference)) << m;
                    (s[m], d[m]) = (Some(decision.preference), -d[m]);
                }
            }
            Decided { decision, pivots }
        });
        let weighed = |(i, mut decided): (usize, Decided)| {
            if let Some(arena) = &self.arena {
                let weight = arena.weight(ballot.ids.value(i), decided.decision.preference);
                decided.decision.weight = (f64::from(decided.decision.weight) * weight) as f32;
            }
            decided
        };
        pairs.enumerate().map(weighed).collect()
    }
}
