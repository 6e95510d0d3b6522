//! All models over all metrics, on parallel axes: each against the baseline.

use maud::{Markup, html};

use crate::{
    cast::Cast,
    plot::{Plot, Size, TOP, chart, data, extent, panel, px, signed, table},
    winrates::{Cell, Comparison, Winrates, percent},
};

const SIZE: Size = (430.0, 240.0);
/// Names of metrics fit side by side up to so many; above it every other stands lower.
const ABREAST: usize = 5;

/// A value of a cell, and its interval if it has one.
type Value = fn(&Cell) -> Option<(f64, Option<(f64, f64)>)>;
const RATE: Value = |cell| Some((100.0 * cell.rate, Some((100.0 * cell.low, 100.0 * cell.high))));
const CHANGE: Value = |cell| Some((cell.change_sd?, cell.change_sd_low.zip(cell.change_sd_high)));

/// The section; `None` where nothing is compared with the baseline.
pub fn section(all: &Winrates, cast: &Cast) -> Option<Markup> {
    let baseline = cast.baseline()?;
    let against: Vec<&Comparison> = all.comparisons.iter().filter(|c| c.b == baseline).collect();
    if against.is_empty() {
        return None;
    }
    let names: Vec<&str> = against.iter().map(|c| c.a.as_str()).collect();
    let panels = [
        parallel("win rate, %", all, &against, cast, RATE, 50.0),
        parallel("change of the mean score, in standard deviations", all, &against, cast, CHANGE, 0.0),
    ];
    let caption = html! {
        "Each model against " strong { (baseline) } " over all prompts, one axis a metric. Left: win rate, best of " (all.best_of)
        " images; the line is 50 %. Right: change of the mean score over all images, which a few lucky ones cannot lift, in standard deviations of "
        (baseline) "'s images; the line is no change. Both with 95 % intervals."
    };
    let head = html! {
        tr {
            th scope="col" { "model" }
            @for m in &all.metrics { th.num scope="col" { (m) ", win rate" } th.num scope="col" { (m) ", change" } }
        }
    };
    let body = html! {
        @for c in &against {
            tr {
                th scope="row" { (c.a) }
                @for m in &all.metrics {
                    @let cell = c.all.cell(m);
                    td.num { (data(cell.rate, percent(cell.rate))) }
                    td.num { @match cell.change_sd { Some(x) => (data(x, signed(x, 2))), None => "–" } }
                }
            }
        }
    };
    Some(chart(cast.legend(&names), &panels, caption, table(&format!("Models against {baseline}"), head, body)))
}

/// One panel; `zero` is where nothing has changed.
fn parallel(heading: &str, all: &Winrates, against: &[&Comparison], cast: &Cast, f: Value, zero: f64) -> Markup {
    let values = |c: &Comparison| all.metrics.iter().map(|m| f(c.all.cell(m))).collect::<Vec<_>>();
    let ends = |(value, interval): (f64, Option<(f64, f64)>)| {
        [value, interval.map_or(value, |i| i.0), interval.map_or(value, |i| i.1)]
    };
    let (low, high) = extent(against.iter().flat_map(|c| values(c)).flatten().flat_map(ends).chain([zero]));
    let room = 0.08 * (high - low).max(0.01);
    let plot = Plot::new((-0.4, all.metrics.len() as f64 - 0.6), (low - room, high + room), SIZE);
    // Models side by side at each axis, so that intervals do not hide one another.
    let aside = |i: usize| 10.0 * (i as f64 - (against.len() as f64 - 1.0) / 2.0);
    let at = |m: usize, i: usize| plot.x.at(m as f64) + aside(i);
    let body = html! {
        (plot.y_axis(5))
        @for (m, name) in all.metrics.iter().enumerate() {
            @let x = px(plot.x.at(m as f64));
            @let lower = if m % 2 == 1 && all.metrics.len() > ABREAST { 13.0 } else { 0.0 };
            line.axis x1=(x) x2=(x) y1=(TOP) y2=(plot.bottom()) {}
            text.mid x=(x) y=(plot.bottom() + 16.0 + lower) { (name) }
        }
        (plot.mark_y(zero))
        @for (i, c) in against.iter().enumerate() {
            @let values = values(c);
            @let known = values.iter().enumerate().filter_map(|(m, v)| Some((m, (*v)?)));
            @let points: Vec<_> = known.clone().map(|(m, (v, _))| format!("{},{}", px(at(m, i)), px(plot.y.at(v)))).collect();
            g.(cast.class(&c.a)) {
                polyline.curve points=(points.join(" ")) {}
                @for (m, (value, interval)) in known {
                    @let x = px(at(m, i));
                    @if let Some((low, high)) = interval { line.curve x1=(x) x2=(x) y1=(px(plot.y.at(low))) y2=(px(plot.y.at(high))) {} }
                    (cast.mark(&c.a, at(m, i), plot.y.at(value)))
                }
            }
        }
    };
    let each = |c: &Comparison| {
        let known = all.metrics.iter().filter_map(|m| Some(format!("{m} {:.2}", f(c.all.cell(m))?.0)));
        format!("{}: {}", c.a, known.collect::<Vec<_>>().join(", "))
    };
    let words = against.iter().map(|c| each(c)).collect::<Vec<_>>().join("; ");
    panel(heading, &format!("{heading}. {words}."), SIZE, body)
}
