//! Finished parts of long work. They lie in `OUT.partial/` until all are there, so that a killed run continues where it
//! stopped. The same work continues; any other work is refused.

use std::path::{Path, PathBuf};
use std::{cmp::Reverse, fs, io};

use anyhow::{Context, Error, Result, ensure};
use arrow::compute::{BatchCoalescer, concat_batches};
use arrow::{array::RecordBatch, datatypes::Schema};

use crate::atomic::{self, partial_path};
use crate::table::{BATCH, Inputs, Output};
use crate::{column::Rows, origin::Origin, place, shard::Shard, stop};

/// The tables that a job writes. The first has one row per row of work.
pub struct Tables {
    /// What the folder of parts is named after.
    base: PathBuf,
    pub(crate) tables: Vec<Table>,
}

pub(crate) struct Table {
    /// Tells the tables of a part apart; empty where there is only one.
    name: &'static str,
    pub(crate) target: PathBuf,
    pub(crate) schema: Schema,
}

impl Tables {
    /// One table, in a file, a pipe or a device.
    pub fn file(target: &Path, schema: Schema) -> Result<Self> {
        let target = if place::is_stream(target) { target.to_owned() } else { place::file_behind(target)? };
        Ok(Self { base: target.clone(), tables: vec![Table { name: "", target, schema }] })
    }

    /// Several tables in a folder, each as `NAME.parquet`: a file, or with `shard` a folder of parts. Other files in the
    /// folder stay.
    pub fn folder(
        tool: &str,
        folder: &Path,
        shard: Option<Shard>,
        tables: Vec<(&'static str, Schema)>,
    ) -> Result<Self> {
        ensure!(!folder.exists() || folder.is_dir(), "cannot write in {}: it is not a folder", folder.display());
        atomic::probe(folder)?;
        let mut all = vec![];
        for (name, schema) in tables {
            let path = folder.join(name).with_extension("parquet");
            let whole = shard.is_some() && path.is_file();
            ensure!(!whole, "{} is a whole table; choose another folder for shards", path.display());
            let target = place::file_behind(&crate::shard::target(&path, shard))?;
            if target.exists() {
                let made_by =
                    Inputs::open_one(&target).ok().and_then(|table| table.own_origin()).map(|origin| origin.tool);
                let ours = made_by.is_some_and(|maker| maker == tool);
                ensure!(ours, "{} was not made by {tool}; choose another folder", target.display());
            }
            all.push(Table { name, target, schema });
        }
        let base = shard.map_or(folder.to_owned(), |shard| folder.join(shard.file_name()).with_extension(""));
        Ok(Self { base, tables: all })
    }
}

/// The folder of finished parts, and what they will become.
pub(crate) struct Parts {
    folder: PathBuf,
    /// The folder around it, where it is new: it goes away again with work that fails at once.
    new_parent: Option<PathBuf>,
    tables: Vec<Table>,
    origin: Origin,
}

/// Says which work the parts belong to.
const PLAN: &str = "plan.json";

impl Parts {
    /// Makes the folder, or finds it as the same work left it. `origin` and `cut` (how rows are cut into parts) say what
    /// the same work is.
    pub(crate) fn open(tables: Tables, origin: Origin, cut: &str) -> Result<Self> {
        let Tables { base, tables } = tables;
        let folder = partial_path(&base);
        let new_parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists());
        let new_parent = new_parent.map(Path::to_owned);
        fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", base.display()))?;
        let (file, plan) = (folder.join(PLAN), format!("{cut}\n{}", origin.to_json()));
        match fs::read_to_string(&file) {
            Ok(theirs) => ensure!(theirs == plan, other_work(&folder)),
            Err(_) => {
                // Parts without a plan are not known to be ours.
                ensure!(!folder.join(part_name(0, &tables[0])).exists(), other_work(&folder));
                atomic::write(&file, plan.as_bytes())?;
            }
        }
        Ok(Self { folder, new_parent, tables, origin })
    }

    /// The error that says that the parts belong to other work.
    pub(crate) fn refuse(&self) -> Error {
        Error::msg(other_work(&self.folder))
    }

    fn path(&self, part: usize, table: &Table) -> PathBuf {
        self.folder.join(part_name(part, table))
    }

    /// The rows of each table of a part, or `None` where that part is missing or not whole.
    pub(crate) fn read(&self, part: usize) -> Option<Vec<Rows>> {
        let read = |table: &Table| -> Result<Rows> {
            let path = self.path(part, table);
            let mut input = Inputs::open_one(&path)?;
            let batches =
                input.read(None, 0..usize::MAX, BATCH)?.map(|rows| Ok(rows?.batch)).collect::<Result<Vec<_>>>()?;
            let batch = concat_batches(input.schema(), &batches)?;
            ensure!(input.rows() == Some(batch.num_rows()), "{} lacks rows", path.display());
            Ok(Rows { table: path.display().to_string().into(), first: 0, batch })
        };
        self.tables.iter().map(read).collect::<Result<_>>().ok()
    }

    /// Writes a part. This does not wait for the disk: a part that a power cut tears is made again. The file of the first
    /// table comes last: where it exists, the part is finished.
    pub(crate) fn write(&self, part: usize, batches: &[RecordBatch]) -> Result<()> {
        for (table, batch) in self.tables.iter().zip(batches).rev() {
            let mut output = Output::create(&self.path(part, table), table.schema.clone(), &self.origin)?;
            output.write(batch)?;
            output.finish_unsynced()?;
        }
        Ok(())
    }

    /// Joins `count` parts, puts the tables into place one after the other, and removes the parts. Returns the number of
    /// rows of each table.
    pub(crate) fn join(self, count: usize) -> Result<Vec<usize>> {
        let whole = |table: &Table| self.folder.join(file_name("whole", table));
        let join = |table: &Table| {
            let parts = (0..count).map(|part| self.path(part, table));
            join(parts, &whole(table), table.schema.clone(), &self.origin)
        };
        let rows = self.tables.iter().map(join).collect::<Result<_>>()?;
        for table in &self.tables {
            atomic::create_parent(&table.target)?;
            atomic::rename(&whole(table), &table.target)?;
        }
        self.remove().with_context(|| format!("cannot remove {}", self.folder.display()))?;
        Ok(rows)
    }

    /// Removes the folder. The later parts go before the earlier ones and the plan goes last, so that what a killed run
    /// leaves is the beginning of the same work.
    fn remove(&self) -> io::Result<()> {
        let plan = self.folder.join(PLAN);
        let mut files = fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        files.sort_by_key(|file| (*file == plan, Reverse(file.clone())));
        files.iter().try_for_each(fs::remove_file)?;
        fs::remove_dir(&self.folder)
    }
}

impl Drop for Parts {
    /// Work that failed before its first part was finished leaves nothing.
    fn drop(&mut self) {
        if self.folder.exists() && !self.path(0, &self.tables[0]).exists() {
            let _ = self.remove();
            let _ = self.new_parent.as_ref().map(fs::remove_dir);
        }
    }
}

fn other_work(folder: &Path) -> String {
    format!(
        "{} holds the unfinished parts of other work (other inputs, models or arguments); finish that work first, or remove \
         the folder",
        folder.display()
    )
}

/// `000003.parquet`, or `000003.latents.parquet` where a part has several tables.
fn part_name(part: usize, table: &Table) -> String {
    file_name(&format!("{part:06}"), table)
}

fn file_name(stem: &str, table: &Table) -> String {
    if table.name.is_empty() { format!("{stem}.parquet") } else { format!("{stem}.{}.parquet", table.name) }
}

/// Writes the rows of all `parts` to one table, whose bytes do not depend on where the parts were cut.
fn join(parts: impl Iterator<Item = PathBuf>, whole: &Path, schema: Schema, origin: &Origin) -> Result<usize> {
    const AT_ONCE: usize = 64; // rows, which may hold images
    let mut output = Output::create(whole, schema, origin)?;
    let mut even = BatchCoalescer::new(output.schema.clone(), AT_ONCE);
    for part in parts {
        for rows in Inputs::open_one(&part)?.read(None, 0..usize::MAX, AT_ONCE)? {
            even.push_batch(rows?.batch)?;
            while let Some(batch) = even.next_completed_batch() {
                output.write(&batch)?;
            }
        }
        stop::check()?;
    }
    even.finish_buffered_batch()?;
    if let Some(batch) = even.next_completed_batch() {
        output.write(&batch)?;
    }
    output.finish()
}
