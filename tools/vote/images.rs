//! Pairs made from scored images: every two images of a prompt.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use anyhow::{Result, ensure};
use arrow::array::{Array, ArrayRef, StringArray};
use pipe::id::{Key, key};
use pipe::schema::{images, is_judge, prompts};
use pipe::scored::{self, PromptKey, ScoredRows};
use pipe::text::shown;
use pipe::{id, metrics, origin::InputOrigin, table::Inputs};

use crate::ballot::{Ballot, Scores};

const NEEDED: [&str; 3] = [prompts::PROMPT_ID, prompts::PROMPT, images::IMAGE_UID];
const HINT: &str = "--pairs reads what `score` writes of an images table";

pub struct ImagePairs {
    inputs: Inputs,
    pub metrics: Vec<String>,
    margins: Vec<f64>,
}

impl ImagePairs {
    pub fn open(paths: &[PathBuf], wanted: &[String]) -> Result<Self> {
        let inputs = Inputs::open(paths)?;
        inputs.require(&NEEDED, HINT)?;
        let found = metrics::of_images(inputs.schema());
        ensure!(
            !found.is_empty(),
            "{}: no metric to vote (a column of floating-point numbers); run `score` first",
            inputs.name()
        );
        let mut metrics = metrics::choose(wanted, found)?;
        if wanted.is_empty() {
            metrics.retain(|m| inputs.schema().field_with_name(m).is_ok_and(|f| !is_judge(f)));
        }
        let names: Vec<&str> = metrics.iter().map(String::as_str).collect();
        inputs.require(&names, "score all tables with the same metrics, or choose some with --metrics")?;
        let margins = vec![0.0; metrics.len()];
        Ok(Self { inputs, metrics, margins })
    }

    pub fn set_margins(&mut self, margins: Vec<f64>) {
        self.margins = margins;
    }

    pub fn name(&self) -> String {
        self.inputs.name()
    }

    pub fn pipe(&self) -> Option<String> {
        self.inputs.rows().is_none().then(|| self.name())
    }

    pub fn origins(&self) -> Result<Vec<InputOrigin>> {
        self.inputs.origins()
    }

    /// Reads from the beginning. A ballot holds all pairs of some prompts, about `batch` of them.
    pub fn read(&mut self, batch: usize) -> Result<impl Iterator<Item = Result<Ballot>> + Send + use<>> {
        let rows = scored::read(&mut self.inputs, &NEEDED, &[prompts::SET], &self.metrics, batch)?;
        let (metrics, margins) = (self.metrics.len(), self.margins.clone());
        Ok(Reader { rows, batch, metrics, margins, open: None, seen: HashSet::new(), done: vec![] })
    }
}

/// The most images of a prompt with this text. Their pairs are held at once, in several batches that wait for each other: each
/// pair with its text, ids and scores, in 64 MiB.
fn most_images(text: &str) -> usize {
    const PAIR: usize = 256;
    let pairs = (64 << 20) / (PAIR + text.len());
    (2 * pairs).isqrt().max(2)
}

struct PromptImages {
    key: PromptKey,
    text: String,
    uids: Vec<String>,
    /// One row per metric.
    scores: Vec<Vec<Option<f32>>>,
}

struct Reader<I> {
    rows: I,
    batch: usize,
    metrics: usize,
    margins: Vec<f64>,
    /// The prompt whose images are being read.
    open: Option<PromptImages>,
    /// Prompts whose images have been read.
    done: Vec<PromptImages>,
    /// All prompts so far, so that one that comes again is noticed.
    seen: HashSet<Key>,
}

impl<I: Iterator<Item = Result<ScoredRows>>> Iterator for Reader<I> {
    type Item = Result<Ballot>;
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let pairs: usize = self.done.iter().map(|p| p.uids.len() * p.uids.len().saturating_sub(1) / 2).sum();
            if pairs >= self.batch {
                break;
            }
            match self.rows.next() {
                Some(rows) => {
                    if let Err(error) = rows.and_then(|rows| self.add(&rows)) {
                        return Some(Err(error));
                    }
                }
                None => {
                    self.done.extend(self.open.take());
                    break;
                }
            }
        }
        let done = std::mem::take(&mut self.done);
        (!done.is_empty()).then(|| Ok(self.ballot(&done)))
    }
}

impl<I> Reader<I> {
    fn add(&mut self, rows: &ScoredRows) -> Result<()> {
        for i in 0..rows.len() {
            let (prompt_key, text, uid) = (rows.key(i), rows.prompts.value(i), rows.uids.value(i));
            if self.open.as_ref().is_none_or(|p| p.key != prompt_key) {
                let (set, id) = (prompt_key.0.as_deref().unwrap_or(""), &prompt_key.1);
                ensure!(
                    self.seen.insert(key(&[set.as_bytes(), id.as_bytes()])),
                    "{}: prompt '{}' comes again after another; the images of a prompt must stand together: sort the table by \
                     prompt_id, and join tables of the same prompts first",
                    rows.at(i),
                    shown(text)
                );
                let scores = vec![vec![]; self.metrics];
                let prompt = PromptImages { key: prompt_key, text: text.to_owned(), uids: vec![], scores };
                self.done.extend(self.open.replace(prompt));
            }
            let Some(prompt) = &mut self.open else { continue };
            ensure!(
                prompt.uids.iter().all(|u| u != uid),
                "{}: image {uid} stands twice under prompt '{text}'; an image cannot be better than itself",
                rows.at(i)
            );
            let (k, most) = (prompt.uids.len() + 1, most_images(&prompt.text));
            ensure!(
                k <= most,
                "{}: prompt '{}' has more than {most} images, and every two make a pair; score fewer images of a prompt",
                rows.at(i),
                shown(&prompt.text)
            );
            prompt.uids.push(uid.to_owned());
            prompt.scores.iter_mut().zip(rows.scores_of(i)).for_each(|(all, score)| all.push(score));
        }
        Ok(())
    }

    /// All pairs of these prompts, the earlier image as image 0.
    fn ballot(&self, done: &[PromptImages]) -> Ballot {
        let pairs = || {
            done.iter().flat_map(|p| {
                let k = p.uids.len();
                (0..k).flat_map(move |i| (i + 1..k).map(move |j| (p, i, j)))
            })
        };
        let text = |f: &dyn Fn(&PromptImages, usize, usize) -> String| {
            StringArray::from_iter_values(pairs().map(|(p, i, j)| f(p, i, j)))
        };
        let ids = text(&|p, i, j| id::pair_id(&p.text, &p.uids[i], &p.uids[j], ""));
        let keys: Vec<ArrayRef> = vec![
            Arc::new(ids.clone()),
            Arc::new(text(&|p, _, _| p.text.clone())),
            Arc::new(text(&|p, i, _| p.uids[i].clone())),
            Arc::new(text(&|p, _, j| p.uids[j].clone())),
        ];
        let scores = self.margins.iter().enumerate().map(|(m, &margin)| {
            let m_0 = pairs().map(|(p, i, _)| p.scores[m][i]).collect();
            let m_1 = pairs().map(|(p, _, j)| p.scores[m][j]).collect();
            Scores::new(m_0, m_1, margin)
        });
        let scores = scores.collect();
        let prompts = done.iter().map(|p| p.uids.len()).collect();
        Ballot { label_0: vec![None; ids.len()], ids, keys, scores, prompts }
    }
}
