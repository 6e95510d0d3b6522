//! One model's scored images, prompt by prompt.

use std::{collections::HashMap, path::Path};

use anyhow::{Result, bail, ensure};
use arrow::array::Array;
use pipe::schema::{images, prompts};
use pipe::scored::{self, PromptKey, ScoredRows, owned};
use pipe::table::{BATCH, Inputs};
use pipe::winrates::{ByMetric, Distribution, Table};
use pipe::{moments, shown};

use crate::stats;

const NEEDED: [&str; 4] = [prompts::PROMPT_ID, prompts::PROMPT, images::K, images::MODEL];
const OPTIONAL: [&str; 4] = [prompts::SET, prompts::CATEGORY, prompts::CHALLENGE, images::SEED];
const HINT: &str = "`winrate` reads what `score` writes of an images table";

pub struct ModelScores {
    pub table: String,
    pub model: String,
    pub prompts: Vec<Prompt>,
    index: HashMap<PromptKey, usize>,
    /// Number of images without a score, one per metric.
    pub nulls: Vec<usize>,
}

pub struct Prompt {
    pub key: PromptKey,
    pub text: String,
    pub category: Option<String>,
    pub challenge: Option<String>,
    images: Vec<Image>,
    /// Best, mean and all scores of the first n images, one per metric.
    pub best: Vec<f32>,
    pub mean: Vec<f64>,
    pub scores: Vec<Vec<f32>>,
}

struct Image {
    k: u64,
    seed: Option<u64>,
    /// One per metric; `None` where the image could not be scored.
    scores: Vec<Option<f32>>,
}

impl ModelScores {
    /// Reads a table and keeps the first `n` images of each prompt, by k.
    pub fn read(path: &Path, mut inputs: Inputs, metrics: &[String], n: usize) -> Result<Self> {
        let table = if path.as_os_str() == "-" { "standard input".into() } else { shown::path(path) };
        inputs.require(&NEEDED, HINT)?;
        let names: Vec<&str> = metrics.iter().map(String::as_str).collect();
        inputs.require(&names, "score it with the same metrics, or choose some with --metrics")?;
        let mut scores = Self { table, model: String::new(), prompts: vec![], index: HashMap::new(), nulls: vec![] };
        for rows in scored::read(&mut inputs, &NEEDED, &OPTIONAL, metrics, BATCH)? {
            scores.add(&rows?);
        }
        ensure!(!scores.prompts.is_empty(), "{} has no rows", scores.table);
        scores.close(metrics, n)?;
        Ok(scores)
    }

    /// The model's name, followed by the table's if two models of `all` have the same name.
    pub fn name(&self, all: &[ModelScores]) -> String {
        let alone = all.iter().filter(|t| t.model == self.model).count() == 1;
        if alone { self.model.clone() } else { format!("{} ({})", self.model, self.table) }
    }

    pub fn describe(&self, metrics: &[String], voted: Vec<String>) -> Table {
        let prompts: Vec<&Prompt> = self.prompts.iter().collect();
        let scores = (0..metrics.len()).map(|m| distribution(&prompts, m));
        Table {
            table: self.table.clone(),
            model: self.model.clone(),
            prompts: prompts.len(),
            null_scores: ByMetric(metrics.iter().cloned().zip(self.nulls.iter().copied()).collect()),
            scores: ByMetric(metrics.iter().cloned().zip(scores).collect()),
            voted,
        }
    }

    pub fn get(&self, key: &PromptKey) -> Option<&Prompt> {
        self.index.get(key).map(|&i| &self.prompts[i])
    }

    fn add(&mut self, rows: &ScoredRows) {
        for i in 0..rows.len() {
            if self.model.is_empty() {
                self.model = rows.models.value(i).to_owned();
            }
            let key = rows.key(i);
            let next = self.prompts.len();
            let place = *self.index.entry(key.clone()).or_insert(next);
            if place == next {
                self.prompts.push(Prompt {
                    key,
                    text: rows.prompts.value(i).to_owned(),
                    category: owned(&rows.categories, i),
                    challenge: owned(&rows.challenges, i),
                    images: vec![],
                    best: vec![],
                    mean: vec![],
                    scores: vec![],
                });
            }
            let seed = rows.seeds.is_valid(i).then(|| rows.seeds.value(i));
            self.prompts[place].images.push(Image { k: rows.ks.value(i), seed, scores: rows.scores_of(i).collect() });
        }
    }

    /// Takes the first `n` images of each prompt, when all images have been read.
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
                prompt.mean.push(moments::mean(scores.iter().map(|&x| f64::from(x))));
                prompt.scores.push(scores);
            }
        }
        Ok(())
    }
}

impl Prompt {
    /// For messages: the text, cut if it is long, and its set.
    pub fn name(&self) -> String {
        let short: String = self.text.chars().take(60).collect();
        let dots = if short.len() < self.text.len() { "..." } else { "" };
        match &self.key.0 {
            Some(set) => format!("'{short}{dots}' (set {set})"),
            None => format!("'{short}{dots}'"),
        }
    }

    /// The seeds of the images that count; `None` if the table does not have them.
    pub fn seeds(&self) -> Option<Vec<u64>> {
        self.images.iter().map(|image| image.seed).collect()
    }
}

/// How the scores of some prompts' images are distributed.
pub fn distribution(prompts: &[&Prompt], metric: usize) -> Distribution {
    let scores = prompts.iter().flat_map(|p| &p.scores[metric]).map(|&x| f64::from(x));
    Distribution {
        mean: moments::mean(scores.clone()),
        min: scores.clone().fold(f64::INFINITY, f64::min),
        max: scores.clone().fold(f64::NEG_INFINITY, f64::max),
        sd: moments::sd(scores),
        sd_of_a_prompt: moments::sd_within(prompts.iter().map(|p| p.scores[metric].as_slice())),
    }
}
