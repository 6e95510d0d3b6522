//! All models over all metrics on parallel axes, each model against the baseline.

use maud::{Markup, html};
use pipe::grid::{Cell, Grid};
use pipe::winrates::Winrates;

use crate::models::Models;
use crate::plot::{Lines, MARGINS, Plot, Size, chart, panel, px, roomy};
use crate::table::{percent, signed, table};
use crate::winrates::{self, Row, Shown};

const SIZE: Size = (430.0, 240.0);

type Value = fn(&Shown) -> Option<[f64; 3]>;
const RATE: Value = |cell| Some(cell.rate.map(|x| 100.0 * x));
const CHANGE: Value = |cell| cell.change;

/// The chart; `None` if no model is compared with the baseline.
pub fn section(file: &Winrates, models: &Models) -> Option<Markup> {
    let baseline = models.baseline()?;
    let against: Vec<Row> = file.comparisons.iter().filter(|c| c.b == baseline).map(winrates::all).collect();
    if against.is_empty() {
        return None;
    }
    let names: Vec<&str> = against.iter().map(|c| c.a).collect();
    let panels = [
        parallel("win rate, %", file, &against, models, RATE, 50.0),
        parallel("change of the mean score, in standard deviations", file, &against, models, CHANGE, 0.0),
    ];
    let caption = html! {
        "Each model against " strong { (baseline) } " over all prompts, with one axis per metric. Left: win rate, best of " (file.best_of)
        " images; the line is 50 %. Right: change of the mean score over all images, which a few lucky images cannot lift, in standard deviations of "
        (baseline) "'s images; the line means no change. Both have 95 % intervals."
    };
    let row = |c: &Row| {
        let cells = file.metrics.iter().flat_map(|m| {
            let cell = &c.cells[m.as_str()];
            let change = cell.change.map(|[x, ..]| Cell::new().number(x, signed(x, 2)));
            [Cell::new().number(cell.rate[0], percent(cell.rate[0])), change.unwrap_or("–".into())]
        });
        std::iter::once(c.a.into()).chain(cells).collect()
    };
    let head = file.metrics.iter().flat_map(|m| [format!("{m}, win rate"), format!("{m}, change")]);
    let numbers = Grid {
        title: format!("Models against {baseline}"),
        head: std::iter::once("model".into()).chain(head).collect(),
        rows: against.iter().map(row).collect(),
        left: 1,
    };
    Some(chart(&models.legend(&names), &panels, &caption, &table(&numbers)))
}

/// One panel; at `zero` nothing has changed.
fn parallel(heading: &str, file: &Winrates, against: &[Row], models: &Models, value: Value, zero: f64) -> Markup {
    // The index of the metric, and its value if it has one.
    let values = |c: &Row| -> Vec<(usize, [f64; 3])> {
        let each = file.metrics.iter().enumerate();
        each.filter_map(|(m, metric)| Some((m, value(&c.cells[metric.as_str()])?))).collect()
    };
    let y = roomy(against.iter().flat_map(values).flat_map(|(_, estimate)| estimate).chain([zero]));
    let plot = Plot::new((-0.4, file.metrics.len() as f64 - 0.6), y, SIZE, MARGINS);
    // The models stand side by side at each axis, so that no interval hides another.
    let at = |m: usize, i: usize| plot.x.at(m as f64) + 10.0 * (i as f64 - (against.len() as f64 - 1.0) / 2.0);
    let axes: Vec<_> = file.metrics.iter().enumerate().map(|(m, name)| (m as f64, name.clone())).collect();
    let body = html! {
        (plot.y_axis(5))
        g.names { (plot.x_axis(&axes, Lines::Through("axis"))) }
        (plot.horizontal("zero", zero))
        @for (i, c) in against.iter().enumerate() {
            @let values = values(c);
            @let points: Vec<_> = values.iter().map(|(m, [v, ..])| format!("{},{}", px(at(*m, i)), px(plot.y.at(*v)))).collect();
            g.(models.class(c.a)) {
                polyline.curve points=(points.join(" ")) {}
                @for (m, [value, low, high]) in values {
                    @let x = px(at(m, i));
                    line.curve x1=(x) x2=(x) y1=(px(plot.y.at(low))) y2=(px(plot.y.at(high))) {}
                    (models.mark(c.a, at(m, i), plot.y.at(value)))
                }
            }
        }
    };
    let each = |c: &Row| {
        let words = values(c).into_iter().map(|(m, [v, ..])| format!("{} {v:.2}", file.metrics[m]));
        format!("{}: {}", c.a, words.collect::<Vec<_>>().join(", "))
    };
    let words = against.iter().map(each).collect::<Vec<_>>().join("; ");
    panel(heading, &format!("{heading}. {words}."), SIZE, &body)
}
