//! A prompt of one model, with the scores of its images that count.

use std::sync::Arc;

use anyhow::{Result, ensure};
use pipe::id::Key;
use pipe::{moments, scored, text::shown};

use crate::stats;

pub struct Prompt {
    pub key: Key,
    pub id: Box<str>,
    pub text: Box<str>,
    pub set: Option<Arc<str>>,
    /// Its value in the column by which prompts are grouped.
    pub group: Option<Arc<str>>,
    /// A hash of the seeds of the images that count; `None` if the table does not have them.
    pub seeds: Option<u64>,
    /// As many per metric as images count, NaN where an image has none.
    pub scores: Box<[f32]>,
    /// The number of images that count.
    pub images: usize,
}

impl Prompt {
    /// The text, cut if it is long, and the set: for messages.
    pub fn name(&self) -> String {
        scored::prompt_name(&scored::short(&self.text), self.set.as_deref())
    }

    /// Fails where this prompt of `table` has another text than `other` of the table `elsewhere`, whose prompt_id is the same.
    pub fn refuse_other_text(&self, table: &str, other: &Self, elsewhere: &str) -> Result<()> {
        refuse_other_text(&self.id, (&self.text, table), (&other.text, elsewhere))
    }

    /// Its images' scores; those without one are left out, and there is at least one.
    pub fn scores(&self, metric: usize) -> impl Iterator<Item = f32> + Clone + '_ {
        self.scores[metric * self.images..][..self.images].iter().copied().filter(|x| !x.is_nan())
    }

    /// The score of its best image.
    pub fn best(&self, metric: usize) -> f64 {
        stats::best_of(self.scores(metric)).map_or(f64::NAN, f64::from)
    }

    pub fn mean(&self, metric: usize) -> f64 {
        moments::mean(self.scores(metric).map(f64::from))
    }

    /// Whether every metric prefers it to `other` by this value: joint domination, and for the baseline's prompt the candidate's
    /// joint collapse (PG-OT, arXiv 2605.13155).
    pub fn dominates(&self, other: &Self, value: fn(&Self, usize) -> f64) -> bool {
        (0..self.scores.len() / self.images).all(|metric| value(self, metric) > value(other, metric))
    }
}

/// Two texts and their tables.
pub fn refuse_other_text(id: &str, (text, table): (&str, &str), (other, elsewhere): (&str, &str)) -> Result<()> {
    ensure!(
        text == other,
        "prompt_id '{}' is '{}' in {table} and '{}' in {elsewhere}; a win rate needs the same prompts: sample both models from one \
         prompts table",
        shown(id),
        shown(text),
        shown(other)
    );
    Ok(())
}
