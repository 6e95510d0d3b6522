//! Recognising what a file or pipe holds, and finding the parts of a sharded table.

use std::io::{Cursor, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::{collections::HashSet, fs::File, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use arrow::ipc::reader::FileReader;

use super::opened::{Body, Opened};
use super::storage::{Storage, is_url};
use super::stream::Stream;

const PARQUET: &[u8] = b"PAR1";
const IPC_FILE: &[u8] = b"ARROW1";
const IPC_STREAM: &[u8] = &[0xff, 0xff, 0xff, 0xff];

/// Whether bytes that begin like this are a table.
pub fn is_table(begin: &[u8]) -> bool {
    [PARQUET, IPC_FILE, IPC_STREAM].iter().any(|magic| begin.starts_with(magic))
}

pub(super) fn open_file(path: &Path) -> Result<Opened> {
    let name: Arc<str> = path.display().to_string().into();
    if is_url(path) {
        return open_parquet(name, path);
    }
    let cannot = || format!("cannot read {name}");
    let mut file = File::open(path).with_context(cannot)?;
    let mut magic = vec![];
    Read::by_ref(&mut file).take(6).read_to_end(&mut magic).with_context(cannot)?;
    let damaged = || format!("{name} is not a whole table");
    if magic.starts_with(PARQUET) {
        open_parquet(name, path)
    } else if magic.starts_with(IPC_FILE) {
        let reader = FileReader::try_new_buffered(File::open(path)?, None).with_context(damaged)?;
        let schema = reader.schema();
        let mut rows = 0;
        for batch in reader {
            rows += batch.with_context(damaged)?.num_rows();
        }
        Ok(Opened { schema, rows: Some(rows), body: Body::ArrowFile(path.to_owned()), name })
    } else if magic.starts_with(IPC_STREAM) {
        // Not opened again: it may be a named pipe, which gives its bytes once.
        open_stream(name.clone(), Cursor::new(magic).chain(file))
    } else if magic.is_empty() {
        bail!("{name} is empty: not a table")
    } else {
        bail!("{name} is not a table: neither Parquet nor an Arrow stream (it begins with {:02x?})", magic)
    }
}

fn open_parquet(name: Arc<str>, path: &Path) -> Result<Opened> {
    let builder = Storage::open(path)?.builder().with_context(|| format!("{name} is not a whole table"))?;
    let rows = builder.metadata().file_metadata().num_rows().max(0) as usize;
    Ok(Opened { schema: builder.schema().clone(), rows: Some(rows), body: Body::Parquet(path.to_owned()), name })
}

pub(super) fn open_stream(name: Arc<str>, bytes: impl Read + Send + 'static) -> Result<Opened> {
    let stream = Stream::open(Box::new(bytes)).with_context(|| format!("{name} is not a whole table"))?;
    Ok(Opened { schema: stream.schema(), rows: None, body: Body::Stream(Some(stream)), name })
}

pub(super) fn open_stdin() -> Result<Opened> {
    let name: Arc<str> = "standard input".into();
    let mut stdin = std::io::stdin();
    ensure!(!stdin.is_terminal(), "standard input is a terminal; pipe a table into it, or name a file");
    let mut magic = vec![];
    stdin.by_ref().take(4).read_to_end(&mut magic).context("cannot read standard input")?;
    if magic == IPC_STREAM {
        open_stream(name, Cursor::new(magic).chain(std::io::stdin()))
    } else if magic.is_empty() {
        bail!("standard input is empty: the program that should write to it stopped first")
    } else {
        bail!(
            "standard input is not an Arrow stream (it begins with {magic:02x?}); a Parquet file cannot be read from a pipe: name it as a file"
        )
    }
}

/// Whether a path is a folder, which must then hold parts.
pub(super) fn is_folder(path: &Path) -> bool {
    path.is_dir() || (is_url(path) && path.to_str().is_some_and(|url| url.ends_with('/')))
}

/// The names of the files in a folder.
fn list(folder: &Path) -> Result<Vec<String>> {
    #[cfg(feature = "cloud")]
    if is_url(folder) {
        return super::cloud::list(folder.to_str().unwrap_or_default());
    }
    if is_url(folder) {
        Storage::open(folder)?; // the error of a build without object stores
    }
    let cannot = || format!("cannot read {}", folder.display());
    let names = std::fs::read_dir(folder).with_context(cannot)?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<Result<Vec<_>>>().with_context(cannot)?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// `part-00003-of-00008.parquet` -> (3, 8, `part`), and `train-00003-of-00645-0123abcd.parquet` as Hugging Face names them.
fn part(name: &str) -> Option<(usize, usize, &str)> {
    let (left, right) = name.strip_suffix(".parquet")?.split_once("-of-")?;
    let (stem, index) = left.rsplit_once('-')?;
    let count = right.split('-').next()?;
    Some((index.parse().ok()?, count.parse().ok()?, stem))
}

/// The parts in a folder, in order.
pub(super) fn parts_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let names = list(folder)?;
    let mut parts: Vec<(usize, usize, &str, PathBuf)> = vec![];
    parts.extend(names.iter().filter_map(|name| {
        let (index, count, stem) = part(name)?;
        Some((index, count, stem, folder.join(name)))
    }));
    parts.sort();
    let Some(&(_, count, stem, _)) = parts.first() else {
        bail!("{} is a folder without part-00000-of-0000N.parquet files: not a table", folder.display())
    };
    let folder = folder.display();
    let other = parts.iter().find(|p| p.1 != count || p.2 != stem);
    if let Some((.., other)) = other {
        let (one, other) = (parts[0].3.display(), other.display());
        bail!(
            "{folder} holds parts of different tables, {one} and {other}: remove the old ones, or name the files of one table"
        );
    }
    let found: HashSet<usize> = parts.iter().map(|p| p.0).collect();
    let missing: Vec<usize> = (0..count).filter(|index| !found.contains(index)).collect();
    if let Some(&index) = missing.first() {
        let name = format!("{stem}-{index:05}-of-{count:05}.parquet");
        ensure!(missing.len() > 1, "{folder}: {name} is missing; make it again with --shard {index}/{count}");
        let all: Vec<_> = missing.iter().map(usize::to_string).collect();
        let (n, all) = (missing.len(), all.join(","));
        bail!(
            "{folder}: {n} of {count} parts are missing, {name} first; make them again with --shard I/{count}, I = {all}"
        );
    }
    ensure!(parts.len() == count, "{folder} holds a part twice: {} files for {count} parts", parts.len());
    Ok(parts.into_iter().map(|p| p.3).collect())
}
