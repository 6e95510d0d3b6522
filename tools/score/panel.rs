//! The scorers of a run. All of them stay in memory, or on a machine with little of it they take turns.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use nets::image::Preprocess;
use nets::scorer::{Metric, Model, ModelFiles, Options, Scorer};
use pipe::memory;

use crate::models::described;

pub struct Panel {
    pub members: Vec<Member>,
    presence: Presence,
    /// Whether the next round of turns begins with the last member, which is still in memory after a round from the first.
    backwards: bool,
}

/// Which scorers are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    All,
    /// One after the other, for the images and captions of one part of the work.
    InTurns,
}

pub struct Member {
    pub name: &'static str,
    pub id: String,
    pub preprocess: Option<Preprocess>,
    pub is_joint: bool,
    open: Box<dyn Fn() -> Result<Scorer> + Send + Sync>,
    scorer: Option<Scorer>,
}

impl Member {
    pub fn new(name: &'static str, open: impl Fn() -> Result<Scorer> + Send + Sync + 'static) -> Result<Self> {
        let scorer = open()?;
        Ok(Self {
            name,
            id: scorer.id.clone(),
            preprocess: scorer.preprocess,
            is_joint: matches!(scorer.model, Model::Joint(_)),
            open: Box::new(open),
            scorer: Some(scorer),
        })
    }

    /// The scorer, which [`Panel::bring`] has brought.
    pub fn scorer(&self) -> Result<&Scorer> {
        self.scorer.as_ref().with_context(|| format!("the network of '{}' is not in memory", self.name))
    }
}

impl Panel {
    /// Opens every scorer, so that a damaged one is refused at the start. On a CPU they take turns where their networks would fill
    /// more than a quarter of the machine's memory: for Stable Diffusion's published metrics, which take 13 GB, on machines of less
    /// than 52 GB. Opening a network costs a hundredth of the time in which it scores a part.
    pub fn open(metrics: &[&'static Metric], files: &[ModelFiles], options: &Options) -> Result<Self> {
        let memory = Some(memory::of_machine()).filter(|&bytes| bytes > 0 && options.device.is_cpu());
        let enough = memory.map_or(usize::MAX, |bytes| bytes / 4);
        let (mut panel, mut largest) = (Self { members: vec![], presence: Presence::All, backwards: true }, 0);
        for (&metric, files) in metrics.iter().zip(files) {
            if memory::resident().saturating_add(largest) > enough {
                panel.presence = Presence::InTurns;
                panel.members.iter_mut().for_each(|member| member.scorer = None);
            }
            let (before, files, options) = (memory::resident(), files.clone(), options.clone());
            let open = move || (metric.open)(&files, &options).with_context(|| described(metric));
            panel.members.push(Member::new(metric.name, open)?);
            largest = largest.max(memory::resident().saturating_sub(before));
        }
        Ok(panel)
    }

    #[cfg(test)]
    pub fn of(mut members: Vec<Member>, presence: Presence) -> Self {
        if let (Presence::InTurns, [before @ .., _]) = (presence, &mut members[..]) {
            before.iter_mut().for_each(|member| member.scorer = None);
        }
        Self { members, presence, backwards: true }
    }

    /// The members that are in memory together, in the order of their turns in this round.
    pub fn round(&mut self) -> Vec<Range<usize>> {
        let all = self.members.len();
        let size = if self.presence == Presence::All { all } else { 1 };
        let mut turns: Vec<_> = (0..all).step_by(size.max(1)).map(|first| first..first + size).collect();
        if self.backwards {
            turns.reverse();
        }
        self.backwards = !self.backwards;
        turns
    }

    /// Lets the other members leave the memory, and then brings these into it.
    pub fn bring(&mut self, turn: &Range<usize>) -> Result<()> {
        let others = self.members.iter_mut().enumerate().filter(|(m, _)| !turn.contains(m));
        others.for_each(|(_, member)| member.scorer = None);
        for member in &mut self.members[turn.clone()] {
            if member.scorer.is_none() {
                let scorer = (member.open)()?;
                let same = scorer.id == member.id;
                ensure!(same, "the model of '{}' was replaced while it was in use; run the command again", member.name);
                member.scorer = Some(scorer);
            }
        }
        Ok(())
    }
}
