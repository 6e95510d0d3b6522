//! The vote as a whole: results, ties, each voter, how often each decides, and who agrees with whom.

use pipe::{kappa::Agreement, moments::Moments, text};
use serde_json::{Map, Value, json};

use crate::ballot::{Ballot, HUMAN};
use crate::rule::{Reason, human};
use crate::{decide::Decided, scales::Scale};

/// Everything that is counted while pairs are decided.
pub struct Summary {
    pub rows: usize,
    image_0: usize,
    image_1: usize,
    /// Pairs with weight and a target of exactly one half.
    even: usize,
    abstained: usize,
    tied: usize,
    nothing: usize,
    /// One per metric.
    voters: Vec<(String, Voter)>,
    labels: Voter,
    /// For every two voters, people last: how often both voted, and how.
    agreement: Vec<Agreement>,
    /// Agreement of the rule, before ties are settled, with people.
    with_people: Agreement,
}

#[derive(Default)]
struct Voter {
    image_0: usize,
    image_1: usize,
    equal: usize,
    null: usize,
    scores: Moments,
    /// Pairs in which the rule preferred the same image as this voter ...
    sided: usize,
    /// ... and would not have, had this voter voted the other way.
    decided: usize,
}

impl Summary {
    pub fn new(metrics: &[String]) -> Self {
        let voters = metrics.iter().map(|m| (m.clone(), Voter::default())).collect();
        let n = metrics.len() + 1;
        Self {
            rows: 0,
            image_0: 0,
            image_1: 0,
            even: 0,
            abstained: 0,
            tied: 0,
            nothing: 0,
            voters,
            labels: Voter::default(),
            agreement: vec![Agreement::default(); n * n],
            with_people: Agreement::default(),
        }
    }

    pub fn add(&mut self, ballot: &Ballot, decided: &[Decided]) {
        self.rows += decided.len();
        for d in decided.iter().map(|d| &d.decision) {
            self.tied += (d.reason == Reason::Tied) as usize;
            self.nothing += (d.reason == Reason::Nothing) as usize;
            match d.weight {
                0.0 => self.abstained += 1,
                _ if d.target > 0.5 => self.image_0 += 1,
                _ if d.target < 0.5 => self.image_1 += 1,
                _ => self.even += 1,
            }
        }
        let people: Vec<_> = ballot.label_0.iter().map(|label| label.map(human)).collect();
        self.labels.add_votes(&people);
        for (m, ((_, voter), scores)) in self.voters.iter_mut().zip(&ballot.scores).enumerate() {
            voter.add_votes(&scores.s);
            scores.add_to(&mut voter.scores);
            let sided = |d: &Decided, s_m: Option<i8>| d.decision.preference != 0 && s_m == Some(d.decision.preference);
            voter.sided += decided.iter().zip(&scores.s).filter(|(d, s_m)| sided(d, **s_m)).count();
            voter.decided += decided.iter().filter(|d| d.pivots >> m & 1 == 1).count();
        }
        let all: Vec<&[Option<i8>]> = ballot.scores.iter().map(|m| &m.s[..]).chain([&people[..]]).collect();
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate().skip(i + 1) {
                self.agreement[i * all.len() + j].add(a, b);
            }
        }
        let result: Vec<_> = decided.iter().map(|d| Some(d.decision.preference)).collect();
        self.with_people.add(&result, &people);
    }

    /// Metrics that scored pairs and never preferred an image.
    pub fn collapsed(&self) -> Vec<&str> {
        let collapsed = |v: &Voter| v.equal > 0 && v.image_0 + v.image_1 == 0;
        self.voters.iter().filter(|(_, v)| collapsed(v)).map(|(m, _)| m.as_str()).collect()
    }

    pub fn text(&self) -> String {
        let of = |n: usize| text::percent(n, self.rows);
        let line = |name: &str, n: usize| vec![format!("  {name}"), text::thousands(n), of(n)];
        let mut out = format!("{}\n", text::count(self.rows, "pair"));
        let mut lines = vec![line("image 0 preferred", self.image_0), line("image 1 preferred", self.image_1)];
        lines.extend((self.even > 0).then(|| line("both alike, target 0.5", self.even)));
        lines.push(line("abstained", self.abstained));
        lines.push(line("tied, and settled by --ties", self.tied));
        lines.push(line("no score or label to decide by", self.nothing));
        out += &text::table(&lines, 1);
        let head = ["voter", "image 0", "image 1", "equal", "null", "agrees", "decides", "mean", "sd", "min", "max"];
        let mut rows = vec![head.map(String::from).to_vec()];
        let preferred = self.rows - self.tied - self.nothing;
        for (name, v) in self.everyone() {
            let mut row = vec![name.to_owned()];
            row.extend([v.image_0, v.image_1, v.equal, v.null].map(text::thousands));
            let votes = self.voters.iter().any(|(m, _)| m == name);
            row.extend([v.sided, v.decided].map(|n| if votes { text::percent(n, preferred) } else { "-".into() }));
            let scale = Scale::of(&v.scores).map(|s| [v.scores.mean().unwrap_or_default(), s.sd, s.min, s.max]);
            row.extend(scale.into_iter().flatten().map(|x| format!("{x:.4}")));
            rows.push(row);
        }
        out += "\n";
        out += &text::table(&rows, 1);
        out +=
            "agrees: with the rule's preference; decides: agrees, and would have changed it by voting the other way\n";
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
        if self.with_people.pairs() > 0 {
            let pairs = text::count(self.with_people.pairs(), "pair");
            out += &format!("the rule's preference agrees with people's in {} of {pairs}\n", self.with_people.text());
        }
        out
    }

    pub fn json(&self) -> Map<String, Value> {
        let names: Vec<&str> = self.everyone().map(|(name, _)| name).collect();
        let mut agreement = vec![];
        for j in 1..names.len() {
            for i in 0..j {
                let mut both = Map::from_iter([("a".to_owned(), names[i].into()), ("b".to_owned(), names[j].into())]);
                both.extend(self.between(i, j).json());
                agreement.push(Value::Object(both));
            }
        }
        let voters: Map<_, _> = self.everyone().map(|(name, v)| (name.to_owned(), v.json())).collect();
        let share = |n: usize| (self.rows > 0).then(|| n as f64 / self.rows as f64);
        let json = json!({
            "rows": self.rows,
            "votes": {"image_0": self.image_0, "image_1": self.image_1, "even": self.even, "abstained": self.abstained},
            "tied": self.tied, "tied_share": share(self.tied), "nothing": self.nothing,
            "null_scores": self.voters.iter().map(|(_, v)| v.null).sum::<usize>(),
            "voters": voters, "agreement": agreement, "agreement_with_people": self.with_people.json(),
            "collapsed": self.collapsed(),
        });
        json.as_object().cloned().unwrap_or_default()
    }

    /// The metrics, and people if there is any human label.
    fn everyone(&self) -> impl Iterator<Item = (&str, &Voter)> {
        let vote = self.voters.iter().any(|(m, _)| m == HUMAN);
        let people = (self.labels.null < self.rows && !vote).then_some((HUMAN, &self.labels));
        self.voters.iter().map(|(m, v)| (m.as_str(), v)).chain(people)
    }

    fn between(&self, i: usize, j: usize) -> Agreement {
        self.agreement[i * (self.voters.len() + 1) + j]
    }
}

impl Voter {
    fn add_votes(&mut self, s: &[Option<i8>]) {
        for s_m in s {
            self.image_0 += (*s_m == Some(1)) as usize;
            self.image_1 += (*s_m == Some(-1)) as usize;
            self.equal += (*s_m == Some(0)) as usize;
            self.null += s_m.is_none() as usize;
        }
    }

    fn json(&self) -> Value {
        let scale = Scale::of(&self.scores);
        json!({
            "image_0": self.image_0, "image_1": self.image_1, "equal": self.equal, "null": self.null,
            "sided": self.sided, "decided": self.decided,
            "mean": self.scores.mean(), "sd": scale.map(|s| s.sd), "min": scale.map(|s| s.min), "max": scale.map(|s| s.max),
        })
    }
}
