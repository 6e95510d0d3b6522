//! Reads single rows of large Parquet tables by number, so that `train` can visit pairs in random order without holding them all.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, ensure};
use arrow::compute::concat_batches;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::file::metadata::PageIndexPolicy;

use crate::column::Rows;
use crate::panics::caught;
use crate::table::{Builder, Inputs, Source, columns_of};

/// Parquet tables opened for access by row number. Rows are numbered through all tables.
pub struct Taker {
    tables: Vec<Table>,
}

struct Table {
    name: Arc<str>,
    first: usize,
    rows: usize,
    source: Source,
    metadata: ArrowReaderMetadata,
}

impl Taker {
    /// Refuses pipes and Arrow files: only Parquet can be read from any row on.
    pub fn open(inputs: &Inputs) -> Result<Self> {
        let mut tables: Vec<Table> = vec![];
        for (name, source) in inputs.parquet_files()? {
            let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
            let metadata = source.open()?.metadata(options).with_context(|| format!("{name} is not a whole table"))?;
            let rows = metadata.metadata().file_metadata().num_rows().max(0) as usize;
            let first = tables.last().map_or(0, |t| t.first + t.rows);
            tables.push(Table { name, first, rows, source, metadata });
        }
        Ok(Self { tables })
    }

    /// The `columns` of each row in `rows`, as one `Rows` of length 1 each, in the order of `rows`.
    pub fn take(&self, rows: &[usize], columns: &[&str]) -> Result<Vec<Rows>> {
        let mut found: BTreeMap<usize, Rows> = BTreeMap::new();
        for table in &self.tables {
            let mut wanted: Vec<usize> =
                rows.iter().filter_map(|r| r.checked_sub(table.first)).filter(|r| *r < table.rows).collect();
            wanted.sort_unstable();
            wanted.dedup();
            if wanted.is_empty() {
                continue;
            }
            let damaged = || format!("{} is not a whole table", table.name);
            let storage = table.source.open()?;
            storage.learn(&table.metadata);
            let builder = Builder::new_with_metadata(storage, table.metadata.clone());
            let mask = columns_of(builder.parquet_schema(), |name| columns.contains(&name));
            let ranges = wanted.iter().map(|&r| r..r + 1);
            let reader = builder
                .with_projection(mask)
                .with_row_selection(RowSelection::from_consecutive_ranges(ranges, table.rows))
                .with_batch_size(wanted.len())
                .build()
                .with_context(damaged)?;
            let schema = arrow::array::RecordBatchReader::schema(&reader);
            let batches =
                caught(|| reader.collect::<Result<Vec<_>, _>>()).with_context(damaged)?.with_context(damaged)?;
            let batch = concat_batches(&schema, &batches)?;
            ensure!(
                batch.num_rows() == wanted.len(),
                "{}: asked for {} rows, got {}",
                table.name,
                wanted.len(),
                batch.num_rows()
            );
            for (i, row) in wanted.into_iter().enumerate() {
                let one = Rows { table: table.name.clone(), first: row, batch: batch.slice(i, 1) };
                found.insert(table.first + row, one);
            }
        }
        rows.iter().map(|r| found.get(r).cloned().with_context(|| format!("there is no row {r}"))).collect()
    }
}
