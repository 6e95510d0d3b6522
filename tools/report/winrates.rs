//! What `winrate --json` wrote, as tables and in a sentence.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, ensure};
use maud::{Markup, html};
use serde::Deserialize;

use crate::plot::{data, list, signed, table};

/// What `winrate --json` writes; fields that are not shown are left alone.
#[derive(Deserialize)]
pub struct Winrates {
    #[serde(skip)]
    pub name: String,
    pub best_of: u64,
    pub by: String,
    pub metrics: Vec<String>,
    pub comparisons: Vec<Comparison>,
}

#[derive(Deserialize)]
pub struct Comparison {
    pub a: String,
    pub b: String,
    pub all: Row,
    #[serde(default)]
    pub groups: Vec<Row>,
}

/// A comparison over some prompts.
#[derive(Deserialize)]
pub struct Row {
    /// `None`: all prompts.
    #[serde(default)]
    pub name: Option<String>,
    pub n: u64,
    metrics: HashMap<String, Cell>,
}

#[derive(Deserialize)]
pub struct Cell {
    pub wins: u64,
    ties: u64,
    losses: u64,
    pub rate: f64,
    pub low: f64,
    pub high: f64,
    mean_a: f64,
    mean_b: f64,
    /// Of the mean, in standard deviations of the baseline's images.
    pub change_sd: Option<f64>,
}

/// Where an interval lies.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Above,
    Around,
    Below,
}

impl Cell {
    fn side(&self) -> Side {
        match () {
            () if self.low > 0.5 => Side::Above,
            () if self.high < 0.5 => Side::Below,
            () => Side::Around,
        }
    }

    pub fn class(&self) -> &'static str {
        match self.side() {
            Side::Above => "above",
            Side::Around => "around",
            Side::Below => "below",
        }
    }
}

impl Row {
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or("all")
    }

    /// Of one of the file's metrics; `read` has seen to it that all rows have all of them.
    pub fn cell(&self, metric: &str) -> &Cell {
        &self.metrics[metric]
    }
}

impl Winrates {
    /// # Errors
    /// No such file; not what `winrate --json` writes; a metric that a row lacks.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let mut whole: Self = serde_json::from_str(&text)
            .with_context(|| format!("{name} is not what `winrate --json -o {name}` writes"))?;
        ensure!(!whole.comparisons.is_empty(), "{name} holds no comparison; give `winrate` two tables or more");
        ensure!(!whole.metrics.is_empty(), "{name} holds no metric");
        for c in &whole.comparisons {
            for row in c.rows() {
                if let Some(m) = whole.metrics.iter().find(|m| !row.metrics.contains_key(*m)) {
                    anyhow::bail!("{name}: {} vs {}, {}: metric '{m}' is missing", c.a, c.b, row.label());
                }
            }
        }
        whole.name = name;
        Ok(whole)
    }

    /// One sentence a comparison: what is clear of 50 %, and what is not.
    pub fn findings(&self) -> Markup {
        let on = |c: &Comparison, side| {
            let those = self.metrics.iter().filter(|m| c.all.metrics[*m].side() == side);
            list(&those.collect::<Vec<_>>())
        };
        html! {
            ul.findings {
                @for c in &self.comparisons {
                    @let (above, around, below) = (on(c, Side::Above), on(c, Side::Around), on(c, Side::Below));
                    li {
                        strong { (c.a) } " vs " (c.b) ": "
                        @if !above.is_empty() { span.above { "wins more often than not on " (above) } }
                        @if !above.is_empty() && !(below.is_empty() && around.is_empty()) { "; " }
                        @if !below.is_empty() { span.below { "wins less often than not on " (below) } }
                        @if !below.is_empty() && !around.is_empty() { "; " }
                        @if !around.is_empty() { span.around { "no winner on " (around) ", where the interval holds 50 %" } }
                        "."
                    }
                }
            }
        }
    }

    /// The table of the paper's Table I: one row a comparison, over all prompts.
    pub fn overview(&self) -> Markup {
        let name = format!("Win rate over all prompts, best of {} images, with its 95 % interval", self.best_of);
        // Narrow screens stack the cells, and a browser then forgets that they are a table: hence the roles.
        html! {
            div.overview {
                table role="table" {
                    caption { (name) }
                    thead role="rowgroup" {
                        tr role="row" {
                            th role="columnheader" scope="col" { "comparison" }
                            th.num role="columnheader" scope="col" { "prompts" }
                            @for m in &self.metrics { th.num role="columnheader" scope="col" { (m) } }
                        }
                    }
                    tbody role="rowgroup" {
                        @for c in &self.comparisons {
                            tr role="row" {
                                th role="rowheader" scope="row" { (c.a) span.vs { " vs " } (c.b) }
                                td.num role="cell" data-of="prompts" { (c.all.n) }
                                @for m in &self.metrics {
                                    @let cell = c.all.cell(m);
                                    td.num.rate.(cell.class()) role="cell" data-of=(m) {
                                        span.big { (percent(cell.rate)) } " " span.interval { (interval(cell)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// The numbers behind the bars.
    pub fn rates(&self, c: &Comparison) -> Markup {
        table(
            &format!("Win rate of {} over {} [95 % interval], wins, ties, losses", c.a, c.b),
            html! { tr { th scope="col" { (self.by) } th.num scope="col" { "n" } @for m in &self.metrics { th.num scope="col" { (m) } } } },
            html! {
                @for row in c.rows() {
                    tr data-a=(c.a) data-b=(c.b) data-group=(row.label()) {
                        th scope="row" { (row.label()) }
                        td.num { (data(row.n as f64, row.n.to_string())) }
                        @for m in &self.metrics {
                            @let cell = &row.metrics[m];
                            td.num data-metric=(m) {
                                (data(cell.rate, percent(cell.rate))) " [" (data(cell.low, point(cell.low))) ", " (data(cell.high, point(cell.high))) "]"
                                br;
                                small { (data(cell.wins as f64, cell.wins.to_string())) " / " (data(cell.ties as f64, cell.ties.to_string())) " / " (data(cell.losses as f64, cell.losses.to_string())) }
                            }
                        }
                    }
                }
            },
        )
    }

    pub fn means(&self, c: &Comparison) -> Markup {
        table(
            &format!("Mean score of {}, of {}, and the change in standard deviations of {}", c.a, c.b, c.b),
            html! { tr { th scope="col" { (self.by) } @for m in &self.metrics { th.num scope="col" { (m) } } } },
            html! {
                @for row in c.rows() {
                    tr data-means=(row.label()) data-a=(c.a) data-b=(c.b) {
                        th scope="row" { (row.label()) }
                        @for m in &self.metrics {
                            @let cell = &row.metrics[m];
                            td.num data-metric=(m) {
                                (data(cell.mean_a, format!("{:.4}", cell.mean_a))) " · " (data(cell.mean_b, format!("{:.4}", cell.mean_b)))
                                br;
                                small { @match cell.change_sd { Some(x) => (data(x, signed(x, 2))), None => "–" } }
                            }
                        }
                    }
                }
            },
        )
    }
}

impl Comparison {
    /// All prompts, then the groups.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        std::iter::once(&self.all).chain(&self.groups)
    }
}

/// "64.6 %".
pub fn percent(rate: f64) -> String {
    format!("{:.1} %", 100.0 * rate)
}

fn point(rate: f64) -> String {
    format!("{:.1}", 100.0 * rate)
}

pub fn interval(cell: &Cell) -> String {
    format!("[{}, {}]", point(cell.low), point(cell.high))
}
