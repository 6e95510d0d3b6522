//! A prompt of one model, with the scores of its images that count.

use std::sync::Arc;

use pipe::id::Key;
use pipe::moments;

use crate::stats;

pub struct Prompt {
    pub key: Key,
    /// The text, cut if it is long, and the set: for messages.
    pub name: Box<str>,
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
