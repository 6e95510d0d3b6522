//! The summary of a finished table: counts, and what each metric's scores look like.

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float32Type;
use nets::scorer::Metric;
use pipe::{cli::Common, column::Rows, moments::Moments, schema::pairs, text};
use serde_json::{Map, Value, json};

use crate::{engine::Counts, rows::Kind};

pub struct Summary {
    pub rows: usize,
    /// Those of the rows that an earlier run finished.
    kept: usize,
    kind: Kind,
    /// The scores of all images, by metric.
    metrics: Vec<(&'static Metric, Moments)>,
    label_ties: usize,
    label_missing: usize,
}

/// With fewer scores than this, their spread is not judged.
const ENOUGH: usize = 20;

impl Summary {
    pub fn new(metrics: &[&'static Metric], kind: Kind) -> Self {
        let metrics = metrics.iter().map(|m| (*m, Moments::default())).collect();
        Self { rows: 0, kept: 0, kind, metrics, label_ties: 0, label_missing: 0 }
    }

    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows();
        for (metric, moments) in &mut self.metrics {
            for name in self.kind.score_columns(&[metric.name.to_owned()]) {
                let column = batch.column_by_name(&name).with_context(|| format!("column '{name}' is missing"))?;
                column.as_primitive::<Float32Type>().iter().flatten().for_each(|x| moments.add(x.into()));
            }
        }
        if let Some(labels) = batch.column_by_name(pairs::LABEL[0]) {
            let labels = labels.as_primitive::<Float32Type>();
            self.label_missing += labels.null_count();
            self.label_ties += labels.iter().flatten().filter(|&l| l == 0.5).count();
        }
        Ok(())
    }

    /// Adds rows of the output that an earlier run made.
    pub fn add_kept(&mut self, rows: &Rows) -> Result<()> {
        self.kept += rows.len();
        self.add(&rows.batch)
    }

    /// Metrics that give nearly the same score to every image.
    fn collapsed(&self) -> Vec<&'static str> {
        let collapsed =
            |(m, x): &&(&Metric, Moments)| x.n() >= ENOUGH && x.sd().is_some_and(|sd| m.band.is_collapsed(sd));
        self.metrics.iter().filter(collapsed).map(|(m, _)| m.name).collect()
    }

    fn json(&self, counts: &Counts) -> Value {
        let metric = |(m, x): &(&Metric, Moments)| {
            let (min, max) = x.range().unzip();
            let value = json!({
                "n": x.n(), "mean": x.mean(), "sd": x.sd(), "min": min, "max": max,
                "known_mean": m.band.mean, "known_sd": m.band.sd,
            });
            (m.name.to_owned(), value)
        };
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
            "metrics": self.metrics.iter().map(metric).collect::<Map<String, Value>>(),
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
            text += &format!(
                "; an earlier run finished {} of the rows, whose images and captions are not counted here",
                self.kept
            );
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

    /// One line per metric: its scores, beside the range of mean and sd that is known from published tables.
    fn spread(&self) -> String {
        let head = ["metric", "n", "mean", "sd", "min", "max", "usual mean", "usual sd"];
        let mut rows = vec![head.map(String::from).to_vec()];
        for (m, x) in &self.metrics {
            let mut row = vec![m.name.to_owned(), x.n().to_string()];
            let (min, max) = x.range().unzip();
            let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
            row.extend([x.mean(), x.sd(), min, max].map(number));
            row.extend([m.band.mean, m.band.sd].map(|[low, high]| format!("{low}..{high}")));
            rows.push(row);
        }
        text::table(&rows, 1)
            + "usual: where mean and sd of the published model lie on published tables; another model's may lie elsewhere\n"
    }

    /// Prints text to standard error or, for `--json`, JSON to standard output.
    pub fn print(&self, common: &Common, counts: &Counts) -> Result<()> {
        if common.json {
            common.answer(self.json(counts))?;
        } else {
            common.say(self.text(counts));
        }
        for metric in self.collapsed() {
            common.say(format_args!(
                "score: warning: {metric} gives nearly the same score to every image (its sd is less than half of any known \
                 table's); check its model and head"
            ));
        }
        Ok(())
    }
}
