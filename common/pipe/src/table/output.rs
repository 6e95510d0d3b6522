//! Tables being written: Parquet files that appear whole, Arrow streams on standard output and into named pipes.

use std::{
    io::{BufWriter, IsTerminal, Write},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
    ipc::writer::StreamWriter,
};
use parquet::{
    arrow::{ARROW_SCHEMA_META_KEY, ArrowWriter, arrow_writer::ArrowWriterOptions, encode_arrow_schema},
    basic::{Compression, ZstdLevel},
    file::{metadata::KeyValue, properties::WriterProperties},
};

use crate::{
    atomic::AtomicFile,
    origin::{self, Origin},
    place,
    schema::{images, labels, pairs},
    stdout::stdout,
};

/// Columns with a name of its own for almost every row.
const NAMES: [&str; 4] = [labels::PAIR_ID, pairs::UID[0], pairs::UID[1], images::IMAGE_UID];

/// Standard output (`-`), a named pipe or a device, none of which may be a terminal.
fn stream(path: &Path) -> Result<Box<dyn Write + Send>> {
    let (stream, terminal, name): (Box<dyn Write + Send>, _, _) = match path.as_os_str() == "-" {
        true => {
            let stdout = stdout();
            let terminal = std::io::stdout().is_terminal();
            (Box::new(stdout), terminal, "standard output".to_owned())
        }
        false => {
            let file = place::open_stream(path)?;
            let terminal = file.is_terminal();
            (Box::new(file), terminal, path.display().to_string())
        }
    };
    ensure!(!terminal, "{name} is a terminal and the table is binary; use `-o FILE` or a pipe");
    Ok(stream)
}

/// A table being written. Dropped without `finish`, it leaves nothing.
pub struct Output {
    name: String,
    body: Sink,
    pub schema: SchemaRef,
    pub rows: usize,
    notes: Vec<(String, String)>,
}

enum Sink {
    Parquet(Box<ArrowWriter<AtomicFile>>),
    Stream(Box<StreamWriter<BufWriter<Box<dyn Write + Send>>>>),
}

impl Output {
    /// Opens `path` for `schema`, whose metadata gets the origin: a file for Parquet; `-`, a named pipe or a device for a stream.
    ///
    /// # Errors
    /// The place cannot be written; binary would go to a terminal.
    pub fn create(path: &Path, schema: Schema, origin: &Origin) -> Result<Self> {
        let metadata = schema.metadata().clone().with(origin::KEY, origin.to_json());
        let schema = Arc::new(schema.with_metadata(metadata));
        let name = path.display().to_string();
        let body = if place::is_stream(path) {
            Sink::Stream(Box::new(StreamWriter::try_new(BufWriter::new(stream(path)?), &schema)?))
        } else {
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
                .set_max_row_group_row_count(Some(16 * 1024))
                .set_max_row_group_bytes(Some(64 << 20));
            // Names hardly repeat: a dictionary of them costs time and saves nothing.
            let properties =
                NAMES.iter().fold(properties, |p, name| p.set_column_dictionary_enabled((*name).into(), false));
            // The schema, with its metadata, is added at the end.
            let options = ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
            let writer = ArrowWriter::try_new_with_options(AtomicFile::create(path)?, schema.clone(), options);
            Sink::Parquet(Box::new(writer.with_context(|| format!("cannot write {name}"))?))
        };
        Ok(Self { name, body, schema, rows: 0, notes: vec![] })
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

    /// Keeps a text under `key` in the metadata, for what is known only when all rows are written. A stream's metadata went
    /// out before its first row: there it is left out.
    pub fn note(&mut self, key: &str, text: &str) {
        self.notes.push((key.to_owned(), text.to_owned()));
    }

    /// Ends the stream with its mark, or puts the file under its name.
    pub fn finish(self) -> Result<usize> {
        self.end(AtomicFile::commit)
    }

    /// As `finish`, without waiting for the disk, for a table of which a power cut may leave half.
    pub fn finish_unsynced(self) -> Result<usize> {
        self.end(AtomicFile::commit_unsynced)
    }

    fn end(self, commit: fn(AtomicFile) -> Result<()>) -> Result<usize> {
        match self.body {
            Sink::Parquet(mut writer) => {
                let metadata =
                    self.notes.into_iter().fold(self.schema.metadata().clone(), |all, (k, v)| all.with(k, v));
                let schema = Schema::clone(&self.schema).with_metadata(metadata);
                let schema = KeyValue::new(ARROW_SCHEMA_META_KEY.to_owned(), encode_arrow_schema(&schema));
                writer.append_key_value_metadata(schema);
                commit(writer.into_inner().with_context(|| format!("cannot write {}", self.name))?)?
            }
            Sink::Stream(mut writer) => {
                writer.finish()?;
                writer.get_mut().flush()?;
            }
        }
        Ok(self.rows)
    }
}
