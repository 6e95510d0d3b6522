//! Tables being written: Parquet files that appear whole, Arrow streams on standard output and into named pipes.

use std::io::{BufWriter, IsTerminal, Write};
use std::{path::Path, sync::Arc};

use anyhow::{Context, Error, Result, ensure};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::{array::RecordBatch, ipc::writer::StreamWriter};
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowWriter, arrow_writer::ArrowWriterOptions, encode_arrow_schema};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::{metadata::KeyValue, properties::WriterProperties};

use crate::origin::{self, Origin};
use crate::schema::{images, labels, pairs};
use crate::{atomic::AtomicFile, place, stdout::stdout};

/// Columns with a name of its own for almost every row.
const NAMES: [&str; 4] = [labels::PAIR_ID, pairs::UID[0], pairs::UID[1], images::IMAGE_UID];

/// Standard output (`-`), a named pipe or a device, but not a terminal.
fn stream(path: &Path, name: &str) -> Result<Box<dyn Write + Send>> {
    let (stream, terminal): (Box<dyn Write + Send>, _) = match path.as_os_str() == "-" {
        true => (Box::new(stdout()), std::io::stdout().is_terminal()),
        false => {
            let file = place::open_stream(path)?;
            let terminal = file.is_terminal();
            (Box::new(file), terminal)
        }
    };
    ensure!(!terminal, "{name} is a terminal and the table is binary; use `-o FILE` or a pipe");
    Ok(stream)
}

/// A table being written. Dropped without `finish`, it leaves nothing. Every error names the file.
pub struct Output {
    name: String,
    body: Body,
    pub schema: SchemaRef,
    /// Texts for the metadata, with their keys.
    notes: Vec<(String, String)>,
    rows: usize,
}

enum Body {
    Parquet(Box<ArrowWriter<AtomicFile>>),
    Stream(Box<StreamWriter<BufWriter<Box<dyn Write + Send>>>>),
}

impl Output {
    /// Opens `path` for rows of `schema`, whose metadata gets the origin. A file becomes Parquet; `-`, a named pipe or a device
    /// takes an Arrow stream.
    pub fn create(path: &Path, schema: Schema, origin: &Origin) -> Result<Self> {
        place::refuse_other_kind(path)?;
        let metadata = schema.metadata().clone().with(origin::KEY, origin.to_json());
        let schema = Arc::new(schema.with_metadata(metadata));
        let name = if path.as_os_str() == "-" { "standard output".into() } else { path.display().to_string() };
        let body = match place::is_stream(path) {
            true => StreamWriter::try_new(BufWriter::new(stream(path, &name)?), &schema)
                .map(|writer| Body::Stream(Box::new(writer)))
                .map_err(Error::from),
            false => parquet(Self::file(path)?, &schema).map(|writer| Body::Parquet(Box::new(writer))),
        };
        let body = body.with_context(|| format!("cannot write {name}"))?;
        Ok(Self { name, body, schema, notes: vec![], rows: 0 })
    }

    fn file(path: &Path) -> Result<AtomicFile> {
        place::refuse_partial_of_others(&place::file_behind(path)?)?;
        AtomicFile::create(path)
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows();
        self.put(batch).with_context(|| format!("cannot write {}", self.name))
    }

    fn put(&mut self, batch: &RecordBatch) -> Result<()> {
        // The schema's metadata travels with the file, not with every batch.
        let batch = RecordBatch::try_new(self.schema.clone(), batch.columns().to_vec())?;
        match &mut self.body {
            Body::Parquet(writer) => writer.write(&batch)?,
            Body::Stream(writer) => {
                writer.write(&batch)?;
                writer.get_mut().flush()?;
            }
        }
        Ok(())
    }

    /// Keeps a text under `key` in the metadata, for what is known only when all rows are written. A stream leaves it out: its
    /// metadata is sent before its first row.
    pub fn note(&mut self, key: &str, text: &str) {
        self.notes.push((key.to_owned(), text.to_owned()));
    }

    /// Ends the stream with its mark, or gives the file its name. Returns the number of rows.
    pub fn finish(self) -> Result<usize> {
        self.end(AtomicFile::commit)
    }

    /// As `finish`, but does not wait for the disk: after a power cut the table may be damaged.
    pub fn finish_unsynced(self) -> Result<usize> {
        self.end(AtomicFile::commit_unsynced)
    }

    fn end(self, commit: fn(AtomicFile) -> Result<()>) -> Result<usize> {
        let Self { name, body, schema, notes, rows } = self;
        let end = || match body {
            Body::Parquet(mut writer) => {
                let metadata = notes.into_iter().fold(schema.metadata().clone(), |all, (k, v)| all.with(k, v));
                let schema = encode_arrow_schema(&Schema::clone(&schema).with_metadata(metadata));
                writer.append_key_value_metadata(KeyValue::new(ARROW_SCHEMA_META_KEY.to_owned(), schema));
                commit(writer.into_inner()?)
            }
            Body::Stream(mut writer) => {
                writer.finish()?;
                Ok(writer.get_mut().flush()?)
            }
        };
        end().with_context(|| format!("cannot write {name}"))?;
        Ok(rows)
    }
}

fn parquet(file: AtomicFile, schema: &SchemaRef) -> Result<ArrowWriter<AtomicFile>> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(16 * 1024))
        .set_max_row_group_bytes(Some(64 << 20));
    // Names hardly repeat: a dictionary of them costs time and saves nothing.
    let properties = NAMES.iter().fold(properties, |p, name| p.set_column_dictionary_enabled((*name).into(), false));
    // The schema, with its metadata, is added at the end.
    let options = ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
    Ok(ArrowWriter::try_new_with_options(file, schema.clone(), options)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    /// /dev/full takes no byte.
    #[test]
    fn an_error_names_the_file_wherever_it_happens() {
        let error = |result: Result<usize>| format!("{:#}", result.unwrap_err());
        let batch = RecordBatch::new_empty(Arc::new(schema::pair_list()));
        let output = || Output::create(Path::new("/dev/full"), schema::pair_list(), &Origin::new("test"));
        let written = output().and_then(|mut output| output.write(&batch).map(|()| 0));
        let finished = output().and_then(Output::finish);
        for result in [written, finished] {
            assert!(error(result).starts_with("cannot write /dev/full: "));
        }
    }
}
