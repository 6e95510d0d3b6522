//! What one model drew: which prompts there are, and the picture of one of them, without holding the others.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, ensure};
use arrow::array::Array;
use nets::image::{self, Rgb};
use pipe::{
    schema::{images, prompts},
    table::{BATCH, Inputs},
    take::Taker,
};

/// The same text in two sets is two prompts.
pub type Key = (Option<String>, String);

pub struct Drawn {
    /// The table, as it was named.
    pub table: String,
    pub model: String,
    /// Key and text, in the table's order.
    pub prompts: Vec<(Key, String)>,
    /// Row of each prompt's k-th picture, and the seed of its noise.
    rows: HashMap<Key, (usize, Option<u64>)>,
    taker: Taker,
}

impl Drawn {
    /// Reads which prompts a table of one model's images has, and where the k-th image of each lies.
    ///
    /// # Errors
    /// No images table; two models in it; a prompt without a k-th image.
    pub fn open(path: &Path, k: u64) -> Result<Self> {
        let table = path.display().to_string();
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        let needed = [prompts::PROMPT_ID, prompts::PROMPT, images::K, images::MODEL, images::IMAGE];
        inputs.require(&needed, "`report --images` reads what `sample` writes")?;
        let taker = Taker::open(&inputs)?;
        let columns = [prompts::PROMPT_ID, prompts::PROMPT, prompts::SET, images::K, images::MODEL, images::SEED];
        let (mut order, mut rows_of, mut model, mut row) = (vec![], HashMap::<Key, _>::new(), String::new(), 0);
        for rows in inputs.read(Some(&columns), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let (ids, texts, models) =
                (rows.text(prompts::PROMPT_ID)?, rows.text(prompts::PROMPT)?, rows.text(images::MODEL)?);
            let (sets, ks) = (rows.text_if_there(prompts::SET)?, rows.u64(images::K)?);
            let seeds = if rows.has(images::SEED) { Some(rows.u64(images::SEED)?) } else { None };
            for i in 0..rows.len() {
                if model.is_empty() {
                    model = models.value(i).to_owned();
                }
                ensure!(
                    model == models.value(i),
                    "{}: model '{}', but the table began with '{model}'; a column of the sheet is one model",
                    rows.at(i),
                    models.value(i),
                );
                let key = (sets.is_valid(i).then(|| sets.value(i).to_owned()), ids.value(i).to_owned());
                let found = rows_of.entry(key.clone()).or_insert_with(|| {
                    order.push((key, texts.value(i).to_owned()));
                    None
                });
                if ks.value(i) == k {
                    *found = Some((row, seeds.as_ref().map(|s| s.value(i))));
                }
                row += 1;
            }
        }
        let text_of: HashMap<&Key, &String> = order.iter().map(|(key, text)| (key, text)).collect();
        let mut rows = HashMap::new();
        for (key, found) in rows_of {
            let missing = || format!("{table}: prompt {} has no image k = {k}", name(&key, text_of[&key]));
            rows.insert(key.clone(), found.with_context(missing)?);
        }
        Ok(Self { table, model, prompts: order, rows, taker })
    }

    pub fn has(&self, key: &Key) -> bool {
        self.rows.contains_key(key)
    }

    pub fn seed(&self, key: &Key) -> Option<u64> {
        self.rows.get(key)?.1
    }

    /// The k-th picture of a prompt.
    ///
    /// # Errors
    /// It is null or cannot be decoded.
    pub fn picture(&self, key: &Key) -> Result<Rgb> {
        let (row, _) = self.rows.get(key).with_context(|| format!("{}: there is no such prompt", self.table))?;
        let rows = self.taker.take(&[*row], &[images::IMAGE])?;
        let row = rows.first().with_context(|| format!("{}: there is no row {row}", self.table))?;
        let bytes = row.bytes(images::IMAGE)?;
        ensure!(bytes.is_valid(0), "{}: '{}' is null; there is no image", row.at(0), images::IMAGE);
        image::decode(bytes.value(0)).with_context(|| format!("{}, '{}'", row.at(0), images::IMAGE))
    }
}

/// For messages: the text, its beginning if it is long, and its set.
pub fn name(key: &Key, text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    match &key.0 {
        Some(set) => format!("'{short}{dots}' (set {set})"),
        None => format!("'{short}{dots}'"),
    }
}
