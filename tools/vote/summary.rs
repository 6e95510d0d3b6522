//! What a vote looked like as a whole: results, ties, each metric, and who agrees with whom.

use arrow::array::Array;
use pipe::text;
use serde_json::{Map, Value, json};

use crate::{
    ballots::{Ballot, Scores},
    rule::{Decision, Reason, human},
};

/// Everything that is counted while the pairs pass by.
pub struct Summary {
    pub rows: usize,
    image_0: usize,
    image_1: usize,
    abstained: usize,
    tied: usize,
    nothing: usize,
    /// One a metric.
    voters: Vec<(String, Voter)>,
    labels: Voter,
    /// For every two voters, `people` last: how often both voted, by what they said.
    agreement: Vec<Agreement>,
}

/// One voter's votes and scores.
#[derive(Default)]
struct Voter {
    image_0: usize,
    image_1: usize,
    equal: usize,
    null: usize,
    images: usize,
    sum: f64,
    squares: f64,
}

/// How often two voters, where both voted, said the same or not.
#[derive(Clone, Copy, Default)]
struct Agreement {
    both_0: usize,
    both_1: usize,
    /// The first said image 0, the second image 1.
    apart_01: usize,
    apart_10: usize,
}

impl Summary {
    pub fn new(metrics: &[String]) -> Self {
        let voters = metrics.iter().map(|m| (m.clone(), Voter::default())).collect();
        let n = metrics.len() + 1;
        Self {
            rows: 0,
            image_0: 0,
            image_1: 0,
            abstained: 0,
            tied: 0,
            nothing: 0,
            voters,
            labels: Voter::default(),
            agreement: vec![Agreement::default(); n * n],
        }
    }

    pub fn add_scores(&mut self, ballot: &Ballot) {
        let people: Vec<_> = ballot.label_0.iter().map(|label| label.map(human)).collect();
        self.labels.add_votes(&people);
        for ((_, voter), scores) in self.voters.iter_mut().zip(&ballot.scores) {
            voter.add_votes(&scores.s);
            voter.add_scores(scores);
        }
        let all: Vec<&[Option<i8>]> = ballot.scores.iter().map(|m| &m.s[..]).chain([&people[..]]).collect();
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate().skip(i + 1) {
                self.agreement[i * all.len() + j].add(a, b);
            }
        }
    }

    pub fn add_decision(&mut self, decision: &Decision) {
        self.rows += 1;
        self.tied += (decision.reason == Reason::Tied) as usize;
        self.nothing += (decision.reason == Reason::Nothing) as usize;
        match decision.weight {
            0.0 => self.abstained += 1,
            _ if decision.target > 0.5 => self.image_0 += 1,
            _ => self.image_1 += 1,
        }
    }

    /// Metrics that never preferred an image although they scored some pair.
    pub fn collapsed(&self) -> Vec<&str> {
        let collapsed = |v: &Voter| v.equal > 0 && v.image_0 + v.image_1 == 0;
        self.voters.iter().filter(|(_, v)| collapsed(v)).map(|(m, _)| m.as_str()).collect()
    }

    pub fn text(&self) -> String {
        let of = |n: usize| text::percent(n, self.rows);
        let line = |name: &str, n: usize| vec![format!("  {name}"), text::thousands(n), of(n)];
        let mut out = format!("{}\n", text::count(self.rows, "pair"));
        out += &text::table(
            &[
                line("image 0 preferred", self.image_0),
                line("image 1 preferred", self.image_1),
                line("abstained", self.abstained),
                line("tied before --ties", self.tied),
                line("nothing to go by", self.nothing),
            ],
            1,
        );
        let mut rows = vec![["voter", "image 0", "image 1", "equal", "null", "mean", "sd"].map(String::from).to_vec()];
        for (name, v) in self.everyone() {
            let mut row = vec![name.to_owned()];
            row.extend([v.image_0, v.image_1, v.equal, v.null].map(text::thousands));
            row.extend(v.moments().into_iter().flat_map(|(mean, sd)| [format!("{mean:.4}"), format!("{sd:.4}")]));
            rows.push(row);
        }
        out += "\n";
        out += &text::table(&rows, 1);
        let names: Vec<&str> = self.everyone().map(|(name, _)| name).collect();
        if names.len() > 1 {
            out += "\nagreement where both vote, and Cohen's kappa\n";
            let mut rows =
                vec![[""].into_iter().chain(names[..names.len() - 1].iter().copied()).map(String::from).collect()];
            for (j, name) in names.iter().enumerate().skip(1) {
                let mut row = vec![name.to_string()];
                row.extend((0..j).map(|i| self.between(i, j).text()));
                rows.push(row);
            }
            out += &text::table(&rows, 1);
        }
        out
    }

    pub fn json(&self) -> Map<String, Value> {
        let names: Vec<&str> = self.everyone().map(|(name, _)| name).collect();
        let mut agreement = vec![];
        for j in 1..names.len() {
            for i in 0..j {
                let a = self.between(i, j);
                agreement.push(json!({
                    "a": names[i], "b": names[j], "pairs": a.pairs(), "agree": a.agree(), "share": a.share(), "kappa": a.kappa(),
                }));
            }
        }
        let voters: Map<_, _> = self.everyone().map(|(name, v)| (name.to_owned(), v.json())).collect();
        let share = |n: usize| (self.rows > 0).then(|| n as f64 / self.rows as f64);
        let mut map = Map::new();
        map.insert("rows".into(), self.rows.into());
        map.insert(
            "votes".into(),
            json!({"image_0": self.image_0, "image_1": self.image_1, "abstained": self.abstained}),
        );
        map.insert("tied".into(), self.tied.into());
        map.insert("tied_share".into(), json!(share(self.tied)));
        map.insert("nothing".into(), self.nothing.into());
        map.insert("null_scores".into(), self.voters.iter().map(|(_, v)| v.null).sum::<usize>().into());
        map.insert("voters".into(), voters.into());
        map.insert("agreement".into(), agreement.into());
        map.insert("collapsed".into(), self.collapsed().into());
        map
    }

    /// The metrics, and people where they said anything.
    fn everyone(&self) -> impl Iterator<Item = (&str, &Voter)> {
        let people = (self.labels.null < self.rows).then_some(("human", &self.labels));
        self.voters.iter().map(|(m, v)| (m.as_str(), v)).chain(people)
    }

    fn between(&self, i: usize, j: usize) -> Agreement {
        self.agreement[i * (self.voters.len() + 1) + j]
    }
}

impl Voter {
    fn add_votes(&mut self, s: &[Option<i8>]) {
        let count = |vote| s.iter().filter(|&&s_m| s_m == vote).count();
        self.image_0 += count(Some(1));
        self.image_1 += count(Some(-1));
        self.equal += count(Some(0));
        self.null += count(None);
    }

    fn add_scores(&mut self, scores: &Scores) {
        for side in [&scores.m_0, &scores.m_1] {
            self.images += side.len() - side.null_count();
            for x in side.iter().flatten().map(f64::from) {
                self.sum += x;
                self.squares += x * x;
            }
        }
    }

    /// Mean and standard deviation of the scores, over images as often as they stand in a pair.
    fn moments(&self) -> Option<(f64, f64)> {
        let n = self.images as f64;
        let mean = self.sum / n;
        (self.images > 0).then(|| (mean, (self.squares / n - mean * mean).max(0.0).sqrt()))
    }

    fn json(&self) -> Value {
        let (mean, sd) = self.moments().unzip();
        json!({
            "image_0": self.image_0, "image_1": self.image_1, "equal": self.equal, "null": self.null, "mean": mean, "sd": sd,
        })
    }
}

impl Agreement {
    fn add(&mut self, a: &[Option<i8>], b: &[Option<i8>]) {
        let count = |x, y| a.iter().zip(b).filter(|&(&a, &b)| a == Some(x) && b == Some(y)).count();
        self.both_0 += count(1, 1);
        self.both_1 += count(-1, -1);
        self.apart_01 += count(1, -1);
        self.apart_10 += count(-1, 1);
    }

    fn pairs(&self) -> usize {
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

    fn text(&self) -> String {
        match (self.share(), self.kappa()) {
            (None, _) => "-".into(),
            (Some(share), None) => format!("{:.1} %", 100.0 * share),
            (Some(share), Some(kappa)) => format!("{:.1} % ({kappa:.2})", 100.0 * share),
        }
    }
}
