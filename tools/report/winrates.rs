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
    /// Metrics that judge and did not vote.
    #[serde(default)]
    held_out: Vec<String>,
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// What `winrate --seeds` wrote in their place.
    #[serde(default)]
    pub seeds: Vec<Pooled>,
}

/// A comparison over all prompts and several training seeds.
#[derive(Deserialize)]
pub struct Pooled {
    pub a: String,
    pub b: String,
    pub seeds: u64,
    pub n: u64,
    metrics: HashMap<String, Means>,
}

/// Means over seeds and prompts, with their 95 % intervals.
#[derive(Deserialize)]
pub struct Means {
    pub rate: f64,
    pub low: f64,
    pub high: f64,
    /// One a seed.
    pub rates: Vec<f64>,
    change_sd: Option<f64>,
    change_sd_low: Option<f64>,
    change_sd_high: Option<f64>,
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
    /// Of the sign test, corrected for the whole table.
    p_holm: f64,
    winner: Option<Side>,
    mean_of_n: Rate,
    /// Of the mean, in standard deviations of the baseline's images; and its 95 % interval.
    pub change_sd: Option<f64>,
    pub change_sd_low: Option<f64>,
    pub change_sd_high: Option<f64>,
}

/// By the mean of a prompt's images.
#[derive(Deserialize)]
struct Rate {
    rate: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    A,
    B,
}

impl Cell {
    /// The style's class: whether the candidate is ahead, the baseline, or nobody inside the noise.
    pub fn class(&self) -> &'static str {
        match self.winner {
            Some(Side::A) => "ahead",
            Some(Side::B) => "behind",
            None => "open",
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
        let compared = !whole.comparisons.is_empty() || !whole.seeds.is_empty();
        ensure!(compared, "{name} holds no comparison; give `winrate` two tables or more");
        ensure!(!whole.metrics.is_empty(), "{name} holds no metric");
        for c in &whole.comparisons {
            for row in c.rows() {
                if let Some(m) = whole.metrics.iter().find(|m| !row.metrics.contains_key(*m)) {
                    anyhow::bail!("{name}: {} vs {}, {}: metric '{m}' is missing", c.a, c.b, row.label());
                }
            }
        }
        for p in &whole.seeds {
            if let Some(m) = whole.metrics.iter().find(|m| !p.metrics.contains_key(*m)) {
                anyhow::bail!("{name}: {} vs {}, seeds together: metric '{m}' is missing", p.a, p.b);
            }
        }
        whole.name = name;
        Ok(whole)
    }

    /// Both models of every comparison, the baseline first.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        let one = self.comparisons.iter().map(|c| [&c.b, &c.a]);
        let pooled = self.seeds.iter().map(|p| [&p.b, &p.a]);
        one.chain(pooled).flatten().map(String::as_str)
    }

    /// How many prompts were compared.
    pub fn prompts(&self) -> Option<u64> {
        self.comparisons.first().map(|c| c.all.n).or(self.seeds.first().map(|p| p.n))
    }

    /// The baselines that models were compared with over several seeds, each with these.
    pub fn pooled(&self) -> Vec<(&str, Vec<&Pooled>)> {
        let mut against: Vec<(&str, Vec<&Pooled>)> = vec![];
        for p in &self.seeds {
            match against.iter_mut().find(|(b, _)| *b == p.b) {
                Some((_, models)) => models.push(p),
                None => against.push((&p.b, vec![p])),
            }
        }
        against
    }

    /// One sentence a comparison: who wins on what, and where nobody does.
    pub fn findings(&self) -> Markup {
        let words = [
            ("ahead", "wins on ", Some(Side::A)),
            ("behind", "loses on ", Some(Side::B)),
            ("open", "no winner on ", None),
        ];
        let parts = |c: &Comparison| -> Vec<Markup> {
            let part = |(class, what, winner): (&str, &str, Option<Side>)| {
                let on: Vec<_> = self.metrics.iter().filter(|m| c.all.cell(m).winner == winner).collect();
                (!on.is_empty()).then(|| html! { span class=(class) { (what) (list(&on)) } })
            };
            words.into_iter().filter_map(part).collect()
        };
        html! {
            ul.findings {
                @for c in &self.comparisons {
                    li {
                        strong { (c.a) } " vs " (c.b) ": "
                        @for (i, part) in parts(c).iter().enumerate() { @if i > 0 { "; " } (part) }
                        "."
                    }
                }
            }
            p.note { "A winner is named where the sign test over the prompts, corrected for all rates of the table (Holm), stays below 0.05; elsewhere the difference is inside the noise." }
        }
    }

    /// A metric's name; marked where it judges only.
    fn head(&self, metric: &str) -> Markup {
        html! { (metric) @if self.held_out.iter().any(|m| m == metric) { " " span.held title="it did not vote on the labels" { "(held out)" } } }
    }

    /// The table of the paper's Table I: one row a comparison, over all prompts.
    pub fn overview(&self) -> Markup {
        if self.comparisons.is_empty() {
            return html! {};
        }
        let name = format!("Win rate over all prompts, best of {} images, with its 95 % interval", self.best_of);
        let rows = html! {
            @for c in &self.comparisons {
                tr role="row" {
                    th role="rowheader" scope="row" { (c.a) span.vs { " vs " } (c.b) }
                    td.num role="cell" data-of="prompts" { (c.all.n) }
                    @for m in &self.metrics {
                        @let cell = c.all.cell(m);
                        td.num.rate.(cell.class()) role="cell" data-of=(m) {
                            span.big { (percent(cell.rate)) } " " span.interval { (interval(cell.low, cell.high)) } " "
                            span.p title="exact sign test, corrected for the table (Holm)" { "p " (p_value(cell.p_holm)) }
                        }
                    }
                }
            }
        };
        self.overview_table(&name, &["prompts"], &rows)
    }

    /// The same of several training seeds.
    pub fn overview_of_seeds(&self) -> Markup {
        if self.seeds.is_empty() {
            return html! {};
        }
        let name = format!(
            "Win rate over all prompts, best of {} images, mean of the training seeds, with its 95 % interval over seeds and prompts",
            self.best_of
        );
        let rows = html! {
            @for p in &self.seeds {
                tr role="row" {
                    th role="rowheader" scope="row" { (p.a) span.vs { " vs " } (p.b) }
                    td.num role="cell" data-of="seeds" { (p.seeds) }
                    td.num role="cell" data-of="prompts" { (p.n) }
                    @for m in &self.metrics {
                        @let cell = p.cell(m);
                        td.num.rate role="cell" data-of=(m) {
                            span.big { (percent(cell.rate)) } " " span.interval { (interval(cell.low, cell.high)) }
                        }
                    }
                }
            }
        };
        self.overview_table(&name, &["seeds", "prompts"], &rows)
    }

    /// A row a comparison: `counts`, then a column a metric.
    fn overview_table(&self, caption: &str, counts: &[&str], rows: &Markup) -> Markup {
        // Narrow screens stack the cells, and a browser then forgets that they are a table: hence the roles.
        html! {
            div.overview {
                table role="table" {
                    caption { (caption) }
                    thead role="rowgroup" {
                        tr role="row" {
                            th role="columnheader" scope="col" { "comparison" }
                            @for count in counts { th.num role="columnheader" scope="col" { (count) } }
                            @for m in &self.metrics { th.num role="columnheader" scope="col" { (self.head(m)) } }
                        }
                    }
                    tbody role="rowgroup" { (rows) }
                }
            }
        }
    }

    /// The numbers behind the bars of several seeds: a model a row, a metric a column.
    pub fn rates_of_seeds(&self, b: &str, models: &[&Pooled]) -> Markup {
        let sd = |x: Option<f64>| html! { @match x { Some(x) => (data(x, signed(x, 2))), None => "–" } };
        let cell = |cell: &Means| {
            html! {
                (data(cell.rate, percent(cell.rate))) " [" (data(cell.low, point(cell.low))) ", " (data(cell.high, point(cell.high))) "]"
                br;
                small {
                    @for (i, rate) in cell.rates.iter().enumerate() { @if i > 0 { " / " } (data(*rate, point(*rate))) }
                    "; " (sd(cell.change_sd)) " [" (sd(cell.change_sd_low)) ", " (sd(cell.change_sd_high)) "]"
                }
            }
        };
        let name = format!(
            "Win rate over {b}, mean of the seeds [95 % interval], each seed; change of the mean score in standard deviations of {b} [95 % interval]"
        );
        table(
            &name,
            html! { tr { th scope="col" { "model" } th.num scope="col" { "seeds" } th.num scope="col" { "n" } @for m in &self.metrics { th.num scope="col" { (self.head(m)) } } } },
            html! {
                @for p in models {
                    tr data-table="seeds" data-a=(p.a) data-b=(p.b) {
                        th scope="row" { (p.a) }
                        td.num { (p.seeds) }
                        td.num { (p.n) }
                        @for m in &self.metrics { td.num data-metric=(m) { (cell(p.cell(m))) } }
                    }
                }
            },
        )
    }

    /// The numbers behind the bars.
    pub fn rates(&self, c: &Comparison) -> Markup {
        let cell = |cell: &Cell| {
            let counts = [cell.wins, cell.ties, cell.losses].map(|n| data(n as f64, n.to_string()));
            html! {
                (data(cell.rate, percent(cell.rate))) " [" (data(cell.low, point(cell.low))) ", " (data(cell.high, point(cell.high))) "]"
                br;
                small { (counts[0]) " / " (counts[1]) " / " (counts[2]) ", p " (data(cell.p_holm, p_value(cell.p_holm))) }
            }
        };
        let name =
            format!("Win rate of {} over {} [95 % interval]; wins / ties / losses, p corrected (Holm)", c.a, c.b);
        self.by_group(&name, "group", c, cell)
    }

    pub fn means(&self, c: &Comparison) -> Markup {
        let sd = |x: Option<f64>| html! { @match x { Some(x) => (data(x, signed(x, 2))), None => "–" } };
        let cell = |cell: &Cell| {
            html! {
                (data(cell.mean_a, format!("{:.4}", cell.mean_a))) " · " (data(cell.mean_b, format!("{:.4}", cell.mean_b)))
                br;
                small { (sd(cell.change_sd)) " [" (sd(cell.change_sd_low)) ", " (sd(cell.change_sd_high)) "]; " (data(cell.mean_of_n.rate, percent(cell.mean_of_n.rate))) }
            }
        };
        let name = format!(
            "Mean score of {} · of {}; the change in standard deviations of {} [95 % interval]; win rate by the mean of a prompt's images",
            c.a, c.b, c.b
        );
        self.by_group(&name, "means", c, cell)
    }

    /// A group a row, a metric a column.
    fn by_group(&self, name: &str, kind: &str, c: &Comparison, cell: impl Fn(&Cell) -> Markup) -> Markup {
        table(
            name,
            html! { tr { th scope="col" { (self.by) } th.num scope="col" { "n" } @for m in &self.metrics { th.num scope="col" { (self.head(m)) } } } },
            html! {
                @for row in c.rows() {
                    tr data-table=(kind) data-group=(row.label()) data-a=(c.a) data-b=(c.b) {
                        th scope="row" { (row.label()) }
                        td.num { (row.n) }
                        @for m in &self.metrics { td.num data-metric=(m) { (cell(row.cell(m))) } }
                    }
                }
            },
        )
    }
}

impl Pooled {
    /// Of one of the file's metrics; `read` has seen to it that all comparisons have all of them.
    pub fn cell(&self, metric: &str) -> &Means {
        &self.metrics[metric]
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

/// "[58.2, 70.5]".
pub fn interval(low: f64, high: f64) -> String {
    format!("[{}, {}]", point(low), point(high))
}

/// "0.032", "< 0.001".
fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}
