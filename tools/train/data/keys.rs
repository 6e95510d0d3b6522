//! What names a pair, and what the labels say of it.

use std::{collections::HashMap, path::Path};

use anyhow::{Result, ensure};
use arrow::array::{Array, StringArray};
use pipe::{
    column::Rows,
    id,
    schema::{labels, pairs},
    table::{BATCH, Inputs},
};

/// The columns that name a pair.
pub struct Keys {
    pub captions: StringArray,
    pub uids: [StringArray; 2],
    ranking: StringArray,
    pair_id: Option<StringArray>,
}

impl Keys {
    pub const COLUMNS: [&str; 5] = [pairs::CAPTION, pairs::UID[0], pairs::UID[1], pairs::RANKING_ID, labels::PAIR_ID];

    pub fn read(rows: &Rows) -> Result<Self> {
        Ok(Self {
            captions: rows.text(pairs::CAPTION)?,
            uids: [rows.text(pairs::UID[0])?, rows.text(pairs::UID[1])?],
            ranking: rows.text_if_there(pairs::RANKING_ID)?,
            pair_id: if rows.has(labels::PAIR_ID) { Some(rows.text(labels::PAIR_ID)?) } else { None },
        })
    }

    pub fn pair_id(&self, i: usize) -> String {
        match &self.pair_id {
            Some(ids) => ids.value(i).to_owned(),
            None => {
                let ranking = if self.ranking.is_valid(i) { self.ranking.value(i) } else { "" };
                id::pair_id(self.captions.value(i), self.uids[0].value(i), self.uids[1].value(i), ranking)
            }
        }
    }

    /// A name that does not depend on which image stands first, so that swapping images and label changes no draw.
    pub fn unordered_id(&self, i: usize) -> String {
        let mut uids = [self.uids[0].value(i), self.uids[1].value(i)];
        uids.sort_unstable();
        id::pair_id(self.captions.value(i), uids[0], uids[1], "")
    }
}

/// target and weight by pair_id.
pub struct Votes(HashMap<[u8; 16], (f32, f32)>);

impl Votes {
    pub fn read(path: &Path) -> Result<Self> {
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        let needed = [labels::PAIR_ID, labels::TARGET, labels::WEIGHT];
        inputs.require(&needed, "--labels takes what `vote` writes")?;
        let mut all = HashMap::new();
        for rows in inputs.read(Some(&needed), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let (ids, targets, weights) = (rows.text(needed[0])?, rows.f32(needed[1])?, rows.f32(needed[2])?);
            for i in 0..rows.len() {
                let vote = (targets.value(i), weights.value(i));
                let sound = (0.0..=1.0).contains(&vote.0) && vote.1 >= 0.0 && vote.1.is_finite();
                ensure!(sound, "{}: target {} and weight {} are no label", rows.at(i), vote.0, vote.1);
                if let Some(before) = all.insert(key(ids.value(i)), vote) {
                    ensure!(before == vote, "{}: pair {} has two different labels", rows.at(i), ids.value(i));
                }
            }
        }
        Ok(Self(all))
    }

    pub fn of(&self, pair_id: &str) -> Option<(f32, f32)> {
        self.0.get(&key(pair_id)).copied()
    }
}

/// What is remembered of a name or a text.
pub fn key(text: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&id::sha256(text.as_bytes())[..16]);
    key
}
