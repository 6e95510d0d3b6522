//! Win rates as bars with their intervals: a chart a comparison, a panel a metric, a bar a group of prompts.

use maud::{Markup, html};

use crate::{
    cast::Cast,
    plot::{Scale, TOP, chart, panel, px},
    winrates::{Comparison, Winrates, interval, percent},
};

const WIDTH: f64 = 280.0;
const BAR: f64 = 16.0;
/// From one bar to the next.
const STEP: f64 = 26.0;
/// Letters of a group's name that are shown.
const LETTERS: usize = 14;

pub fn section(all: &Winrates, cast: &Cast) -> Markup {
    html! {
        p.note {
            "Share of prompts on which the best of " (all.best_of) " images scores strictly higher than the other model's best, with its 95 % interval. Pale bars: no winner is named."
        }
        @for c in &all.comparisons {
            @let panels: Vec<_> = all.metrics.iter().map(|m| bars(c, m, cast)).collect();
            (chart(html! { h3 { (c.a) " vs " (c.b) } }, &panels, html! {}, html! { (all.rates(c)) (all.means(c)) }))
        }
    }
}

fn bars(c: &Comparison, metric: &str, cast: &Cast) -> Markup {
    let rows: Vec<_> = c.rows().map(|row| (row, row.cell(metric))).collect();
    let longest = rows.iter().map(|(row, _)| row.label().chars().count().min(LETTERS)).max().unwrap_or(0);
    let left = 9.0 + 6.9 * longest as f64;
    let x = Scale::new((0.0, 100.0), (left, WIDTH - 48.0));
    let bottom = TOP + STEP * rows.len() as f64;
    let body = html! {
        @for share in [0.0, 25.0, 50.0, 75.0, 100.0] {
            line.(if share == 50.0 { "zero" } else { "grid" }) x1=(px(x.at(share))) x2=(px(x.at(share))) y1=(TOP - 4.0) y2=(bottom) {}
            text.tick.mid x=(px(x.at(share))) y=(bottom + 14.0) { (share) @if share == 100.0 { " %" } }
        }
        @for (i, (row, cell)) in rows.iter().enumerate() {
            @let y = TOP + STEP * i as f64 + (STEP - BAR) / 2.0 - 3.0;
            @let middle = y + BAR / 2.0;
            @let (low, high) = (px(x.at(100.0 * cell.low)), px(x.at(100.0 * cell.high)));
            text.end.name.all[i == 0] x=(px(left - 7.0)) y=(middle + 4.0) { (short(row.label())) }
            g.(cast.class(&c.a)).(cell.class()) {
                title { (row.label()) ": " (percent(cell.rate)) " " (interval(cell)) ", " (row.n) " prompts" }
                rect.bar x=(px(x.at(0.0))) y=(y) width=(px(x.at(100.0 * cell.rate) - x.at(0.0))) height=(BAR) rx="2" {}
                path.whisker d={ "M" (low) " " (middle) "H" (high) "M" (low) " " (middle - 4.0) "v8M" (high) " " (middle - 4.0) "v8" } {}
            }
            text.value.end.all[i == 0] x=(WIDTH - 2.0) y=(middle + 4.0) { (percent(cell.rate)) }
        }
    };
    let each = rows.iter().map(|(row, cell)| format!("{} {} {}", row.label(), percent(cell.rate), interval(cell)));
    let words = each.collect::<Vec<_>>().join("; ");
    let label = format!("Win rate of {} over {} on {metric}: {words}.", c.a, c.b);
    panel(metric, &label, (WIDTH, bottom + 22.0), body)
}

fn short(label: &str) -> String {
    if label.chars().count() <= LETTERS {
        label.into()
    } else {
        label.chars().take(LETTERS - 1).chain(['…']).collect()
    }
}
