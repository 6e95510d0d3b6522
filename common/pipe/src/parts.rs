//! Long work in parts: each finished part is kept in `OUT.partial/` until all are there, so that a killed run goes on
//! where it stopped. The same work continues; any other work is refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Error, Result, ensure};
use arrow::{array::RecordBatch, compute::BatchCoalescer, datatypes::Schema};

use crate::{
    atomic::{self, partial_path},
    origin::Origin,
    place,
    table::{BATCH, Inputs, Output},
};

/// An output that arrives part by part.
pub enum Work {
    /// To a pipe or a device: parts go out as they come, nothing is kept.
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
        if place::is_stream(target) {
            return Ok(Work::Stream(Box::new(Output::create(target, schema, &origin)?)));
        }
        let target = place::file_behind(target)?;
        let folder = folder(&target, &format!("{layout}\n{}", origin.to_json()))?;
        Ok(Work::Kept(Box::new(Kept { target, folder, schema, origin })))
    }

    /// Whether the next part, the `i`-th, is finished already; a pipe keeps none.
    pub fn has(&self, i: usize) -> bool {
        matches!(self, Work::Kept(kept) if is_whole(&part(&kept.folder, i)))
    }

    /// Adds the `i`-th part; parts come in order. It does not wait for the disk: a part that a power cut tears is made again.
    pub fn put(&mut self, i: usize, batch: &RecordBatch) -> Result<()> {
        match self {
            Work::Stream(output) => output.write(batch),
            Work::Kept(kept) => {
                let mut output = Output::create(&part(&kept.folder, i), kept.schema.clone(), &kept.origin)?;
                output.write(batch)?;
                output.finish_unsynced().map(|_| ())
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
                let Kept { target, folder, schema, origin } = &*kept;
                let whole = folder.join("whole.parquet");
                let parts: Vec<_> = (0..count).map(|i| part(folder, i)).collect();
                let rows = join(&parts, &whole, schema.clone(), origin)?;
                atomic::rename(&whole, target)?;
                fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
                Ok(rows)
            }
        }
    }
}

impl Drop for Kept {
    /// Work that failed before its first part was finished leaves nothing.
    fn drop(&mut self) {
        if !part(&self.folder, 0).exists() {
            let _ = fs::remove_file(self.folder.join(PLAN));
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// Says whose parts these are.
const PLAN: &str = "plan.json";

/// `TARGET.partial/`, made, or found as the same `plan` left it.
///
/// # Errors
/// It belongs to other work, or cannot be written.
pub fn folder(target: &Path, plan: &str) -> Result<PathBuf> {
    let folder = partial_path(target);
    fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", target.display()))?;
    let file = folder.join(PLAN);
    match fs::read_to_string(&file) {
        Ok(theirs) => ensure!(theirs == plan, other_work(&folder)),
        Err(_) => atomic::write(&file, plan.as_bytes())?,
    }
    Ok(folder)
}

/// What to say of parts that are not ours.
pub fn other_work(folder: &Path) -> String {
    format!(
        "{} holds the unfinished parts of other work (other inputs, models or arguments); finish that first, or remove the folder",
        folder.display()
    )
}

/// Writes the rows of all `parts` to one table, whose bytes do not depend on where the parts were cut.
pub fn join(parts: &[PathBuf], whole: &Path, schema: Schema, origin: &Origin) -> Result<usize> {
    const AT_ONCE: usize = 64; // rows, which may hold images
    let mut output = Output::create(whole, schema, origin)?;
    let mut even = BatchCoalescer::new(output.schema.clone(), AT_ONCE);
    for part in parts {
        // One at a time: there may be a hundred thousand.
        let Some(mut part) = Inputs::open_each(std::slice::from_ref(part))?.pop() else { continue };
        for rows in part.read(None, 0..usize::MAX, AT_ONCE)? {
            even.push_batch(rows?.batch)?;
            while let Some(batch) = even.next_completed_batch() {
                output.write(&batch)?;
            }
        }
    }
    even.finish_buffered_batch()?;
    if let Some(batch) = even.next_completed_batch() {
        output.write(&batch)?;
    }
    output.finish()
}

/// Whether a part is there and can be read to its end.
fn is_whole(part: &Path) -> bool {
    let read = || -> Result<bool> {
        let mut part = Inputs::open(&[part.to_owned()])?;
        let promised = part.rows();
        let rows = part.read(None, 0..usize::MAX, BATCH)?.try_fold(0, |n, rows| Ok::<_, Error>(n + rows?.len()))?;
        Ok(promised == Some(rows))
    };
    part.exists() && read().unwrap_or(false)
}

fn part(folder: &Path, i: usize) -> PathBuf {
    folder.join(format!("{i:06}.parquet"))
}
