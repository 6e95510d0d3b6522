//! The JSON that `winrate --json` writes and `report --winrates` reads. `common/FORMATS.md` lists the fields. All intervals are 95 %.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The normal quantile of a two-sided 95 % interval.
pub const Z: f64 = 1.959964;

/// Wilson's 95 % interval of a share of `wins` in `n` > 0. It stays within [0, 1] and is right near the ends too, where the usual
/// p +- 1.96 sd is not.
pub fn wilson(wins: usize, n: usize) -> (f64, f64) {
    let (p, n) = (wins as f64 / n as f64, n as f64);
    let scale = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt() / scale;
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

#[derive(Serialize, Deserialize)]
pub struct Winrates {
    /// The number of images per prompt, of which the best counts.
    pub best_of: u32,
    /// The column by which prompts are grouped.
    #[serde(default)]
    pub by: String,
    pub metrics: Vec<String>,
    /// Metrics that judge and did not vote.
    #[serde(default)]
    pub held_out: Vec<String>,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub resamples: u32,
    #[serde(default)]
    pub tables: Vec<Table>,
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// The output of `winrate --seeds`, in place of the comparisons.
    #[serde(default)]
    pub seeds: Vec<Pooled>,
}

/// One value per metric, in the order of the metrics: a JSON object.
pub struct ByMetric<T>(pub Vec<(String, T)>);

#[derive(Serialize, Deserialize)]
pub struct Table {
    pub table: String,
    pub model: String,
    pub prompts: usize,
    pub null_scores: ByMetric<usize>,
    pub scores: ByMetric<Distribution>,
    /// The metrics that voted on the labels of the model.
    pub voted: Vec<String>,
}

/// How the scores of some images are distributed.
#[derive(Serialize, Deserialize)]
pub struct Distribution {
    pub mean: f64,
    pub min: f64,
    pub max: f64,
    pub sd: Option<f64>,
    /// The same among the images of one prompt, pooled over all prompts: what the best of n chooses from.
    pub sd_of_a_prompt: Option<f64>,
}

#[derive(Serialize, Deserialize)]
pub struct Comparison {
    pub a: String,
    pub b: String,
    pub table_a: String,
    pub table_b: String,
    pub all: Group,
    /// In the order in which the candidate's table has them.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// The number of prompts whose images start from different noise in the two tables.
    #[serde(default)]
    pub other_seeds: usize,
}

#[derive(Serialize, Deserialize)]
pub struct Group {
    /// `None`: all prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub n: usize,
    pub metrics: ByMetric<Cell>,
    /// By the best image of each prompt; `None` with one metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint: Option<Joint<Share>>,
    /// By the mean over the images of each prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint_mean_of_n: Option<Joint<Share>>,
}

/// All metrics together: how often the candidate is better on each of them, and how often worse on each.
#[derive(Serialize, Deserialize)]
pub struct Joint<T> {
    pub domination: T,
    pub collapse: T,
}

/// Some of the prompts, with Wilson's interval.
#[derive(Serialize, Deserialize)]
pub struct Share {
    pub prompts: usize,
    pub rate: f64,
    pub low: f64,
    pub high: f64,
}

#[derive(Serialize, Deserialize)]
pub struct Cell {
    /// By the best image of each prompt.
    #[serde(flatten)]
    pub best: Rate,
    pub mean_a: f64,
    pub mean_b: f64,
    /// The standard deviation of the baseline's scores, image by image.
    pub sd_b: Option<f64>,
    /// mean_a - mean_b, and its interval by the paired bootstrap over prompts.
    pub diff: f64,
    pub diff_low: f64,
    pub diff_high: f64,
    #[serde(flatten)]
    pub change: Change,
    /// By the mean over the images of each prompt.
    pub mean_of_n: Rate,
}

/// On how many prompts the candidate is ahead, and how certain that is.
#[derive(Serialize, Deserialize)]
pub struct Rate {
    pub wins: usize,
    pub ties: usize,
    pub losses: usize,
    /// The win rate, from 0 to 1, and Wilson's interval.
    pub rate: f64,
    pub low: f64,
    pub high: f64,
    /// The interval by the paired bootstrap over prompts.
    pub bootstrap_low: f64,
    pub bootstrap_high: f64,
    /// The p-value of the exact sign test, alone and corrected for all rates of the file.
    pub p: f64,
    pub p_holm: f64,
    /// Who is ahead; `None` within the noise.
    pub winner: Option<Side>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    A,
    B,
}

/// The change of the mean score and its interval, in standard deviations of the baseline's images; `None` if all of these score
/// the same.
#[derive(Serialize, Deserialize)]
pub struct Change {
    change_sd: Option<f64>,
    change_sd_low: Option<f64>,
    change_sd_high: Option<f64>,
}

/// Candidate `a` against baseline `b`, over all prompts and several training seeds.
#[derive(Serialize, Deserialize)]
pub struct Pooled {
    pub a: String,
    pub b: String,
    pub seeds: usize,
    pub n: usize,
    pub metrics: ByMetric<PooledCell>,
    /// By the best image of each prompt; `None` with one metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint: Option<Joint<PooledShare>>,
}

#[derive(Serialize, Deserialize)]
pub struct PooledCell {
    #[serde(flatten)]
    pub wins: PooledShare,
    #[serde(flatten)]
    pub change: Change,
}

/// The mean of the seeds' shares of the prompts, and its interval.
#[derive(Serialize, Deserialize)]
pub struct PooledShare {
    pub rate: f64,
    pub low: f64,
    pub high: f64,
    pub rates: Vec<f64>,
}

impl Rate {
    pub fn estimate(&self) -> [f64; 3] {
        [self.rate, self.low, self.high]
    }
}

impl Share {
    pub fn estimate(&self) -> [f64; 3] {
        [self.rate, self.low, self.high]
    }
}

impl<T> Joint<T> {
    pub fn map<U>(&self, f: impl Fn(&T) -> U) -> [U; 2] {
        [f(&self.domination), f(&self.collapse)]
    }
}

impl PooledShare {
    pub fn estimate(&self) -> [f64; 3] {
        [self.rate, self.low, self.high]
    }
}

impl Change {
    pub fn new(estimate: Option<[f64; 3]>) -> Self {
        let [change_sd, change_sd_low, change_sd_high] = estimate.map_or([None; 3], |estimate| estimate.map(Some));
        Self { change_sd, change_sd_low, change_sd_high }
    }

    pub fn estimate(&self) -> Option<[f64; 3]> {
        Some([self.change_sd?, self.change_sd_low?, self.change_sd_high?])
    }
}

impl<T> ByMetric<T> {
    pub fn get(&self, metric: &str) -> Option<&T> {
        self.0.iter().find(|(name, _)| name == metric).map(|(_, value)| value)
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }
}

impl<T: Serialize> Serialize for ByMetric<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(metric, value)| (metric, value)))
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for ByMetric<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = |(metric, value): (String, Value)| Ok((metric, T::deserialize(value).map_err(D::Error::custom)?));
        Map::deserialize(deserializer)?.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}
