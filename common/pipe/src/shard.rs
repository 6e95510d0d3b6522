//! `--shard I/N`: one of N contiguous ranges of rows, so that N machines can share one table.

use std::path::{Path, PathBuf};
use std::{ops::Range, str::FromStr};

/// The `index`-th of `count` contiguous row ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub count: usize,
}

impl Shard {
    /// The rows of this shard out of `rows`. Sizes differ by at most one, and every row belongs to one shard.
    pub fn range(&self, rows: usize) -> Range<usize> {
        let cut = |i: usize| (rows as u128 * i as u128 / self.count as u128) as usize;
        cut(self.index)..cut(self.index + 1)
    }

    /// `part-00002-of-00008.parquet`. The count is in the name, so that a missing part is noticed.
    pub fn file_name(&self) -> String {
        format!("part-{:05}-of-{:05}.parquet", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parse = |x: &str| x.parse::<usize>().ok();
        match s.split_once('/').map(|(i, n)| (parse(i), parse(n))) {
            Some((Some(index), Some(count))) if index < count => Ok(Shard { index, count }),
            _ => Err(format!("'{s}' is not I/N with I from 0 to N-1")),
        }
    }
}

/// The file to write, from `-o` and `--shard`: with a shard, `output` is a folder of parts.
pub fn target(output: &Path, shard: Option<Shard>) -> PathBuf {
    match shard {
        Some(shard) => output.join(shard.file_name()),
        None => output.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_tile_the_rows() {
        for (rows, count) in [(0, 3), (1, 3), (7, 3), (100, 7), (5, 8)] {
            let mut next = 0;
            for index in 0..count {
                let range = Shard { index, count }.range(rows);
                assert_eq!(range.start, next);
                next = range.end;
            }
            assert_eq!(next, rows);
        }
    }
}
