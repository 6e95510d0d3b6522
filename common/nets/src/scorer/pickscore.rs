//! PickScore: the cosine of a CLIP-H that was trained on Pick-a-Pic; not multiplied by its logit scale of 100.

use anyhow::Result;

use super::clip_model::{ClipModel, Reading};
use super::metric::{Band, Metric, ModelFiles, Needs, Options, Role};
use super::model::Scorer;

pub const METRIC: Metric = Metric {
    name: "pickscore",
    role: Role::Voter,
    needs: Needs::Tower,
    band: Band { mean: [0.18, 0.23], sd: [0.008, 0.02] },
    choices: &[],
    open,
};

fn open(files: &ModelFiles, options: &Options) -> Result<Scorer> {
    Ok(ClipModel::open(&files.tower, Reading::HuggingFace, true, options)?.scorer())
}
