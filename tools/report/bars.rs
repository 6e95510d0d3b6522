//! Win rates as bars with their intervals: a chart a comparison, a panel a metric, a bar a group of prompts; of training seeds
//! taken together a chart a baseline, a bar a model.

use maud::{Markup, html};

use crate::{
    cast::Cast,
    plot::{Scale, TOP, chart, panel, px},
    winrates::{Comparison, Pooled, Winrates, interval, percent},
};

const WIDTH: f64 = 280.0;
const BAR: f64 = 16.0;
/// From one bar to the next.
const STEP: f64 = 26.0;
/// Letters of a group's name that are shown.
const LETTERS: usize = 14;

/// One bar.
struct Bar<'a> {
    label: &'a str,
    /// In the darkest ink.
    strong: bool,
    /// Classes of the style: the model's colour, and who is ahead.
    class: String,
    n: u64,
    rate: f64,
    low: f64,
    high: f64,
    /// Rates that `rate` is the mean of.
    marks: &'a [f64],
}

pub fn section(all: &Winrates, cast: &Cast) -> Markup {
    html! {
        p.note {
            "Share of prompts on which the best of " (all.best_of) " images scores strictly higher than the other model's best, with its 95 % interval. "
            @if all.seeds.is_empty() {
                "Pale bars: no winner is named."
            } @else {
                "Training seeds together: a bar is their mean, the points are the seeds, and the interval tells what other seeds and other prompts could have given. No winner is named."
            }
        }
        @for c in &all.comparisons {
            @let panels: Vec<_> = all.metrics.iter().map(|m| groups(c, m, cast)).collect();
            (chart(html! { h3 { (c.a) " vs " (c.b) } }, &panels, html! {}, html! { (all.rates(c)) (all.means(c)) }))
        }
        @for (b, models) in all.pooled() {
            @let panels: Vec<_> = all.metrics.iter().map(|m| of_seeds(b, &models, m, cast)).collect();
            (chart(html! { h3 { "Models against " (b) } }, &panels, html! {}, all.rates_of_seeds(b, &models)))
        }
    }
}

/// A bar a group of prompts.
fn groups(c: &Comparison, metric: &str, cast: &Cast) -> Markup {
    let mut all = vec![];
    for (i, row) in c.rows().enumerate() {
        let cell = row.cell(metric);
        all.push(Bar {
            label: row.label(),
            strong: i == 0,
            class: format!("{} {}", cast.class(&c.a), cell.class()),
            n: row.n,
            rate: cell.rate,
            low: cell.low,
            high: cell.high,
            marks: &[],
        });
    }
    bars(metric, &format!("of {} over {}", c.a, c.b), &all)
}

/// A bar a model, its seeds together.
fn of_seeds(b: &str, models: &[&Pooled], metric: &str, cast: &Cast) -> Markup {
    let mut all = vec![];
    for p in models {
        let cell = p.cell(metric);
        all.push(Bar {
            label: &p.a,
            strong: false,
            class: format!("{} open", cast.class(&p.a)),
            n: p.n,
            rate: cell.rate,
            low: cell.low,
            high: cell.high,
            marks: &cell.rates,
        });
    }
    bars(metric, &format!("over {b}, mean of the seeds,"), &all)
}

/// One panel; `whose` says what is compared.
fn bars(metric: &str, whose: &str, bars: &[Bar]) -> Markup {
    let longest = bars.iter().map(|bar| bar.label.chars().count().min(LETTERS)).max().unwrap_or(0);
    let left = 9.0 + 6.9 * longest as f64;
    let x = Scale::new((0.0, 100.0), (left, WIDTH - 48.0));
    let bottom = TOP + STEP * bars.len() as f64;
    let body = html! {
        @for share in [0.0, 25.0, 50.0, 75.0, 100.0] {
            line.(if share == 50.0 { "zero" } else { "grid" }) x1=(px(x.at(share))) x2=(px(x.at(share))) y1=(TOP - 4.0) y2=(bottom) {}
            text.tick.mid x=(px(x.at(share))) y=(bottom + 14.0) { (share) @if share == 100.0 { " %" } }
        }
        @for (i, bar) in bars.iter().enumerate() {
            @let y = TOP + STEP * i as f64 + (STEP - BAR) / 2.0 - 3.0;
            @let middle = y + BAR / 2.0;
            @let (low, high) = (px(x.at(100.0 * bar.low)), px(x.at(100.0 * bar.high)));
            text.end.name.all[bar.strong] x=(px(left - 7.0)) y=(middle + 4.0) { (short(bar.label)) }
            g class=(bar.class) {
                title { (bar.label) ": " (percent(bar.rate)) " " (interval(bar.low, bar.high)) ", " (bar.n) " prompts" }
                rect.bar x=(px(x.at(0.0))) y=(y) width=(px(x.at(100.0 * bar.rate) - x.at(0.0))) height=(BAR) rx="2" {}
                path.whisker d={ "M" (low) " " (middle) "H" (high) "M" (low) " " (middle - 4.0) "v8M" (high) " " (middle - 4.0) "v8" } {}
                @for mark in bar.marks { circle.mean cx=(px(x.at(100.0 * mark))) cy=(middle) r="2.6" {} }
            }
            text.value.end.all[bar.strong] x=(WIDTH - 2.0) y=(middle + 4.0) { (percent(bar.rate)) }
        }
    };
    let each = bars.iter().map(|bar| format!("{} {} {}", bar.label, percent(bar.rate), interval(bar.low, bar.high)));
    let words = each.collect::<Vec<_>>().join("; ");
    let label = format!("Win rate {whose} on {metric}: {words}.");
    panel(metric, &label, (WIDTH, bottom + 22.0), body)
}

fn short(label: &str) -> String {
    if label.chars().count() <= LETTERS {
        label.into()
    } else {
        label.chars().take(LETTERS - 1).chain(['…']).collect()
    }
}
