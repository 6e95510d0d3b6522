//! Tables as a tool names them: several files, folders of parts, a pipe, read one after the other.

use std::path::{Path, PathBuf};
use std::{collections::VecDeque, io::Read, ops::Range, sync::Arc};

use anyhow::{Result, bail, ensure};
use arrow::datatypes::SchemaRef;

use super::batches::{Batches, Selection};
use super::open::{is_folder, open_file, open_stdin, open_stream, parts_of};
use super::opened::{Body, Opened};
use crate::origin::{InputOrigin, Origin};
use crate::shard::Shard;

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

    /// These tables, then those of `other`.
    pub fn append(&mut self, other: Self) {
        self.tables.extend(other.tables);
    }

    /// The name to use in messages.
    pub fn name(&self) -> String {
        match &self.tables[..] {
            [] => "(no table)".into(),
            [one] => one.name.to_string(),
            [first, rest @ ..] => format!("{} and {} more", first.name, rest.len()),
        }
    }

    /// The schema of the first table.
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
            for column in columns {
                if table.schema.field_with_name(column).is_err() {
                    let found: Vec<_> = table.schema.fields().iter().map(|f| f.name().as_str()).collect();
                    bail!("{}: column '{column}' is missing (found: {}); {hint}", table.name, found.join(", "));
                }
            }
        }
        Ok(())
    }

    /// Rows in all tables together; `None` where a pipe is among them.
    pub fn rows(&self) -> Option<usize> {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// How many rows `range` holds; `None` where a pipe is among the tables.
    pub fn rows_in(&self, range: &Range<usize>) -> Option<usize> {
        self.rows().map(|rows| range.end.min(rows).saturating_sub(range.start))
    }

    /// Name and path of every table, all of which must be Parquet files.
    pub fn parquet_files(&self) -> Result<Vec<(Arc<str>, PathBuf)>> {
        let path_of = |table: &Opened| match &table.body {
            Body::Parquet(path) => Ok((table.name.clone(), path.clone())),
            _ => bail!(
                "{} is an Arrow stream, but its rows are needed in random order: write a Parquet file first",
                table.name
            ),
        };
        self.tables.iter().map(path_of).collect()
    }

    /// The rows that `--shard` asks for, or all.
    pub fn range(&self, shard: Option<Shard>) -> Result<Range<usize>> {
        match (shard, self.rows()) {
            (None, _) => Ok(0..usize::MAX),
            (Some(shard), Some(rows)) => Ok(shard.range(rows)),
            (Some(_), None) => bail!("--shard needs tables in files: the number of rows in a pipe is not known"),
        }
    }

    /// The origin of the first table, if it carries one.
    pub fn own_origin(&self) -> Option<Origin> {
        self.tables.first().and_then(Opened::own_origin)
    }

    /// The origin and content hash of each table, for the output's own origin.
    pub fn origins(&self) -> Result<Vec<InputOrigin>> {
        self.tables.iter().map(Opened::input_origin).collect()
    }

    /// The same, only for the tables that have rows in `range`: one shard of many should not read every table to hash it.
    pub fn origins_of(&self, range: &Range<usize>) -> Result<Vec<InputOrigin>> {
        let mut start = 0;
        let with_rows = self.tables.iter().filter(|table| {
            let end = table.rows.map_or(usize::MAX, |rows| start + rows);
            let meets = start < range.end && range.start < end;
            start = end;
            meets
        });
        with_rows.map(Opened::input_origin).collect()
    }

    /// Reads the rows in `range`, at most `batch` at a time: those of `columns` that exist, or all columns for `None`.
    /// Files can be read any number of times, a pipe once and to its end.
    pub fn read(&mut self, columns: Option<&[&str]>, range: Range<usize>, batch: usize) -> Result<Batches> {
        let mut selections = VecDeque::new();
        let mut start = 0;
        for table in &mut self.tables {
            let rows = table.rows.unwrap_or(usize::MAX - start);
            let from = range.start.clamp(start, start + rows) - start;
            let to = range.end.clamp(start, start + rows) - start;
            start += rows;
            if from < to {
                selections.push_back(Selection::of(table, columns, from..to)?);
            }
        }
        Ok(Batches::new(selections, batch))
    }
}
