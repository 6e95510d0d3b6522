//! One model's scores, image by image.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use arrow::{array::Array, datatypes::DataType};
use pipe::{
    schema::{images, prompts},
    table::{BATCH, Inputs},
};

use crate::drawn::{Key, by_file};

pub struct Scored {
    pub table: String,
    pub model: String,
    pub metrics: Vec<String>,
    /// One a metric, in the table's order; `None` where the image could not be scored.
    pub scores: Vec<Vec<Option<f32>>>,
    /// Row of each prompt's k-th image, and the image's name where the table tells.
    rows: HashMap<(Key, u64), (usize, Option<String>)>,
    prompts: HashSet<Key>,
}

impl Scored {
    /// The tables, which must have the same metrics.
    ///
    /// # Errors
    /// What `read` finds; a table with other metrics.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut all = paths.iter().map(|path| Self::read(path)).collect::<Result<Vec<_>>>()?;
        by_file(all.iter_mut().map(|t| (&mut t.model, t.table.as_str())));
        for table in &all {
            ensure!(
                table.metrics == all[0].metrics,
                "{} has the metrics {}, but {} has {}; score both with the same --metrics",
                table.table,
                table.metrics.join(", "),
                all[0].table,
                all[0].metrics.join(", ")
            );
        }
        Ok(all)
    }

    /// # Errors
    /// No scored table; two models in it; an image twice; a score that is no number.
    pub fn read(path: &Path) -> Result<Self> {
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        let table = path.display().to_string();
        let needed = [prompts::PROMPT_ID, images::K, images::MODEL];
        inputs.require(&needed, "`report --scored` reads what `score` writes of an images table")?;
        let float = |t: &DataType| t.is_floating();
        let fields = inputs.schema().fields().iter();
        let fields = fields.filter(|f| float(f.data_type()) && f.name() != prompts::NSFW_PROB);
        let metrics: Vec<String> = fields.map(|f| f.name().clone()).collect();
        ensure!(
            !metrics.is_empty(),
            "{table} has no metric (a column of floating-point numbers); `report --scored` reads what `score` writes of an images table"
        );
        let names: Vec<&str> = metrics.iter().map(String::as_str).collect();
        inputs.require(&names, "score all parts with the same metrics")?;
        let columns = [&needed[..], &[prompts::SET, images::IMAGE_UID], &names].concat();
        let (mut model, mut scores, mut rows_of, mut prompts_of) =
            (String::new(), vec![vec![]; metrics.len()], HashMap::new(), HashSet::new());
        for rows in inputs.read(Some(&columns), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let (ids, sets) = (rows.text(prompts::PROMPT_ID)?, rows.text_if_there(prompts::SET)?);
            let (ks, models, uids) =
                (rows.u64(images::K)?, rows.text(images::MODEL)?, rows.text_if_there(images::IMAGE_UID)?);
            let first = scores[0].len();
            for (metric, all) in metrics.iter().zip(&mut scores) {
                let column = rows.f32_or_null(metric)?;
                if let Some(i) = (0..rows.len()).find(|&i| column.is_valid(i) && !column.value(i).is_finite()) {
                    anyhow::bail!("{}: {metric} is {}, which is no score", rows.at(i), column.value(i));
                }
                all.extend(column.iter());
            }
            for i in 0..rows.len() {
                if model.is_empty() {
                    model = models.value(i).to_owned();
                }
                ensure!(
                    model == models.value(i),
                    "{}: model '{}', but the table began with '{model}'; a table is one model's",
                    rows.at(i),
                    models.value(i)
                );
                let key: Key = (sets.is_valid(i).then(|| sets.value(i).to_owned()), ids.value(i).to_owned());
                let uid = uids.is_valid(i).then(|| uids.value(i).to_owned());
                prompts_of.insert(key.clone());
                let twice = rows_of.insert((key, ks.value(i)), (first + i, uid)).is_some();
                ensure!(!twice, "{}: this prompt has k = {} twice", rows.at(i), ks.value(i));
            }
        }
        ensure!(!prompts_of.is_empty(), "{table} has no rows");
        Ok(Self { table, model, metrics, scores, rows: rows_of, prompts: prompts_of })
    }

    pub fn images(&self) -> usize {
        self.rows.len()
    }

    pub fn prompts(&self) -> usize {
        self.prompts.len()
    }

    /// Scores of a prompt's k-th image, one a metric.
    pub fn of(&self, key: &Key, k: u64) -> Option<Vec<Option<f32>>> {
        let (row, _) = self.rows.get(&(key.clone(), k))?;
        Some(self.scores.iter().map(|m| m[*row]).collect())
    }

    pub fn uid(&self, key: &Key, k: u64) -> Option<&str> {
        self.rows.get(&(key.clone(), k))?.1.as_deref()
    }

    /// The changes of a metric from `base`'s images to these, for images of the same prompt and k.
    pub fn changes(&self, base: &Self, metric: usize) -> Vec<f64> {
        let mut changes: Vec<(usize, f64)> = vec![];
        for (key, (row, _)) in &self.rows {
            let before = base.rows.get(key).and_then(|(other, _)| base.scores[metric][*other]);
            if let (Some(before), Some(after)) = (before, self.scores[metric][*row]) {
                changes.push((*row, f64::from(after) - f64::from(before)));
            }
        }
        changes.sort_by_key(|c| c.0);
        changes.into_iter().map(|c| c.1).collect()
    }

    /// All scores of a metric.
    pub fn values(&self, metric: usize) -> impl Iterator<Item = f64> + Clone {
        self.scores[metric].iter().flatten().map(|x| f64::from(*x))
    }

    /// Mean and sample standard deviation of a metric (0 of one image), and how many images have a score.
    pub fn moments(&self, metric: usize) -> (f64, f64, usize) {
        moments(self.values(metric))
    }
}

pub fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64, usize) {
    let n = values.clone().count();
    let mean = values.clone().sum::<f64>() / n.max(1) as f64;
    let squares = values.map(|x| (x - mean).powi(2)).sum::<f64>();
    (mean, (squares / n.saturating_sub(1).max(1) as f64).sqrt(), n)
}

/// Decimals that tell scores apart whose spread is `sd`.
pub fn decimals(sd: f64) -> usize {
    if sd > 0.0 { (2.0 - sd.log10().floor()).clamp(1.0, 6.0) as usize } else { 4 }
}
