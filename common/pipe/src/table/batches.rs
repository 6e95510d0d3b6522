//! From tables to batches of rows: projection, row ranges, one table after the other.

use std::{collections::VecDeque, fs::File, ops::Range, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use arrow::{array::RecordBatch, ipc::reader::FileReader};
use parquet::arrow::ProjectionMask;

use super::{source::Source, stream::Stream};
use crate::column::Rows;

/// What one table still has to give.
pub(super) struct Part {
    pub(super) name: Arc<str>,
    pub(super) path: PathBuf,
    pub(super) parquet: bool,
    pub(super) stream: Option<Stream>,
    pub(super) columns: Option<Vec<String>>,
    pub(super) rows: Range<usize>,
}

type BatchIter = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

impl Part {
    fn open(self, batch: usize) -> Result<(Arc<str>, usize, BatchIter)> {
        let name = self.name.clone();
        let first = self.rows.start;
        let say = {
            let name = name.clone();
            move || format!("{name} is not a whole table")
        };
        let iter: BatchIter = if let Some(stream) = self.stream {
            let whole = Box::new(stream.map(move |b| b.with_context(&say)));
            Box::new(Projected { inner: whole, columns: self.columns })
        } else if self.parquet {
            let builder = Source::open(&self.path)?.builder().with_context(&say)?;
            let mask = match &self.columns {
                Some(wanted) => {
                    let roots = builder.parquet_schema().root_schema().get_fields().iter().enumerate();
                    let keep: Vec<_> =
                        roots.filter(|(_, f)| wanted.iter().any(|w| w == f.name())).map(|(i, _)| i).collect();
                    ProjectionMask::roots(builder.parquet_schema(), keep)
                }
                None => ProjectionMask::all(),
            };
            let reader = builder
                .with_projection(mask)
                .with_batch_size(batch)
                .with_offset(self.rows.start)
                .with_limit(self.rows.len())
                .build()
                .with_context(&say)?;
            Box::new(reader.map(move |b| b.with_context(&say)))
        } else {
            let file = File::open(&self.path).with_context(|| format!("cannot read {name}"))?;
            let reader = FileReader::try_new_buffered(file, None).with_context(&say)?;
            let whole = Box::new(reader.map(move |b| b.with_context(&say)));
            Box::new(Projected {
                inner: Box::new(Window { inner: whole, rows: self.rows, at: 0 }),
                columns: self.columns,
            })
        };
        Ok((name, first, iter))
    }
}

/// Cuts a row range out of batches that cannot seek.
struct Window {
    inner: BatchIter,
    rows: Range<usize>,
    at: usize,
}

impl Iterator for Window {
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
    queue: VecDeque<Part>,
    current: Option<(Arc<str>, usize, BatchIter, Option<RecordBatch>)>,
    batch: usize,
}

impl Batches {
    pub(super) fn new(queue: VecDeque<Part>, batch: usize) -> Self {
        Self { queue, current: None, batch }
    }
}

impl Iterator for Batches {
    type Item = Result<Rows>;
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((table, first, iter, rest)) = &mut self.current else {
                match self.queue.pop_front()?.open(self.batch) {
                    Ok((table, first, iter)) => self.current = Some((table, first, iter, None)),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            let batch = match rest.take() {
                Some(batch) => batch,
                None => match iter.next() {
                    Some(Ok(batch)) => batch,
                    Some(Err(error)) => return Some(Err(error)),
                    None => {
                        self.current = None;
                        continue;
                    }
                },
            };
            let n = batch.num_rows().min(self.batch);
            if n < batch.num_rows() {
                *rest = Some(batch.slice(n, batch.num_rows() - n));
            }
            if n == 0 {
                continue;
            }
            let rows = Rows { table: table.clone(), first: *first, batch: batch.slice(0, n) };
            *first += n;
            return Some(Ok(rows));
        }
    }
}
