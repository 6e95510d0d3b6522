//! Recognising what a file or pipe holds, and finding the parts of a sharded table.

use std::io::{Cursor, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::{collections::HashSet, fs::File, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use arrow::ipc::reader::FileReader;

use super::opened::{Body, Opened};
use super::storage::{Source, Storage};
use super::{ipc, stream::Stream, text};
use crate::foreign::{self, LOOK};
use crate::panics::caught;
use crate::place::is_url;

const PARQUET: &[u8] = b"PAR1";

/// Whether bytes that begin like this are a table.
pub fn is_table(begin: &[u8]) -> bool {
    [PARQUET, ipc::FILE, ipc::CONTINUATION].iter().any(|magic| begin.starts_with(magic))
}

/// Reads a table, where a panic means that the table is damaged.
pub(crate) fn whole<T>(name: &str, read: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(read).with_context(|| format!("{name} is not a whole table"))?
}

pub(super) fn open_file(path: &Path) -> Result<Opened> {
    let name: Arc<str> = path.display().to_string().into();
    whole(&name.clone(), || open(name, path))
}

fn open(name: Arc<str>, path: &Path) -> Result<Opened> {
    if is_url(path) {
        return open_parquet(name, path);
    }
    let cannot = || format!("cannot read {name}");
    let mut file = File::open(path).with_context(cannot)?;
    let mut magic = vec![];
    Read::by_ref(&mut file).take(LOOK).read_to_end(&mut magic).with_context(cannot)?;
    let damaged = || format!("{name} is not a whole table");
    if magic.starts_with(PARQUET) {
        open_parquet(name, path)
    } else if magic.starts_with(ipc::FILE) {
        let source = Source::new(path)?;
        ipc::check_file(&mut source.file()?).with_context(damaged)?;
        let reader = FileReader::try_new_buffered(source.file()?, None).with_context(damaged)?;
        let (schema, mut rows) = (reader.schema(), 0);
        for batch in reader {
            rows += batch.with_context(damaged)?.num_rows();
        }
        Ok(Opened { schema, rows: Some(rows), body: Body::ArrowFile(source), name })
    } else if magic.starts_with(ipc::CONTINUATION) {
        // Not opened again: it may be a named pipe, which gives its bytes once.
        open_stream(name.clone(), Cursor::new(magic).chain(file))
    } else if magic.is_empty() {
        bail!("{name} is empty: not a table")
    } else if let Some(kind) = foreign::named(&magic) {
        bail!("{name} is {kind}")
    } else {
        let source = Source::new(path)?;
        let Some(batch) = text::read(&magic, &mut file).with_context(|| name.to_string())? else {
            let begin = &magic[..magic.len().min(6)];
            bail!(
                "{name} is not a table: neither Parquet, nor Arrow, nor CSV with a header (it begins with {begin:02x?})"
            )
        };
        Ok(Opened { schema: batch.schema(), rows: Some(batch.num_rows()), body: Body::Text(source, batch), name })
    }
}

fn open_parquet(name: Arc<str>, path: &Path) -> Result<Opened> {
    let source = Source::new(path)?;
    let builder = source.open()?.builder().with_context(|| format!("{name} is not a whole table"))?;
    let metadata = builder.metadata();
    let (rows, groups) = (metadata.file_metadata().num_rows(), metadata.row_groups());
    let in_groups: i64 = groups.iter().map(|group| group.num_rows()).sum();
    ensure!(
        rows == in_groups,
        "{name} is not a whole table: its footer promises {rows} rows, and its row groups hold {in_groups}"
    );
    let rows = usize::try_from(rows).with_context(|| format!("{name} is not a whole table"))?;
    Ok(Opened { schema: builder.schema().clone(), rows: Some(rows), body: Body::Parquet(source), name })
}

pub(super) fn open_stream(name: Arc<str>, bytes: impl Read + Send + 'static) -> Result<Opened> {
    let stream =
        whole(&name, || Stream::open(Box::new(bytes)).with_context(|| format!("{name} is not a whole table")))?;
    Ok(Opened { schema: stream.schema(), rows: None, body: Body::Stream(Some(stream)), name })
}

pub(super) fn open_stdin() -> Result<Opened> {
    let name: Arc<str> = "standard input".into();
    let mut stdin = std::io::stdin();
    ensure!(!stdin.is_terminal(), "standard input is a terminal; pipe a table into it, or name a file");
    let mut magic = vec![];
    stdin.by_ref().take(4).read_to_end(&mut magic).context("cannot read standard input")?;
    if magic == ipc::CONTINUATION {
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

/// One of the files of a table in a folder, by its name.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    index: usize,
    /// How many there are, where the names say so.
    count: Option<usize>,
    /// What names of one table share besides.
    table: String,
    path: PathBuf,
}

impl Part {
    /// `part-00003-of-00008.parquet`, `train-00003-of-00645-0123abcd.parquet` as Hugging Face names them, its `0003.parquet`, and
    /// `part-00003-UUID-c000.snappy.parquet` as Spark does.
    fn of(folder: &Path, name: &str) -> Option<Self> {
        let stem = name.strip_suffix(".parquet")?;
        let path = folder.join(name);
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(index) = number(stem) {
            return Some(Self { index, count: None, table: String::new(), path });
        }
        if let Some((left, right)) = stem.split_once("-of-") {
            let (table, index) = left.rsplit_once('-')?;
            let count = number(right.split('-').next()?);
            return Some(Self { index: number(index)?, count: Some(count?), table: table.to_owned(), path });
        }
        // Spark numbers the files of one partition: `-c000` or `.c000`.
        let (index, rest) = stem.strip_prefix("part-")?.split_once('-')?;
        let rest = rest.split('.').next().unwrap_or_default();
        let table = rest.rsplit_once("-c").filter(|(_, file)| number(file).is_some()).map_or(rest, |(table, _)| table);
        Some(Self { index: number(index)?, count: None, table: format!("Spark's {table}"), path })
    }
}

/// Whether a folder holds files that are called as parts of a table.
pub fn has_parts(folder: &Path) -> bool {
    list(folder).is_ok_and(|names| names.iter().any(|name| Part::of(folder, name).is_some()))
}

/// The parts in a folder, in order.
pub(super) fn parts_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let names = list(folder)?;
    let mut parts: Vec<Part> = names.iter().filter_map(|name| Part::of(folder, name)).collect();
    parts.sort();
    let Some(first) = parts.first() else {
        bail!(
            "{} is a folder without parts of a table (part-00000-of-0000N.parquet, 0000.parquet, ...): name its files one by one; of \
             image files `pairs` makes a table",
            folder.display()
        )
    };
    let (count, stem) = (first.count.unwrap_or(parts.len()), &first.table);
    let folder = folder.display();
    let other = parts.iter().find(|part| part.count != first.count || part.table != *stem);
    if let Some(other) = other {
        let (one, other) = (first.path.display(), other.path.display());
        bail!(
            "{folder} holds parts of different tables, {one} and {other}: remove the old ones, or name the files of one table"
        );
    }
    if first.table.starts_with("Spark's ") {
        return Ok(parts.into_iter().map(|part| part.path).collect()); // it writes no file for a partition without rows
    }
    let found: HashSet<usize> = parts.iter().map(|part| part.index).collect();
    let missing: Vec<usize> = (0..count).filter(|index| !found.contains(index)).collect();
    if let Some(&index) = missing.first() {
        ensure!(first.count.is_some(), "{folder}: part {index} is missing; put it there, or name the files one by one");
        let name = format!("{stem}-{index:05}-of-{count:05}.parquet");
        ensure!(missing.len() > 1, "{folder}: {name} is missing; make it again with --shard {index}/{count}");
        let all: Vec<_> = missing.iter().map(usize::to_string).collect();
        let (n, all) = (missing.len(), all.join(","));
        bail!(
            "{folder}: {n} of {count} parts are missing, {name} first; make them again with --shard I/{count}, I = {all}"
        );
    }
    ensure!(parts.len() == count, "{folder} holds a part twice: {} files for {count} parts", parts.len());
    Ok(parts.into_iter().map(|part| part.path).collect())
}
