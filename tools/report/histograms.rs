//! Where the scores lie, before and after: a panel a metric.

use maud::{Markup, html};

use crate::{
    cast::Cast,
    plot::{Plot, Size, chart, data, extent, panel, px, signed, table},
    scored::{Scored, decimals, moments},
};

const SIZE: Size = (280.0, 190.0);
const BINS: usize = 28;

/// The whole section; `tables` begin with the one that the others are compared with.
pub fn section(tables: &[Scored], cast: &Cast) -> Markup {
    let metrics = &tables[0].metrics;
    let names: Vec<&str> = tables.iter().map(|t| t.model.as_str()).collect();
    let scores: Vec<_> = (0..metrics.len())
        .map(|m| {
            let series = tables.iter().map(|t| (t.model.as_str(), t.values(m).collect())).collect();
            histogram(&metrics[m], "score", series, cast, false)
        })
        .collect();
    let (base, others) = (&tables[0], &tables[1..]);
    let changes: Vec<_> = (0..metrics.len())
        .map(|m| {
            let series = others.iter().map(|t| (t.model.as_str(), t.changes(base, m))).collect();
            histogram(&metrics[m], "change of the score", series, cast, true)
        })
        .collect();
    html! {
        (chart(
            cast.legend(&names),
            &scores,
            html! { "Share of each model's images by score, in percent. The marks at the foot are the means." },
            numbers(tables),
        ))
        @if !others.is_empty() && others.iter().any(|t| !t.changes(base, 0).is_empty()) {
            h3 { "Change of each image" }
            (chart(
                cast.legend(&names[1..]),
                &changes,
                html! { "Each image against " strong { (base.model) } "'s of the same prompt and number, which began from the same noise where the seeds are the same. Right of the line the score rose. The marks are the mean changes; the few furthest out are counted in the last bars." },
                change_numbers(base, others),
            ))
        }
    }
}

/// One panel; `around_zero`: the values are changes, and the few far out share the last bars.
fn histogram(metric: &str, what: &str, series: Vec<(&str, Vec<f64>)>, cast: &Cast, around_zero: bool) -> Markup {
    let (low, high) = match around_zero {
        false => extent(series.iter().flat_map(|(_, v)| v.iter().copied())),
        true => {
            let mut sizes: Vec<f64> = series.iter().flat_map(|(_, v)| v.iter().map(|x| x.abs())).collect();
            sizes.sort_by(f64::total_cmp);
            let most = sizes.get(sizes.len() * 995 / 1000).copied().filter(|x| *x > 0.0).unwrap_or(1.0);
            (-most, most)
        }
    };
    let (low, high) = if high > low { (low, high) } else { (low - 0.5, high + 0.5) };
    let step = (high - low) / BINS as f64;
    let bin = |x: &f64| (((x - low) / step).max(0.0) as usize).min(BINS - 1);
    let shares: Vec<Vec<f64>> = series
        .iter()
        .map(|(_, values)| {
            let mut counts = vec![0.0; BINS];
            values.iter().for_each(|x| counts[bin(x)] += 100.0 / values.len() as f64);
            counts
        })
        .collect();
    let highest = shares.iter().flatten().copied().fold(0.0, f64::max).max(1e-9);
    let plot = Plot::new((low, high), (0.0, 1.06 * highest), SIZE);
    let outline = |counts: &[f64]| {
        let mut points = vec![(low, 0.0)];
        for (i, y) in counts.iter().enumerate() {
            points.extend([(low + i as f64 * step, *y), (low + (i + 1) as f64 * step, *y)]);
        }
        points.push((high, 0.0));
        plot.curve(&points)
    };
    let means: Vec<f64> = series.iter().map(|(_, v)| moments(v.iter().copied()).0).collect();
    let body = html! {
        (plot.y_axis(4))
        (plot.x_axis(what))
        @for ((model, _), counts) in series.iter().zip(&shares) {
            g class=(cast.class(model)) { path.area d=(outline(counts)) {} }
        }
        @for ((model, _), counts) in series.iter().zip(&shares) {
            g class=(cast.class(model)) { path.curve.steps d=(outline(counts)) {} }
        }
        @if around_zero { line.zero x1=(px(plot.x.at(0.0))) x2=(px(plot.x.at(0.0))) y1="10" y2=(plot.bottom()) {} }
        @for ((model, _), mean) in series.iter().zip(&means) {
            g.mean.(cast.class(model)) { title { (model) ": mean " (format!("{mean:.4}")) } (cast.mark(model, plot.x.at(*mean).clamp(plot.left(), plot.right()), plot.bottom())) }
        }
    };
    let each = series.iter().zip(&means).map(|((model, _), mean)| format!("mean of {model} {mean:.4}"));
    let words = each.collect::<Vec<_>>().join("; ");
    panel(metric, &format!("Histogram of the {what} of {metric}: {words}."), SIZE, body)
}

fn numbers(tables: &[Scored]) -> Markup {
    let metrics = &tables[0].metrics;
    table(
        "Scores of all images",
        html! { tr { th scope="col" { "metric" } th scope="col" { "model" } th.num scope="col" { "images" } th.num scope="col" { "mean" } th.num scope="col" { "sd" } th.num scope="col" { "min" } th.num scope="col" { "max" } } },
        html! {
            @for (m, metric) in metrics.iter().enumerate() {
                @for t in tables {
                    @let (mean, sd, n) = t.moments(m);
                    @let (min, max) = extent(t.values(m));
                    tr {
                        th scope="row" { (metric) }
                        td { (t.model) }
                        td.num { (data(n as f64, n.to_string())) }
                        @for x in [mean, sd, min, max] { td.num { (data(x, format!("{x:.4}"))) } }
                    }
                }
            }
        },
    )
}

fn change_numbers(base: &Scored, others: &[Scored]) -> Markup {
    table(
        &format!("Change of each image's score from {}", base.model),
        html! { tr { th scope="col" { "metric" } th scope="col" { "model" } th.num scope="col" { "images" } th.num scope="col" { "mean change" } th.num scope="col" { "rose" } th.num scope="col" { "fell" } } },
        html! {
            @for (m, metric) in base.metrics.iter().enumerate() {
                @for t in others {
                    @let changes = t.changes(base, m);
                    @let (mean, _, n) = moments(changes.iter().copied());
                    @let rose = changes.iter().filter(|c| **c > 0.0).count();
                    @let fell = changes.iter().filter(|c| **c < 0.0).count();
                    tr {
                        th scope="row" { (metric) }
                        td { (t.model) }
                        td.num { (n) }
                        td.num { (data(mean, signed(mean, decimals(base.moments(m).1) + 1))) }
                        td.num { (rose) }
                        td.num { (fell) }
                    }
                }
            }
        },
    )
}
