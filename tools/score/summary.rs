//! What a person wants to know about a finished table.

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float32Type;
use nets::scorer::Metric;
use pipe::{cli::Common, column::Rows, schema::pairs, text};
use serde_json::{Value, json};

use crate::{engine::Counts, rows::Kind};

pub struct Summary {
    pub rows: usize,
    /// Of these, rows that an earlier run had finished.
    kept: usize,
    kind: Kind,
    metrics: Vec<(&'static Metric, Moments)>,
    label_ties: usize,
    label_missing: usize,
}

/// Of the scores of one metric, all images.
#[derive(Clone, Copy)]
struct Moments {
    n: usize,
    mean: f64,
    square: f64,
    min: f32,
    max: f32,
}

impl Moments {
    const NONE: Self = Self { n: 0, mean: 0.0, square: 0.0, min: f32::INFINITY, max: f32::NEG_INFINITY };

    /// Welford's update.
    fn add(&mut self, x: f32) {
        self.n += 1;
        let from_old = f64::from(x) - self.mean;
        self.mean += from_old / self.n as f64;
        self.square += from_old * (f64::from(x) - self.mean);
        self.min = self.min.min(x);
        self.max = self.max.max(x);
    }

    fn sd(&self) -> f64 {
        if self.n < 2 { 0.0 } else { (self.square / (self.n - 1) as f64).sqrt() }
    }
}

/// With fewer scores nothing is said of their spread.
const ENOUGH: usize = 20;

impl Summary {
    pub fn new(metrics: &[&'static Metric], kind: Kind) -> Self {
        let metrics = metrics.iter().map(|m| (*m, Moments::NONE)).collect();
        Self { rows: 0, kept: 0, kind, metrics, label_ties: 0, label_missing: 0 }
    }

    /// Rows of the output.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows();
        for (metric, moments) in &mut self.metrics {
            for name in self.kind.score_columns(&[metric.name.to_owned()]) {
                let column = batch.column_by_name(&name).with_context(|| format!("column '{name}' is missing"))?;
                column.as_primitive::<Float32Type>().iter().flatten().for_each(|x| moments.add(x));
            }
        }
        if let Some(labels) = batch.column_by_name(pairs::LABEL[0]) {
            let labels = labels.as_primitive::<Float32Type>();
            self.label_missing += labels.null_count();
            self.label_ties += labels.iter().flatten().filter(|&l| l == 0.5).count();
        }
        Ok(())
    }

    /// Rows of the output that an earlier run made.
    pub fn add_kept(&mut self, rows: &Rows) -> Result<()> {
        self.kept += rows.len();
        self.add(&rows.batch)
    }

    fn collapsed(&self) -> Vec<&'static str> {
        let collapsed = |(m, x): &&(&'static Metric, Moments)| x.n >= ENOUGH && m.band.is_collapsed(x.sd());
        self.metrics.iter().filter(collapsed).map(|(m, _)| m.name).collect()
    }

    fn json(&self, counts: &Counts) -> Value {
        let metrics: serde_json::Map<String, Value> = self
            .metrics
            .iter()
            .map(|(m, x)| {
                let range = if x.n > 0 { json!([x.min, x.max]) } else { json!([null, null]) };
                let value = json!({
                    "n": x.n, "mean": x.mean, "sd": x.sd(), "min": range[0], "max": range[1],
                    "known_mean": m.band.mean, "known_sd": m.band.sd,
                });
                (m.name.to_owned(), value)
            })
            .collect();
        let mut json = json!({
            "rows": self.rows,
            "rows_kept": self.kept,
            "distinct_images": counts.images.len(),
            "distinct_captions": counts.captions.len(),
            "images_embedded": counts.images_embedded,
            "captions_embedded": counts.captions_embedded,
            "undecodable": counts.undecodable,
            "null_captions": counts.null_captions,
            "black_images": counts.black,
            "metrics": metrics,
            "collapsed": self.collapsed(),
        });
        if self.kind == Kind::Pairs {
            json["identical_pairs"] = counts.identical_pairs.into();
            json["label_ties"] = self.label_ties.into();
            json["label_missing"] = self.label_missing.into();
        }
        json
    }

    fn text(&self, counts: &Counts) -> String {
        let mut text = format!(
            "{}, {} ({} embedded), {} ({} embedded)",
            text::count(self.rows, "row"),
            text::count(counts.images.len(), "distinct image"),
            text::thousands(counts.images_embedded),
            text::count(counts.captions.len(), "distinct caption"),
            text::thousands(counts.captions_embedded)
        );
        if self.kept > 0 {
            text += &format!("; {} of the rows were finished before, and only the others are counted here", self.kept);
        }
        let images = |n: usize| text::count(n, "image");
        text += &format!(
            "\n{} undecodable, {} null, {} all black",
            images(counts.undecodable),
            text::count(counts.null_captions, "caption"),
            images(counts.black)
        );
        if self.kind == Kind::Pairs {
            text += &format!(
                "; {} of one image with itself, {}, {} without a human label",
                text::count(counts.identical_pairs, "pair"),
                text::count(self.label_ties, "human tie"),
                text::count(self.label_missing, "row")
            );
        }
        text + "\n" + self.spread().trim_end()
    }

    /// A line a metric: what its scores look like, beside what is known of real tables.
    fn spread(&self) -> String {
        let mut rows =
            vec![["metric", "n", "mean", "sd", "min", "max", "known mean", "known sd"].map(String::from).to_vec()];
        for (m, x) in &self.metrics {
            let mut row = vec![m.name.to_owned(), x.n.to_string()];
            match x.n {
                0 => row.extend(["-"; 4].map(String::from)),
                _ => row.extend([x.mean, x.sd(), x.min.into(), x.max.into()].map(|v| format!("{v:.4}"))),
            }
            row.extend([m.band.mean, m.band.sd].map(|[low, high]| format!("{low}..{high}")));
            rows.push(row);
        }
        text::table(&rows, 1)
    }

    /// Text on standard error; JSON on standard output, unless the table goes there.
    pub fn tell(&self, common: &Common, counts: &Counts) -> Result<()> {
        if common.json {
            common.answer(self.json(counts))?;
        } else {
            common.say(self.text(counts));
        }
        for metric in self.collapsed() {
            common.say(format_args!(
                "score: warning: {metric} gives nearly the same score to every image (its sd is less than half the least that is known); look at its model and head"
            ));
        }
        Ok(())
    }
}
