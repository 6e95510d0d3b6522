//! Where the scores lie, before and after alignment: one panel per metric.

use maud::{Markup, html};
use pipe::grid::{Cell, Grid};
use pipe::moments;

use crate::plot::{MARGINS, Plot, Size, TOP, chart, extent, panel};
use crate::table::{decimals, signed, table};
use crate::{model_table::ModelTable, models::Models};

const SIZE: Size = (280.0, 190.0);
const BINS: usize = 28;
/// The share of the changes that lies within the range of their histogram. The others are counted in the first and last bin.
const INSIDE: f64 = 0.995;

struct Values {
    model: String,
    values: Vec<f64>,
}

/// The section "Scores before and after"; the baseline is the first of `tables`.
pub fn section(tables: &[ModelTable], models: &Models) -> Markup {
    let (base, others) = (&tables[0], &tables[1..]);
    let names: Vec<&str> = tables.iter().map(|t| t.model.as_str()).collect();
    let of = |tables: &'_ [ModelTable], values: &dyn Fn(&ModelTable, usize) -> Vec<f64>| -> Vec<Vec<Values>> {
        let of_metric = |m| {
            let all = tables.iter().map(|t| Values { model: t.model.clone(), values: values(t, m) });
            all.filter(|v| !v.values.is_empty()).collect()
        };
        (0..base.metrics.len()).map(of_metric).collect()
    };
    let scores = of(tables, &|t, m| t.scores(m).collect());
    let changes = of(others, &|t, m| t.changes(base, m));
    let panels = |what: &str, all: &[Vec<Values>], range: Range| -> Vec<Markup> {
        base.metrics.iter().zip(all).map(|(metric, values)| histogram(metric, what, values, models, range)).collect()
    };
    html! {
        (chart(
            &models.legend(&names),
            &panels("score", &scores, Range::Whole),
            &html! { "The share of each model's images per bin of the score, in percent. The marks on the axis are the means." },
            &table(&numbers(&base.metrics, &scores)),
        ))
        @if changes.iter().any(|values| !values.is_empty()) {
            h3 { "Change of each image" }
            (chart(
                &models.legend(&names[1..]),
                &panels("change of the score", &changes, Range::AroundZero),
                &html! { "The score of each image minus the score of " strong { (base.model) } "'s image of the same prompt and number, which began from the same noise where the seeds are equal. Right of the line the score rose. The marks are the mean changes. The first and the last bin also count the few changes beyond them." },
                &table(&change_numbers(base, &changes)),
            ))
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Range {
    Whole,
    /// The same distance on both sides of 0, and all but the most extreme values.
    AroundZero,
}

impl Range {
    fn of(self, all: &[Values]) -> (f64, f64) {
        let values = all.iter().flat_map(|v| v.values.iter().copied());
        if self == Range::Whole {
            return extent(values);
        }
        let mut sizes: Vec<f64> = values.map(f64::abs).collect();
        sizes.sort_by(f64::total_cmp);
        let most = sizes.get((sizes.len() as f64 * INSIDE) as usize).copied().filter(|x| *x > 0.0).unwrap_or(1.0);
        (-most, most)
    }
}

fn histogram(metric: &str, what: &str, all: &[Values], models: &Models, range: Range) -> Markup {
    let (low, high) = range.of(all);
    let (low, high) = if high > low { (low, high) } else { (low - 0.5, high + 0.5) };
    let step = (high - low) / BINS as f64;
    let bin = |x: &f64| (((x - low) / step).max(0.0) as usize).min(BINS - 1);
    // Percent of a model's values per bin.
    let shares: Vec<[f64; BINS]> = all
        .iter()
        .map(|v| {
            let mut shares = [0.0; BINS];
            v.values.iter().for_each(|x| shares[bin(x)] += 100.0 / v.values.len() as f64);
            shares
        })
        .collect();
    let highest = shares.iter().flatten().copied().fold(1e-9, f64::max);
    let plot = Plot::new((low, high), (0.0, 1.06 * highest), SIZE, MARGINS);
    let outline = |shares: &[f64]| {
        let edge = |i: usize| low + i as f64 * step;
        let tops = shares.iter().enumerate().flat_map(|(i, y)| [(edge(i), *y), (edge(i + 1), *y)]);
        plot.path(&[(low, 0.0)].into_iter().chain(tops).chain([(high, 0.0)]).collect::<Vec<_>>())
    };
    let layer = |class: &str| {
        html! { @for (v, shares) in all.iter().zip(&shares) { g.(models.class(&v.model)) { path class=(class) d=(outline(shares)) {} } } }
    };
    let means: Vec<f64> = all.iter().map(|v| moments::mean(v.values.iter().copied())).collect();
    let at = |mean: f64| plot.x.at(mean).clamp(plot.left, plot.right);
    let body = html! {
        (plot.y_axis(4))
        (plot.x_axis_named(what))
        (layer("area"))
        (layer("curve steps"))
        @if range == Range::AroundZero { (plot.vertical("zero", 0.0, TOP)) }
        @for (v, mean) in all.iter().zip(&means) {
            g.mean.(models.class(&v.model)) { title { (v.model) ": mean " (format!("{mean:.4}")) } (models.mark(&v.model, at(*mean), plot.bottom)) }
        }
    };
    let words: Vec<_> = all.iter().zip(&means).map(|(v, mean)| format!("mean of {} {mean:.4}", &v.model)).collect();
    panel(metric, &format!("Histogram of the {what} of {metric}: {}.", words.join("; ")), SIZE, &body)
}

/// A table with a row per metric and model; the cells of a row begin with the number of images.
fn rows(
    title: String,
    heads: &[&str],
    metrics: &[String],
    all: &[Vec<Values>],
    cells: impl Fn(usize, &[f64]) -> Vec<Cell>,
) -> Grid {
    let rows = metrics.iter().zip(all).enumerate().flat_map(|(m, (metric, values))| {
        let row = |v: &Values| {
            let first = [metric.into(), (&v.model).into(), Cell::new().count(v.values.len())];
            first.into_iter().chain(cells(m, &v.values)).collect()
        };
        values.iter().map(row).collect::<Vec<_>>()
    });
    let head = ["metric", "model", "images"].iter().chain(heads).map(|head| head.to_string()).collect();
    Grid { title, head, rows: rows.collect(), left: 2 }
}

fn numbers(metrics: &[String], scores: &[Vec<Values>]) -> Grid {
    let number = |x: Option<f64>| x.map_or("–".into(), |x| Cell::new().number(x, format!("{x:.4}")));
    rows("Scores of all images".into(), &["mean", "sd", "min", "max"], metrics, scores, |_, values| {
        let all = || values.iter().copied();
        let (min, max) = extent(all());
        [Some(moments::mean(all())), moments::sd(all()), Some(min), Some(max)].map(number).to_vec()
    })
}

fn change_numbers(base: &ModelTable, changes: &[Vec<Values>]) -> Grid {
    let title = format!("Change of each image's score from {}", base.model);
    rows(title, &["mean change", "rose", "fell"], &base.metrics, changes, |m, values| {
        let digits = decimals(moments::sd(base.scores(m)).unwrap_or(0.0)) + 1;
        let mean = moments::mean(values.iter().copied());
        let count = |wanted: fn(&f64) -> bool| Cell::new().count(values.iter().filter(|x| wanted(x)).count());
        vec![Cell::new().number(mean, signed(mean, digits)), count(|x| *x > 0.0), count(|x| *x < 0.0)]
    })
}
