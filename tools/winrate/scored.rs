//! One model's scored images, prompt by prompt, in flat columns: a million prompts take some hundred bytes each.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use arrow::array::Array;
use pipe::id::{Key, key};
use pipe::schema::{images, prompts};
use pipe::scored::{self, ScoredRows};
use pipe::table::{BATCH, Inputs};
use pipe::winrates::{ByMetric, Distribution, Table};
use pipe::{moments, shown};

use crate::stats;

const NEEDED: [&str; 4] = [prompts::PROMPT_ID, prompts::PROMPT, images::K, images::MODEL];
const OPTIONAL: [&str; 4] = [prompts::SET, prompts::CATEGORY, prompts::CHALLENGE, images::SEED];
const HINT: &str = "`winrate` reads what `score` writes of an images table";

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum By {
        /// Where prompts are from: a benchmark, or a part of it
        Set = "set",
        /// PartiPrompts' category, or what the prompts table says
        Category = "category",
        /// PartiPrompts' challenge
        Challenge = "challenge",
        /// The same column by another name: in the mini world it holds the style of the artwork
        Style = "style",
    }
}

pub struct ModelScores {
    pub table: String,
    pub model: String,
    /// Place of every prompt.
    index: HashMap<Key, u32>,
    keys: Vec<Key>,
    /// The beginning of every prompt's text, for messages, and where it ends.
    texts: String,
    ends: Vec<usize>,
    sets: Values,
    categories: Values,
    challenges: Values,
    /// Hashes of the seeds of each prompt's images; `None` where one is not known.
    seeds: Vec<Option<u64>>,
    /// The number of images per prompt.
    n: usize,
    /// The scores, one list per metric: n per prompt, NaN where an image has none.
    scores: Vec<Vec<f32>>,
    /// Number of images without a score, one per metric.
    pub nulls: Vec<usize>,
}

/// A prompt of a table.
#[derive(Clone, Copy)]
pub struct Prompt<'a> {
    table: &'a ModelScores,
    place: usize,
}

/// A column of texts, of which few are different.
#[derive(Default)]
struct Values {
    texts: Vec<Option<String>>,
    numbers: HashMap<Option<String>, u32>,
    /// The number of every prompt's text.
    of: Vec<u32>,
}

impl Values {
    fn push(&mut self, text: Option<&str>) {
        let text = text.map(str::to_owned);
        let next = self.texts.len() as u32;
        let number = *self.numbers.entry(text.clone()).or_insert(next);
        if number == next {
            self.texts.push(text);
        }
        self.of.push(number);
    }
}

/// The images of a table in the order of its rows, before they are put in the order of the prompts.
#[derive(Default)]
struct Unsorted {
    places: Vec<u32>,
    ks: Vec<u64>,
    seeds: Vec<Option<u64>>,
    scores: Vec<Vec<f32>>,
}

impl ModelScores {
    /// Reads a table and keeps the first `n` images of each prompt, by k.
    pub fn read(path: &Path, mut inputs: Inputs, metrics: &[String], n: usize) -> Result<Self> {
        let table = if path.as_os_str() == "-" { "standard input".into() } else { shown::path(path) };
        inputs.require(&NEEDED, HINT)?;
        let names: Vec<&str> = metrics.iter().map(String::as_str).collect();
        inputs.require(&names, "score it with the same metrics, or choose some with --metrics")?;
        let mut scores = Self {
            table,
            model: String::new(),
            index: HashMap::new(),
            keys: vec![],
            texts: String::new(),
            ends: vec![],
            sets: Values::default(),
            categories: Values::default(),
            challenges: Values::default(),
            seeds: vec![],
            n,
            scores: vec![],
            nulls: vec![],
        };
        let mut images = Unsorted { scores: vec![vec![]; metrics.len()], ..Unsorted::default() };
        for rows in scored::read(&mut inputs, &NEEDED, &OPTIONAL, metrics, BATCH)? {
            scores.add(&rows?, &mut images);
        }
        ensure!(!scores.keys.is_empty(), "{} has no rows", scores.table);
        scores.close(metrics, images)?;
        Ok(scores)
    }

    /// The model's name, followed by the table's if two models of `all` have the same name.
    pub fn name(&self, all: &[ModelScores]) -> String {
        let alone = all.iter().filter(|t| t.model == self.model).count() == 1;
        if alone { self.model.clone() } else { format!("{} ({})", self.model, self.table) }
    }

    pub fn describe(&self, metrics: &[String], voted: Vec<String>) -> Table {
        let all: Vec<Prompt> = self.prompts().collect();
        let scores = (0..metrics.len()).map(|m| distribution(&all, m));
        Table {
            table: self.table.clone(),
            model: self.model.clone(),
            prompts: all.len(),
            null_scores: ByMetric(metrics.iter().cloned().zip(self.nulls.iter().copied()).collect()),
            scores: ByMetric(metrics.iter().cloned().zip(scores).collect()),
            voted,
        }
    }

    /// All prompts, in the order in which the table has them.
    pub fn prompts(&self) -> impl Iterator<Item = Prompt<'_>> + Clone {
        (0..self.keys.len()).map(|place| Prompt { table: self, place })
    }

    /// The same prompt in this table.
    pub fn get(&self, prompt: Prompt) -> Option<Prompt<'_>> {
        let place = *self.index.get(&prompt.table.keys[prompt.place])? as usize;
        Some(Prompt { table: self, place })
    }

    fn add(&mut self, rows: &ScoredRows, images: &mut Unsorted) {
        for i in 0..rows.len() {
            if self.model.is_empty() {
                self.model = rows.models.value(i).to_owned();
            }
            let set = if rows.sets.is_valid(i) { Some(rows.sets.value(i)) } else { None };
            let id = rows.prompt_ids.value(i);
            let key = key(&[&[u8::from(set.is_some())], set.unwrap_or_default().as_bytes(), id.as_bytes()]);
            let next = self.keys.len() as u32;
            let place = *self.index.entry(key).or_insert(next);
            if place == next {
                self.keys.push(key);
                self.texts += &scored::short(rows.prompts.value(i));
                self.ends.push(self.texts.len());
                self.sets.push(set);
                self.categories.push(rows.categories.is_valid(i).then(|| rows.categories.value(i)));
                self.challenges.push(rows.challenges.is_valid(i).then(|| rows.challenges.value(i)));
            }
            images.places.push(place);
            images.ks.push(rows.ks.value(i));
            images.seeds.push(rows.seeds.is_valid(i).then(|| rows.seeds.value(i)));
            images.scores.iter_mut().zip(rows.scores_of(i)).for_each(|(all, x)| all.push(x.unwrap_or(f32::NAN)));
        }
    }

    /// Takes the first images of each prompt, when all have been read.
    fn close(&mut self, metrics: &[String], images: Unsorted) -> Result<()> {
        let mut rows: Vec<u32> = (0..images.places.len() as u32).collect();
        rows.sort_by_key(|&row| (images.places[row as usize], images.ks[row as usize]));
        let first: Vec<&[u32]> =
            rows.chunk_by(|&a, &b| images.places[a as usize] == images.places[b as usize]).collect();
        for (place, rows) in first.iter().enumerate() {
            self.check(place, rows, &images.ks)?;
        }
        let kept = || first.iter().map(|rows| &rows[..self.n]);
        let seeds = |rows: &[u32]| -> Option<u64> {
            let seeds: Option<Vec<u64>> = rows.iter().map(|&row| images.seeds[row as usize]).collect();
            let mut hash = DefaultHasher::new();
            seeds?.hash(&mut hash);
            Some(hash.finish())
        };
        let all = |scores: &Vec<f32>| kept().flatten().map(|&row| scores[row as usize]).collect();
        (self.seeds, self.scores) = (kept().map(seeds).collect(), images.scores.iter().map(all).collect());
        self.nulls = self.scores.iter().map(|all| all.iter().filter(|x| x.is_nan()).count()).collect();
        for (m, metric) in metrics.iter().enumerate().filter(|(m, _)| self.nulls[*m] > 0) {
            if let Some(prompt) = self.prompts().find(|prompt| prompt.scores(m).next().is_none()) {
                bail!(
                    "{}: prompt {} has no image with a score of {metric}; score it again, or leave {metric} out with --metrics",
                    self.table,
                    prompt.name()
                )
            }
        }
        Ok(())
    }

    /// Checks the images of a prompt, which are in `rows`, by k.
    fn check(&self, place: usize, rows: &[u32], ks: &[u64]) -> Result<()> {
        let name = || format!("{}: prompt {}", self.table, Prompt { table: self, place }.name());
        if let Some(twice) = rows.windows(2).find(|w| ks[w[0] as usize] == ks[w[1] as usize]) {
            let k = ks[twice[0] as usize];
            bail!("{} has k = {k} twice; the table holds the same image more than once", name());
        }
        let (has, n) = (rows.len(), self.n);
        ensure!(
            has >= n,
            "{} has {has} of the {n} images that --best-of {n} asks for; sample more, or compare with --best-of {has}",
            name()
        );
        Ok(())
    }
}

impl<'a> Prompt<'a> {
    /// For messages: the text, cut if it is long, and its set.
    pub fn name(self) -> String {
        let begin = self.place.checked_sub(1).map_or(0, |before| self.table.ends[before]);
        scored::prompt_name(&self.table.texts[begin..self.table.ends[self.place]], self.group(By::Set).1)
    }

    /// The number of its value in the column `by`, and the value itself.
    pub fn group(self, by: By) -> (usize, Option<&'a str>) {
        let values = match by {
            By::Set => &self.table.sets,
            By::Category => &self.table.categories,
            By::Challenge | By::Style => &self.table.challenges,
        };
        let number = values.of[self.place] as usize;
        (number, values.texts[number].as_deref())
    }

    /// Its images' scores; those without one are left out, and there is at least one.
    pub fn scores(self, metric: usize) -> impl Iterator<Item = f32> + Clone + use<'a> {
        let ModelScores { n, scores, .. } = self.table;
        scores[metric][self.place * n..][..*n].iter().copied().filter(|x| !x.is_nan())
    }

    /// The score of its best image.
    pub fn best(self, metric: usize) -> f64 {
        stats::best_of(self.scores(metric)).map_or(f64::NAN, f64::from)
    }

    /// Whether every metric prefers it to `other` by this value: joint domination, and for the baseline's prompt the candidate's
    /// joint collapse (PG-OT, arXiv 2605.13155).
    pub fn dominates(self, other: Prompt, value: fn(Prompt, usize) -> f64) -> bool {
        (0..self.table.scores.len()).all(|metric| value(self, metric) > value(other, metric))
    }

    pub fn mean(self, metric: usize) -> f64 {
        moments::mean(self.scores(metric).map(f64::from))
    }

    /// A hash of the seeds of the images that count; `None` if the table does not have them.
    pub fn seeds(self) -> Option<u64> {
        self.table.seeds[self.place]
    }
}

/// How the scores of some prompts' images are distributed.
pub fn distribution(prompts: &[Prompt], metric: usize) -> Distribution {
    let scores = prompts.iter().flat_map(|p| p.scores(metric)).map(f64::from);
    let groups = prompts.iter().map(|p| p.scores(metric).collect::<Vec<_>>());
    Distribution {
        mean: moments::mean(scores.clone()),
        min: scores.clone().fold(f64::INFINITY, f64::min),
        max: scores.clone().fold(f64::NEG_INFINITY, f64::max),
        sd: moments::sd(scores),
        sd_of_a_prompt: moments::sd_within(groups),
    }
}
