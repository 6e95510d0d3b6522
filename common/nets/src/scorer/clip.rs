//! CLIP: the cosine of image and caption, as Diffusion-DPO's utilities compute it with OpenCLIP's ViT-H-14.

use anyhow::Result;

use super::{
    Band, Files, Metric, Options, Role, Scorer, Source,
    clip_model::{ClipModel, Reading},
};

pub const METRIC: Metric = Metric {
    name: "clip",
    role: Role::Voter,
    files: Files::Tower,
    band: Band { mean: [0.28, 0.42], sd: [0.03, 0.07] },
    letterboxed: true,
    open,
};

fn open(source: &Source, options: &Options) -> Result<Box<dyn Scorer>> {
    Ok(Box::new(ClipModel::open(&source.tower, Reading::OpenClip(options.antialias), true, options)?))
}
