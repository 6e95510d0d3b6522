//! ImageReward (zai-org/ImageReward, `ImageReward-v1.0`): BLIP trained on people's rankings of Stable Diffusion's images.

use super::blip_reward::{self, Kind};
use super::head::Between;
use super::metric::{Band, Metric, Needs, Role};

pub const METRIC: Metric = Metric {
    name: "imagereward",
    role: Role::Judge,
    needs: Needs::Tower,
    band: Band { mean: [-0.6, 1.2], sd: [0.6, 1.2] },
    choices: &[],
    open: |files, options| blip_reward::open(&KIND, files, options),
};

static KIND: Kind = Kind {
    head: ([0, 2, 4, 6, 7], Between::Nothing),
    tokens: 35,
    // `self.mean` and `self.std` of the package image-reward.
    mean: 0.16717362830052426,
    sd: 1.0333394966054072,
};
