//! How a metric's scores lie: mean, standard deviation, least and greatest, counted while they pass by.

use crate::{ballot::Scores, scales::Scale};

#[derive(Clone, Copy)]
pub struct Spread {
    images: usize,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { images: 0, sum: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Spread {
    /// Every image counts as often as it stands in a pair.
    pub fn add(&mut self, scores: &Scores) {
        for side in [&scores.m_0, &scores.m_1] {
            for x in side.iter().flatten().map(f64::from) {
                self.images += 1;
                self.sum += x;
                self.squares += x * x;
                self.min = self.min.min(x);
                self.max = self.max.max(x);
            }
        }
    }

    pub fn mean(&self) -> Option<f64> {
        (self.images > 0).then(|| self.sum / self.images as f64)
    }

    /// `None` where nothing was scored.
    pub fn scale(&self) -> Option<Scale> {
        let mean = self.mean()?;
        let sd = (self.squares / self.images as f64 - mean * mean).max(0.0).sqrt();
        Some(Scale { sd, min: self.min, max: self.max })
    }
}
