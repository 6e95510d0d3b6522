//! PickScore: the cosine of a CLIP-H that was trained on Pick-a-Pic; not multiplied by its logit scale of 100.

use anyhow::Result;

use super::{
    Metric, Options, Scorer, Source,
    clip_model::{ClipModel, Reading},
};

pub const METRIC: Metric = Metric { name: "pickscore", collapsed_below: 2e-3, letterboxed: false, open };

fn open(source: &Source, options: &Options) -> Result<Box<dyn Scorer>> {
    Ok(Box::new(ClipModel::open(&source.tower, Reading::HuggingFace, true, options)?))
}
