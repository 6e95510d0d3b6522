//! Tables in and out. Files are Parquet, `-` is an Arrow IPC stream; what is read is recognised by its first bytes.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufReader, BufWriter, Cursor, IsTerminal, Read, Stdout, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, bail, ensure};
use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
    ipc::{reader::FileReader, reader::StreamReader, writer::StreamWriter},
};
use parquet::{
    arrow::{ArrowWriter, ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use crate::{
    atomic::{AtomicFile, create_parent},
    cli::Shard,
    column::Rows,
    id::file_hash,
    origin::{self, InputOrigin, Origin},
};

/// Rows a batch where the caller has no reason for another number.
pub const BATCH: usize = 1024;

/// One or several tables of the same kind, read one after the other.
pub struct Inputs {
    tables: Vec<Input>,
}

struct Input {
    name: Arc<str>,
    schema: SchemaRef,
    body: Body,
}

enum Body {
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
    /// Opens files, `-`, and folders of `part-00000-of-00008.parquet`; reads schemas and row counts only.
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
            } else if path.is_dir() {
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
        Ok(Batches { queue, current: None, batch })
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

/// The identity of a file. Above 1 GiB a Parquet file is known by its footer, which holds the size and the statistics of
/// every column chunk: reading 335 GB twice to name them is not worth it.
fn content_hash(path: &Path) -> Result<String> {
    const WHOLE: u64 = 1 << 30;
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if size <= WHOLE {
        return file_hash(path);
    }
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-8))?;
    let mut tail = [0; 8];
    file.read_exact(&mut tail)?;
    let footer = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]) as u64;
    file.seek(SeekFrom::End(-(footer.min(size - 8) as i64) - 8))?;
    let mut bytes = size.to_le_bytes().to_vec();
    file.read_to_end(&mut bytes)?;
    Ok(format!("footer-{}", crate::id::hex(&crate::id::sha256(&bytes))))
}

/// What one table still has to give.
struct Part {
    name: Arc<str>,
    path: PathBuf,
    parquet: bool,
    stream: Option<Stream>,
    columns: Option<Vec<String>>,
    rows: Range<usize>,
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
            let file = File::open(&self.path).with_context(|| format!("cannot read {name}"))?;
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).with_context(&say)?;
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

/// A stream that must close with its end mark: a producer that died between two batches is not a short table.
struct Stream {
    reader: StreamReader<BufReader<Tail>>,
    tail: Arc<Mutex<Vec<u8>>>,
    done: bool,
}

/// Remembers the last eight bytes that passed.
struct Tail {
    inner: Box<dyn Read + Send>,
    last: Arc<Mutex<Vec<u8>>>,
}

impl Read for Tail {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Ok(mut last) = self.last.lock() {
            last.extend_from_slice(&buf[n.saturating_sub(8)..n]);
            let cut = last.len().saturating_sub(8);
            last.drain(..cut);
        }
        Ok(n)
    }
}

/// The IPC format's end mark: a continuation and a length of zero.
const END_MARK: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

const CUT_OFF: &str = "the stream is cut off or damaged: whatever wrote it stopped in the middle";

impl Stream {
    fn open(inner: Box<dyn Read + Send>) -> Result<Self> {
        let tail = Arc::new(Mutex::new(vec![]));
        let reader = StreamReader::try_new(BufReader::new(Tail { inner, last: tail.clone() }), None);
        let reader = reader.context(CUT_OFF)?;
        Ok(Self { reader, tail, done: false })
    }

    fn check_end(&mut self) -> Result<()> {
        std::io::copy(self.reader.get_mut(), &mut std::io::sink())?;
        let complete = self.tail.lock().is_ok_and(|tail| tail[..] == END_MARK);
        ensure!(complete, "the stream ends without its end mark: whatever wrote it stopped in the middle");
        Ok(())
    }
}

impl Iterator for Stream {
    type Item = Result<RecordBatch>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.reader.next() {
            Some(Ok(batch)) => Some(Ok(batch)),
            Some(Err(error)) => {
                self.done = true;
                Some(Err(error).context(CUT_OFF))
            }
            None => {
                self.done = true;
                self.check_end().err().map(Err)
            }
        }
    }
}

const PARQUET: &[u8] = b"PAR1";
const IPC_FILE: &[u8] = b"ARROW1";
const IPC_STREAM: &[u8] = &[0xff, 0xff, 0xff, 0xff];

/// Whether bytes that begin like this are a table.
pub fn is_table(begin: &[u8]) -> bool {
    [PARQUET, IPC_FILE, IPC_STREAM].iter().any(|magic| begin.starts_with(magic))
}

fn open_file(path: &Path) -> Result<Input> {
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

fn open_stream(name: Arc<str>, bytes: impl Read + Send + 'static) -> Result<Input> {
    let stream = Stream::open(Box::new(bytes)).with_context(|| format!("{name} is not a whole table"))?;
    Ok(Input { schema: stream.reader.schema(), body: Body::Stream(Some(stream)), name })
}

fn open_stdin() -> Result<Input> {
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
fn parts_of(folder: &Path) -> Result<Vec<PathBuf>> {
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

/// Where `-o` and `--shard` together say to write.
pub fn target(output: &Path, shard: Option<Shard>) -> PathBuf {
    match shard {
        Some(shard) => output.join(shard.file_name()),
        None => output.to_owned(),
    }
}

/// A table being written. Dropped without `finish`, it leaves nothing.
pub struct Output {
    name: String,
    body: Sink,
    pub schema: SchemaRef,
    pub rows: usize,
}

enum Sink {
    Parquet(Box<ArrowWriter<AtomicFile>>),
    Stream(Box<StreamWriter<BufWriter<Stdout>>>),
}

impl Output {
    /// Opens `path` (or `-`) for `schema`, whose metadata gets the origin.
    ///
    /// # Errors
    /// The place cannot be written; binary would go to a terminal.
    pub fn create(path: &Path, schema: Schema, origin: &Origin) -> Result<Self> {
        let metadata = schema.metadata().clone().with(origin::KEY, origin.to_json());
        let schema = Arc::new(schema.with_metadata(metadata));
        let name = path.display().to_string();
        let body = if path.as_os_str() == "-" {
            ensure!(
                !std::io::stdout().is_terminal(),
                "standard output is a terminal and the table is binary; use `-o FILE` or a pipe"
            );
            Sink::Stream(Box::new(StreamWriter::try_new(BufWriter::new(std::io::stdout()), &schema)?))
        } else {
            ensure!(!path.is_dir(), "cannot write {name}: it is a folder");
            create_parent(path)?;
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
                .set_max_row_group_row_count(Some(64 * 1024))
                .set_max_row_group_bytes(Some(64 << 20))
                .build();
            let writer = ArrowWriter::try_new(AtomicFile::create(path)?, schema.clone(), Some(properties));
            Sink::Parquet(Box::new(writer.with_context(|| format!("cannot write {name}"))?))
        };
        Ok(Self { name, body, schema, rows: 0 })
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows();
        // The schema's metadata travels with the file, not with every batch.
        let batch = RecordBatch::try_new(self.schema.clone(), batch.columns().to_vec())
            .with_context(|| format!("cannot write {}", self.name))?;
        match &mut self.body {
            Sink::Parquet(writer) => writer.write(&batch).with_context(|| format!("cannot write {}", self.name)),
            Sink::Stream(writer) => {
                writer.write(&batch)?;
                Ok(writer.get_mut().flush()?)
            }
        }
    }

    /// Ends the stream with its mark, or puts the file under its name.
    pub fn finish(self) -> Result<usize> {
        match self.body {
            Sink::Parquet(writer) => {
                writer.into_inner().with_context(|| format!("cannot write {}", self.name))?.commit()?
            }
            Sink::Stream(mut writer) => {
                writer.finish()?;
                writer.get_mut().flush()?;
            }
        }
        Ok(self.rows)
    }
}
