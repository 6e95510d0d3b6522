//! Recognising what a file or pipe holds, and finding the parts of a sharded table.

use std::{
    fs::File,
    io::{Cursor, IsTerminal, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use arrow::ipc::reader::FileReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{
    input::{Body, Input},
    stream::Stream,
};
use crate::cli::Shard;

const PARQUET: &[u8] = b"PAR1";
const IPC_FILE: &[u8] = b"ARROW1";
const IPC_STREAM: &[u8] = &[0xff, 0xff, 0xff, 0xff];

/// Whether bytes that begin like this are a table.
pub fn is_table(begin: &[u8]) -> bool {
    [PARQUET, IPC_FILE, IPC_STREAM].iter().any(|magic| begin.starts_with(magic))
}

pub(super) fn open_file(path: &Path) -> Result<Input> {
    let name: Arc<str> = path.display().to_string().into();
    let say = || format!("cannot read {name}");
    let mut file = File::open(path).with_context(say)?;
    let mut magic = vec![];
    Read::by_ref(&mut file).take(6).read_to_end(&mut magic).with_context(say)?;
    let whole = || format!("{name} is not a whole table");
    let path = path.to_owned();
    if magic.starts_with(PARQUET) {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&path)?).with_context(whole)?;
        let rows = builder.metadata().file_metadata().num_rows().max(0) as usize;
        Ok(Input { schema: builder.schema().clone(), body: Body::Parquet { path, rows }, name })
    } else if magic.starts_with(IPC_FILE) {
        let reader = FileReader::try_new_buffered(File::open(&path)?, None).with_context(whole)?;
        let schema = reader.schema();
        let mut rows = 0;
        for batch in reader {
            rows += batch.with_context(whole)?.num_rows();
        }
        Ok(Input { schema, body: Body::IpcFile { path, rows }, name })
    } else if magic.starts_with(IPC_STREAM) {
        // Not opened again: it may be a named pipe, which gives its bytes once.
        open_stream(name.clone(), Cursor::new(magic).chain(file))
    } else if magic.is_empty() {
        bail!("{name} is empty: not a table")
    } else {
        bail!("{name} is not a table: neither Parquet nor an Arrow stream (it begins with {:02x?})", magic)
    }
}

pub(super) fn open_stream(name: Arc<str>, bytes: impl Read + Send + 'static) -> Result<Input> {
    let stream = Stream::open(Box::new(bytes)).with_context(|| format!("{name} is not a whole table"))?;
    Ok(Input { schema: stream.schema(), body: Body::Stream(Some(stream)), name })
}

pub(super) fn open_stdin() -> Result<Input> {
    let name: Arc<str> = "standard input".into();
    let mut stdin = std::io::stdin();
    ensure!(!stdin.is_terminal(), "standard input is a terminal; pipe a table into it, or name a file");
    let mut magic = vec![];
    stdin.by_ref().take(4).read_to_end(&mut magic).context("cannot read standard input")?;
    if magic == IPC_STREAM {
        open_stream(name, Cursor::new(magic).chain(std::io::stdin()))
    } else if magic.is_empty() {
        bail!("standard input is empty: whatever should have written to it stopped first")
    } else {
        bail!(
            "standard input is not an Arrow stream (it begins with {magic:02x?}); a Parquet file has its index at the end: name it as a file"
        )
    }
}

/// The parts in a folder, complete and in order.
pub(super) fn parts_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut parts: Vec<(usize, usize, PathBuf)> = vec![];
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let numbers = path.file_name().and_then(|n| n.to_str()).and_then(|n| {
            let (index, count) = n.strip_prefix("part-")?.strip_suffix(".parquet")?.split_once("-of-")?;
            Some((index.parse().ok()?, count.parse().ok()?))
        });
        if let Some((index, count)) = numbers {
            parts.push((index, count, path));
        }
    }
    parts.sort();
    let Some(&(_, count, _)) = parts.first() else {
        bail!("{} is a folder without part-00000-of-0000N.parquet files: not a table", folder.display())
    };
    ensure!(
        parts.iter().all(|p| p.1 == count),
        "{} holds parts of different splits: remove the stale ones",
        folder.display()
    );
    for index in 0..count {
        let name = Shard { index, count }.file_name();
        ensure!(
            parts.get(index).is_some_and(|p| p.0 == index),
            "{}: {name} is missing; make it again with --shard {index}/{count}",
            folder.display()
        );
    }
    Ok(parts.into_iter().map(|p| p.2).collect())
}
