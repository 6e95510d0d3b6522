//! The metrics that judge the pictures of a run: on how many prompts the policy's picture scores higher than the base's.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use nets::image::Preprocess;
use nets::scorer::{METRICS, Model, ModelFiles, Options, Picture as Decoded, Scorer, distinct};
use pipe::prompt_source::Prompt;
use pipe::winrates::wilson;
use serde_json::{Value, json};

/// Captions and pictures that go through a model together.
const BATCH: usize = 4;

/// A picture and its file.
pub struct Picture {
    pub png: Vec<u8>,
    pub width: usize,
    pub height: usize,
}

pub struct Judges {
    scorers: Vec<(&'static str, Scorer)>,
    preprocesses: Vec<Preprocess>,
    /// By metric, the scores of the base's pictures.
    base: Vec<Vec<f32>>,
}

pub struct Rate {
    wins: usize,
    ties: usize,
    n: usize,
}

impl Rate {
    pub fn rate(&self) -> f64 {
        self.wins as f64 / self.n as f64
    }

    pub fn json(&self) -> Value {
        let (low, high) = wilson(self.wins, self.n);
        json!({ "wins": self.wins, "ties": self.ties, "rate": self.rate(), "low": low, "high": high })
    }
}

impl Judges {
    /// All metrics that have a folder in `models`.
    pub fn open(models: &Path, device: &Device) -> Result<Self> {
        let options = Options { device: device.clone(), dtype: DType::F32, batch: BATCH, chosen: BTreeMap::new() };
        let there = METRICS.iter().filter(|metric| models.join(metric.name).is_dir());
        let open = |metric: &'static nets::scorer::Metric| {
            let files = ModelFiles { tower: models.join(metric.name), head: None };
            Ok((metric.name, (metric.open)(&files, &options)?))
        };
        let scorers = there.map(open).collect::<Result<Vec<_>>>()?;
        ensure!(!scorers.is_empty(), "--sample-models {}: it holds the folder of no metric", models.display());
        Ok(Self { preprocesses: distinct(scorers.iter().filter_map(|(_, s)| s.preprocess)), scorers, base: vec![] })
    }

    pub fn keep_base(&mut self, pictures: &[Picture], prompts: &[Prompt]) -> Result<()> {
        self.base = self.scores(pictures, prompts)?;
        Ok(())
    }

    pub fn compare(&self, pictures: &[Picture], prompts: &[Prompt]) -> Result<Vec<(&'static str, Rate)>> {
        let scores = self.scores(pictures, prompts)?;
        let rate = |(ours, theirs): (&Vec<f32>, &Vec<f32>)| Rate {
            wins: ours.iter().zip(theirs).filter(|(a, b)| a > b).count(),
            ties: ours.iter().zip(theirs).filter(|(a, b)| a == b).count(),
            n: ours.len(),
        };
        let rates = scores.iter().zip(&self.base).map(rate);
        Ok(self.scorers.iter().map(|(name, _)| *name).zip(rates).collect())
    }

    /// By metric, the score of each picture with its prompt.
    fn scores(&self, pictures: &[Picture], prompts: &[Prompt]) -> Result<Vec<Vec<f32>>> {
        let decoded =
            pictures.iter().map(|p| Decoded::decode(&p.png, &self.preprocesses)).collect::<Result<Vec<_>>>()?;
        let decoded: Vec<&Decoded> = decoded.iter().collect();
        let captions: Vec<&str> = prompts.iter().map(|p| p.prompt.as_str()).collect();
        let of = |(_, scorer): &(&str, Scorer)| {
            let mut scores = vec![];
            for (pictures, captions) in decoded.chunks(BATCH).zip(captions.chunks(BATCH)) {
                let images = scorer.image_features(pictures)?;
                match &scorer.model {
                    Model::Towers(towers) => {
                        let captions = towers.caption_features(captions)?;
                        scores
                            .extend(images.iter().zip(&captions).map(|(image, caption)| towers.score(image, caption)));
                    }
                    Model::Joint(joint) => {
                        let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
                        scores.extend(joint.scores(&images, captions)?);
                    }
                }
            }
            Ok(scores)
        };
        self.scorers.iter().map(of).collect()
    }
}
