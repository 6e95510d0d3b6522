//! Which pairs of a step are this process's own. Alone, all are.

use std::ops::Range;

/// An equal slice of every step, cut into micro-batches.
#[derive(Clone, Debug)]
pub struct Share {
    /// Pairs a step, over all processes.
    pub(super) step: usize,
    /// Of these, counted from the step's first.
    pub(super) mine: Range<usize>,
    /// Pairs a micro-batch; the last of a step may have fewer.
    pub at_once: usize,
}

impl Share {
    /// Pairs a step.
    pub fn pairs(&self) -> usize {
        self.mine.len()
    }

    /// Micro-batches a step.
    pub fn micro_batches(&self) -> usize {
        self.mine.len().div_ceil(self.at_once)
    }

    /// The samples of micro-batch `i`, both counted over all steps.
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
