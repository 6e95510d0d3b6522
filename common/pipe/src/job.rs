//! The frame of resumable work over rows, which `score`, `sample` and `encode` fill: read the rows of the next part while
//! this one is worked on, make the tables of the part, keep it, and join all parts at the end. SIGINT and SIGTERM leave the
//! finished parts, and the same command continues after them.

use anyhow::Result;
use arrow::array::RecordBatch;
use indicatif::ProgressBar;

use crate::parts::{Parts, Tables};
use crate::{ahead::Ahead, column::Rows, origin::Origin, place, progress, stop, table::Output};

/// The settings of a job, apart from the work itself.
pub struct Spec {
    pub tool: &'static str,
    pub tables: Tables,
    /// Goes into every table. The same origin and the same `cut` are the same work.
    pub origin: Origin,
    pub cut: String,
    pub keep: Keep,
    /// Rows of work; `None` if they come from a pipe.
    pub rows: Option<usize>,
    pub quiet: bool,
}

/// Whether a later run may continue this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Parts,
    /// Rows go out as they come: a pipe may not bring the same rows again. This is also done if the output is a pipe or
    /// a device.
    Nothing,
}

pub struct Job {
    store: Store,
    bar: ProgressBar,
    parts: usize,
}

enum Store {
    Direct(Vec<Output>),
    Kept(Box<Parts>),
}

impl Job {
    /// Opens the outputs, or the parts that an earlier run of the same work left. From here on signals are noted.
    pub fn open(spec: Spec) -> Result<Self> {
        let Spec { tool, tables, origin, cut, keep, rows, quiet } = spec;
        stop::watch_and_leave(tool)?;
        let direct = keep == Keep::Nothing || tables.tables.iter().any(|table| place::is_stream(&table.target));
        let store = if direct {
            let outputs = tables.tables.into_iter().map(|table| Output::create(&table.target, table.schema, &origin));
            Store::Direct(outputs.collect::<Result<_>>()?)
        } else {
            Store::Kept(Box::new(Parts::open(tables, origin, &cut)?))
        };
        Ok(Self { store, bar: progress::bar(tool, rows.map(|n| n as u64), quiet), parts: 0 })
    }

    /// Hands the parts that an earlier run finished to `check`, in order: the rows of each table. `run` continues after
    /// them. `check` answers whether the part belongs to this work.
    pub fn resume(&mut self, mut check: impl FnMut(&[Rows]) -> Result<bool>) -> Result<()> {
        let Store::Kept(kept) = &self.store else { return Ok(()) };
        while let Some(part) = kept.read(self.parts) {
            if !check(&part)? {
                return Err(kept.refuse());
            }
            self.parts += 1;
            self.bar.inc(part[0].len() as u64);
            stop::check()?;
        }
        Ok(())
    }

    /// Makes a part of each of the `items`, which are read ahead on another thread, and joins all parts. `work` gives one
    /// batch for each table. Returns the number of rows of each table. A signal is an error after the part at hand.
    pub fn run<T: Send + 'static>(
        mut self,
        items: impl Iterator<Item = Result<T>> + Send + 'static,
        mut work: impl FnMut(T) -> Result<Vec<RecordBatch>>,
    ) -> Result<Vec<usize>> {
        for item in Ahead::new(items, 1)? {
            let batches = work(item?)?;
            match &mut self.store {
                Store::Direct(outputs) => outputs.iter_mut().zip(&batches).try_for_each(|(o, batch)| o.write(batch))?,
                Store::Kept(kept) => kept.write(self.parts, &batches)?,
            }
            self.parts += 1;
            self.bar.inc(batches[0].num_rows() as u64);
            stop::check()?;
        }
        let rows = match self.store {
            Store::Direct(outputs) => outputs.into_iter().map(Output::finish).collect(),
            Store::Kept(kept) => kept.join(self.parts),
        };
        self.bar.finish_and_clear();
        rows
    }
}
