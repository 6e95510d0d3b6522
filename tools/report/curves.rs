//! How training went: curves of each run's log, with the steps after which the reference was replaced.

use std::{f64::consts::LN_2, path::Path};

use anyhow::{Context, Result, ensure};
use maud::{Markup, html};
use pipe::grid::{Cell, Grid};
use serde::Deserialize;

use crate::models::Models;
use crate::plot::{Entry, MARGINS, Plot, Size, TOP, chart, legend, panel, roomy};
use crate::table::{list, table};

/// A run's log.jsonl, as `train` writes it.
pub struct Run {
    /// The folder of the log: the name of the policy.
    pub name: String,
    steps: Vec<Step>,
}

/// The fields of a line of the log that are drawn.
#[derive(Deserialize)]
struct Step {
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

/// A number of each step; `None` if it was not measured.
type Value = fn(&Step) -> Option<f64>;
type Points = Vec<(f64, f64)>;

/// The sizes of panels that stand three in a row, and four.
const WIDE: Size = (330.0, 215.0);
const NARROW: Size = (280.0, 200.0);
/// The largest number of points of a curve: one per unit of the panel's width is more than an eye can tell apart.
const POINTS: usize = 320;
/// More refreshes than this are marked at the axis only; lines through the plot would hide the curves.
const LINES: usize = 40;

const LOSS: Value = |s| Some(s.loss);
const ACCURACY: Value = |s| Some(s.implicit_acc);
const DRIFT: Value = |s| s.drift;
/// Name, class in the style, value.
const ERRORS: [(&str, &str, Value); 4] = [
    ("policy, winner", "policy winner", |s| Some(s.policy_winner_mse)),
    ("policy, loser", "policy loser", |s| Some(s.policy_loser_mse)),
    ("reference, winner", "reference winner", |s| Some(s.reference_winner_mse)),
    ("reference, loser", "reference loser", |s| Some(s.reference_loser_mse)),
];
/// How far the policy's error lies above the reference's, in percent. The chance of timestep and noise cancels out.
const RELATIVE: [(&str, &str, Value); 2] = [
    ("winner", "policy winner", |s| Some(100.0 * (s.policy_winner_mse / s.reference_winner_mse - 1.0))),
    ("loser", "policy loser", |s| Some(100.0 * (s.policy_loser_mse / s.reference_loser_mse - 1.0))),
];

impl Run {
    pub fn read(path: &Path) -> Result<Self> {
        let file = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
        let step = |(i, line): (usize, &str)| {
            let foreign = || format!("{file}, line {}, is not what `train` writes into log.jsonl", i + 1);
            serde_json::from_str(line).with_context(foreign)
        };
        let steps: Vec<Step> = text.lines().enumerate().map(step).collect::<Result<_>>()?;
        ensure!(!steps.is_empty(), "{file} has no lines; a run that has not done a step has no curves");
        let folder = path.parent().and_then(|p| p.file_name()).map(|f| f.to_string_lossy().into_owned());
        Ok(Self { name: folder.unwrap_or_else(|| file.to_string()), steps })
    }

    fn window(&self) -> usize {
        (self.steps.len() / 12).clamp(1, 100)
    }

    fn points(&self, value: Value) -> Points {
        self.steps.iter().filter_map(|s| Some((s.step as f64, value(s)?))).collect()
    }

    /// The running mean of a value. One that is measured only now and then, as drift is, stays as it is.
    fn smooth(&self, value: Value) -> Points {
        let points = self.points(value);
        let window = if points.len() < self.steps.len() { 1 } else { self.window() };
        thin(&running_mean(&points, window))
    }

    fn refreshes(&self) -> Vec<u64> {
        self.steps.iter().filter(|s| s.refreshed).map(|s| s.step).collect()
    }
}

/// The mean of each point and its neighbours; `window` points where there are as many.
fn running_mean(points: &[(f64, f64)], window: usize) -> Points {
    let mut sums = vec![0.0];
    points.iter().for_each(|(_, y)| sums.push(sums[sums.len() - 1] + y));
    let mean = |i: usize| {
        let (from, to) = (i.saturating_sub(window / 2), (i + window.div_ceil(2)).min(points.len()));
        (points[i].0, (sums[to] - sums[from]) / (to - from) as f64)
    };
    (0..points.len()).map(mean).collect()
}

/// Every n-th point, and the last one.
fn thin(points: &[(f64, f64)]) -> Points {
    let every = points.len().div_ceil(POINTS).max(1);
    let kept = points.iter().enumerate().filter(|(i, _)| i % every == 0 || i + 1 == points.len());
    kept.map(|(_, p)| *p).collect()
}

struct Curve<'a> {
    name: &'a str,
    class: String,
    points: Points,
    /// The single steps behind a running mean; may be empty.
    single: Points,
    /// Whose mark stands at the end of the curve.
    mark: Option<&'a Models>,
}

pub fn section(runs: &[Run], models: &Models) -> Markup {
    let names: Vec<&str> = runs.iter().map(|r| r.name.as_str()).collect();
    let mut windows: Vec<String> = runs.iter().map(|r| r.window().to_string()).collect();
    windows.dedup();
    let of_all = |heading, value, start| all_runs(heading, runs, models, value, start);
    let mut of_runs = vec![of_all("loss", LOSS, LN_2), of_all("implicit accuracy", ACCURACY, 0.5)];
    if runs.iter().any(|r| !r.points(DRIFT).is_empty()) {
        of_runs.push(of_all("drift from the base", DRIFT, 0.0));
    }
    let of_errors = runs.iter().flat_map(|run| {
        [
            one_run(&format!("{}, squared error", run.name), run, &ERRORS, None),
            one_run(&format!("{}, policy to reference, %", run.name), run, &RELATIVE, Some(0.0)),
        ]
    });
    let errors = ERRORS.map(|(name, class, _)| Entry {
        name,
        class: format!("error {class}"),
        sample: html! { path.curve d="M0 7H22" {} },
        width: 22,
    });
    let refresh = match runs.iter().all(|r| r.refreshes().is_empty()) {
        true => "The reference was not replaced.",
        false => "At a dashed vertical line the policy replaced the reference.",
    };
    let numbers = html! { @for run in runs { (table(&numbers(run))) } };
    html! {
        (chart(
            &models.legend(&names),
            &of_runs,
            &html! { "Running means over " (list(&windows)) " steps, with the single steps behind them. The thin line is where training begins: a loss of ln 2 = 0.693, an accuracy of one half, no drift. Drift is the distance of the weights from the base's, as a share of the base's norm. " (refresh) },
            &numbers,
        ))
        h3 { "Errors of winner and loser" }
        (chart(
            &legend(&errors),
            &of_errors.collect::<Vec<_>>(),
            &html! { "Mean squared errors of the prediction, as running means. Both images of a pair share timestep and noise, so policy and reference rise and fall together. The second panel of a run takes this out: it shows how far the policy's error lies above the reference's; below 0 the policy predicts better. A run learns a preference as the loser's curve rises above the winner's. " (refresh) },
            &numbers,
        ))
    }
}

/// One value of all runs; `start` is the value before the first step.
fn all_runs(heading: &str, runs: &[Run], models: &Models, value: Value, start: f64) -> Markup {
    let (mut refreshes, mut of_runs) = (vec![], vec![]);
    for run in runs {
        let (class, points, single) = (models.class(&run.name), run.smooth(value), thin(&run.points(value)));
        refreshes.push((run, class.clone()));
        of_runs.push(Curve { name: &run.name, class, points, single, mark: Some(models) });
    }
    curves(heading, WIDE, Some(start), &refreshes, &of_runs)
}

fn one_run(heading: &str, run: &Run, values: &[(&str, &str, Value)], start: Option<f64>) -> Markup {
    let curve = |&(name, class, value)| Curve {
        name,
        class: format!("error {class}"),
        points: run.smooth(value),
        single: vec![],
        mark: None,
    };
    curves(heading, NARROW, start, &[(run, "plain".into())], &values.iter().map(curve).collect::<Vec<_>>())
}

/// A panel. The refreshes of each run in `refreshes` are drawn in the class beside it.
fn curves(heading: &str, size: Size, start: Option<f64>, refreshes: &[(&Run, String)], curves: &[Curve]) -> Markup {
    let last = refreshes.iter().filter_map(|(run, _)| run.steps.last()).map(|s| s.step).max();
    let y = roomy(curves.iter().flat_map(|c| &c.points).map(|p| p.1).chain(start));
    let plot = Plot::new((0.0, last.unwrap_or(1) as f64), y, size, MARGINS);
    let single = curves.iter().filter(|c| !c.single.is_empty());
    let body = html! {
        (plot.y_axis(5))
        (plot.x_axis_named("step"))
        @if let Some(start) = start { (plot.horizontal("zero", start)) }
        (plot.clip(&html! { @for c in single { path.faint.(c.class) d=(plot.path(&c.single)) {} } }))
        @for (run, class) in refreshes {
            @let steps = run.refreshes();
            @let top = if steps.len() > LINES { plot.bottom - 8.0 } else { TOP };
            @for step in steps {
                g.refresh.(class) {
                    title { (run.name) ": reference replaced after step " (step) }
                    (plot.vertical("", step as f64, top))
                }
            }
        }
        @for c in curves.iter().rev() {
            g.(c.class) {
                path.curve d=(plot.path(&c.points)) {}
                @if let (Some(models), Some((x, y))) = (c.mark, c.points.last()) { (models.mark(c.name, plot.x.at(*x), plot.y.at(*y))) }
            }
        }
    };
    let words = curves.iter().map(|c| from_to(c.name, &c.points)).collect::<Vec<_>>().join("; ");
    panel(heading, &format!("{heading}, over the steps: {words}."), size, &body)
}

fn from_to(name: &str, points: &[(f64, f64)]) -> String {
    match points {
        [] => format!("{name} was not measured"),
        [first, .., last] => format!("{name} from {:.4} to {:.4}", first.1, last.1),
        [one] => format!("{name} {:.4}", one.1),
    }
}

/// The means of at most a dozen spans of steps.
fn numbers(run: &Run) -> Grid {
    let every = run.steps.len().div_ceil(12);
    let columns = [("loss", LOSS, 4), ("implicit accuracy", ACCURACY, 4), ("drift", DRIFT, 6)];
    let columns: Vec<_> = columns.into_iter().chain(ERRORS.map(|(name, _, value)| (name, value, 4))).collect();
    let row = |steps: &[Step]| {
        let cell = |&(_, value, digits): &(_, Value, usize)| {
            let known: Vec<f64> = steps.iter().filter_map(value).collect();
            let mean = known.iter().sum::<f64>() / known.len() as f64;
            if known.is_empty() { "–".into() } else { Cell::new().number(mean, format!("{mean:.digits$}")) }
        };
        let last = steps[steps.len() - 1].step.to_string();
        let replaced = if steps.iter().any(|s| s.refreshed) { "replaced" } else { "" };
        [last.into()].into_iter().chain(columns.iter().map(cell)).chain([replaced.into()]).collect()
    };
    let head = ["to step"].into_iter().chain(columns.iter().map(|c| c.0)).chain(["reference"]).map(String::from);
    Grid {
        title: format!("{}: means over {every} steps each", run.name),
        head: head.collect(),
        rows: run.steps.chunks(every).map(row).collect(),
        left: 0,
    }
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
