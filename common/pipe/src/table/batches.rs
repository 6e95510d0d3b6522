//! From tables to batches of rows: projection, row ranges, one table after the other.

use std::{collections::VecDeque, iter, ops::Range, sync::Arc};

use anyhow::{Context, Result, bail};
use arrow::{array::RecordBatch, ipc::reader::FileReader};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReader};
use parquet::schema::types::SchemaDescriptor;

use super::open::whole;
use super::opened::{Body, Opened};
use super::storage::{Source, Storage};
use crate::column::Rows;

pub(super) struct Selection {
    name: Arc<str>,
    body: Body,
    columns: Option<Vec<String>>,
    rows: Range<usize>,
}

type BatchIter = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

impl Selection {
    /// Refuses a pipe that was read before.
    pub(super) fn of(table: &mut Opened, columns: Option<&[&str]>, rows: Range<usize>) -> Result<Self> {
        let body = match &mut table.body {
            Body::Parquet(source) => Body::Parquet(source.clone()),
            Body::ArrowFile(source) => Body::ArrowFile(source.clone()),
            Body::Text(source, batch) => Body::Text(source.clone(), batch.clone()),
            Body::Stream(stream) => {
                Body::Stream(Some(stream.take().context("a pipe can be read only once; write it to a file first")?))
            }
        };
        let columns = columns.map(|c| c.iter().map(|s| s.to_string()).collect());
        Ok(Self { name: table.name.clone(), body, columns, rows })
    }

    fn is_stream(&self) -> bool {
        matches!(self.body, Body::Stream(_))
    }

    /// A crate that panics over a damaged table is an error of that table.
    fn read(self, batch: usize) -> Result<BatchIter> {
        let name = self.name.clone();
        let mut batches = whole(&name, || self.batches(batch))?;
        Ok(Box::new(iter::from_fn(move || whole(&name, || batches.next().transpose()).transpose())))
    }

    fn batches(self, batch: usize) -> Result<BatchIter> {
        let Self { name, body, columns, rows } = self;
        let whole = {
            let name = name.clone();
            move || format!("{name} is not a whole table")
        };
        Ok(match body {
            Body::Parquet(source) => {
                let reader = parquet(source.open()?, columns, rows, batch).with_context(&whole)?;
                unchanged(source, reader.map(move |b| b.with_context(&whole)))
            }
            Body::ArrowFile(source) => {
                let reader = FileReader::try_new_buffered(source.file()?, None).with_context(&whole)?;
                let inner = unchanged(source, reader.map(move |b| b.with_context(&whole)));
                Box::new(Projected { inner: Box::new(RowRange { inner, rows, at: 0 }), columns })
            }
            Body::Text(source, batch) => {
                let inner = unchanged(source, iter::once(Ok(batch)));
                Box::new(Projected { inner: Box::new(RowRange { inner, rows, at: 0 }), columns })
            }
            Body::Stream(stream) => {
                let inner = stream.into_iter().flatten().map(move |b| b.with_context(&whole));
                Box::new(Projected { inner: Box::new(inner), columns })
            }
        })
    }
}

/// Batches of a file, after which the file must be what it was.
fn unchanged(source: Source, batches: impl Iterator<Item = Result<RecordBatch>> + Send + 'static) -> BatchIter {
    let end = iter::once_with(move || source.check().err().map(Err)).flatten();
    Box::new(batches.chain(end))
}

fn parquet(
    storage: Storage,
    columns: Option<Vec<String>>,
    rows: Range<usize>,
    batch: usize,
) -> Result<ParquetRecordBatchReader> {
    let builder = storage.builder()?;
    let mask = match columns {
        Some(wanted) => columns_of(builder.parquet_schema(), |name| wanted.iter().any(|w| w == name)),
        None => ProjectionMask::all(),
    };
    let builder = builder.with_projection(mask).with_batch_size(batch);
    Ok(builder.with_offset(rows.start).with_limit(rows.len()).build()?)
}

/// The columns of a Parquet table that are `wanted`, by name.
pub(crate) fn columns_of(schema: &SchemaDescriptor, wanted: impl Fn(&str) -> bool) -> ProjectionMask {
    let roots = schema.root_schema().get_fields().iter().enumerate();
    ProjectionMask::roots(schema, roots.filter(|(_, field)| wanted(field.name())).map(|(i, _)| i))
}

/// Cuts a row range out of batches that come from the first row on.
struct RowRange {
    inner: BatchIter,
    rows: Range<usize>,
    at: usize,
}

impl Iterator for RowRange {
    type Item = Result<RecordBatch>;
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.at >= self.rows.end {
                return None;
            }
            let batch = match self.inner.next()? {
                Ok(batch) => batch,
                error => return Some(error),
            };
            let (start, n) = (self.at, batch.num_rows());
            self.at += n;
            let from = self.rows.start.clamp(start, start + n) - start;
            let to = self.rows.end.clamp(start, start + n) - start;
            if from < to {
                return Some(Ok(batch.slice(from, to - from)));
            }
        }
    }
}

/// Takes some columns out of batches that have all.
struct Projected {
    inner: BatchIter,
    columns: Option<Vec<String>>,
}

impl Iterator for Projected {
    type Item = Result<RecordBatch>;
    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.inner.next()?;
        let Some(wanted) = &self.columns else { return Some(batch) };
        Some(batch.and_then(|b| {
            let fields = b.schema_ref().fields().iter().enumerate();
            let keep: Vec<_> = fields.filter(|(_, f)| wanted.contains(f.name())).map(|(i, _)| i).collect();
            Ok(b.project(&keep)?)
        }))
    }
}

/// The batches of one or several tables, in order. Each holds at most the asked number of rows, all from one table.
pub struct Batches {
    selections: VecDeque<Selection>,
    current: Option<Current>,
    batch: usize,
    /// A pipe that has not brought a row yet, by its name.
    empty: Option<Arc<str>>,
}

struct Current {
    name: Arc<str>,
    row: usize,
    batches: BatchIter,
    /// The rows that did not fit into the last batch.
    rest: Option<RecordBatch>,
}

impl Batches {
    pub(super) fn new(selections: VecDeque<Selection>, batch: usize) -> Self {
        let empty = match selections.iter().all(Selection::is_stream) {
            true => selections.front().map(|table| table.name.clone()),
            false => None, // files are known to have rows
        };
        Self { selections, current: None, batch, empty }
    }

    fn read(&mut self) -> Result<Option<Rows>> {
        loop {
            let Some(current) = &mut self.current else {
                let Some(next) = self.selections.pop_front() else { break };
                let (name, row) = (next.name.clone(), next.rows.start);
                self.current = Some(Current { name, row, batches: next.read(self.batch)?, rest: None });
                continue;
            };
            let Some(batch) = current.rest.take().map(Ok).or_else(|| current.batches.next()).transpose()? else {
                self.current = None;
                continue;
            };
            let n = batch.num_rows().min(self.batch);
            if n < batch.num_rows() {
                current.rest = Some(batch.slice(n, batch.num_rows() - n));
            }
            if n > 0 {
                let rows = Rows { table: current.name.clone(), first: current.row, batch: batch.slice(0, n) };
                current.row += n;
                self.empty = None;
                return Ok(Some(rows));
            }
        }
        match self.empty.take() {
            Some(name) => bail!("{name} has no rows"),
            None => Ok(None),
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Rows>;
    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
