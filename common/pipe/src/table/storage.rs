//! Where the bytes of a Parquet table lie: in a file, or in an object store (feature `cloud`).

use std::io::{BufReader, Read};
use std::{fs::File, path::Path};

use anyhow::{Context, Result};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, Length};

#[cfg(feature = "cloud")]
use super::cloud::{Object, ObjectReader};

/// Whether a path names an object rather than a file: `s3://`, `gs://`, `http://` or `https://`.
pub fn is_url(path: &Path) -> bool {
    let text = path.to_str().unwrap_or_default();
    ["s3://", "s3a://", "gs://", "http://", "https://"].iter().any(|scheme| text.starts_with(scheme))
}

/// A place that Parquet can be read from, at any position.
pub(crate) enum Storage {
    File(File),
    #[cfg(feature = "cloud")]
    Object(Object),
}

/// A Parquet reader before its columns and rows are chosen.
pub(crate) type Builder = ParquetRecordBatchReaderBuilder<Storage>;

impl Storage {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if is_url(path) {
            return Self::object(path);
        }
        Ok(Storage::File(File::open(path).with_context(|| format!("cannot read {}", path.display()))?))
    }

    #[cfg(feature = "cloud")]
    fn object(url: &Path) -> Result<Self> {
        Ok(Storage::Object(Object::open(url.to_str().unwrap_or_default())?))
    }

    #[cfg(not(feature = "cloud"))]
    fn object(url: &Path) -> Result<Self> {
        anyhow::bail!("{}: this build reads no object stores; build it with --features cloud", url.display())
    }

    /// The footer of the table.
    pub(crate) fn metadata(&self, options: ArrowReaderOptions) -> ParquetResult<ArrowReaderMetadata> {
        let metadata = ArrowReaderMetadata::load(self, options)?;
        self.learn(&metadata);
        Ok(metadata)
    }

    pub(crate) fn builder(self) -> ParquetResult<Builder> {
        let metadata = self.metadata(ArrowReaderOptions::default())?;
        Ok(Builder::new_with_metadata(self, metadata))
    }

    /// Tells an object where its column chunks lie, which limits what it reads ahead; a file does not need this.
    pub(crate) fn learn(&self, _metadata: &ArrowReaderMetadata) {
        #[cfg(feature = "cloud")]
        if let Storage::Object(object) = self {
            object.learn(_metadata.metadata());
        }
    }
}

impl Length for Storage {
    fn len(&self) -> u64 {
        match self {
            Storage::File(file) => file.len(),
            #[cfg(feature = "cloud")]
            Storage::Object(object) => object.len(),
        }
    }
}

impl ChunkReader for Storage {
    type T = Reader;

    fn get_read(&self, start: u64) -> ParquetResult<Reader> {
        match self {
            Storage::File(file) => file.get_read(start).map(Reader::File),
            #[cfg(feature = "cloud")]
            Storage::Object(object) => Ok(Reader::Object(object.reader(start))),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        match self {
            Storage::File(file) => file.get_bytes(start, length),
            #[cfg(feature = "cloud")]
            Storage::Object(object) => Ok(object.bytes(start, length)?),
        }
    }
}

/// Reads from some position on.
pub(crate) enum Reader {
    File(BufReader<File>),
    #[cfg(feature = "cloud")]
    Object(ObjectReader),
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Reader::File(file) => file.read(buf),
            #[cfg(feature = "cloud")]
            Reader::Object(object) => object.read(buf),
        }
    }
}
