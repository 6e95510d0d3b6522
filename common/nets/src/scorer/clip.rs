//! CLIP: the cosine of image and caption, as Diffusion-DPO's utilities compute it with OpenCLIP's ViT-H-14.

use anyhow::Result;

use super::clip_model::{ClipModel, RESIZE, Reading};
use super::metric::{Band, Metric, ModelFiles, Needs, Options, Role};
use super::model::Scorer;

pub const METRIC: Metric = Metric {
    name: "clip",
    role: Role::Voter,
    needs: Needs::Tower,
    band: Band { mean: [0.28, 0.42], sd: [0.03, 0.07] },
    choices: &[&RESIZE],
    open,
};

fn open(files: &ModelFiles, options: &Options) -> Result<Scorer> {
    Ok(ClipModel::open(&files.tower, Reading::open_clip(options)?, true, options)?.scorer())
}
