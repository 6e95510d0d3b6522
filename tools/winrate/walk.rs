//! Goes over the prompts of several tables at once.

use std::collections::HashMap;

use anyhow::{Result, bail};
use pipe::id::Key;

use crate::prompt::Prompt;
use crate::scored::{Found, Reading};

/// Called with one prompt of all tables.
pub type Each<'a> = &'a mut dyn FnMut(&[&Prompt]) -> Result<()>;

/// Goes side by side over tables that have the same prompts in the same order, each prompt's images together, as `sample` and
/// `score` write them. Of a counted prompt only 8 bytes are kept, which tell whether it comes twice. Returns false otherwise;
/// [`joined`] then reports the reason.
pub fn side_by_side(tables: &mut [Reading], each: Each) -> Result<bool> {
    let (mut first, mut seen) = (None, vec![]);
    loop {
        let found = tables.iter_mut().map(Reading::next).collect::<Result<Vec<_>>>()?;
        if found.iter().all(Option::is_none) {
            seen.sort_unstable();
            return Ok(seen.windows(2).all(|w| w[0] != w[1]));
        }
        let Some(found) = found.into_iter().collect::<Option<Vec<Found>>>() else { return Ok(false) };
        let key = found[0].key;
        // Prompts that begin again, such as those of a table whose images are sorted by k.
        let again = *first.get_or_insert(key) == key && !seen.is_empty();
        if again || found.iter().any(|found| found.key != key) {
            return Ok(false);
        }
        seen.push(u64::from_le_bytes(key[..8].try_into()?));
        let prompts =
            found.into_iter().zip(&*tables).map(|(found, table)| table.close(found)).collect::<Result<Vec<_>>>();
        let Ok(prompts) = prompts else { return Ok(false) };
        for (prompt, table) in prompts.iter().zip(&*tables).skip(1) {
            prompts[0].refuse_other_text(&tables[0].table, prompt, &table.table)?;
        }
        each(&prompts.iter().collect::<Vec<_>>())?;
    }
}

/// A table that is held as a whole.
struct Whole {
    table: String,
    prompts: Vec<Prompt>,
    /// The place of every prompt.
    index: HashMap<Key, u32>,
}

/// The same for tables in any order, which need memory in proportion to their prompts. All must have the same prompts; the first
/// says in which order they count.
pub fn joined(tables: Vec<Reading>, each: Each) -> Result<()> {
    let tables = tables.into_iter().map(Whole::read).collect::<Result<Vec<_>>>()?;
    let first = &tables[0];
    for other in &tables[1..] {
        first.refuse_more_than(other)?;
        other.refuse_more_than(first)?;
        for (prompt, theirs) in first.prompts.iter().filter_map(|prompt| Some((prompt, other.get(prompt)?))) {
            prompt.refuse_other_text(&first.table, theirs, &other.table)?;
        }
    }
    for prompt in &first.prompts {
        each(&tables.iter().filter_map(|table| table.get(prompt)).collect::<Vec<_>>())?;
    }
    Ok(())
}

impl Whole {
    fn read(mut reading: Reading) -> Result<Self> {
        let (mut all, mut index): (Vec<Found>, _) = (vec![], HashMap::new());
        while let Some(found) = reading.next()? {
            match index.get(&found.key) {
                Some(&place) => all[place as usize].append(found, &reading.table)?,
                None => {
                    index.insert(found.key, all.len() as u32);
                    all.push(found);
                }
            }
        }
        let mut prompts = Vec::with_capacity(all.len());
        for found in all {
            prompts.push(reading.close(found)?);
        }
        Ok(Self { table: reading.table, prompts, index })
    }

    fn get(&self, prompt: &Prompt) -> Option<&Prompt> {
        self.index.get(&prompt.key).map(|&place| &self.prompts[place as usize])
    }

    fn refuse_more_than(&self, other: &Self) -> Result<()> {
        let Some(prompt) = self.prompts.iter().find(|prompt| other.get(prompt).is_none()) else { return Ok(()) };
        bail!(
            "prompt {} is in {} but not in {}; a win rate needs the same prompts: sample both models from one prompts table",
            prompt.name(),
            self.table,
            other.table
        )
    }
}
