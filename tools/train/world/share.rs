//! The pairs of a step that this process works on. A process that runs alone works on all of them.

use std::{num::NonZeroUsize, ops::Range};

use anyhow::{Result, ensure};

#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Optimisation")]
pub struct BatchFlags {
    /// Pairs per forward pass in one process. On the CPU, models with fewer than 50 million weights use at most 4; this is as fast
    #[arg(long, value_name = "N", default_value = "1")]
    pub train_batch_size: NonZeroUsize,
    /// Batches accumulated per optimiser step, over all processes; each process takes an equal share
    #[arg(long, value_name = "N", default_value = "1")]
    pub gradient_accumulation_steps: NonZeroUsize,
}

impl BatchFlags {
    /// Pairs per optimiser step, over all processes.
    pub fn pairs_per_step(&self) -> usize {
        self.train_batch_size.get() * self.gradient_accumulation_steps.get()
    }

    /// Refuses processes that cannot have equally many pairs each.
    pub fn check(&self, processes: usize) -> Result<()> {
        let pairs = self.pairs_per_step();
        ensure!(
            pairs.is_multiple_of(processes),
            "{pairs} pairs per step (--train-batch-size times --gradient-accumulation-steps, over all processes) cannot be \
             divided among {processes} processes"
        );
        Ok(())
    }

    /// With the batch size of a replay file, whose steps have this many pairs.
    pub fn of_replay(self, pairs: NonZeroUsize) -> Result<Self> {
        let asked = self.train_batch_size;
        ensure!(
            asked.get() == 1 || asked == pairs,
            "--train-batch-size {asked}: each step of the --replay file has {pairs} pairs"
        );
        Ok(Self { train_batch_size: pairs, ..self })
    }
}

/// An equal slice of every step, cut into micro-batches.
#[derive(Clone, Debug)]
pub struct Share {
    /// Pairs per step, over all processes.
    step: usize,
    /// Those of this process, counted from the step's first.
    mine: Range<usize>,
    /// Pairs per micro-batch; the last of a step may have fewer.
    at_once: usize,
}

impl Share {
    /// The share of process `rank` of `size`, with at most `most` pairs per micro-batch.
    pub fn new(batch: &BatchFlags, most: Option<usize>, rank: usize, size: usize) -> Self {
        let (step, at_once) = (batch.pairs_per_step(), batch.train_batch_size.get());
        let each = step / size;
        Self { step, mine: rank * each..(rank + 1) * each, at_once: most.map_or(at_once, |most| at_once.min(most)) }
    }

    /// Pairs per step of this process.
    pub fn pairs(&self) -> usize {
        self.mine.len()
    }

    /// Pairs per micro-batch, at most.
    pub fn pairs_at_once(&self) -> usize {
        self.at_once
    }

    /// Micro-batches per step of this process.
    pub fn micro_batches(&self) -> usize {
        self.mine.len().div_ceil(self.at_once)
    }

    /// The samples of micro-batch `i`, both counted over all steps from 0.
    pub fn samples(&self, i: u64) -> Range<u64> {
        let (step, micro) = (i / self.micro_batches() as u64, i as usize % self.micro_batches());
        let from = self.mine.start + micro * self.at_once;
        let to = (from + self.at_once).min(self.mine.end);
        let first = step * self.step as u64;
        first + from as u64..first + to as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_tile_every_step() {
        for (at_once, size) in [(4, 1), (4, 2), (4, 4), (5, 2), (16, 2)] {
            let share = |rank: usize| Share { step: 16, mine: rank * 16 / size..(rank + 1) * 16 / size, at_once };
            let mut all: Vec<u64> = (0..size)
                .flat_map(|rank| (0..2 * share(rank).micro_batches() as u64).flat_map(move |i| share(rank).samples(i)))
                .collect();
            all.sort_unstable();
            assert_eq!(all, (0..32).collect::<Vec<_>>(), "{at_once} at once, {size} processes");
        }
    }
}
