//! Who agrees with whom: metrics, labels and people, as a heat map that is a table.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use maud::{Markup, html};
use pipe::{kappa::Agreement, schema::labels, table::Inputs, text};

use crate::plot::minus;
use crate::table::{data, frame};

/// Labels tables of the same pairs and votes.
pub struct Matrix {
    tables: Vec<Labels>,
}

struct Labels {
    table: String,
    pairs: Vec<String>,
    /// The metrics, then the label itself, which has the name of the file.
    voters: Vec<Voter>,
}

struct Voter {
    name: String,
    /// One vote per pair: 1 for image 0, -1 for image 1, 0 for neither.
    votes: Vec<Option<i8>>,
}

const VOTE: &str = "vote_";
const BATCH: usize = 65_536;

impl Matrix {
    /// One matrix per group of tables that hold the same pairs and the same votes.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut all: Vec<Self> = vec![];
        for path in paths {
            let table = Labels::read(path)?;
            match all.iter_mut().find(|matrix| matrix.tables.iter().all(|other| table.fits(other))) {
                Some(matrix) => matrix.tables.push(table),
                None => all.push(Self { tables: vec![table] }),
            }
        }
        Ok(all)
    }

    /// Metrics first, then the tables' own labels; each name once.
    fn voters(&self) -> Vec<&Voter> {
        let metrics = self.tables.iter().flat_map(|t| &t.voters[..t.voters.len() - 1]);
        let mut voters: Vec<&Voter> = vec![];
        for voter in metrics.chain(self.tables.iter().flat_map(|t| t.voters.last())) {
            if voters.iter().all(|known| known.name != voter.name) {
                voters.push(voter);
            }
        }
        voters
    }

    pub fn section(&self) -> Markup {
        let title = "Share of pairs on which two voters agree, and Cohen's kappa";
        let voters = self.voters();
        let tables: Vec<_> = self.tables.iter().map(|t| t.table.as_str()).collect();
        let head = html! { tr { td {} @for voter in &voters { th scope="col" { (voter.name) } } } };
        let body = html! {
            @for a in &voters {
                tr {
                    th scope="row" { (a.name) }
                    @for b in &voters {
                        @if a.name == b.name { td.self { span aria-hidden="true" { "·" } } } @else { (cell(a, b)) }
                    }
                }
            }
        };
        html! {
            div.heat {
                (frame(title, &head, &body))
                p.note {
                    (text::count(self.tables[0].pairs.len(), "pair")) " (" (tables.join(", ")) "), counted where both voted. Large: how often two agree. Small: Cohen's kappa, the agreement beyond chance; it is 0 for coin tosses and 1 for full agreement. A deeper colour is a higher kappa."
                }
            }
        }
    }
}

fn cell(a: &Voter, b: &Voter) -> Markup {
    let mut agreement = Agreement::default();
    agreement.add(&a.votes, &b.votes);
    let (pairs, share, kappa) = (agreement.pairs(), agreement.share(), agreement.kappa());
    let depth = kappa.unwrap_or(0.0).clamp(0.0, 1.0);
    html! {
        td style={ "--depth:" (format!("{depth:.3}")) } title={ (a.name) ", " (b.name) ": " (text::count(pairs, "pair")) } {
            @match share { Some(share) => span.big { (data(share, &format!("{:.0} %", 100.0 * share))) }, None => "–" }
            @if let Some(kappa) = kappa { " " small { (data(kappa, &minus(&format!("{kappa:.2}")))) } }
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
        let voter = |name: &str| Voter { name: name.to_owned(), votes: vec![] };
        let mut metrics: Vec<Voter> = columns.iter().map(|column| voter(&column[VOTE.len()..])).collect();
        let mut own = voter(&path.file_stem().unwrap_or_default().to_string_lossy());
        let mut pairs = vec![];
        let names: Vec<&str> = columns.iter().map(String::as_str).chain(needed).collect();
        for rows in inputs.read(Some(&names), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            pairs.extend(rows.text(labels::PAIR_ID)?.iter().flatten().map(str::to_owned));
            for (column, voter) in columns.iter().zip(&mut metrics) {
                voter.votes.extend(rows.f32(column)?.values().iter().map(|s| Some(*s as i8)));
            }
            let (target, weight) = (rows.f32(labels::TARGET)?, rows.f32(labels::WEIGHT)?);
            let label =
                |(t, w): (&f32, &f32)| Some(if *w == 0.0 { 0 } else { i8::from(*t > 0.5) - i8::from(*t < 0.5) });
            own.votes.extend(target.values().iter().zip(weight.values()).map(label));
        }
        ensure!(!pairs.is_empty(), "{table} has no rows");
        metrics.push(own);
        Ok(Self { table, pairs, voters: metrics })
    }

    /// Whether both are of the same pairs, and voters of the same name voted alike.
    fn fits(&self, other: &Self) -> bool {
        let alike = |a: &Voter| other.voters.iter().all(|b| a.name != b.name || a.votes == b.votes);
        self.pairs == other.pairs && self.voters.iter().all(alike)
    }
}
