//! The sources: lists in JSON, lines of JSON or CSV, tables, tar archives of webdataset, folders of these. Each is read record by
//! record.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use arrow::array::Array;
use arrow::datatypes::DataType;
use pipe::column::Rows;
use pipe::delimited::Delimited;
use pipe::origin::InputOrigin;
use pipe::strict::Strict;
use pipe::table::{self, Inputs};
use pipe::{id, place};
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};

use crate::pair::Reader;
use crate::record::{Field, Record};

/// Takes a record. `false`: no more are wanted.
pub type Take<'a> = dyn FnMut(&Reader, Result<Record>) -> Result<bool> + 'a;

/// Rows of a table that are held together: each has two images.
const BATCH: usize = 16;

/// Bytes of a list as text with a header, which is held whole. A longer one belongs in JSON, lines of JSON or Parquet.
const LONGEST: u64 = 1 << 28;

/// How files that hold samples end.
const ENDINGS: [&str; 7] = ["parquet", "tar", "jsonl", "json", "csv", "tsv", "arrow"];

/// The files that a source means: itself, or those in a folder, which must be of one kind; none if it holds no such files.
pub fn files(source: &Path) -> Result<Vec<PathBuf>> {
    if !source.is_dir() {
        return Ok(vec![source.to_owned()]);
    }
    let cannot = || format!("cannot read {}", source.display());
    let mut entries = vec![];
    for entry in source.read_dir().with_context(cannot)? {
        entries.push(entry.with_context(cannot)?.path());
    }
    entries.sort();
    let ends = |path: &PathBuf, ending: &str| path.extension().is_some_and(|end| end.eq_ignore_ascii_case(ending));
    // What `datasets` keeps beside the samples is no list of them.
    let is_note = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        ["dataset_info.json", "state.json", "dataset_infos.json"].contains(&&*name)
    };
    let of_kind = |ending: &&str| -> Vec<PathBuf> {
        entries.iter().filter(|path| ends(path, ending) && !is_note(path)).cloned().collect()
    };
    let kinds: Vec<Vec<PathBuf>> = ENDINGS.iter().map(of_kind).filter(|found| !found.is_empty()).collect();
    match &kinds[..] {
        [] => {}
        [one] => return Ok(one.clone()),
        [one, other, ..] => bail!(
            "{} holds lists of several kinds, {} and {}: name the files that are meant",
            source.display(),
            one[0].display(),
            other[0].display()
        ),
    }
    let inner: Vec<_> = ["data", "train"].iter().map(|name| source.join(name)).filter(|path| path.is_dir()).collect();
    match &inner[..] {
        [one] => files(one),
        _ => Ok(vec![]),
    }
}

/// The message for a folder without lists.
pub fn nothing_in(folder: &Path) -> Error {
    anyhow!(
        "{} holds neither pairs of folders (w/ and l/, winner/ and loser/, chosen/ and rejected/) nor a list or a table ({}); a \
         folder of single images with their texts needs --images",
        folder.display(),
        ENDINGS.map(|ending| format!(".{ending}")).join(", ")
    )
}

/// Content hash and origin of one file; of standard input nothing is known.
pub fn origins(file: &Path) -> Result<Vec<InputOrigin>> {
    match file.as_os_str() == "-" {
        true => Ok(vec![InputOrigin { sha256: None, origin: None }]),
        false if is_table(file)? => Inputs::open(&[file.to_owned()])?.origins(),
        false => Ok(vec![InputOrigin { sha256: Some(id::file_hash(file)?), origin: None }]),
    }
}

fn is_table(file: &Path) -> Result<bool> {
    if file.as_os_str() == "-" || place::is_url(file) {
        return Ok(true);
    }
    let cannot = || format!("cannot read {}", file.display());
    let mut begin = vec![];
    File::open(file).with_context(cannot)?.take(6).read_to_end(&mut begin).with_context(cannot)?;
    Ok(table::is_table(&begin))
}

/// Hands every record of one file to `take`. Returns whether more records are wanted.
pub fn read(file: &Path, reader: &Reader, take: &mut Take) -> Result<bool> {
    if is_table(file)? {
        return tables(file, reader, take);
    }
    let name = file.display().to_string();
    let cannot = || format!("cannot read {name}");
    let mut open = BufReader::with_capacity(1 << 16, File::open(file).with_context(cannot)?);
    let begin = open.fill_buf().with_context(cannot)?;
    let is_archive = begin.get(257..262) == Some(b"ustar");
    match begin.trim_ascii_start().first() {
        _ if is_archive => archive(&name, open, reader, take),
        None => bail!("{name} is empty"),
        Some(b'[') => array(&name, open, reader, take),
        Some(b'{') => lines(&name, open, reader, take),
        _ => delimited(&name, open, reader, take),
    }
}

fn tables(file: &Path, reader: &Reader, take: &mut Take) -> Result<bool> {
    let mut inputs = Inputs::open(&[file.to_owned()])?;
    let names = inputs.schema().fields().iter().map(|field| field.name().clone());
    let (names, unread): (Vec<String>, Vec<String>) = names.partition(|name| reader.knows(name));
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    let unread = unread.join(", ");
    for rows in inputs.read(Some(&known), 0..usize::MAX, BATCH)? {
        for record in records(&rows?, &unread)? {
            if !take(reader, Ok(record))? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn records(rows: &Rows, unread: &str) -> Result<Vec<Record>> {
    let record = |i| {
        let mut record = Record::new(rows.at(i));
        record.unread = unread.to_owned();
        record
    };
    let mut all: Vec<Record> = (0..rows.len()).map(record).collect();
    for column in rows.batch.schema_ref().fields() {
        let (name, kind) = (column.name(), column.data_type());
        let kind = if let DataType::Dictionary(_, values) = kind { values } else { kind };
        let mut put = |i: usize, field: Option<Field>| all[i].fields_from(name, field);
        match kind {
            DataType::Struct(_) | DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                let bytes = rows.bytes(name)?;
                (0..rows.len()).for_each(|i| put(i, bytes.is_valid(i).then(|| Field::Bytes(bytes.value(i).to_vec()))));
            }
            _ if kind.is_floating() || *kind == DataType::Boolean => {
                let numbers = rows.f32_or_null(name)?;
                let field =
                    |x: f32| if *kind == DataType::Boolean { Field::Truth(x != 0.0) } else { Field::Number(x.into()) };
                let number = |i: usize| numbers.is_valid(i).then(|| field(numbers.value(i)));
                (0..rows.len()).for_each(|i| put(i, number(i)));
            }
            _ => {
                let texts = rows.text_or_null(name)?;
                (0..rows.len()).for_each(|i| put(i, texts.is_valid(i).then(|| Field::Text(texts.value(i).to_owned()))));
            }
        }
    }
    Ok(all)
}

impl Record {
    fn fields_from(&mut self, name: &str, field: Option<Field>) {
        if let Some(field) = field {
            self.push(name, field);
        }
    }
}

/// One JSON array of objects, which may be longer than memory.
fn array(name: &str, text: impl Read, reader: &Reader, take: &mut Take) -> Result<bool> {
    struct Elements<'a, 'b> {
        name: &'a str,
        reader: &'a Reader,
        take: &'a mut Take<'b>,
        /// The end of the reading: an error, or that no more is wanted.
        ended: &'a mut Option<Result<()>>,
    }
    impl<'de> Visitor<'de> for Elements<'_, '_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an array of objects")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
            let mut i = 0;
            while let Some(Strict(value)) = elements.next_element()? {
                let mut record = Record::new(format!("{}, element {i} (from 0)", self.name));
                let more = record.push_json(value).and_then(|()| (self.take)(self.reader, Ok(record)));
                if !matches!(more, Ok(true)) {
                    *self.ended = Some(more.map(|_| ()));
                    return Err(serde::de::Error::custom("ended"));
                }
                i += 1;
            }
            Ok(())
        }
    }
    impl<'de> DeserializeSeed<'de> for Elements<'_, '_> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_seq(self)
        }
    }
    let mut ended = None;
    let mut json = serde_json::Deserializer::from_reader(text);
    let read = Elements { name, reader, take, ended: &mut ended }.deserialize(&mut json);
    match (ended, read) {
        (Some(Ok(())), _) => Ok(false),
        (Some(Err(error)), _) => Err(error),
        (None, read) => {
            read.and_then(|()| json.end()).with_context(|| format!("{name} begins like JSON but is not JSON"))?;
            Ok(true)
        }
    }
}

/// JSON objects, one after the other.
fn lines(name: &str, text: impl Read, reader: &Reader, take: &mut Take) -> Result<bool> {
    for (i, value) in serde_json::Deserializer::from_reader(text).into_iter::<Strict>().enumerate() {
        let place = format!("{name}, object {i} (from 0)");
        let mut record = Record::new(place.clone());
        record.push_json(value.with_context(|| format!("{place} is not JSON"))?.0)?;
        if !take(reader, Ok(record))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn delimited(name: &str, source: impl Read, reader: &Reader, take: &mut Take) -> Result<bool> {
    let mut bytes = vec![];
    source.take(LONGEST + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    ensure!(bytes.len() as u64 <= LONGEST, "{name} is a text of more than {} MiB; write it as Parquet", LONGEST >> 20);
    let kind = if bytes.contains(&0) { pipe::foreign::named(&bytes) } else { pipe::foreign::named_text(&bytes) };
    if let Some(kind) = kind {
        bail!("{name} is {kind}");
    }
    let text =
        String::from_utf8(bytes).with_context(|| format!("{name} is neither a table, an archive nor text in UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let Some(table) = Delimited::with_column(text, |column| reader.knows(column)) else {
        bail!("{name} is not a list of pairs: expected JSON, or CSV with a header such as prompt,winner,loser")
    };
    let header = table.header.clone();
    for line in table {
        let line = line.with_context(|| name.to_owned())?;
        let mut record = Record::new(format!("{name}, line {}", line.line));
        for (column, field) in header.iter().zip(line.fields) {
            record.fields_from(column, (!field.is_empty()).then_some(Field::Text(field)));
        }
        if !take(reader, Ok(record))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A tar archive as webdataset writes it: files whose names are equal up to the first point are one sample, and the rest of the name
/// says what each is.
fn archive(name: &str, file: impl Read, reader: &Reader, take: &mut Take) -> Result<bool> {
    /// The largest file in an archive that is read: an image of [`pipe`]'s limits has less.
    const LARGEST: u64 = 1 << 28;
    let damaged = || format!("{name} is not a whole tar archive");
    let mut archive = tar::Archive::new(file);
    let mut sample: Option<(String, Record)> = None;
    for entry in archive.entries().with_context(damaged)? {
        let mut entry = entry.with_context(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().with_context(damaged)?.to_string_lossy().into_owned();
        let start = path.rfind('/').map_or(0, |at| at + 1);
        let Some(point) = path[start..].find('.') else { continue };
        let (key, field) = (path[..start + point].to_owned(), &path[start + point + 1..]);
        ensure!(
            entry.size() <= LARGEST,
            "{name}: {path} has {} bytes, more than the {LARGEST} that are read",
            entry.size()
        );
        let mut bytes = vec![];
        entry.read_to_end(&mut bytes).with_context(damaged)?;
        if sample.as_ref().is_none_or(|(own, _)| *own != key) {
            if let Some((_, done)) = sample.take()
                && !take(reader, Ok(done))?
            {
                return Ok(false);
            }
            sample = Some((key.clone(), Record::new(format!("{name}, sample {key}"))));
        }
        let Some((_, record)) = &mut sample else { continue };
        member(record, field, bytes)?;
    }
    sample.map_or(Ok(true), |(_, last)| take(reader, Ok(last)))
}

/// Adds one file of a sample. `field`: `jpg_0.jpg`, `caption.txt`, `json`, `0.png`.
fn member(record: &mut Record, field: &str, bytes: Vec<u8>) -> Result<()> {
    const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
    let (stem, ending) = field.rsplit_once('.').unwrap_or((field, field));
    let ending = ending.to_lowercase();
    let place = record.place.clone();
    match &*ending {
        "json" => {
            let value: Result<Strict, _> = serde_json::from_slice(&bytes);
            record.push_json(value.with_context(|| format!("{place}: {field} is not JSON"))?.0)
        }
        "txt" | "text" | "cls" | "caption" => {
            let text = String::from_utf8(bytes).with_context(|| format!("{place}: {field} is not UTF-8 text"))?;
            record.push(stem, Field::Text(text.trim().to_owned()));
            Ok(())
        }
        ending if IMAGES.contains(&ending) => {
            record.push(if stem == field { "image" } else { stem }, Field::Bytes(bytes));
            Ok(())
        }
        // `jpg_0` and `label_0` without another ending.
        _ => {
            match String::from_utf8(bytes) {
                Ok(text) => record.push(field, Field::Text(text)),
                Err(other) => record.push(field, Field::Bytes(other.into_bytes())),
            }
            Ok(())
        }
    }
}
