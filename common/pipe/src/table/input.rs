//! Tables as a tool names them: several files, folders of parts, a pipe, read one after the other.

use std::path::{Path, PathBuf};
use std::{collections::VecDeque, io::Read, ops::Range, sync::Arc};

use anyhow::{Result, bail, ensure};
use arrow::datatypes::SchemaRef;

use super::batches::{Batches, Selection};
use super::open::{is_folder, open_file, open_stdin, open_stream, parts_of};
use super::opened::{Body, Opened};
use super::storage::Source;
use crate::origin::{InputOrigin, Origin};
use crate::shard::Shard;
use crate::text::shown;

/// Rows per batch where the caller has no reason for another number.
pub const BATCH: usize = 1024;

/// One or several tables of the same kind, read one after the other.
pub struct Inputs {
    tables: Vec<Opened>,
}

impl Inputs {
    /// Opens files, objects, `-`, and folders of `part-00000-of-00008.parquet`; reads schemas and row counts only.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let tables = Self::open_each(paths)?.into_iter().flat_map(|inputs| inputs.tables).collect();
        let inputs = Self { tables };
        ensure!(inputs.rows() != Some(0), "{} has no rows", inputs.name());
        Ok(inputs)
    }

    /// As `open`, but each path stays by itself, for tables that are not read one after the other. They may have no rows.
    pub fn open_each(paths: &[PathBuf]) -> Result<Vec<Self>> {
        ensure!(
            paths.iter().filter(|p| p.as_os_str() == "-").count() <= 1,
            "standard input (`-`) can be named only once"
        );
        paths.iter().map(|path| Self::open_one(path)).collect()
    }

    /// One table, or one folder of parts, which may have no rows.
    pub fn open_one(path: &Path) -> Result<Self> {
        let tables = if path.as_os_str() == "-" {
            vec![open_stdin()?]
        } else if is_folder(path) {
            parts_of(path)?.iter().map(|part| open_file(part)).collect::<Result<_>>()?
        } else {
            vec![open_file(path)?]
        };
        Ok(Self { tables })
    }

    /// An Arrow stream that the caller has opened and looked into; `bytes` begin with what was looked at.
    pub fn stream(name: &str, bytes: impl Read + Send + 'static) -> Result<Self> {
        Ok(Self { tables: vec![open_stream(name.into(), bytes)?] })
    }

    pub fn append(&mut self, other: Self) {
        self.tables.extend(other.tables);
    }

    pub fn name(&self) -> String {
        match &self.tables[..] {
            [] => "(no table)".into(),
            [one] => one.name.to_string(),
            [first, rest @ ..] => format!("{} and {} more", first.name, rest.len()),
        }
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.tables[0].schema
    }

    /// Whether every table has this column.
    pub fn has(&self, column: &str) -> bool {
        self.tables.iter().all(|t| t.schema.field_with_name(column).is_ok())
    }

    /// Fails with the first missing column, what was found, and `hint`, which says what to do about it.
    pub fn require(&self, columns: &[&str], hint: &str) -> Result<()> {
        for table in &self.tables {
            let lacks = |column: &&&str| table.schema.field_with_name(column).is_err();
            let missing: Vec<_> = columns.iter().filter(lacks).map(|column| format!("'{column}'")).collect();
            if let [first, others @ ..] = &missing[..] {
                let more = match others {
                    [] => String::new(),
                    [_] => format!(", and so is {}", others.concat()),
                    _ => format!(", and so are {}", others.join(", ")),
                };
                let found: Vec<_> = table.schema.fields().iter().map(|f| shown(f.name())).collect();
                bail!("{}: column {first} is missing{more} (found: {}); {hint}", table.name, found.join(", "));
            }
        }
        Ok(())
    }

    /// Rows in all tables together; `None` if a pipe is among them.
    pub fn rows(&self) -> Option<usize> {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// How many rows `range` holds; `None` if a pipe is among the tables.
    pub fn rows_in(&self, range: &Range<usize>) -> Option<usize> {
        self.rows().map(|rows| range.end.min(rows).saturating_sub(range.start))
    }

    /// Name and place of every table, all of which must be Parquet files.
    pub(crate) fn parquet_files(&self) -> Result<Vec<(Arc<str>, Source)>> {
        let source_of = |table: &Opened| match &table.body {
            Body::Parquet(source) => Ok((table.name.clone(), source.clone())),
            _ => {
                bail!("{} is not a Parquet file, but its rows are needed in random order: write one first", table.name)
            }
        };
        self.tables.iter().map(source_of).collect()
    }

    pub fn range(&self, shard: Option<Shard>) -> Result<Range<usize>> {
        match (shard, self.rows()) {
            (None, _) => Ok(0..usize::MAX),
            (Some(shard), Some(rows)) => Ok(shard.range(rows)),
            (Some(_), None) => bail!("--shard needs tables in files: the number of rows in a pipe is not known"),
        }
    }

    pub fn own_origin(&self) -> Option<Origin> {
        self.tables.first().and_then(Opened::own_origin)
    }

    /// The origin and content hash of each table, for the output's own origin.
    pub fn origins(&self) -> Result<Vec<InputOrigin>> {
        self.tables.iter().map(Opened::input_origin).collect()
    }

    /// The same, only for the tables that have rows in `range`: one shard of many should not read every table to hash it.
    pub fn origins_of(&self, range: &Range<usize>) -> Result<Vec<InputOrigin>> {
        let parts = self.tables.iter().zip(self.split(range));
        parts.filter(|(_, rows)| !rows.is_empty()).map(|(table, _)| table.input_origin()).collect()
    }

    /// Reads the rows in `range`, at most `batch` at a time: those of `columns` that exist, or all columns for `None`.
    /// Files can be read any number of times, a pipe once and to its end.
    pub fn read(&mut self, columns: Option<&[&str]>, range: Range<usize>, batch: usize) -> Result<Batches> {
        let mut selections = VecDeque::new();
        let ranges = self.split(&range);
        for (table, rows) in self.tables.iter_mut().zip(ranges) {
            if !rows.is_empty() {
                selections.push_back(Selection::of(table, columns, rows)?);
            }
        }
        Ok(Batches::new(selections, batch))
    }

    /// The rows of each table that lie in `range`. The number of rows in a pipe is unknown: if one is among the
    /// tables, all rows of every table are meant.
    fn split(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let mut start = 0;
        let part = |table: &Opened| {
            let (first, rows) = (start, table.rows.unwrap_or(usize::MAX));
            if self.rows().is_none() {
                return 0..rows;
            }
            start += rows;
            range.start.clamp(first, start) - first..range.end.clamp(first, start) - first
        };
        self.tables.iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use arrow::array::{RecordBatch, StringArray};

    use super::*;
    use crate::schema;
    use crate::table::Output;

    fn write(path: &Path, name: &str) {
        let schema = schema::pair_list();
        let column = || Arc::new(StringArray::from_iter_values([name; 3])) as _;
        let rows =
            RecordBatch::try_new(Arc::new(schema.clone()), vec![column(), column(), column(), column()]).unwrap();
        let mut output = Output::create(path, schema, &Origin::new("test")).unwrap();
        output.write(&rows).unwrap();
        output.finish().unwrap();
    }

    /// Rows, footer and hash are those of one file, or the change is an error.
    #[test]
    fn a_file_that_changes_between_two_openings_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        write(&path, "old");
        let mut inputs = Inputs::open_one(&path).unwrap();
        let hash = inputs.origins().unwrap();
        write(&other, "new");
        fs::rename(&other, &path).unwrap();
        assert!(inputs.origins().unwrap_err().to_string().contains("changed or replaced"));
        assert!(inputs.read(None, 0..3, 2).unwrap().next().unwrap().is_err());
        let mut inputs = Inputs::open_one(&path).unwrap();
        assert_ne!(inputs.origins().unwrap(), hash);
        // While it is read: the file that is open stays what it was, unless somebody writes into it.
        let mut rows = inputs.read(None, 0..3, 2).unwrap();
        rows.next().unwrap().unwrap();
        write(&path, "newer");
        assert!(rows.all(|rows| rows.is_ok()));
        let mut rows = Inputs::open_one(&path).unwrap().read(None, 0..3, 2).unwrap();
        rows.next().unwrap().unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, [&bytes[..], b"more"].concat()).unwrap();
        assert!(rows.last().unwrap().is_err());
    }
}
