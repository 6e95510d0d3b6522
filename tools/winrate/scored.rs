//! One model's scored images, read prompt by prompt.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::{path::Path, sync::Arc};

use anyhow::{Result, bail, ensure};
use arrow::array::{Array, StringArray};
use pipe::id::{Key, key};
use pipe::schema::{images, prompts};
use pipe::scored::{self, ScoredRows};
use pipe::shown;
use pipe::table::{BATCH, Inputs};

use crate::prompt::{Prompt, refuse_other_text};

const NEEDED: [&str; 4] = [prompts::PROMPT_ID, prompts::PROMPT, images::K, images::MODEL];
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

impl By {
    fn of(self, rows: &ScoredRows) -> &StringArray {
        match self {
            Self::Set => &rows.sets,
            Self::Category => &rows.categories,
            Self::Challenge | Self::Style => &rows.challenges,
        }
    }

    fn column(self) -> &'static str {
        match self {
            Self::Set => prompts::SET,
            Self::Category => prompts::CATEGORY,
            Self::Challenge | Self::Style => prompts::CHALLENGE,
        }
    }
}

/// The part that is read of every table.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub metrics: &'a [String],
    pub by: By,
    /// The number of images that count, the first by k.
    pub images: usize,
}

/// A table whose rows pass by once, a prompt at a time.
pub struct Reading<'a> {
    pub table: String,
    pub model: String,
    wanted: Wanted<'a>,
    rows: Box<dyn Iterator<Item = Result<ScoredRows>>>,
    /// The rows that were read last, and the place of the next.
    batch: ScoredRows,
    next: usize,
}

/// A prompt with images that follow one another in a table.
pub struct Found {
    pub key: Key,
    id: Box<str>,
    text: Box<str>,
    set: Option<Arc<str>>,
    group: Option<Arc<str>>,
    /// k and seed of each image.
    images: Vec<(u64, Option<u64>)>,
    /// Image by image, a score per metric, NaN where there is none.
    scores: Vec<f32>,
}

impl<'a> Reading<'a> {
    pub fn open(path: &Path, inputs: &mut Inputs, wanted: Wanted<'a>) -> Result<Self> {
        let table = if path.as_os_str() == "-" { "standard input".into() } else { shown::path(path) };
        inputs.require(&NEEDED, HINT)?;
        let names: Vec<&str> = wanted.metrics.iter().map(String::as_str).collect();
        inputs.require(&names, "score it with the same metrics, or choose some with --metrics")?;
        let optional = [prompts::SET, images::SEED, wanted.by.column()];
        let optional = &optional[..if wanted.by == By::Set { 2 } else { 3 }];
        let mut rows = scored::read(inputs, &NEEDED, optional, wanted.metrics, BATCH)?.filter(|rows| {
            let empty = rows.as_ref().is_ok_and(ScoredRows::is_empty);
            !empty
        });
        let Some(batch) = rows.next().transpose()? else { bail!("{table} has no rows") };
        let model = batch.models.value(0).to_owned();
        Ok(Self { table, model, wanted, rows: Box::new(rows), batch, next: 0 })
    }

    /// The next prompt, with those of its images that follow one another.
    pub fn next(&mut self) -> Result<Option<Found>> {
        let mut found: Option<Found> = None;
        loop {
            if self.next == self.batch.len() {
                let Some(rows) = self.rows.next().transpose()? else { return Ok(found) };
                (self.batch, self.next) = (rows, 0);
            }
            let (rows, i) = (&self.batch, self.next);
            let again = found.is_some() && i > 0 && same(&rows.prompt_ids, i) && same(&rows.sets, i);
            let key = if again { None } else { Some(key_of(rows, i)) };
            match (&mut found, key) {
                (Some(found), key) if key.is_none_or(|key| key == found.key) => {
                    let text = rows.prompts.value(i);
                    refuse_other_text(&found.id, (&found.text, &self.table), (text, &self.table))?;
                    found.push(rows, i);
                }
                (None, Some(key)) => found = Some(Found::of(key, rows, i, self.wanted.by)),
                _ => return Ok(found),
            }
            self.next += 1;
        }
    }

    /// The prompt with the images that count.
    pub fn close(&self, found: Found) -> Result<Prompt> {
        found.close(&self.table, self.wanted)
    }
}

/// Whether the i-th text equals the one before it.
fn same(column: &StringArray, i: usize) -> bool {
    column.is_null(i) == column.is_null(i - 1) && column.value(i) == column.value(i - 1)
}

fn key_of(rows: &ScoredRows, i: usize) -> Key {
    let (named, set) = if rows.sets.is_valid(i) { (1, rows.sets.value(i)) } else { (0, "") };
    key(&[&[named], set.as_bytes(), rows.prompt_ids.value(i).as_bytes()])
}

impl Found {
    fn of(key: Key, rows: &ScoredRows, i: usize, by: By) -> Self {
        let value = |column: &StringArray| column.is_valid(i).then(|| Arc::from(column.value(i)));
        let (id, text) = (rows.prompt_ids.value(i).into(), rows.prompts.value(i).into());
        let (set, group) = (value(&rows.sets), value(by.of(rows)));
        let mut found = Self { key, id, text, set, group, images: vec![], scores: vec![] };
        found.push(rows, i);
        found
    }

    fn push(&mut self, rows: &ScoredRows, i: usize) {
        self.images.push((rows.ks.value(i), rows.seeds.is_valid(i).then(|| rows.seeds.value(i))));
        self.scores.extend(rows.scores_of(i).map(|x| x.unwrap_or(f32::NAN)));
    }

    /// Takes more images of the same prompt of `table`.
    pub fn append(&mut self, other: Self, table: &str) -> Result<()> {
        refuse_other_text(&self.id, (&self.text, table), (&other.text, table))?;
        self.images.extend(other.images);
        self.scores.extend(other.scores);
        Ok(())
    }

    fn close(self, table: &str, wanted: Wanted) -> Result<Prompt> {
        let Self { key, id, text, set, group, images, scores } = self;
        let prompt = Prompt { key, id, text, set, group, seeds: None, scores: [].into(), images: wanted.images };
        let name = prompt.name();
        let (has, n, metrics) = (images.len(), wanted.images, wanted.metrics);
        let mut order: Vec<usize> = (0..has).collect();
        order.sort_by_key(|&i| images[i].0);
        if let Some(twice) = order.windows(2).find(|w| images[w[0]].0 == images[w[1]].0) {
            let k = images[twice[0]].0;
            bail!("{table}: prompt {name} has k = {k} twice; the table holds the same image more than once");
        }
        ensure!(
            has >= n,
            "{table}: prompt {name} has {has} of the {n} images that --best-of {n} asks for; sample more, or compare with --best-of {has}"
        );
        order.truncate(n);
        let seeds: Option<Vec<u64>> = order.iter().map(|&i| images[i].1).collect();
        let seeds = seeds.map(|seeds| {
            let mut hash = DefaultHasher::new();
            seeds.hash(&mut hash);
            hash.finish()
        });
        let of = |m: usize| order.iter().map(move |&i| i * metrics.len() + m);
        let scores = (0..metrics.len()).flat_map(of).map(|i| scores[i]).collect();
        let prompt = Prompt { seeds, scores, ..prompt };
        for (m, metric) in metrics.iter().enumerate() {
            ensure!(
                prompt.scores(m).next().is_some(),
                "{table}: prompt {name} has no image with a score of {metric}; score it again, or leave {metric} out with --metrics"
            );
        }
        Ok(prompt)
    }
}
