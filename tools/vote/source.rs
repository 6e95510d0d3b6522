//! Where pairs come from: scores tables, which hold them, or scored images, of which they are made.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use pipe::{origin::InputOrigin, shard::Shard};

use crate::{
    ballot::Ballot,
    ballots::{Ballots, Columns},
    images::Images,
};

pub enum Source {
    Pairs(Ballots),
    Images(Images),
}

/// Rows a batch: scores are small, and so are eight thousand of them.
const BATCH: usize = 8192;

type Reader = Box<dyn Iterator<Item = Result<Ballot>> + Send>;

impl Source {
    pub fn open(paths: &[PathBuf], images: bool, wanted: &[String]) -> Result<Self> {
        Ok(if images {
            Source::Images(Images::open(paths, wanted)?)
        } else {
            Source::Pairs(Ballots::open(paths, wanted)?)
        })
    }

    /// The voters, in the order of their columns.
    pub fn metrics(&self) -> &[String] {
        match self {
            Source::Pairs(ballots) => &ballots.metrics,
            Source::Images(images) => &images.metrics,
        }
    }

    pub fn name(&self) -> String {
        match self {
            Source::Pairs(ballots) => ballots.name(),
            Source::Images(images) => images.name(),
        }
    }

    /// A table among them that can be read only once.
    pub fn pipe(&self) -> Option<String> {
        match self {
            Source::Pairs(ballots) => ballots.pipe(),
            Source::Images(images) => images.pipe(),
        }
    }

    pub fn has_labels(&self) -> bool {
        matches!(self, Source::Pairs(ballots) if ballots.has_labels())
    }

    /// Pairs to come, for the progress bar; `None` where it is not known.
    pub fn rows(&self) -> Option<usize> {
        match self {
            Source::Pairs(ballots) => ballots.rows(),
            Source::Images(_) => None,
        }
    }

    pub fn origins(&self) -> Result<Vec<InputOrigin>> {
        match self {
            Source::Pairs(ballots) => ballots.origins(),
            Source::Images(images) => images.origins(),
        }
    }

    /// Differences of at most so much are no vote, one a metric.
    pub fn set_margins(&mut self, margins: Vec<f64>) {
        match self {
            Source::Pairs(ballots) => ballots.set_margins(margins),
            Source::Images(images) => images.set_margins(margins),
        }
    }

    pub fn add_people(&mut self) -> Result<()> {
        match self {
            Source::Pairs(ballots) => ballots.add_people(),
            Source::Images(images) => {
                ensure!(false, "{}: nobody compared these images, so --human-voter has no votes", images.name());
                Ok(())
            }
        }
    }

    pub fn read(&mut self, columns: Columns, shard: Option<Shard>) -> Result<Reader> {
        Ok(match self {
            Source::Pairs(ballots) => Box::new(ballots.read(columns, shard, BATCH)?),
            Source::Images(images) => Box::new(images.read(BATCH)?),
        })
    }
}
