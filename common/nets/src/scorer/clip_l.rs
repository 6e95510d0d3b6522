//! CLIP-L: the cosine of image and caption by OpenAI's ViT-L/14, prepared as by transformers' CLIPProcessor. Its backbone is
//! not that of hps, clip and pickscore, so it is a judge that can be held out of the vote.

use anyhow::Result;

use super::clip_model::{ClipModel, Reading};
use super::metric::{Band, Metric, ModelFiles, Needs, Options, Role};
use super::model::Scorer;

pub const METRIC: Metric = Metric {
    name: "clip-l",
    role: Role::Judge,
    needs: Needs::Tower,
    band: Band { mean: [0.2, 0.3], sd: [0.02, 0.05] },
    choices: &[],
    open,
};

fn open(files: &ModelFiles, options: &Options) -> Result<Scorer> {
    Ok(ClipModel::open(&files.tower, Reading::HuggingFace, true, options)?.scorer())
}
