//! PickScore: the cosine of a CLIP-H that was trained on Pick-a-Pic; not multiplied by its logit scale of 100.

use anyhow::Result;

use super::{
    Band, Files, Metric, Options, Role, Scorer, Source,
    clip_model::{ClipModel, Reading},
};

pub const METRIC: Metric = Metric {
    name: "pickscore",
    role: Role::Voter,
    files: Files::Tower,
    band: Band { mean: [0.18, 0.23], sd: [0.008, 0.02] },
    letterboxed: false,
    open,
};

fn open(source: &Source, options: &Options) -> Result<Box<dyn Scorer>> {
    Ok(Box::new(ClipModel::open(&source.tower, Reading::HuggingFace, true, options)?))
}
