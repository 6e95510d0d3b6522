//! The names of prompts' images. A table made by other programs needs only prompts and images: the rest follows from them.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use arrow::array::{Array, ArrayRef, StringArray, UInt32Array, UInt64Array};

use crate::schema::{images, prompts};
use crate::{column::Rows, id};

/// The columns that an images table must have.
pub const NEEDED: [&str; 2] = [prompts::PROMPT, images::IMAGE];

/// The columns that name an image, beside `NEEDED`.
pub const COLUMNS: [&str; 8] = [
    prompts::PROMPT_ID,
    prompts::SET,
    prompts::CATEGORY,
    prompts::CHALLENGE,
    images::IMAGE_UID,
    images::K,
    images::SEED,
    images::MODEL,
];

/// The columns of a scored table before its scores, under these `texts` of prompts. What the table does not have is made up: `prompt_id` and
/// `image_uid` from the content, k as the number of the row, a seed of 0, and the table's file name as the model's.
pub fn of(rows: &Rows, texts: StringArray) -> Result<Vec<ArrayRef>> {
    let n = rows.len();
    let ids = match rows.has(prompts::PROMPT_ID) {
        true => rows.text(prompts::PROMPT_ID)?,
        false => StringArray::from_iter_values((0..n).map(|i| id::prompt_id(texts.value(i)))),
    };
    let k = match rows.has(images::K) {
        true => rows.u64(images::K)?,
        false => UInt64Array::from_iter_values((rows.first..rows.first + n).map(|row| row as u64)),
    };
    let k = k.values().iter().map(|&k| u32::try_from(k)).collect::<Result<Vec<_>, _>>();
    let k = k.with_context(|| format!("{}: column '{}' holds a number above 2^32", rows.table, images::K))?;
    let seeds = match rows.has(images::SEED) {
        true => rows.u64(images::SEED)?,
        false => UInt64Array::from(vec![0; n]),
    };
    let models = match rows.has(images::MODEL) {
        true => rows.text(images::MODEL)?,
        false => {
            let stem = Path::new(&*rows.table).file_stem().map_or_else(|| "-".into(), |stem| stem.to_string_lossy());
            StringArray::from_iter_values(std::iter::repeat_n(stem, n))
        }
    };
    Ok(vec![
        Arc::new(ids),
        Arc::new(texts),
        Arc::new(rows.text_if_there(prompts::SET)?),
        Arc::new(rows.text_if_there(prompts::CATEGORY)?),
        Arc::new(rows.text_if_there(prompts::CHALLENGE)?),
        Arc::new(uids(rows, images::IMAGE_UID, images::IMAGE)?),
        Arc::new(UInt32Array::from(k)),
        Arc::new(seeds),
        Arc::new(models),
    ])
}

/// The uids of images: the column `uid`, and where the table has none, the beginning of the hash of the bytes in `image` (of no byte
/// where these are null).
pub fn uids(rows: &Rows, uid: &str, image: &str) -> Result<StringArray> {
    if rows.has(uid) || !rows.has(image) {
        return rows.text(uid);
    }
    let images = rows.bytes(image)?;
    let bytes = |i| if images.is_valid(i) { images.value(i) } else { &[] };
    Ok(StringArray::from_iter_values((0..rows.len()).map(|i| id::image_uid(bytes(i)))))
}
