//! Tables of scored images, as `score` writes them: the one reader of `vote --pairs`, `winrate` and `report`.

use anyhow::{Result, ensure};
use arrow::array::{Array, Float32Array, StringArray, UInt64Array};

use crate::schema::{images, prompts};
use crate::{column::Rows, table::Inputs};

/// Set and prompt_id: the same text in two sets is two prompts.
pub type PromptKey = (Option<String>, String);

/// Some rows of a table of scored images, column by column. A column that was not asked for, or that the table does not have,
/// is null throughout.
pub struct ScoredRows {
    rows: Rows,
    pub prompt_ids: StringArray,
    pub prompts: StringArray,
    pub sets: StringArray,
    pub categories: StringArray,
    pub challenges: StringArray,
    pub uids: StringArray,
    pub ks: UInt64Array,
    pub seeds: UInt64Array,
    pub models: StringArray,
    /// One array per metric; null if the image could not be scored.
    pub scores: Vec<Float32Array>,
}

/// Reads all rows from the beginning, `batch` at a time: the columns `needed`, which the table must have without nulls, those of
/// `optional` that it has, and the scores of `metrics`.
pub fn read(
    inputs: &mut Inputs,
    needed: &'static [&'static str],
    optional: &[&str],
    metrics: &[String],
    batch: usize,
) -> Result<impl Iterator<Item = Result<ScoredRows>> + Send + use<>> {
    let names: Vec<&str> = metrics.iter().map(String::as_str).collect();
    let columns = [needed, optional, &names].concat();
    let (metrics, mut first) = (metrics.to_vec(), None);
    Ok(inputs.read(Some(&columns), 0..usize::MAX, batch)?.map(move |rows| {
        let rows = ScoredRows::of(rows?, needed, &metrics)?;
        if needed.contains(&images::MODEL) {
            rows.refuse_second_model(&mut first)?;
        }
        Ok(rows)
    }))
}

impl ScoredRows {
    fn of(rows: Rows, needed: &[&str], metrics: &[String]) -> Result<Self> {
        let text = |name: &str| if needed.contains(&name) { rows.text(name) } else { rows.text_if_there(name) };
        let whole = |name: &str| match needed.contains(&name) || rows.has(name) {
            true => rows.u64(name),
            false => Ok(UInt64Array::new_null(rows.len())),
        };
        Ok(Self {
            prompt_ids: text(prompts::PROMPT_ID)?,
            prompts: text(prompts::PROMPT)?,
            sets: text(prompts::SET)?,
            categories: text(prompts::CATEGORY)?,
            challenges: text(prompts::CHALLENGE)?,
            uids: text(images::IMAGE_UID)?,
            ks: whole(images::K)?,
            seeds: whole(images::SEED)?,
            models: text(images::MODEL)?,
            scores: metrics.iter().map(|m| rows.scores(m)).collect::<Result<_>>()?,
            rows,
        })
    }

    fn refuse_second_model(&self, first: &mut Option<String>) -> Result<()> {
        for (i, model) in self.models.iter().flatten().enumerate() {
            let first = first.get_or_insert_with(|| model.to_owned());
            ensure!(
                first == model,
                "{}: model '{model}', but the table began with '{first}'; a scored table holds the images of one model",
                self.at(i)
            );
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn at(&self, i: usize) -> String {
        self.rows.at(i)
    }

    pub fn key(&self, i: usize) -> PromptKey {
        (owned(&self.sets, i), self.prompt_ids.value(i).to_owned())
    }

    pub fn scores_of(&self, i: usize) -> impl Iterator<Item = Option<f32>> + '_ {
        self.scores.iter().map(move |m| m.is_valid(i).then(|| m.value(i)))
    }
}

/// The beginning of a prompt, for messages.
pub fn short(prompt: &str) -> String {
    let short: String = prompt.chars().take(60).collect();
    if short.len() < prompt.len() { short + "..." } else { short }
}

/// A prompt in messages: its beginning, and its set.
pub fn prompt_name(short: &str, set: Option<&str>) -> String {
    set.map_or_else(|| format!("'{short}'"), |set| format!("'{short}' (set {set})"))
}

/// The i-th text of a column; `None` if it is null.
pub fn owned(column: &StringArray, i: usize) -> Option<String> {
    column.is_valid(i).then(|| column.value(i).to_owned())
}
