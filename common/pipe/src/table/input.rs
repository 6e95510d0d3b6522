//! Tables as a tool names them: several files, folders of parts, a pipe, read one after the other.

use std::{
    collections::VecDeque,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use arrow::datatypes::SchemaRef;
use parquet::file::reader::{ChunkReader, Length};

use super::{
    batches::{Batches, Part},
    open::{is_folder, open_file, open_stdin, open_stream, parts_of},
    source::{Source, is_url},
    stream::Stream,
};
use crate::{
    id::file_hash,
    origin::{self, InputOrigin, Origin},
    shard::Shard,
};

/// Rows a batch where the caller has no reason for another number.
pub const BATCH: usize = 1024;

/// One or several tables of the same kind, read one after the other.
pub struct Inputs {
    tables: Vec<Input>,
}

pub(super) struct Input {
    pub(super) name: Arc<str>,
    pub(super) schema: SchemaRef,
    pub(super) body: Body,
}

pub(super) enum Body {
    Parquet {
        path: PathBuf,
        rows: usize,
    },
    IpcFile {
        path: PathBuf,
        rows: usize,
    },
    /// Taken by the first `read`.
    Stream(Option<Stream>),
}

impl Inputs {
    /// Opens files, objects, `-`, and folders of `part-00000-of-00008.parquet`; reads schemas and row counts only.
    ///
    /// # Errors
    /// A file that cannot be read, is no table, is cut off, or a folder with a part missing; a table without rows.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let tables = Self::open_each(paths)?.into_iter().flat_map(|inputs| inputs.tables).collect();
        let inputs = Self { tables };
        ensure!(inputs.rows() != Some(0), "{} has no rows", inputs.name());
        Ok(inputs)
    }

    /// As `open`, but each path stays by itself, for tables that are not read one after the other.
    pub fn open_each(paths: &[PathBuf]) -> Result<Vec<Self>> {
        ensure!(
            paths.iter().filter(|p| p.as_os_str() == "-").count() <= 1,
            "standard input (`-`) can be named only once"
        );
        let open = |path: &PathBuf| -> Result<Self> {
            let tables = if path.as_os_str() == "-" {
                vec![open_stdin()?]
            } else if is_folder(path) {
                parts_of(path)?.iter().map(|part| open_file(part)).collect::<Result<_>>()?
            } else {
                vec![open_file(path)?]
            };
            Ok(Self { tables })
        };
        paths.iter().map(open).collect()
    }

    /// An Arrow stream of which the beginning was looked at already.
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
        self.tables.iter().map(Input::rows).sum()
    }

    /// Name and path of every table, all of which must be Parquet files.
    pub fn parquet_files(&self) -> Result<Vec<(Arc<str>, PathBuf)>> {
        let path_of = |t: &Input| match &t.body {
            Body::Parquet { path, .. } => Ok((t.name.clone(), path.clone())),
            _ => bail!(
                "{} is an Arrow stream; rows are visited in a random order here: write a Parquet file first",
                t.name
            ),
        };
        self.tables.iter().map(path_of).collect()
    }

    /// The rows that `--shard` asks for, or all.
    pub fn range(&self, shard: Option<Shard>) -> Result<Range<usize>> {
        match (shard, self.rows()) {
            (None, _) => Ok(0..usize::MAX),
            (Some(shard), Some(rows)) => Ok(shard.range(rows)),
            (Some(_), None) => bail!("--shard needs tables in files: how many rows a pipe will bring is not known"),
        }
    }

    /// The origin and content hash of each table, for the output's own origin.
    pub fn origins(&self) -> Result<Vec<InputOrigin>> {
        self.tables.iter().map(Input::origin).collect()
    }

    /// Of the tables with rows in `range` alone: one shard of many must not read all tables only to name them.
    pub fn origins_of(&self, range: &Range<usize>) -> Result<Vec<InputOrigin>> {
        let mut start = 0;
        let with_rows = self.tables.iter().filter(|table| {
            let end = table.rows().map_or(usize::MAX, |rows| start + rows);
            let meets = start < range.end && range.start < end;
            start = end;
            meets
        });
        with_rows.map(Input::origin).collect()
    }

    /// Reads `columns` (those that are there; `None`: all) of the rows in `range`, at most `batch` rows at a time.
    /// Files can be read any number of times, a pipe once and whole.
    pub fn read(&mut self, columns: Option<&[&str]>, range: Range<usize>, batch: usize) -> Result<Batches> {
        let mut queue = VecDeque::new();
        let mut start = 0;
        for table in &mut self.tables {
            let rows = table.rows().unwrap_or(usize::MAX - start);
            let from = range.start.clamp(start, start + rows) - start;
            let to = range.end.clamp(start, start + rows) - start;
            start += rows;
            if from < to {
                queue.push_back(table.part(columns, from..to)?);
            }
        }
        Ok(Batches::new(queue, batch))
    }
}

impl Input {
    fn rows(&self) -> Option<usize> {
        match &self.body {
            Body::Parquet { rows, .. } | Body::IpcFile { rows, .. } => Some(*rows),
            Body::Stream(_) => None,
        }
    }

    fn origin(&self) -> Result<InputOrigin> {
        let sha256 = match &self.body {
            Body::Parquet { path, .. } | Body::IpcFile { path, .. } => Some(content_hash(path)?),
            Body::Stream(_) => None,
        };
        let origin = self.schema.metadata().get(origin::KEY).and_then(|text| Origin::from_json(text)).map(Box::new);
        Ok(InputOrigin { sha256, origin })
    }

    fn part(&mut self, columns: Option<&[&str]>, rows: Range<usize>) -> Result<Part> {
        let columns = columns.map(|c| c.iter().map(|s| s.to_string()).collect());
        let stream = match &mut self.body {
            Body::Stream(stream) => {
                Some(stream.take().context("a pipe can be read only once; write it to a file first")?)
            }
            _ => None,
        };
        let path = match &self.body {
            Body::Parquet { path, .. } | Body::IpcFile { path, .. } => path.clone(),
            Body::Stream(_) => PathBuf::new(),
        };
        let parquet = matches!(self.body, Body::Parquet { .. });
        Ok(Part { name: self.name.clone(), path, parquet, stream, columns, rows })
    }
}

/// The identity of a table. Above 1 GiB, and in an object store, a Parquet file is known by its footer, which holds the size and
/// the statistics of every column chunk: reading 335 GB twice to name them is not worth it.
fn content_hash(path: &Path) -> Result<String> {
    const WHOLE: u64 = 1 << 30;
    let source = Source::open(path)?;
    let size = source.len();
    if size <= WHOLE && !is_url(path) {
        return file_hash(path);
    }
    let tail = source.get_bytes(size - 8, 8)?;
    let footer = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]) as u64;
    let footer = footer.min(size - 8) + 8;
    let mut bytes = size.to_le_bytes().to_vec();
    bytes.extend(source.get_bytes(size - footer, footer as usize)?);
    Ok(format!("footer-{}", crate::id::hex(&crate::id::sha256(&bytes))))
}
