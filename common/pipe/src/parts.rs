//! Finished parts of long work. They lie in `OUT.partial/` until all are there, so that a killed run continues where it
//! stopped. The same work continues; any other work is refused. Each part has the checksums of its files beside it: a part that
//! a power cut or a bad disk damaged is made again.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::{cmp::Reverse, fs};

use anyhow::{Context, Error, Result, ensure};
use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::compute::{BatchCoalescer, concat_batches};
use arrow::datatypes::Schema;
use bytes::Bytes;
use crc32c::crc32c;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::atomic;
use crate::place::partial_path;
use crate::table::{BATCH, Inputs, Output};
use crate::{column::Rows, lock, origin::Origin, place, replaced::Replaced, shard::Shard, stop};

/// The tables that a job writes. The first has one row per row of work.
pub struct Tables {
    /// The path that the folder of parts is named after.
    base: PathBuf,
    pub(crate) tables: Vec<Table>,
    /// A folder that they replace together.
    replaces: Option<PathBuf>,
}

pub(crate) struct Table {
    /// Tells the tables of a part apart; empty if there is only one.
    name: &'static str,
    pub(crate) target: PathBuf,
    pub(crate) schema: Schema,
}

impl Table {
    /// Its name in a folder of tables.
    fn file_name(&self) -> String {
        format!("{}.parquet", self.name)
    }
}

impl Tables {
    /// One table, in a file, a pipe or a device.
    pub fn file(target: &Path, schema: Schema) -> Result<Self> {
        place::refuse_other_kind(target)?;
        let target = if place::is_stream(target) { target.to_owned() } else { place::file_behind(target)? };
        Ok(Self { base: target.clone(), tables: vec![Table { name: "", target, schema }], replaces: None })
    }

    /// Several tables in a folder, each as `NAME.parquet`: a file, or with `shard` a folder of parts. Other files in the
    /// folder stay.
    /// A file with one of these names that the tool of `origin` did not make with the same models is refused.
    pub fn folder(
        origin: &Origin,
        folder: &Path,
        shard: Option<Shard>,
        tables: Vec<(&'static str, Schema)>,
    ) -> Result<Self> {
        let folder = &fs::canonicalize(folder).unwrap_or(folder.to_owned());
        ensure!(!folder.exists() || folder.is_dir(), "cannot write in {}: it is not a folder", folder.display());
        atomic::probe(folder)?;
        let mut all = vec![];
        for (name, schema) in tables {
            let path = folder.join(name).with_extension("parquet");
            let whole = shard.is_some() && path.is_file();
            ensure!(!whole, "{} is a whole table; choose another folder for shards", path.display());
            let target = place::file_behind(&crate::shard::target(&path, shard))?;
            if target.exists() {
                let theirs = Inputs::open_one(&target).ok().and_then(|table| table.own_origin());
                let (target, tool) = (target.display(), &origin.tool);
                let theirs = theirs.filter(|theirs| theirs.tool == *tool);
                let theirs =
                    theirs.with_context(|| format!("{target} was not made by {tool}; choose another folder"))?;
                ensure!(
                    theirs.models == origin.models,
                    "{target} was made with other models; choose another folder, or remove that one"
                );
            }
            all.push(Table { name, target, schema });
        }
        let base = shard.map_or(folder.to_owned(), |shard| folder.join(shard.file_name()).with_extension(""));
        let replaces = shard.is_none().then(|| folder.to_owned());
        replaces.as_deref().map_or(Ok(()), place::refuse_current)?;
        Ok(Self { base, tables: all, replaces })
    }
}

/// The folder of finished parts, and what they will become.
pub(crate) struct Parts {
    folder: PathBuf,
    /// The folder around it, where it is new: it goes away again with work that fails at once.
    new_parent: Option<PathBuf>,
    tables: Vec<Table>,
    /// The folder that the tables replace together.
    replaced: Option<Replaced>,
    origin: Origin,
    _lock: lock::Folder,
}

/// Says which work the parts belong to.
const PLAN: &str = "plan.json";

impl Parts {
    /// Makes the folder, or finds it as the same work left it. `origin` and `cut` (how rows are cut into parts) say what
    /// the same work is.
    pub(crate) fn open(tables: Tables, origin: Origin, cut: &str) -> Result<Self> {
        let Tables { base, tables, replaces } = tables;
        let folder = partial_path(&base);
        let new_parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists());
        let new_parent = new_parent.map(Path::to_owned);
        if folder.is_file() {
            lock::file(&folder, &base)?; // what a killed run of a tool without parts left
            place::refuse_partial_of_others(&base)?;
            fs::remove_file(&folder).with_context(|| format!("cannot write {}", base.display()))?;
        }
        let lock = lock::Folder::lock(&folder, &base)?;
        let (file, plan) = (folder.join(PLAN), format!("{cut}\n{}", origin.to_json()));
        let replaced = replaces.map(|out| Replaced::of(&out, &folder, tables.iter().map(Table::file_name)));
        match fs::read_to_string(&file) {
            Ok(theirs) => ensure!(theirs == plan, other_work(&folder)),
            Err(_) => {
                // What lies here without a plan is not known to be ours.
                let strangers = names(&folder)?.any(|name| name != lock::NAME && !name.starts_with(PLAN));
                ensure!(!strangers, other_work(&folder));
                atomic::write(&file, plan.as_bytes())?;
            }
        }
        replaced.iter().try_for_each(Replaced::settle)?;
        Ok(Self { folder, new_parent, tables, replaced, origin, _lock: lock })
    }

    /// The error that says that the parts belong to other work.
    pub(crate) fn refuse(&self) -> Error {
        Error::msg(other_work(&self.folder))
    }

    fn path(&self, part: usize, table: &Table) -> PathBuf {
        self.folder.join(part_name(part, table))
    }

    /// Where the checksums of a part are. They are written last: where they exist, the part was finished.
    fn sums(&self, part: usize) -> PathBuf {
        self.folder.join(format!("{part:06}.crc32c"))
    }

    /// The rows of a table of a part, at most `at_once` in a batch.
    fn batches(&self, part: usize, table: &Table, at_once: usize) -> Result<ParquetRecordBatchReader> {
        let (sums, path) = (self.sums(part), self.path(part, table));
        let cannot = |path: &Path| format!("cannot read {}", path.display());
        let sums = fs::read_to_string(&sums).with_context(|| cannot(&sums))?;
        let bytes = fs::read(&path).with_context(|| cannot(&path))?;
        let sum = sum(&bytes, &part_name(part, table));
        ensure!(sums.lines().any(|line| line == sum), "{} is damaged", path.display());
        Ok(ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes))?.with_batch_size(at_once).build()?)
    }

    /// The rows of each table of a part, or `None` if that part is missing or not as it was written.
    pub(crate) fn read(&self, part: usize) -> Option<Vec<Rows>> {
        let read = |table: &Table| -> Result<Rows> {
            let reader = self.batches(part, table, BATCH)?;
            let schema = reader.schema();
            let batch = concat_batches(&schema, &reader.collect::<Result<Vec<_>, _>>()?)?;
            Ok(Rows { table: self.path(part, table).display().to_string().into(), first: 0, batch })
        };
        self.tables.iter().map(read).collect::<Result<_>>().ok()
    }

    /// Writes a part. This does not wait for the disk: a part that a power cut tears is made again.
    pub(crate) fn write(&self, part: usize, batches: &[RecordBatch]) -> Result<()> {
        let mut sums = String::new();
        for (table, batch) in self.tables.iter().zip(batches) {
            let path = self.path(part, table);
            let mut output = Output::create(&path, table.schema.clone(), &self.origin)?;
            output.write(batch)?;
            output.finish_unsynced()?;
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            sums += &format!("{}\n", sum(&bytes, &part_name(part, table)));
        }
        atomic::write_unsynced(&self.sums(part), sums.as_bytes())
    }

    /// Joins `count` parts, puts the tables into place, and removes the parts. Returns the number of rows of each table.
    pub(crate) fn join(self, count: usize) -> Result<Vec<usize>> {
        let whole = |table: &Table| match &self.replaced {
            Some(replaced) => replaced.new.join(table.file_name()),
            None => self.folder.join(file_name("whole", table)),
        };
        let join = |table: &Table| self.join_one(table, count, &whole(table));
        let rows = self.tables.iter().map(join).collect::<Result<_>>()?;
        match &self.replaced {
            Some(replaced) => replaced.replace()?,
            None => {
                for table in &self.tables {
                    atomic::create_parent(&table.target)?;
                    atomic::rename(&whole(table), &table.target)?;
                }
            }
        }
        self.remove().with_context(|| format!("cannot remove {}", self.folder.display()))?;
        Ok(rows)
    }

    /// Writes the rows of all parts to one table, whose bytes do not depend on where the parts were cut.
    fn join_one(&self, table: &Table, count: usize, whole: &Path) -> Result<usize> {
        const AT_ONCE: usize = 64; // rows, which may hold images
        let mut output = Output::create(whole, table.schema.clone(), &self.origin)?;
        let mut even = BatchCoalescer::new(output.schema.clone(), AT_ONCE);
        for part in 0..count {
            let again = || format!("part {part} has changed since it was finished; the same command makes it again");
            for rows in self.batches(part, table, AT_ONCE).with_context(again)? {
                even.push_batch(rows?)?;
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

    /// Removes what this work has put into the folder, and the folder. The later parts go before the earlier ones, and plan and
    /// lock go last, so that what a killed run leaves is the beginning of the same work.
    fn remove(&self) -> io::Result<()> {
        if let Some(replaced) = &self.replaced {
            replaced.remove()?;
        }
        let all: Vec<String> = names(&self.folder)?.collect();
        let [mut parts, mut last] = [vec![], vec![]];
        for name in all {
            if name == PLAN || name == lock::NAME { last.push(name) } else { parts.push(name) }
        }
        parts.sort_by_key(|name| Reverse(name.clone()));
        last.sort_by_key(|name| name == lock::NAME);
        parts.iter().chain(&last).try_for_each(|name| fs::remove_file(self.folder.join(name)))?;
        match fs::remove_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()), // another run has begun in it
            removed => removed,
        }
    }
}

impl Drop for Parts {
    /// Work that failed before its first part was finished leaves nothing.
    fn drop(&mut self) {
        if self.folder.exists() && !self.sums(0).exists() {
            let _ = self.remove();
            let _ = self.new_parent.as_ref().map(fs::remove_dir);
        }
    }
}

/// A line of a part's checksums.
fn sum(bytes: &[u8], name: &str) -> String {
    format!("{:08x}  {name}", crc32c(bytes))
}

/// The names of what is in a folder.
fn names(folder: &Path) -> io::Result<impl Iterator<Item = String>> {
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::StringArray;

    use super::*;
    use crate::schema;

    fn rows(names: [&str; 2]) -> RecordBatch {
        let column = || Arc::new(StringArray::from_iter_values(names)) as _;
        RecordBatch::try_new(Arc::new(schema::pair_list()), vec![column(), column(), column(), column()]).unwrap()
    }

    fn open(out: &Path, seed: u64) -> Result<Parts> {
        Parts::open(Tables::file(out, schema::pair_list())?, Origin::new("test").arg("seed", seed), "by 2")
    }

    /// Every block of zeros and some flipped bits, in the tables and in the checksums.
    #[test]
    fn a_damaged_part_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let parts = open(&out, 1).unwrap();
        parts.write(0, &[rows(["a", "b"])]).unwrap();
        assert_eq!(parts.read(0).unwrap()[0].batch.columns(), rows(["a", "b"]).columns());
        for file in [parts.path(0, &parts.tables[0]), parts.sums(0)] {
            let whole = fs::read(&file).unwrap();
            for at in 0..whole.len() {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << (at % 8);
                fs::write(&file, &damaged).unwrap();
                let read = parts.read(0);
                assert!(read.is_none_or(|read| read[0].batch.columns() == rows(["a", "b"]).columns()), "byte {at}");
            }
            fs::write(&file, &whole).unwrap();
        }
        let (first, last) = (parts.path(0, &parts.tables[0]), parts.path(1, &parts.tables[0]));
        parts.write(1, &[rows(["c", "d"])]).unwrap();
        fs::copy(&last, &first).unwrap();
        let error = format!("{:#}", parts.join(2).unwrap_err());
        assert!(error.contains("000000.parquet is damaged") && error.contains("same command"), "{error}");
        assert!(!out.exists());
    }

    #[test]
    fn parts_of_other_work_and_files_of_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (out, folder) = (dir.path().join("out"), dir.path().join("out.partial"));
        open(&out, 1).unwrap().write(0, &[rows(["a", "b"])]).unwrap();
        assert!(open(&out, 2).is_err());
        fs::remove_file(folder.join(PLAN)).unwrap();
        assert!(open(&out, 2).is_err() && open(&out, 1).is_err(), "parts without a plan were taken");
        let names = names(&folder).unwrap().collect::<Vec<_>>();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
