//! How training went: curves of each run's log, with the steps after which the reference was replaced.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use maud::{Markup, html};
use serde::Deserialize;

use crate::{
    cast::Cast,
    plot::{Plot, Size, TOP, chart, data, extent, list, panel, px, table},
};

/// `train`'s log.jsonl.
pub struct Run {
    /// The folder that the log lies in: the policy's name.
    pub name: String,
    lines: Vec<Line>,
}

/// What is drawn of a step.
#[derive(Deserialize)]
struct Line {
    step: u64,
    loss: f64,
    implicit_acc: f64,
    policy_winner_mse: f64,
    policy_loser_mse: f64,
    reference_winner_mse: f64,
    reference_loser_mse: f64,
    #[serde(default)]
    drift: Option<f64>,
    #[serde(default)]
    refreshed: bool,
}

type Value = fn(&Line) -> f64;
type Points = Vec<(f64, f64)>;

/// Three in a row, and four.
const WIDE: Size = (330.0, 215.0);
const NARROW: Size = (280.0, 200.0);
/// Points a curve is drawn with, at the most: one a unit of width is more than an eye can tell.
const POINTS: usize = 320;
const LOSS: Value = |l| l.loss;
const ACCURACY: Value = |l| l.implicit_acc;
const ERRORS: [(&str, &str, Value); 4] = [
    ("policy, winner", "policy winner", |l| l.policy_winner_mse),
    ("policy, loser", "policy loser", |l| l.policy_loser_mse),
    ("reference, winner", "reference winner", |l| l.reference_winner_mse),
    ("reference, loser", "reference loser", |l| l.reference_loser_mse),
];
/// The policy's error as a share of the reference's: what is left when the luck of timestep and noise is taken out.
const RELATIVE: [(&str, &str, Value); 2] = [
    ("winner", "policy winner", |l| 100.0 * (l.policy_winner_mse / l.reference_winner_mse - 1.0)),
    ("loser", "policy loser", |l| 100.0 * (l.policy_loser_mse / l.reference_loser_mse - 1.0)),
];

impl Run {
    /// # Errors
    /// No such file; a line that is not what `train` writes; no lines; a number that is none.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let line = |(i, text): (usize, &str)| {
            let say = || format!("{name}, line {}, is not what `train` writes into log.jsonl", i + 1);
            serde_json::from_str::<Line>(text).with_context(say)
        };
        let lines: Vec<Line> = text.lines().enumerate().map(line).collect::<Result<_>>()?;
        ensure!(!lines.is_empty(), "{name} has no lines; a run that has not done a step has no curves");
        let folder = path.parent().and_then(|p| p.file_name()).map(|f| f.to_string_lossy().into_owned());
        Ok(Self { name: folder.unwrap_or(name), lines })
    }

    /// Steps over which curves are averaged.
    fn window(&self) -> usize {
        (self.lines.len() / 12).clamp(1, 100)
    }

    fn points(&self, value: Value) -> Points {
        self.lines.iter().map(|l| (l.step as f64, value(l))).collect()
    }

    fn smooth(&self, value: Value) -> Points {
        thin(&running_mean(&self.points(value), self.window()))
    }

    fn drift(&self) -> Points {
        self.lines.iter().filter_map(|l| Some((l.step as f64, l.drift?))).collect()
    }

    fn refreshes(&self) -> impl Iterator<Item = u64> {
        self.lines.iter().filter(|l| l.refreshed).map(|l| l.step)
    }

    fn last(&self) -> u64 {
        self.lines.last().map_or(0, |l| l.step)
    }
}

/// The mean of each point and its neighbours, `window` in all where there are as many.
fn running_mean(points: &[(f64, f64)], window: usize) -> Points {
    let mut sums = vec![0.0];
    points.iter().for_each(|(_, y)| sums.push(sums[sums.len() - 1] + y));
    let mean = |i: usize| {
        let (from, to) = (i.saturating_sub(window / 2), (i + window.div_ceil(2)).min(points.len()));
        (points[i].0, (sums[to] - sums[from]) / (to - from) as f64)
    };
    (0..points.len()).map(mean).collect()
}

/// Every n-th point and the last.
fn thin(points: &[(f64, f64)]) -> Points {
    let every = points.len().div_ceil(POINTS).max(1);
    let kept = points.iter().enumerate().filter(|(i, _)| i % every == 0 || i + 1 == points.len());
    kept.map(|(_, p)| *p).collect()
}

/// The whole section.
pub fn section(runs: &[Run], cast: &Cast) -> Markup {
    let names: Vec<&str> = runs.iter().map(|r| r.name.as_str()).collect();
    let mut windows: Vec<String> = runs.iter().map(|r| r.window().to_string()).collect();
    windows.dedup();
    let drift = runs.iter().any(|r| !r.drift().is_empty());
    let mut together = vec![
        overlaid("loss", runs, cast, LOSS, Some(std::f64::consts::LN_2)),
        overlaid("implicit accuracy", runs, cast, ACCURACY, Some(0.5)),
    ];
    if drift {
        together.push(drifts(runs, cast));
    }
    let apart = runs.iter().flat_map(|run| {
        [
            several(&format!("{}, squared error", run.name), run, &ERRORS, None),
            several(&format!("{}, policy to reference, %", run.name), run, &RELATIVE, Some(0.0)),
        ]
    });
    html! {
        (chart(
            cast.legend(&names),
            &together,
            html! { "Running means over " (list(&windows)) " steps, single steps behind them. The thin line is where training begins: ln 2 = 0.693 of the loss, half of the pairs. Drift is the distance of the weights from the base's, as a share of the base's norm. " (refresh_note(runs)) },
            html! { @for run in runs { (numbers(run)) } },
        ))
        h3 { "Errors of winner and loser" }
        (chart(
            html! {
                ul.legend {
                    @for (name, class, _) in ERRORS {
                        li { svg class={ "error " (class) } viewBox="0 0 22 14" aria-hidden="true" { path.curve d="M0 7H22" {} } (name) }
                    }
                }
            },
            &apart.collect::<Vec<_>>(),
            html! { "Mean squared prediction errors, running means. Both images of a pair share timestep and noise, so policy and reference rise and fall together; the second panel of a run takes that out: the policy's error less the reference's, as a share of it; below 0 the policy predicts better. A preference is learned as the loser's curve rises above the winner's. " (refresh_note(runs)) },
            html! { @for run in runs { (numbers(run)) } },
        ))
    }
}

fn refresh_note(runs: &[Run]) -> &'static str {
    if runs.iter().any(|r| r.refreshes().next().is_some()) {
        "Dashed uprights: the reference was replaced by the policy."
    } else {
        "The reference stayed as it was."
    }
}

/// One value of all runs.
fn overlaid(heading: &str, runs: &[Run], cast: &Cast, value: Value, begins: Option<f64>) -> Markup {
    let smooth: Vec<_> = runs.iter().map(|r| r.smooth(value)).collect();
    let plot = frame(runs, smooth.iter().flatten().map(|p| p.1).chain(begins), WIDE);
    let faint = |run: &Run| plot.curve(&thin(&run.points(value)));
    let body = html! {
        (plot.axes("step"))
        @if let Some(y) = begins { (plot.mark_y(y)) }
        (clip(&plot, html! { @for run in runs { path.faint.(cast.class(&run.name)) d=(faint(run)) {} } }))
        @for run in runs { (refreshes(&plot, run, &cast.class(&run.name))) }
        @for (run, points) in runs.iter().zip(&smooth) { (curve(&plot, cast, run, points)) }
    };
    let words = runs.iter().zip(&smooth).map(|(r, p)| told(&r.name, p)).collect::<Vec<_>>().join("; ");
    panel(heading, &format!("{heading} over the steps: {words}."), WIDE, body)
}

fn drifts(runs: &[Run], cast: &Cast) -> Markup {
    let all: Vec<_> = runs.iter().map(|r| thin(&r.drift())).collect();
    let plot = frame(runs, all.iter().flatten().map(|p| p.1).chain([0.0]), WIDE);
    let body = html! {
        (plot.axes("step"))
        @for run in runs { (refreshes(&plot, run, &cast.class(&run.name))) }
        @for (run, points) in runs.iter().zip(&all) { (curve(&plot, cast, run, points)) }
    };
    let words = runs.iter().zip(&all).map(|(r, p)| told(&r.name, p)).collect::<Vec<_>>().join("; ");
    panel("drift from the base", &format!("Drift from the base over the steps: {words}."), WIDE, body)
}

/// Several values of one run.
fn several(heading: &str, run: &Run, values: &[(&str, &str, Value)], begins: Option<f64>) -> Markup {
    let smooth: Vec<_> = values.iter().map(|(_, _, value)| run.smooth(*value)).collect();
    let plot = frame(std::slice::from_ref(run), smooth.iter().flatten().map(|p| p.1).chain(begins), NARROW);
    let body = html! {
        (plot.axes("step"))
        @if let Some(y) = begins { (plot.mark_y(y)) }
        (refreshes(&plot, run, "plain"))
        @for ((_, class, _), points) in values.iter().zip(&smooth).rev() {
            g.error.(class) { path.curve d=(plot.curve(points)) {} }
        }
    };
    let words = values.iter().zip(&smooth).map(|((name, _, _), p)| told(name, p)).collect::<Vec<_>>().join("; ");
    panel(heading, &format!("{heading}, over the steps: {words}."), NARROW, body)
}

/// Axes for values, with some room about them.
fn frame(runs: &[Run], values: impl Iterator<Item = f64>, size: Size) -> Plot {
    let (low, high) = extent(values.filter(|v| v.is_finite()));
    let room = 0.08 * (high - low).max(1e-6);
    let last = runs.iter().map(Run::last).max().unwrap_or(1);
    Plot::new((0.0, last as f64), (if low == 0.0 { low } else { low - room }, high + room), size)
}

fn curve(plot: &Plot, cast: &Cast, run: &Run, points: &[(f64, f64)]) -> Markup {
    html! {
        g class=(cast.class(&run.name)) {
            path.curve d=(plot.curve(points)) {}
            @if let Some((x, y)) = points.last() { (cast.mark(&run.name, plot.x.at(*x), plot.y.at(*y))) }
        }
    }
}

fn refreshes(plot: &Plot, run: &Run, class: &str) -> Markup {
    let steps: Vec<u64> = run.refreshes().collect();
    // So many that they would be a wall: the axis alone is marked.
    let top = if steps.len() > 40 { plot.bottom() - 8.0 } else { TOP };
    html! {
        @for step in &steps {
            @let x = px(plot.x.at(*step as f64));
            g.refresh.(class) { title { (run.name) ": reference replaced after step " (step) } line x1=(x) x2=(x) y1=(top) y2=(plot.bottom()) {} }
        }
    }
}

/// Keeps what is drawn inside the plot: single steps reach further than their means.
fn clip(plot: &Plot, inside: Markup) -> Markup {
    let (x, right) = (plot.left(), plot.right());
    html! { svg x=(x) y=(TOP) width=(right - x) height=(plot.bottom() - TOP) viewBox={ (x) " " (TOP) " " (right - x) " " (plot.bottom() - TOP) } { (inside) } }
}

fn told(name: &str, points: &[(f64, f64)]) -> String {
    match points {
        [] => format!("{name} was not measured"),
        [first, .., last] => format!("{name} from {:.4} to {:.4}", first.1, last.1),
        [one] => format!("{name} {:.4}", one.1),
    }
}

/// At most a dozen steps of a run: means over the steps since the row before.
fn numbers(run: &Run) -> Markup {
    let every = run.lines.len().div_ceil(12);
    let mean = |lines: &[Line], value: Value| lines.iter().map(value).sum::<f64>() / lines.len() as f64;
    table(
        &format!("{}: means over {every} steps each", run.name),
        html! {
            tr {
                th.num scope="col" { "to step" } th.num scope="col" { "loss" } th.num scope="col" { "implicit accuracy" } th.num scope="col" { "drift" }
                @for (name, _, _) in ERRORS { th.num scope="col" { (name) } }
                th scope="col" { "reference" }
            }
        },
        html! {
            @for lines in run.lines.chunks(every) {
                tr {
                    th.num scope="row" { (lines[lines.len() - 1].step) }
                    td.num { (four(mean(lines, LOSS))) }
                    td.num { (four(mean(lines, ACCURACY))) }
                    td.num { @match lines.iter().rev().find_map(|l| l.drift) { Some(drift) => (data(drift, format!("{drift:.6}"))), None => "–" } }
                    @for (_, _, value) in ERRORS { td.num { (four(mean(lines, value))) } }
                    td { @if lines.iter().any(|l| l.refreshed) { "replaced" } }
                }
            }
        },
    )
}

fn four(value: f64) -> Markup {
    data(value, format!("{value:.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_mean_keeps_constants_and_shrinks_at_the_ends() {
        let line: Points = (0..10).map(|i| (f64::from(i), f64::from(i))).collect();
        let smooth = running_mean(&line, 4);
        assert_eq!((smooth[0].1, smooth[5].1, smooth[9].1), (0.5, 4.5, 8.0));
        assert_eq!(running_mean(&line, 1), line);
        assert!(running_mean(&[(1.0, 2.0), (2.0, 2.0)], 9).iter().all(|p| p.1 == 2.0));
    }

    #[test]
    fn a_long_curve_keeps_its_last_point() {
        let long: Points = (0..5001).map(|i| (f64::from(i), 0.0)).collect();
        let thinned = thin(&long);
        assert!(thinned.len() <= POINTS + 1 && thinned.last() == long.last(), "{}", thinned.len());
    }
}
