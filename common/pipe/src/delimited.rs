//! Text whose fields are separated: CSV as in RFC 4180, with commas, semicolons or bars, and TSV, in which a quote is a quote.

use anyhow::{Result, anyhow, bail, ensure};
use csv_core::{ReadFieldResult, Reader, ReaderBuilder};

use crate::text::shown;

const DELIMITERS: [u8; 4] = [b'\t', b',', b';', b'|'];

/// Bytes of one field: far more than the some hundred that a text encoder reads of a prompt.
const LONGEST: usize = 1 << 20;

/// One record of a text, and the line on which it begins, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub line: usize,
    pub fields: Vec<String>,
}

/// A text with a header.
pub struct Delimited<'a> {
    /// The names of the columns, without the spaces around them.
    pub header: Vec<String>,
    records: Records<'a>,
    /// A column whose name another one has; it is the first error.
    twice: Option<usize>,
}

impl<'a> Delimited<'a> {
    /// Reads `text` by the first delimiter under which its first line has several fields, one of them accepted by `known`;
    /// `None` if there is none.
    pub fn with_column(text: &'a str, known: impl Fn(&str) -> bool) -> Option<Self> {
        DELIMITERS.into_iter().find_map(|delimiter| {
            let mut records = Records::new(text, delimiter);
            let header = records.next()?.ok()?.fields;
            let header: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
            let low: Vec<String> = header.iter().map(|name| name.to_lowercase()).collect();
            let twice = (0..low.len()).find(|&i| !low[i].is_empty() && low[..i].contains(&low[i]));
            (header.len() > 1 && header.iter().any(|name| known(name))).then_some(Self { header, records, twice })
        })
    }
}

impl Iterator for Delimited<'_> {
    type Item = Result<Record>;

    /// The next record, with as many fields as the header: the last ones may be left out.
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(i) = self.twice.take() {
            self.records.ended = true;
            let name = shown(&self.header[i]);
            return Some(Err(anyhow!("column {i} (from 0) is called '{name}', as another is")));
        }
        let record = self.records.next()?;
        Some(record.and_then(|mut record| {
            let (line, n, columns) = (record.line, record.fields.len(), self.header.len());
            ensure!(n <= columns, "line {line}: {n} fields, but the header has {columns}");
            record.fields.resize(columns, String::new());
            Ok(record)
        }))
    }
}

/// The fields of the first line of `text`, if it looks like a table's header and all other lines have as many fields: the names of
/// its columns. Within prose a space follows a comma.
pub fn header_of(text: &str) -> Option<Vec<String>> {
    let header = |delimiter| -> Option<Vec<String>> {
        let mut records = Records::new(text, delimiter);
        let header = records.next()?.ok()?.fields;
        let (mut rows, name) = (0, |name: &String| !name.starts_with(' ') && name.split(' ').count() < 5);
        let alike = records.all(|record| {
            rows += 1;
            record.is_ok_and(|record| record.fields.len() == header.len())
        });
        (header.len() > 1 && header.iter().all(name) && rows > 0 && alike).then_some(header)
    };
    DELIMITERS.into_iter().find_map(header)
}

/// The fields of a text of one column, if each line is a field of a CSV file, and one of them has quotes around it.
pub fn one_column(text: &str) -> Option<Vec<Record>> {
    let (mut rest, mut quoted) = (text, false);
    let records = Records::new(text, b',').collect::<Result<Vec<_>>>().ok()?;
    for record in &records {
        let [field] = &record.fields[..] else { return None };
        let in_quotes = format!("\"{}\"", field.replace('"', "\"\""));
        let begin = rest.trim_start_matches(['\n', '\r']);
        let is_quoted = begin.starts_with(&in_quotes);
        rest = begin.strip_prefix(if is_quoted { &in_quotes } else { field })?;
        if !rest.is_empty() && !rest.starts_with(['\n', '\r']) {
            return None;
        }
        quoted |= is_quoted;
    }
    quoted.then_some(records)
}

/// All records but empty lines.
struct Records<'a> {
    reader: Reader,
    /// The rest of the text, and a record that follows it: within an open quote it does not stand alone.
    rest: [&'a [u8]; 2],
    line: usize,
    ended: bool,
}

const END: &str = "\n\0";

impl<'a> Records<'a> {
    fn new(text: &'a str, delimiter: u8) -> Self {
        let reader = ReaderBuilder::new().delimiter(delimiter).quoting(delimiter != b'\t').build();
        let rest = if text.is_empty() { [END.as_bytes(), &[]] } else { [text.as_bytes(), END.as_bytes()] };
        Self { reader, rest, line: 1, ended: false }
    }

    /// Takes `n` bytes from what is left.
    fn pass(&mut self, n: usize) {
        let (passed, rest) = self.rest[0].split_at(n);
        self.line += passed.iter().filter(|&&b| b == b'\n').count();
        self.rest[0] = rest;
        if rest.is_empty() {
            self.rest = [self.rest[1], &[]];
        }
    }

    fn record(&mut self) -> Result<Option<Record>> {
        while let [b'\n' | b'\r', ..] = self.rest[0] {
            self.pass(1);
        }
        let (line, mut fields, mut field, mut buffer) = (self.line, vec![], vec![], [0; 4096]);
        loop {
            let (found, read, written) = self.reader.read_field(self.rest[0], &mut buffer);
            self.pass(read);
            field.extend_from_slice(&buffer[..written]);
            ensure!(field.len() <= LONGEST, "line {line}: a field of more than {LONGEST} bytes");
            match found {
                ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull => {}
                ReadFieldResult::Field { record_end } => {
                    fields.push(String::from_utf8(std::mem::take(&mut field))?);
                    if record_end {
                        break;
                    }
                }
                ReadFieldResult::End => break,
            }
        }
        let at_end = self.rest[0].is_empty();
        match fields.last().is_some_and(|last| last.ends_with('\0')) && at_end {
            true if fields == ["\0"] => Ok(None),
            true => bail!("line {line}: a quote is opened and never closed"),
            false => Ok(Some(Record { line, fields })),
        }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let record = self.record().transpose();
        self.ended = !matches!(record, Some(Ok(_)));
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, delimiter: u8) -> Vec<(usize, Vec<String>)> {
        Records::new(text, delimiter).map(|r| r.map(|r| (r.line, r.fields)).unwrap()).collect()
    }

    fn fields(fields: &[&str]) -> Vec<String> {
        fields.iter().map(|f| f.to_string()).collect()
    }

    #[test]
    fn quotes_hold_delimiters_and_lines() {
        let text = "a,b\r\n\"x, \"\"y\"\"\",\"one\ntwo\"\n\n\nz,";
        let expected = [(1, fields(&["a", "b"])), (2, fields(&["x, \"y\"", "one\ntwo"])), (6, fields(&["z", ""]))];
        assert_eq!(read(text, b','), expected);
        assert_eq!(read("a\t\"b\" c\n", b'\t'), [(1, fields(&["a", "\"b\" c"]))]);
        assert!(read("", b',').is_empty() && read("\n\r\n", b',').is_empty());
        let long = "x".repeat(10_000);
        assert_eq!(read(&format!("{long},y\n"), b',')[0].1, fields(&[&long, "y"]));
    }

    #[test]
    fn an_open_quote_is_found() {
        for text in ["a,b\n1,\"x\n2,y\n", "a,b\n1,\"x", "\"", "a\n\""] {
            let error = Records::new(text, b',').find_map(Result::err).unwrap().to_string();
            assert!(error.contains("never closed"), "{text}: {error}");
        }
    }

    #[test]
    fn a_table_is_told_from_prose() {
        for (text, header) in [
            ("id,text\n1,a cat\n2,\"a cat, a dog\"\n", Some(fields(&["id", "text"]))),
            ("id;text\n1;a cat\n", Some(fields(&["id", "text"]))),
            ("a cat, a dog\na bird, a fish\n", None),
            ("a cat,a dog\na bird\n", None),
            ("red,green\n", None),
        ] {
            assert_eq!(header_of(text), header, "{text}");
        }
        let one = |text| one_column(text).map(|records| records.into_iter().flat_map(|r| r.fields).collect::<Vec<_>>());
        assert_eq!(one("prompt\n\"a, b\"\nc\n"), Some(fields(&["prompt", "a, b", "c"])));
        assert_eq!(one("prompt\na cat\n"), None);
        assert_eq!(one("prompt\n\"Wonders\" of the world\n"), None);
    }
}
