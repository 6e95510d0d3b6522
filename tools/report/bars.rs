//! Win rates as bars with their intervals. A comparison has a chart with a panel per metric and a bar per group of prompts. Over
//! several training seeds, a baseline has a chart with a panel per metric and a bar per model.

use maud::{Markup, html};
use pipe::grid::{Cell, Grid};
use pipe::winrates::Winrates;

use crate::plot::{Lines, Plot, TOP, chart, panel, px};
use crate::table::{interval, percent, points, signed, table};
use crate::winrates::{self, Row, Shown};
use crate::{models::Models, results::p_value};

const WIDTH: f64 = 280.0;
/// Height of a bar, and from one bar to the next.
const BAR: f64 = 16.0;
const STEP: f64 = 26.0;
/// The longest label, in characters.
const LETTERS: usize = 14;

pub fn section(file: &Winrates, models: &Models) -> Markup {
    let panels = |rows: &[Row], compared: &str| -> Vec<Markup> {
        file.metrics.iter().map(|metric| bars(metric, compared, rows, models)).collect()
    };
    html! {
        p.note {
            "The share of prompts on which the best of " (file.best_of) " images scores strictly higher than the other model's best, with its 95 % interval. "
            @if file.seeds.is_empty() {
                "Pale bars: no winner is named."
            } @else {
                "A bar is the mean of the training seeds, the points are the seeds, and the interval says what other seeds and other prompts could have given. No winner is named."
            }
        }
        @for c in &file.comparisons {
            @let rows: Vec<_> = winrates::groups(c).collect();
            @let rates = format!("Win rate of {} over {} [95 % interval]; wins / ties / losses, p corrected (Holm)", c.a, c.b);
            @let means = format!("Mean score of {} · of {}; the change in standard deviations of {} [95 % interval]; win rate by the mean of a prompt's images", c.a, c.b, c.b);
            (chart(&html! { h3 { (c.a) " vs " (c.b) } }, &panels(&rows, &format!("of {} over {}", c.a, c.b)), &html! {}, &html! {
                (table(&numbers(file, rates, &file.by, &rows, rate)))
                (table(&numbers(file, means, &file.by, &rows, mean)))
            }))
        }
        @for pooled in file.seeds.chunk_by(|p, q| p.b == q.b) {
            @let b = &pooled[0].b;
            @let rows: Vec<_> = pooled.iter().map(winrates::pooled).collect();
            @let rates = format!("Win rate over {b}, mean of the seeds [95 % interval], each seed; change of the mean score in standard deviations of {b} [95 % interval]");
            (chart(&html! { h3 { "Models against " (b) } }, &panels(&rows, &format!("over {b}, mean of the seeds,")), &html! {}, &table(&numbers(file, rates, "model", &rows, rate))))
        }
    }
}

/// One panel; `compared` says of which models.
fn bars(metric: &str, compared: &str, rows: &[Row], models: &Models) -> Markup {
    let longest = rows.iter().map(|row| row.label.chars().count().min(LETTERS)).max().unwrap_or(0);
    let size = (WIDTH, TOP + STEP * rows.len() as f64 + 22.0);
    let plot = Plot::new((0.0, 100.0), (0.0, 1.0), size, (9.0 + 6.9 * longest as f64, 48.0, 22.0));
    let at = |share: f64| plot.x.at(100.0 * share);
    let ticks = [0, 25, 50, 75, 100].map(|t| (f64::from(t), format!("{t}{}", if t == 100 { " %" } else { "" })));
    let words = |row: &Row| {
        let [rate, low, high] = row.cells[metric].rate;
        format!("{} {} {}", row.label, percent(rate), interval(low, high))
    };
    let body = html! {
        (plot.x_axis(&ticks, Lines::Through("grid")))
        (plot.vertical("zero", 50.0, TOP))
        @for (i, row) in rows.iter().enumerate() {
            @let (cell, middle) = (&row.cells[metric], TOP + STEP * (i as f64 + 0.5) - 3.0);
            @let [rate, low, high] = cell.rate.map(at);
            // The first row of several groups is over all prompts, and stands out.
            @let total = i == 0 && row.seeds.is_none();
            text.end.name.all[total] x=(plot.left - 7.0) y=(middle + 4.0) { (short(row.label)) }
            g.(models.class(row.a)).(cell.class()) {
                title { (words(row)) ", " (row.n) " prompts" }
                rect.bar x=(px(plot.left)) y=(middle - BAR / 2.0) width=(px(rate - plot.left)) height=(BAR) rx="2" {}
                path.whisker d={ "M" (px(low)) " " (middle) "H" (px(high)) "M" (px(low)) " " (middle - 4.0) "v8M" (px(high)) " " (middle - 4.0) "v8" } {}
                @for rate in cell.rates { circle.mean cx=(px(at(*rate))) cy=(middle) r="2.6" {} }
            }
            text.value.end.all[total] x=(WIDTH - 2.0) y=(middle + 4.0) { (percent(cell.rate[0])) }
        }
    };
    let each = rows.iter().map(words).collect::<Vec<_>>().join("; ");
    panel(metric, &format!("Win rate {compared} on {metric}: {each}."), size, &body)
}

fn short(label: &str) -> String {
    match label.chars().count() > LETTERS {
        true => label.chars().take(LETTERS - 1).chain(['…']).collect(),
        false => label.into(),
    }
}

/// The numbers behind the bars, a column per metric; `first` is the head of the labels.
fn numbers(file: &Winrates, title: String, first: &str, rows: &[Row], cell: fn(&Shown) -> Cell) -> Grid {
    let seeds = rows.iter().any(|row| row.seeds.is_some());
    let head = [first].into_iter().chain(seeds.then_some("seeds")).chain(["n"]).map(String::from);
    let named = |m: &String| if file.held_out.contains(m) { format!("{m} (held out)") } else { m.clone() };
    let cells = |row: &Row| {
        let counts = row.seeds.into_iter().chain([row.n]).map(|n| n.to_string().into());
        let metrics = file.metrics.iter().map(|m| cell(&row.cells[m.as_str()]));
        [row.label.into()].into_iter().chain(counts).chain(metrics).collect()
    };
    Grid {
        title,
        head: head.chain(file.metrics.iter().map(named)).collect(),
        rows: rows.iter().map(cells).collect(),
        left: 1,
    }
}

/// The win rate, and its counts or seeds.
fn rate(cell: &Shown) -> Cell {
    let mut shown = Cell::new().estimate(cell.rate, points, " %").line_break();
    if let Some(best) = cell.test.map(|test| &test.best) {
        shown = shown.count(best.wins).text(" / ").count(best.ties).text(" / ").count(best.losses);
        return shown.text(", p ").number(best.p_holm, p_value(best.p_holm));
    }
    for (i, rate) in cell.rates.iter().enumerate() {
        shown = shown.text(if i > 0 { " / " } else { "" }).number(*rate, points(*rate));
    }
    change(shown.text("; "), cell)
}

fn mean(cell: &Shown) -> Cell {
    let Some(t) = cell.test else { return "–".into() };
    let means = Cell::new().number(t.mean_a, format!("{:.4}", t.mean_a)).text(" · ");
    let means = means.number(t.mean_b, format!("{:.4}", t.mean_b)).line_break();
    change(means, cell).text("; ").number(t.mean_of_n.rate, percent(t.mean_of_n.rate))
}

fn change(shown: Cell, cell: &Shown) -> Cell {
    match cell.change {
        Some(estimate) => shown.estimate(estimate, |x| signed(x, 2), ""),
        None => shown.text("–"),
    }
}
