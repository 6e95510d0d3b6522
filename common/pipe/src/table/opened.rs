//! One table that has been opened: its name, schema and row count, and where its rows come from.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::file::reader::{ChunkReader, Length};

use super::storage::Source;
use super::stream::Stream;
use crate::id::{hash_of, hex, sha256};
use crate::origin::{self, InputOrigin, Origin};
use crate::place::is_url;

pub(super) struct Opened {
    pub(super) name: Arc<str>,
    pub(super) schema: SchemaRef,
    /// `None` if a stream brings the rows.
    pub(super) rows: Option<usize>,
    pub(super) body: Body,
}

pub(super) enum Body {
    Parquet(Source),
    ArrowFile(Source),
    /// A text, which was read as a whole.
    Text(Source, RecordBatch),
    /// Taken by the first reading.
    Stream(Option<Stream>),
}

impl Opened {
    pub(super) fn own_origin(&self) -> Option<Origin> {
        self.schema.metadata().get(origin::KEY).and_then(|text| Origin::from_json(text))
    }

    /// The origin of this table, for tables that are made from it.
    pub(super) fn input_origin(&self) -> Result<InputOrigin> {
        let sha256 = match &self.body {
            Body::Parquet(source) | Body::ArrowFile(source) | Body::Text(source, _) => Some(content_hash(source)?),
            Body::Stream(_) => None,
        };
        Ok(InputOrigin { sha256, origin: self.own_origin().map(Box::new) })
    }
}

/// Identifies the content of a table. Above 1 GiB, and in an object store, it is the hash of the Parquet footer, which holds
/// the size and the statistics of every column chunk: reading 335 GB a second time only to identify them is not worth it.
fn content_hash(source: &Source) -> Result<String> {
    const WHOLE: u64 = 1 << 30;
    let storage = source.open()?;
    let size = storage.len();
    if size <= WHOLE && !is_url(&source.path) {
        return hash_of(source.file()?).with_context(|| format!("cannot read {}", source.path.display()));
    }
    let tail = storage.get_bytes(size - 8, 8)?;
    let footer = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]) as u64;
    let footer = footer.min(size - 8) + 8;
    let mut bytes = size.to_le_bytes().to_vec();
    bytes.extend(storage.get_bytes(size - footer, footer as usize)?);
    Ok(format!("footer-{}", hex(&sha256(&bytes))))
}
