//! CycleReward (hjbahng/cyclereward): BLIP trained on how well an image's caption leads back to the image, and the other way round.

use super::blip_reward::{self, Kind};
use super::head::Between;
use super::metric::{Band, Metric, Needs, Role};

pub const METRIC: Metric = Metric {
    name: "cyclereward",
    role: Role::Judge,
    needs: Needs::Tower,
    // Not published: wide, so that no table is called unusual.
    band: Band { mean: [-3.0, 3.0], sd: [0.2, 3.0] },
    choices: &[],
    open: |files, options| blip_reward::open(&KIND, files, options),
};

static KIND: Kind = Kind { head: ([0, 2, 4, 6, 8], Between::Gelu), tokens: 128, mean: 0.0, sd: 1.0 };
