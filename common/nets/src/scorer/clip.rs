//! CLIP: the cosine of image and caption, as Diffusion-DPO's utilities compute it with OpenCLIP's ViT-H-14.

use anyhow::Result;

use super::{
    Metric, Options, Scorer, Source,
    clip_model::{ClipModel, Reading},
};

pub const METRIC: Metric = Metric { name: "clip", collapsed_below: 2e-3, letterboxed: true, open };

fn open(source: &Source, options: &Options) -> Result<Box<dyn Scorer>> {
    Ok(Box::new(ClipModel::open(&source.tower, Reading::OpenClip(options.antialias), true, options)?))
}
