//! The two kinds of scorers: two towers that meet in a score, or one model that reads image and caption together.

use anyhow::Result;

use super::picture::Picture;
use crate::image::Preprocess;

/// One metric, ready to score.
///
/// A score is a function of the image's bytes and the caption's text alone: it has the same bits whatever else is in a
/// batch.
pub struct Scorer {
    /// What decides the numbers: a hash over weights and settings, the preprocessing, the tokenization. Equal ids give equal
    /// scores.
    pub id: String,
    /// What is done to an image before the network sees it; `None` if the metric reads the decoded pixels.
    pub preprocess: Option<Preprocess>,
    pub model: Model,
}

/// How a metric combines an image and its caption.
pub enum Model {
    Towers(Box<dyn Towers>),
    Joint(Box<dyn Joint>),
}

/// A vector for the image, a vector for the caption, and a score from the two.
pub trait Towers: Send + Sync {
    /// One vector per picture.
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>>;

    /// One vector per caption; empty ones if the caption does not matter.
    fn caption_features(&self, captions: &[&str]) -> Result<Vec<Vec<f32>>> {
        Ok(vec![vec![]; captions.len()])
    }

    /// The score of an image with a caption, from their vectors.
    fn score(&self, image: &[f32], caption: &[f32]) -> f32;
}

/// A model that reads the features of an image together with the caption's text, once per (image, caption).
pub trait Joint: Send + Sync {
    /// The features of each picture, flattened: what its pairs have in common.
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>>;

    /// One score per pair. `images[i]` are the features of the image that `captions[i]` goes with.
    fn scores(&self, images: &[&[f32]], captions: &[&str]) -> Result<Vec<f32>>;
}

impl Scorer {
    /// The features of each picture: its vector, or what a joint model reads with a caption.
    pub fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        match &self.model {
            Model::Towers(towers) => towers.image_features(pictures),
            Model::Joint(joint) => joint.image_features(pictures),
        }
    }

    /// One vector per caption; empty ones if the metric does not make any.
    pub fn caption_features(&self, captions: &[&str]) -> Result<Vec<Vec<f32>>> {
        match &self.model {
            Model::Towers(towers) => towers.caption_features(captions),
            Model::Joint(_) => Ok(vec![vec![]; captions.len()]),
        }
    }
}

/// These preprocessings, each once.
pub fn distinct(preprocesses: impl Iterator<Item = Preprocess>) -> Vec<Preprocess> {
    let mut all = vec![];
    for preprocess in preprocesses {
        if !all.contains(&preprocess) {
            all.push(preprocess);
        }
    }
    all
}
