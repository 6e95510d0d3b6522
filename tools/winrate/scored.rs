//! One model's scored images, prompt by prompt.

use std::{collections::HashMap, path::Path};

use anyhow::{Result, bail, ensure};
use arrow::{
    array::{Array, Float32Array, StringArray, UInt64Array},
    datatypes::{DataType, Schema},
};
use pipe::{
    column::Rows,
    schema::{images, prompts},
    table::{BATCH, Inputs},
};

use crate::stats;

const NEEDED: [&str; 4] = [prompts::PROMPT_ID, prompts::PROMPT, images::K, images::MODEL];
const OPTIONAL: [&str; 4] = [prompts::SET, prompts::CATEGORY, prompts::CHALLENGE, images::SEED];
const HINT: &str = "`winrate` reads what `score` writes of an images table";

/// The same text in two sets is two prompts.
pub type Key = (Option<String>, String);

pub struct Scored {
    /// The table, as it was named.
    pub table: String,
    /// The model that drew its images.
    pub model: String,
    pub prompts: Vec<Prompt>,
    index: HashMap<Key, usize>,
    /// Images without a score, one number a metric.
    pub nulls: Vec<usize>,
}

pub struct Prompt {
    pub key: Key,
    pub text: String,
    pub category: Option<String>,
    pub challenge: Option<String>,
    images: Vec<Image>,
    /// Best, mean and all scores of the first n images, one a metric.
    pub best: Vec<f32>,
    pub mean: Vec<f64>,
    pub scores: Vec<Vec<f32>>,
}

struct Image {
    k: u64,
    seed: Option<u64>,
    /// One a metric, `None` where it could not be scored.
    scores: Vec<Option<f32>>,
}

/// The metrics of a scored table: its columns of floating-point numbers.
pub fn metrics_of(schema: &Schema) -> Vec<String> {
    let float = |t: &DataType| t.is_floating() && !matches!(t, DataType::Null);
    let fields = schema.fields().iter().filter(|f| float(f.data_type()) && f.name() != prompts::NSFW_PROB);
    fields.map(|f| f.name().clone()).collect()
}

impl Scored {
    /// Reads a table and keeps of each prompt the first `n` images by k.
    ///
    /// # Errors
    /// A missing column or metric, a score that is no number, two models in one table, a prompt with too few images or
    /// with none that has a score.
    pub fn read(path: &Path, mut inputs: Inputs, metrics: &[String], n: usize) -> Result<Self> {
        let table = if path.as_os_str() == "-" { "standard input".into() } else { path.display().to_string() };
        inputs.require(&NEEDED, HINT)?;
        let names: Vec<&str> = metrics.iter().map(String::as_str).collect();
        inputs.require(&names, "score it with the same metrics, or choose some with --metrics")?;
        let mut scored = Self { table, model: String::new(), prompts: vec![], index: HashMap::new(), nulls: vec![] };
        let columns = [&NEEDED[..], &OPTIONAL, &names].concat();
        for rows in inputs.read(Some(&columns), 0..usize::MAX, BATCH)? {
            scored.add(&rows?, metrics)?;
        }
        ensure!(!scored.prompts.is_empty(), "{} has no rows", scored.table);
        scored.close(metrics, n)?;
        Ok(scored)
    }

    /// The model's name; with the table's where two models of `all` are called the same.
    pub fn name(&self, all: &[Scored]) -> String {
        let alone = all.iter().filter(|t| t.model == self.model).count() == 1;
        if alone { self.model.clone() } else { format!("{} ({})", self.model, self.table) }
    }

    pub fn get(&self, key: &Key) -> Option<&Prompt> {
        self.index.get(key).map(|&i| &self.prompts[i])
    }

    fn add(&mut self, rows: &Rows, metrics: &[String]) -> Result<()> {
        let (ids, texts, models) =
            (rows.text(prompts::PROMPT_ID)?, rows.text(prompts::PROMPT)?, rows.text(images::MODEL)?);
        let (sets, categories, challenges) = (
            rows.text_if_there(prompts::SET)?,
            rows.text_if_there(prompts::CATEGORY)?,
            rows.text_if_there(prompts::CHALLENGE)?,
        );
        let ks = rows.u64(images::K)?;
        let seeds: Option<UInt64Array> = if rows.has(images::SEED) { Some(rows.u64(images::SEED)?) } else { None };
        let scores = metrics.iter().map(|m| rows.f32_or_null(m)).collect::<Result<Vec<Float32Array>>>()?;
        let at = |column: &StringArray, i| column.is_valid(i).then(|| column.value(i).to_owned());
        for i in 0..rows.len() {
            if self.model.is_empty() {
                self.model = models.value(i).to_owned();
            }
            ensure!(
                self.model == models.value(i),
                "{}: model '{}', but the table began with '{}'; a win rate needs one table a model",
                rows.at(i),
                models.value(i),
                self.model
            );
            let mut all = vec![];
            for (metric, column) in metrics.iter().zip(&scores) {
                let score = column.is_valid(i).then(|| column.value(i));
                if let Some(x) = score.filter(|x| !x.is_finite()) {
                    bail!("{}: {metric} is {x}, which is no score; score the image again", rows.at(i));
                }
                all.push(score);
            }
            let key = (at(&sets, i), ids.value(i).to_owned());
            let next = self.prompts.len();
            let place = *self.index.entry(key.clone()).or_insert(next);
            if place == next {
                self.prompts.push(Prompt {
                    key,
                    text: texts.value(i).to_owned(),
                    category: at(&categories, i),
                    challenge: at(&challenges, i),
                    images: vec![],
                    best: vec![],
                    mean: vec![],
                    scores: vec![],
                });
            }
            let seed = seeds.as_ref().map(|s| s.value(i));
            self.prompts[place].images.push(Image { k: ks.value(i), seed, scores: all });
        }
        Ok(())
    }

    /// When all images are in: sorts out the first `n` of each prompt.
    fn close(&mut self, metrics: &[String], n: usize) -> Result<()> {
        self.nulls = vec![0; metrics.len()];
        for prompt in &mut self.prompts {
            let name = format!("{}: prompt {}", self.table, prompt.name());
            let images = &mut prompt.images;
            images.sort_by_key(|image| image.k);
            if let Some(twice) = images.windows(2).find(|w| w[0].k == w[1].k) {
                bail!("{name} has k = {} twice; the table holds the same image more than once", twice[0].k);
            }
            ensure!(
                images.len() >= n,
                "{name} has {} of the {n} images that --best-of {n} asks for; sample more, or compare with --best-of {}",
                images.len(),
                images.len()
            );
            images.truncate(n);
            for (m, metric) in metrics.iter().enumerate() {
                let scores: Vec<f32> = images.iter().filter_map(|image| image.scores[m]).collect();
                self.nulls[m] += n - scores.len();
                let Some(best) = stats::best_of(&scores) else {
                    bail!(
                        "{name} has no image with a score of {metric}; score it again, or leave {metric} out with --metrics"
                    )
                };
                prompt.best.push(best);
                prompt.mean.push(stats::mean(scores.iter().map(|&x| f64::from(x))));
                prompt.scores.push(scores);
            }
        }
        Ok(())
    }
}

impl Prompt {
    /// For messages: the text, its beginning if it is long, and its set.
    pub fn name(&self) -> String {
        let short: String = self.text.chars().take(60).collect();
        let dots = if short.len() < self.text.len() { "..." } else { "" };
        match &self.key.0 {
            Some(set) => format!("'{short}{dots}' (set {set})"),
            None => format!("'{short}{dots}'"),
        }
    }

    /// The seeds of the images that count, where the table tells.
    pub fn seeds(&self) -> Option<Vec<u64>> {
        self.images.iter().map(|image| image.seed).collect()
    }
}
