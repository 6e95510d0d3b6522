//! Scorers: models that say how good an image is, or how well it shows its caption. The numbers are those of the
//! published Python utilities, raw: cosines are not multiplied by 100.
//!
//! A metric is one file here and one entry in [`METRICS`].

mod aesthetic;
mod aesthetic_v2_5;
mod blip_reward;
mod clip;
mod clip_l;
mod clip_model;
mod colourfulness;
mod cycle_reward;
mod description;
mod head;
mod hps;
mod hugging_face;
mod image_reward;
mod metric;
mod model;
mod mps;
mod open_clip;
mod pickscore;
mod picture;

pub use clip_model::{Layout, shapes};
pub use metric::{Band, Choice, Metric, ModelFiles, Needs, Options, Role};
pub use model::{Joint, Model, Scorer, Towers, distinct};
pub use picture::Picture;

/// All metrics, in the order in which tables list them.
pub const METRICS: &[Metric] = &[
    hps::METRIC,
    clip::METRIC,
    pickscore::METRIC,
    aesthetic::METRIC,
    clip_l::METRIC,
    colourfulness::METRIC,
    image_reward::METRIC,
    cycle_reward::METRIC,
    mps::METRIC,
    aesthetic_v2_5::METRIC,
];

pub fn named(name: &str) -> anyhow::Result<&'static Metric> {
    let found = METRICS.iter().find(|m| m.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = METRICS.iter().map(|m| m.name).collect();
        anyhow::anyhow!("there is no metric '{name}'; there are {}", names.join(", "))
    })
}

/// The choices that these metrics leave to their user, each once.
pub fn choices(metrics: impl Fn(&Metric) -> bool) -> Vec<&'static Choice> {
    let mut all: Vec<&Choice> = vec![];
    for choice in METRICS.iter().filter(|m| metrics(m)).flat_map(|m| m.choices) {
        if all.iter().all(|c| c.name != choice.name) {
            all.push(choice);
        }
    }
    all
}

#[cfg(test)]
mod tests;
