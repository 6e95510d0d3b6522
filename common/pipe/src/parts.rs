//! Long work in parts: each finished part is kept in `OUT.partial/` until all are there, so that a killed run goes on
//! where it stopped. The same work continues; any other work is refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use arrow::{array::RecordBatch, datatypes::Schema};

use crate::{
    atomic::{self, partial_path},
    origin::Origin,
    table::{BATCH, Inputs, Output},
};

/// An output that arrives part by part.
pub enum Work {
    /// To a pipe: parts go out as they come, nothing is kept.
    Stream(Box<Output>),
    /// To a file, by way of `OUT.partial/`.
    Kept(Box<Kept>),
}

/// Where kept parts lie and what they will become.
pub struct Kept {
    target: PathBuf,
    folder: PathBuf,
    schema: Schema,
    origin: Origin,
}

impl Work {
    /// Begins or continues the work that `origin` and `layout` (how rows are cut into parts) describe.
    ///
    /// # Errors
    /// `OUT.partial/` belongs to other work, or cannot be written.
    pub fn open(target: &Path, schema: Schema, origin: Origin, layout: &str) -> Result<Self> {
        if target.as_os_str() == "-" {
            return Ok(Work::Stream(Box::new(Output::create(target, schema, &origin)?)));
        }
        ensure!(!target.is_dir(), "cannot write {}: it is a folder", target.display());
        let folder = partial_path(target);
        fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", target.display()))?;
        let plan = folder.join("plan.json");
        let ours = format!("{layout}\n{}", origin.to_json());
        match fs::read_to_string(&plan) {
            Ok(theirs) => ensure!(
                theirs == ours,
                "{} holds the unfinished parts of other work (other inputs, models or arguments); finish that first, or remove the folder",
                folder.display()
            ),
            Err(_) => atomic::write(&plan, ours.as_bytes())?,
        }
        Ok(Work::Kept(Box::new(Kept { target: target.to_owned(), folder, schema, origin })))
    }

    /// Whether the next part, the `i`-th, is finished already; a pipe keeps none.
    pub fn has(&self, i: usize) -> bool {
        matches!(self, Work::Kept(kept) if part(&kept.folder, i).exists())
    }

    /// Adds the `i`-th part; parts come in order.
    pub fn put(&mut self, i: usize, batch: &RecordBatch) -> Result<()> {
        match self {
            Work::Stream(output) => output.write(batch),
            Work::Kept(kept) => {
                let mut output = Output::create(&part(&kept.folder, i), kept.schema.clone(), &kept.origin)?;
                output.write(batch)?;
                output.finish().map(|_| ())
            }
        }
    }

    /// Reads back a finished part; `None` on a pipe.
    pub fn get(&self, i: usize) -> Result<Option<Inputs>> {
        match self {
            Work::Kept(kept) if self.has(i) => Ok(Some(Inputs::open(&[part(&kept.folder, i)])?)),
            _ => Ok(None),
        }
    }

    /// Joins `count` parts under the target's name and removes the folder. Returns the number of rows.
    pub fn finish(self, count: usize) -> Result<usize> {
        match self {
            Work::Stream(output) => output.finish(),
            Work::Kept(kept) => {
                let Kept { target, folder, schema, origin } = *kept;
                let whole = folder.join("whole.parquet");
                let mut output = Output::create(&whole, schema, &origin)?;
                for i in 0..count {
                    for rows in Inputs::open(&[part(&folder, i)])?.read(None, 0..usize::MAX, BATCH)? {
                        output.write(&rows?.batch)?;
                    }
                }
                let rows = output.finish()?;
                atomic::rename(&whole, &target)?;
                fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
                Ok(rows)
            }
        }
    }
}

fn part(folder: &Path, i: usize) -> PathBuf {
    folder.join(format!("{i:06}.parquet"))
}
