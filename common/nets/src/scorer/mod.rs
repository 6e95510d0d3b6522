//! Scorers: models that say how good an image is, or how well it shows its caption. The numbers are those of the
//! published Python utilities, raw: cosines are not multiplied by 100.
//!
//! A metric is one file here and one entry in [`METRICS`].

mod aesthetic;
mod clip;
mod clip_l;
mod clip_model;
mod colourfulness;
mod hps;
mod hugging_face;
mod open_clip;
mod pickscore;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};

use crate::image::{self, Antialias, Preprocess, Rgb};

/// Every metric there is, in the order in which tables list them.
pub const METRICS: &[Metric] =
    &[hps::METRIC, clip::METRIC, pickscore::METRIC, aesthetic::METRIC, clip_l::METRIC, colourfulness::METRIC];

/// An entry of the table of metrics.
pub struct Metric {
    /// Of the column, the flag and the model's folder.
    pub name: &'static str,
    pub role: Role,
    pub files: Files,
    /// What its scores look like on images of Stable Diffusion.
    pub band: Band,
    /// Whether `Options::antialias` decides its numbers.
    pub letterboxed: bool,
    pub open: fn(&Source, &Options) -> Result<Box<dyn Scorer>>,
}

/// What a metric is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its scores are votes.
    Voter,
    /// It is only looked at: `vote` leaves it out unless it is named.
    Judge,
}

/// What a metric reads besides images and captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    Nothing,
    Tower,
    /// The head may lie in the tower's folder.
    TowerAndHead,
}

/// Between which numbers a metric's mean and standard deviation lie on tables of real images, as far as they are published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    pub mean: [f64; 2],
    pub sd: [f64; 2],
}

impl Band {
    /// Scores that spread less than half as far as any known table's: the metric says nearly the same of every image.
    pub fn is_collapsed(&self, sd: f64) -> bool {
        sd < self.sd[0] / 2.0
    }
}

impl Metric {
    /// The metric of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<&'static Self> {
        let names = || METRICS.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
        let found = METRICS.iter().find(|m| m.name == name);
        found.with_context(|| format!("there is no metric '{name}'; there are {}", names()))
    }
}

/// Where a metric's files lie.
#[derive(Clone, Debug)]
pub struct Source {
    /// A weight file, or the folder that holds it with its configuration and vocabulary.
    pub tower: PathBuf,
    /// A head on top of the tower, where it is not in the tower's folder.
    pub head: Option<PathBuf>,
}

/// What the caller decides for every metric.
#[derive(Clone, Debug)]
pub struct Options {
    pub device: Device,
    pub dtype: DType,
    /// How `hps` and `clip` resize: as torchvision from 0.17 on, or as before.
    pub antialias: Antialias,
    /// The edition of HPS that the weights are; an open_clip file does not say it itself.
    pub hps_version: Option<HpsVersion>,
    /// Captions that go through a tower at once.
    pub batch: usize,
}

pipe::names! {
    /// Editions of HPSv2: the same arithmetic, other weights, other scores.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum HpsVersion {
        V2_0 = "2.0",
        V2_1 = "2.1",
    }
}

/// One metric, ready to score.
///
/// A score is a function of the image's bytes and the caption's text alone: whatever else is in a batch, it has the same
/// bits.
pub trait Scorer: Send + Sync {
    /// What decides the numbers: a hash over weights and settings, the preprocessing, the tokenization. Equal ids, equal
    /// scores.
    fn id(&self) -> &str;

    /// Which edition of the metric it is, where there are several.
    fn version(&self) -> Option<String> {
        None
    }

    /// What is done to an image before the network sees it; `None` where the metric reads the decoded pixels.
    fn preprocess(&self) -> Option<Preprocess>;

    /// Whether the caption matters.
    fn reads_captions(&self) -> bool;

    /// One vector a picture.
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>>;

    /// One vector a caption; empty ones where captions do not matter.
    fn caption_features(&self, captions: &[&str]) -> Result<Vec<Vec<f32>>>;

    /// The score, from the vectors of an image and of its caption.
    fn score(&self, image: &[f32], caption: &[f32]) -> f32;
}

/// A decoded image with what the scorers make of its pixels, each preprocessing once.
pub struct Picture {
    pub rgb: Rgb,
    inputs: Vec<(Preprocess, Vec<f32>)>,
}

impl Picture {
    /// `bytes`: JPEG, PNG or WebP.
    ///
    /// # Errors
    /// They cannot be decoded, or claim too many pixels.
    pub fn decode(bytes: &[u8], preprocesses: &[Preprocess]) -> Result<Self> {
        let rgb = image::decode(bytes)?;
        let inputs = preprocesses.iter().map(|p| (*p, p.apply(&rgb))).collect();
        Ok(Self { rgb, inputs })
    }

    /// (3, side, side) values.
    ///
    /// # Errors
    /// The picture was decoded without this preprocessing.
    pub fn pixels(&self, preprocess: &Preprocess) -> Result<&[f32]> {
        match self.inputs.iter().find(|(p, _)| p == preprocess) {
            Some((_, pixels)) => Ok(pixels),
            None => bail!("the picture was not prepared for {}", preprocess.id()),
        }
    }
}

/// The distinct preprocessings of some scorers.
pub fn preprocesses<'a>(scorers: impl Iterator<Item = &'a dyn Scorer>) -> Vec<Preprocess> {
    let mut all = vec![];
    for preprocess in scorers.filter_map(|s| s.preprocess()) {
        if !all.contains(&preprocess) {
            all.push(preprocess);
        }
    }
    all
}

#[cfg(test)]
mod tests;
