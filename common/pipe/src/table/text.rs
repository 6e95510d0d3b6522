//! Tables in text: CSV or TSV with a header, as spreadsheets and pandas write them.

use std::{fs::File, io::Read, sync::Arc};

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{Field, Schema};

use crate::delimited::Delimited;
use crate::schema::{images, labels, pairs, prompts};

/// Columns of text, even if a spreadsheet has only digits in them. One of them must be there.
const TEXTS: [&str; 12] = [
    labels::PAIR_ID,
    pairs::CAPTION,
    pairs::UID[0],
    pairs::UID[1],
    pairs::RANKING_ID,
    prompts::PROMPT,
    prompts::PROMPT_ID,
    prompts::SET,
    prompts::CATEGORY,
    prompts::CHALLENGE,
    images::IMAGE_UID,
    images::MODEL,
];

/// Bytes of one table: as text it is held whole. A longer one belongs in Parquet.
const LONGEST: u64 = 1 << 28;

/// The rows of a text that begins with `begin`; `None` if it is not a table of ours. An empty field is null.
pub(super) fn read(begin: &[u8], file: &mut File) -> Result<Option<RecordBatch>> {
    if begin.contains(&0) {
        return Ok(None);
    }
    let mut bytes = begin.to_vec();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    let Ok(text) = std::str::from_utf8(&bytes) else { return Ok(None) };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let Some(table) = Delimited::with_column(text, |name| TEXTS.contains(&name)) else { return Ok(None) };
    ensure!(bytes.len() as u64 <= LONGEST, "a text of more than {} MiB; write it as Parquet", LONGEST >> 20);
    let header = table.header.clone();
    let mut columns: Vec<Vec<Option<String>>> = vec![vec![]; header.len()];
    for record in table {
        let fields = record?.fields.into_iter().map(|field| (!field.is_empty()).then_some(field));
        columns.iter_mut().zip(fields).for_each(|(column, field)| column.push(field));
    }
    let columns: Vec<ArrayRef> = header.iter().zip(columns).map(|(name, fields)| column(name, fields)).collect();
    let fields = header.iter().zip(&columns).map(|(name, column)| Field::new(name, column.data_type().clone(), true));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    Ok(Some(RecordBatch::try_new(Arc::new(schema), columns).context("its columns differ in length")?))
}

/// Numbers where all fields are numbers, else text.
fn column(name: &str, fields: Vec<Option<String>>) -> ArrayRef {
    fn all<T: std::str::FromStr>(fields: &[Option<String>]) -> Option<Vec<Option<T>>> {
        fields.iter().map(|field| field.as_ref().map(|f| f.trim().parse()).transpose().ok()).collect()
    }
    let numbers = !TEXTS.contains(&name) && fields.iter().any(Option::is_some);
    if let Some(whole) = numbers.then(|| all::<u64>(&fields)).flatten() {
        return Arc::new(UInt64Array::from(whole));
    }
    if let Some(whole) = numbers.then(|| all::<i64>(&fields)).flatten() {
        return Arc::new(Int64Array::from(whole));
    }
    match numbers.then(|| all::<f64>(&fields)).flatten() {
        Some(numbers) => Arc::new(Float64Array::from(numbers)),
        None => Arc::new(StringArray::from(fields)),
    }
}
