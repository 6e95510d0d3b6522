//! Pairs made from scored images: every two images of a prompt.

use std::collections::{HashSet, VecDeque};
use std::{path::PathBuf, sync::Arc};

use anyhow::{Result, ensure};
use arrow::array::{Array, ArrayRef, StringArray};
use pipe::id::{Key, key};
use pipe::schema::{images, is_judge, prompts};
use pipe::scored::{self, PromptKey, ScoredRows};
use pipe::text::shown;
use pipe::{id, metrics, origin::InputOrigin, table::Inputs};

use crate::ballot::{Ballot, Scores};
use crate::tournament::Pairs;

const NEEDED: [&str; 3] = [prompts::PROMPT_ID, prompts::PROMPT, images::IMAGE_UID];
const HINT: &str = "--pairs reads what `score` writes of an images table";

pub struct ImagePairs {
    inputs: Inputs,
    pub metrics: Vec<String>,
    margins: Vec<f64>,
    pairs: Pairs,
}

impl ImagePairs {
    pub fn open(paths: &[PathBuf], wanted: &[String], pairs: Pairs) -> Result<Self> {
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
        Ok(Self { inputs, metrics, margins, pairs })
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

    /// Reads from the beginning. A ballot holds about `batch` pairs; those of a prompt with many images lie in several, except
    /// for Pareto fronts.
    pub fn read(&mut self, batch: usize) -> Result<impl Iterator<Item = Result<Ballot>> + Send + use<>> {
        let rows = scored::read(&mut self.inputs, &NEEDED, &[prompts::SET], &self.metrics, batch)?;
        let (metrics, margins, pairs) = (self.metrics.len(), self.margins.clone(), self.pairs);
        let (seen, done) = (HashSet::new(), VecDeque::new());
        Ok(Reader { rows, batch, metrics, margins, pairs, open: None, seen, done, next: 0 })
    }
}

/// The most images of a prompt with this text; every two make a pair. Three bytes of each pair are kept until the prompt ends. Pareto
/// fronts need all pairs in one ballot, with their texts, ids and scores, and several ballots wait for each other: 64 MiB each.
fn most_images(pairs: Pairs, text: &str) -> usize {
    const PAIR: usize = 256;
    match pairs {
        Pairs::All | Pairs::BestWorst => 10_000,
        Pairs::Pareto => (2 * ((64 << 20) / (PAIR + text.len()))).isqrt().max(2),
    }
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
    pairs: Pairs,
    /// The prompt whose images are being read.
    open: Option<PromptImages>,
    /// Prompts whose images have been read.
    done: VecDeque<Arc<PromptImages>>,
    /// The image of the first of them whose pairs with later images come next.
    next: usize,
    /// All prompts so far, so that one that comes again is noticed.
    seen: HashSet<Key>,
}

impl<I: Iterator<Item = Result<ScoredRows>>> Iterator for Reader<I> {
    type Item = Result<Ballot>;
    fn next(&mut self) -> Option<Self::Item> {
        while self.waiting() < self.batch {
            match self.rows.next() {
                Some(rows) => {
                    if let Err(error) = rows.and_then(|rows| self.add(&rows)) {
                        return Some(Err(error));
                    }
                }
                None => {
                    self.done.extend(self.open.take().map(Arc::new));
                    break;
                }
            }
        }
        (!self.done.is_empty()).then(|| Ok(self.ballot()))
    }
}

impl<I> Reader<I> {
    /// Number of pairs that can be given out.
    fn waiting(&self) -> usize {
        let pairs = |prompt: &Arc<PromptImages>| pairs_from(prompt.uids.len(), 0);
        let begun = self.done.front().map_or(0, |prompt| pairs(prompt) - pairs_from(prompt.uids.len(), self.next));
        self.done.iter().map(pairs).sum::<usize>() - begun
    }

    fn add(&mut self, rows: &ScoredRows) -> Result<()> {
        for i in 0..rows.len() {
            let (prompt_key, text, uid) = (rows.key(i), rows.prompts.value(i), rows.uids.value(i));
            if self.open.as_ref().is_none_or(|p| p.key != prompt_key) {
                let (set, id) = (prompt_key.0.as_deref().unwrap_or(""), &prompt_key.1);
                ensure!(
                    self.seen.insert(key(&[set.as_bytes(), id.as_bytes()])),
                    "{}: prompt '{}' comes again after another; the images of a prompt must be adjacent: sort the table by \
                     prompt_id, and join tables of the same prompts first",
                    rows.at(i),
                    shown(text)
                );
                let scores = vec![vec![]; self.metrics];
                let prompt = PromptImages { key: prompt_key, text: text.to_owned(), uids: vec![], scores };
                self.done.extend(self.open.replace(prompt).map(Arc::new));
            }
            let Some(prompt) = &mut self.open else { continue };
            ensure!(
                prompt.uids.iter().all(|u| u != uid),
                "{}: image {uid} appears twice under prompt '{text}'; an image cannot be better than itself",
                rows.at(i)
            );
            let most = most_images(self.pairs, &prompt.text);
            ensure!(
                prompt.uids.len() < most,
                "{}: prompt '{}' has more than {most} images, and every two make a pair; score fewer images of a prompt",
                rows.at(i),
                shown(&prompt.text)
            );
            prompt.uids.push(uid.to_owned());
            prompt.scores.iter_mut().zip(rows.scores_of(i)).for_each(|(all, score)| all.push(score));
        }
        Ok(())
    }

    /// The next pairs: about `batch` of them.
    fn ballot(&mut self) -> Ballot {
        let (mut parts, mut prompts, mut earlier, mut pairs) = (vec![], vec![], None, 0);
        while let Some(prompt) = self.done.front().filter(|_| pairs < self.batch) {
            let (k, first) = (prompt.uids.len(), self.next);
            while self.next < k && (pairs < self.batch || self.pairs == Pairs::Pareto) {
                self.next += 1;
                pairs += k - self.next;
            }
            parts.extend(
                (first..self.next).flat_map(|i| (i + 1..k).map(move |j| (i, j))).map(|(i, j)| (prompt.clone(), i, j)),
            );
            if self.next == k {
                if first > 0 {
                    let (prompt, margins) = (prompt.clone(), self.margins.clone());
                    let pair = move |i, j| ballot(&[(prompt.clone(), i, j)], &margins);
                    earlier = Some(Box::new(pair) as Box<dyn Fn(usize, usize) -> Ballot + Send>);
                }
                prompts.push(k);
                self.next = 0;
                self.done.pop_front();
            }
        }
        Ballot { prompts, earlier, ..ballot(&parts, &self.margins) }
    }
}

/// Number of pairs (i, j) of k images with `first` <= i < j.
fn pairs_from(k: usize, first: usize) -> usize {
    let left = k - first;
    left * left.saturating_sub(1) / 2
}

/// These pairs, the earlier image as image 0.
fn ballot(pairs: &[(Arc<PromptImages>, usize, usize)], margins: &[f64]) -> Ballot {
    let text = |f: &dyn Fn(&PromptImages, usize, usize) -> String| {
        StringArray::from_iter_values(pairs.iter().map(|(p, i, j)| f(p, *i, *j)))
    };
    let ids = text(&|p, i, j| id::pair_id(&p.text, &p.uids[i], &p.uids[j], ""));
    let keys: Vec<ArrayRef> = vec![
        Arc::new(ids.clone()),
        Arc::new(text(&|p, _, _| p.text.clone())),
        Arc::new(text(&|p, i, _| p.uids[i].clone())),
        Arc::new(text(&|p, _, j| p.uids[j].clone())),
    ];
    let scores = margins.iter().enumerate().map(|(m, &margin)| {
        let m_0 = pairs.iter().map(|(p, i, _)| p.scores[m][*i]).collect();
        let m_1 = pairs.iter().map(|(p, _, j)| p.scores[m][*j]).collect();
        Scores::new(m_0, m_1, margin)
    });
    let scores = scores.collect();
    Ballot { label_0: vec![None; ids.len()], ids, keys, scores, prompts: vec![], earlier: None }
}
