//! Where pairs come from: scores tables, which hold them, or scored images, from which they are made.

use std::path::PathBuf;

use anyhow::{Result, bail};
use pipe::{origin::InputOrigin, shard::Shard};

use crate::ballots::{Ballots, Columns};
use crate::{ballot::Ballot, images::ImagePairs, tournament::Pairs};

pub enum PairSource {
    Scores(Ballots),
    Images(ImagePairs),
}

/// Rows per batch: scores are small, and so are eight thousand of them.
const BATCH: usize = 8192;

type Reader = Box<dyn Iterator<Item = Result<Ballot>> + Send>;

impl PairSource {
    pub fn open(paths: &[PathBuf], pairs: Option<Pairs>, wanted: &[String]) -> Result<Self> {
        Ok(match pairs {
            Some(pairs) => PairSource::Images(ImagePairs::open(paths, wanted, pairs)?),
            None => PairSource::Scores(Ballots::open(paths, wanted)?),
        })
    }

    pub fn metrics(&self) -> &[String] {
        match self {
            PairSource::Scores(ballots) => &ballots.metrics,
            PairSource::Images(images) => &images.metrics,
        }
    }

    pub fn name(&self) -> String {
        match self {
            PairSource::Scores(ballots) => ballots.name(),
            PairSource::Images(images) => images.name(),
        }
    }

    pub fn pipe(&self) -> Option<String> {
        match self {
            PairSource::Scores(ballots) => ballots.pipe(),
            PairSource::Images(images) => images.pipe(),
        }
    }

    pub fn has_labels(&self) -> bool {
        matches!(self, PairSource::Scores(ballots) if ballots.has_labels())
    }

    /// Number of pairs, for the progress bar; `None` if it is not known.
    pub fn rows(&self) -> Option<usize> {
        match self {
            PairSource::Scores(ballots) => ballots.rows(),
            PairSource::Images(_) => None,
        }
    }

    pub fn origins(&self) -> Result<Vec<InputOrigin>> {
        match self {
            PairSource::Scores(ballots) => ballots.origins(),
            PairSource::Images(images) => images.origins(),
        }
    }

    /// The least difference that is a vote, one per metric; smaller ones and equal ones are not votes.
    pub fn set_margins(&mut self, margins: Vec<f64>) {
        match self {
            PairSource::Scores(ballots) => ballots.set_margins(margins),
            PairSource::Images(images) => images.set_margins(margins),
        }
    }

    pub fn add_people(&mut self) -> Result<()> {
        match self {
            PairSource::Scores(ballots) => ballots.add_people(),
            PairSource::Images(images) => {
                bail!("{}: people did not compare these images, so --human-voter has no votes", images.name())
            }
        }
    }

    /// Reads the pairs from the beginning. Files can be read any number of times, a pipe once.
    pub fn read(&mut self, columns: Columns, shard: Option<Shard>) -> Result<Reader> {
        Ok(match self {
            PairSource::Scores(ballots) => Box::new(ballots.read(columns, shard, BATCH)?),
            PairSource::Images(images) => Box::new(images.read(BATCH)?),
        })
    }
}
