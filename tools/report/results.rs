//! The section "Results": who wins, in sentences and in the layout of the paper's Table I.

use maud::{Markup, PreEscaped, html};
use pipe::winrates::{Comparison, Side, Winrates};

use crate::table::{interval, list, percent};
use crate::winrates::{self, Row};

/// The findings of the first file that compares single tables, then the win rates of all files.
pub fn section(files: &[Winrates]) -> Markup {
    html! {
        @if let Some(found) = files.iter().find(|file| !file.comparisons.is_empty()) { (findings(found)) }
        @for file in files {
            @let title = format!("Win rate over all prompts, best of {} images, ", file.best_of);
            (overview(file, &(title.clone() + "with its 95 % interval"), file.comparisons.iter().map(winrates::all).collect()))
            (overview(file, &(title + "mean of the training seeds, with its 95 % interval over seeds and prompts"), file.seeds.iter().map(winrates::pooled).collect()))
        }
    }
}

/// One sentence per comparison: who wins on which metrics, and which metrics have no winner.
fn findings(file: &Winrates) -> Markup {
    let verdicts =
        [("ahead", "wins on ", Some(Side::A)), ("behind", "loses on ", Some(Side::B)), ("open", "no winner on ", None)];
    let sentence = |c: &Comparison| {
        let row = winrates::all(c);
        let parts = verdicts.iter().filter_map(|(class, words, winner)| {
            let on: Vec<_> = file.metrics.iter().filter(|m| row.cells[m.as_str()].winner() == *winner).collect();
            (!on.is_empty()).then(|| html! { span class=(class) { (words) (list(&on)) } }.into_string())
        });
        PreEscaped(parts.collect::<Vec<_>>().join("; "))
    };
    html! {
        ul.findings { @for c in &file.comparisons { li { strong { (c.a) } " vs " (c.b) ": " (sentence(c)) "." } } }
        p.note { "A winner is named if the sign test over the prompts, corrected for all rates of the table (Holm), stays below 0.05. Otherwise the difference is within the noise." }
    }
}

/// One row per comparison; nothing without rows. On narrow screens the cells stand below each other, and a browser then no longer
/// takes them for a table: hence the roles.
fn overview(file: &Winrates, title: &str, rows: Vec<Row>) -> Markup {
    let Some(first) = rows.first() else { return html! {} };
    let joint = first.joint.map(|_| ["all better", "all worse"]);
    let counts = |row: &Row| row.seeds.map(|n| ("seeds", n)).into_iter().chain([("prompts", row.n)]);
    html! {
        div.overview {
            table role="table" {
                caption { (title) }
                thead role="rowgroup" {
                    tr role="row" {
                        th role="columnheader" scope="col" { "comparison" }
                        @for (name, _) in counts(first) { th.num role="columnheader" scope="col" { (name) } }
                        @for m in &file.metrics {
                            th.num role="columnheader" scope="col" { (m) @if file.held_out.contains(m) { " " span.held title="it did not vote on the labels" { "(held out)" } } }
                        }
                        @for name in joint.iter().flatten() { th.num role="columnheader" scope="col" title="prompts on which the best images are so by every metric" { (name) } }
                    }
                }
                tbody role="rowgroup" {
                    @for row in &rows {
                        tr role="row" {
                            th role="rowheader" scope="row" { (row.a) span.vs { " vs " } (row.b) }
                            @for (name, n) in counts(row) { td.num role="cell" data-of=(name) { (n) } }
                            @for m in &file.metrics {
                                @let cell = &row.cells[m.as_str()];
                                @let [rate, low, high] = cell.rate;
                                td.num.rate.(cell.class()) role="cell" data-of=(m) {
                                    span.big { (percent(rate)) } " " span.interval { (interval(low, high)) }
                                    @if let Some(test) = &cell.test {
                                        " " span.p title="exact sign test, corrected for the table (Holm)" { "p " (p_value(test.best.p_holm)) }
                                    }
                                }
                            }
                            @for (name, [rate, low, high]) in joint.iter().flatten().zip(row.joint.iter().flatten()) {
                                td.num.rate.open role="cell" data-of=(name) {
                                    span.big { (percent(*rate)) } " " span.interval { (interval(*low, *high)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// "0.032", "< 0.001".
pub fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}
