//! Who agrees with whom: metrics, labels and people, as a heat map that is a table.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use maud::{Markup, html};
use pipe::{schema::labels, table::Inputs, text};
use serde::Deserialize;

use crate::plot::{data, minus, table};

/// Agreement of every two voters.
pub struct Matrix {
    source: String,
    names: Vec<String>,
    cells: HashMap<(String, String), Cell>,
    pairs: usize,
    /// Share of the pairs on which the votes tie.
    tied: Option<f64>,
}

/// Two voters, on the pairs where both said something.
#[derive(Deserialize)]
struct Cell {
    a: String,
    b: String,
    pairs: usize,
    share: Option<f64>,
    kappa: Option<f64>,
}

/// What `vote --json` prints; fields that are not shown are left alone.
#[derive(Deserialize)]
struct Summary {
    rule: String,
    rows: usize,
    tied_share: Option<f64>,
    agreement: Vec<Cell>,
}

/// One labels table.
struct Labels {
    table: String,
    ids: Vec<String>,
    metrics: Vec<Voter>,
    /// The label itself, under the table's name.
    own: Voter,
}

struct Voter {
    name: String,
    /// One a pair: 1 image 0, -1 image 1, 0 nothing.
    votes: Vec<i8>,
}

const VOTE: &str = "vote_";
const BATCH: usize = 65_536;

impl Matrix {
    /// From what `vote --json` printed.
    ///
    /// # Errors
    /// No such file, or something else in it.
    pub fn stored(path: &Path) -> Result<Self> {
        let source = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {source}"))?;
        let summary: Summary =
            serde_json::from_str(&text).with_context(|| format!("{source} is not what `vote --json` prints"))?;
        let mut names: Vec<String> = vec![];
        for cell in &summary.agreement {
            for name in [&cell.a, &cell.b] {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
        let source = format!("{source}, rule {}", summary.rule);
        let cells = summary.agreement.into_iter().map(|c| ((c.a.clone(), c.b.clone()), c)).collect();
        Ok(Self { source, names, cells, pairs: summary.rows, tied: summary.tied_share })
    }

    /// From the votes that labels tables hold: one matrix of those that are of the same pairs and votes. Each table's own label
    /// is a voter too, under the table's name.
    ///
    /// # Errors
    /// No labels table.
    pub fn counted(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut groups: Vec<Vec<Labels>> = vec![];
        for path in paths {
            let table = Labels::read(path)?;
            match groups.iter_mut().find(|group| group.iter().all(|other| table.fits(other))) {
                Some(group) => group.push(table),
                None => groups.push(vec![table]),
            }
        }
        Ok(groups.iter().map(|group| Self::of(group)).collect())
    }

    fn of(tables: &[Labels]) -> Self {
        let mut voters: Vec<&Voter> = vec![];
        for voter in tables.iter().flat_map(|t| &t.metrics).chain(tables.iter().map(|t| &t.own)) {
            if voters.iter().all(|known| known.name != voter.name) {
                voters.push(voter);
            }
        }
        let mut cells = HashMap::new();
        for (j, b) in voters.iter().enumerate() {
            for a in &voters[..j] {
                cells.insert((a.name.clone(), b.name.clone()), Cell::count(a, b));
            }
        }
        let source = tables.iter().map(|t| t.table.as_str()).collect::<Vec<_>>().join(", ");
        let names = voters.iter().map(|v| v.name.clone()).collect();
        Self { source, names, cells, pairs: tables[0].ids.len(), tied: None }
    }

    fn get(&self, a: &str, b: &str) -> Option<&Cell> {
        let key = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        self.cells.get(&key(a, b)).or_else(|| self.cells.get(&key(b, a)))
    }

    pub fn section(&self) -> Markup {
        html! {
            div.heat {
                (table(
                    "Share of pairs on which two voters agree, and Cohen's kappa",
                    html! { tr { td {} @for name in &self.names { th scope="col" { (name) } } } },
                    html! {
                        @for a in &self.names {
                            tr {
                                th scope="row" { (a) }
                                @for b in &self.names {
                                    @match self.get(a, b).filter(|_| a != b) {
                                        Some(cell) => (cell.markup()),
                                        None => td.self { @if a == b { span aria-hidden="true" { "·" } } @else { "–" } },
                                    }
                                }
                            }
                        }
                    },
                ))
                p.note {
                (text::count(self.pairs, "pair")) " (" (self.source) "); counted where both voted. Large: how often two agree. Small: kappa, the agreement beyond chance, 0 for coin tosses and 1 for twins; the deeper the colour, the higher."
                @if let Some(tied) = self.tied { " The votes tied on " (data(tied, format!("{:.1} %", 100.0 * tied))) " of the pairs." }
                }
            }
        }
    }
}

impl Labels {
    fn read(path: &Path) -> Result<Self> {
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        let table = path.display().to_string();
        let needed = [labels::PAIR_ID, labels::TARGET, labels::WEIGHT];
        inputs.require(&needed, "`report --labels` reads what `vote` writes")?;
        let fields = inputs.schema().fields().iter().map(|f| f.name().clone());
        let columns: Vec<String> = fields.filter(|f| f.starts_with(VOTE)).collect();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let voter = |column: &String| Voter { name: column[VOTE.len()..].to_owned(), votes: vec![] };
        let mut metrics: Vec<Voter> = columns.iter().map(voter).collect();
        let (mut ids, mut own) = (vec![], Voter { name: stem, votes: vec![] });
        let names: Vec<&str> = columns.iter().map(String::as_str).chain(needed).collect();
        for rows in inputs.read(Some(&names), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            ids.extend(rows.text(labels::PAIR_ID)?.iter().flatten().map(str::to_owned));
            for (column, voter) in columns.iter().zip(&mut metrics) {
                voter.votes.extend(rows.f32(column)?.values().iter().map(|s| *s as i8));
            }
            let (target, weight) = (rows.f32(labels::TARGET)?, rows.f32(labels::WEIGHT)?);
            let label = |(t, w): (&f32, &f32)| if *w == 0.0 { 0 } else { i8::from(*t > 0.5) - i8::from(*t < 0.5) };
            own.votes.extend(target.values().iter().zip(weight.values()).map(label));
        }
        ensure!(!ids.is_empty(), "{table} has no rows");
        Ok(Self { table, ids, metrics, own })
    }

    fn voters(&self) -> impl Iterator<Item = &Voter> {
        self.metrics.iter().chain([&self.own])
    }

    /// Of the same pairs, and no voter of the same name voted otherwise.
    fn fits(&self, other: &Self) -> bool {
        let same = |a: &Voter| other.voters().all(|b| a.name != b.name || a.votes == b.votes);
        self.ids == other.ids && self.voters().all(same)
    }
}

impl Cell {
    fn count(a: &Voter, b: &Voter) -> Self {
        let count = |x, y| a.votes.iter().zip(&b.votes).filter(|&(&a, &b)| a == x && b == y).count();
        let (both_0, both_1, apart_01, apart_10) = (count(1, 1), count(-1, -1), count(1, -1), count(-1, 1));
        let pairs = both_0 + both_1 + apart_01 + apart_10;
        let n = pairs as f64;
        let share = (pairs > 0).then(|| (both_0 + both_1) as f64 / n);
        let (a_0, b_0) = ((both_0 + apart_01) as f64 / n, (both_0 + apart_10) as f64 / n);
        let chance = a_0 * b_0 + (1.0 - a_0) * (1.0 - b_0);
        let kappa = share.filter(|_| chance < 1.0).map(|share| (share - chance) / (1.0 - chance));
        Self { a: a.name.clone(), b: b.name.clone(), pairs, share, kappa }
    }

    fn markup(&self) -> Markup {
        let depth = self.kappa.unwrap_or(0.0).clamp(0.0, 1.0);
        html! {
            td style={ "--depth:" (format!("{depth:.3}")) } title={ (self.a) ", " (self.b) ": " (text::count(self.pairs, "pair")) } {
                @match self.share { Some(share) => span.big { (data(share, format!("{:.0} %", 100.0 * share))) }, None => "–" }
                @if let Some(kappa) = self.kappa { " " small { (data(kappa, minus(&format!("{kappa:.2}")))) } }
            }
        }
    }
}
