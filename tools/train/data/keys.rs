//! The names of pairs, and their labels.

use std::collections::HashMap;

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

/// Target and weight of every labelled pair, by pair_id.
pub struct Votes {
    by_pair: HashMap<[u8; 16], (f32, f32)>,
    /// SHA-256 over the rows in their order.
    pub hash: String,
}

impl Votes {
    /// Reads a labels table once, so that it may come from a pipe.
    ///
    /// # Errors
    /// A table that is not a labels table; a target or weight out of range; two labels for one pair.
    pub fn read(table: &mut Inputs) -> Result<Self> {
        let needed = [labels::PAIR_ID, labels::TARGET, labels::WEIGHT];
        table.require(&needed, "--labels takes what `vote` writes")?;
        let (mut by_pair, mut hash) = (HashMap::new(), [0; 32]);
        for rows in table.read(Some(&needed), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let (ids, targets, weights) = (rows.text(needed[0])?, rows.f32(needed[1])?, rows.f32(needed[2])?);
            for i in 0..rows.len() {
                let (pair, vote) = (key(ids.value(i)), (targets.value(i), weights.value(i)));
                let valid = (0.0..=1.0).contains(&vote.0) && vote.1 >= 0.0 && vote.1.is_finite();
                ensure!(valid, "{}: target {} with weight {} is not a label", rows.at(i), vote.0, vote.1);
                if let Some(before) = by_pair.insert(pair, vote) {
                    ensure!(before == vote, "{}: pair {} has two different labels", rows.at(i), ids.value(i));
                }
                hash = id::sha256(&[&hash[..], &pair, &vote.0.to_le_bytes(), &vote.1.to_le_bytes()].concat());
            }
        }
        Ok(Self { by_pair, hash: id::hex(&hash) })
    }

    pub fn of(&self, pair_id: &str) -> Option<(f32, f32)> {
        self.by_pair.get(&key(pair_id)).copied()
    }
}

/// The 16 bytes that are remembered of a name or a text.
pub fn key(text: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&id::sha256(text.as_bytes())[..16]);
    key
}
