//! The description of a metric: its name and role, the files it reads, the choices it leaves to its user.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Result, anyhow};
use candle_core::{DType, Device};
use pipe::names::{Form, Names};

use super::model::Scorer;

pub struct Metric {
    /// The name of its column, its model folder and its flags.
    pub name: &'static str,
    pub role: Role,
    pub needs: Needs,
    /// The usual range of its scores on images of Stable Diffusion.
    pub band: Band,
    /// The options of its user. Metrics may share an option.
    pub choices: &'static [&'static Choice],
    pub open: fn(&ModelFiles, &Options) -> Result<Scorer>,
}

/// The purpose of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its scores are votes.
    Voter,
    /// Its scores are only reported: `vote` leaves it out unless it is named.
    Judge,
}

/// The files that a metric reads besides images and captions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    Tower,
    /// The head may lie in the tower's folder.
    TowerAndHead,
}

/// The ranges in which a metric's mean and standard deviation lie on tables of real images, as far as they are published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    pub mean: [f64; 2],
    pub sd: [f64; 2],
}

impl Band {
    /// Whether scores of this standard deviation spread less than half as far as in any known table: the metric gives
    /// nearly the same score to every image.
    pub fn is_collapsed(&self, sd: f64) -> bool {
        sd < self.sd[0] / 2.0
    }
}

/// A setting that a metric leaves to its user, with a name for each value.
pub struct Choice {
    /// As a flag has it: `hps-version`.
    pub name: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
    pub values: &'static [Form],
    /// The value if the user chose none; `None` if the metric can do without.
    pub default: Option<&'static str>,
}

impl Choice {
    pub fn of<'a>(&self, chosen: &'a BTreeMap<String, String>) -> Option<&'a str> {
        chosen.get(self.name).map(String::as_str).or(self.default)
    }
}

/// Where a metric's files lie.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// A weight file, or the folder that holds it with its configuration and vocabulary.
    pub tower: PathBuf,
    /// A head on top of the tower, where it is not in the tower's folder.
    pub head: Option<PathBuf>,
}

/// The caller's settings for all metrics.
#[derive(Clone, Debug)]
pub struct Options {
    pub device: Device,
    pub dtype: DType,
    /// Captions that go through a tower at once.
    pub batch: usize,
    /// The user's choices, by the name of the [`Choice`].
    pub chosen: BTreeMap<String, String>,
}

impl Options {
    /// The user's choice, as the type that owns its values' names.
    pub fn choice<T: Names>(&self, choice: &Choice) -> Result<Option<T>> {
        let value = choice.of(&self.chosen).map(str::parse).transpose();
        value.map_err(|why: String| anyhow!("{}: {why}", choice.name))
    }
}
