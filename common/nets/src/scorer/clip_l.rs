//! CLIP-L: the cosine of image and caption by OpenAI's ViT-L/14, prepared as transformers' CLIPProcessor does. Of another
//! backbone than hps, clip and pickscore, so a judge that can be held out of the vote.

use anyhow::Result;

use super::{
    Band, Files, Metric, Options, Role, Scorer, Source,
    clip_model::{ClipModel, Reading},
};

pub const METRIC: Metric = Metric {
    name: "clip-l",
    role: Role::Judge,
    files: Files::Tower,
    band: Band { mean: [0.2, 0.3], sd: [0.02, 0.05] },
    letterboxed: false,
    open,
};

fn open(source: &Source, options: &Options) -> Result<Box<dyn Scorer>> {
    Ok(Box::new(ClipModel::open(&source.tower, Reading::HuggingFace, true, options)?))
}
