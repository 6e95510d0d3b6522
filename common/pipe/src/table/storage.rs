//! Where the bytes of a Parquet table lie: in a file, or in an object store (feature `cloud`).

use std::fs::{self, File, Metadata};
use std::io::{BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[cfg(feature = "cloud")]
use anyhow::bail;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, Length};

#[cfg(feature = "cloud")]
use super::cloud::{Object, ObjectReader};
use crate::place::is_url;

/// A place that Parquet can be read from, at any position.
pub(crate) enum Storage {
    File(File),
    #[cfg(feature = "cloud")]
    Object(Object),
}

/// A table's file or object, which is opened more than once: for its rows, its hash, its footer. What is read each time is what
/// was there the first time.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// `None` for an object.
    first: Option<State>,
}

/// Tells files apart, and a file from what it was before.
#[derive(Clone, Copy, PartialEq)]
struct State {
    device_and_inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl State {
    fn of(file: &Metadata) -> Self {
        Self {
            device_and_inode: (file.dev(), file.ino()),
            size: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

impl Source {
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let first = || fs::metadata(path).with_context(|| format!("cannot read {}", path.display()));
        let first = if is_url(path) { None } else { Some(State::of(&first()?)) };
        Ok(Self { path: path.to_owned(), first })
    }

    /// Refuses a file that has been replaced or changed.
    pub(crate) fn open(&self) -> Result<Storage> {
        let storage = Storage::open(&self.path)?;
        match &storage {
            Storage::File(file) => {
                let now = file.metadata().with_context(|| format!("cannot read {}", self.path.display()))?;
                ensure!(self.first == Some(State::of(&now)), self.changed());
            }
            #[cfg(feature = "cloud")]
            Storage::Object(_) => {}
        }
        Ok(storage)
    }

    pub(crate) fn file(&self) -> Result<File> {
        match self.open()? {
            Storage::File(file) => Ok(file),
            #[cfg(feature = "cloud")]
            Storage::Object(_) => bail!("{} is an object, not a file", self.path.display()),
        }
    }

    /// For the end of its rows: a file that was replaced meanwhile is still read as it was, one that was written into is not.
    pub(crate) fn check(&self) -> Result<()> {
        let now = fs::metadata(&self.path).ok().map(|file| State::of(&file));
        let same_file = |now: &State| self.first.is_some_and(|first| first.device_and_inode == now.device_and_inode);
        ensure!(now.filter(same_file).is_none_or(|now| self.first == Some(now)), self.changed());
        Ok(())
    }

    fn changed(&self) -> String {
        format!("{} was changed or replaced while it was read; run the command again", self.path.display())
    }
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
