//! The labels of pairs.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use pipe::id::{Key, key};
use pipe::table::{BATCH, Inputs};
use pipe::{id, schema::labels};

/// Target and weight of every labelled pair, by pair_id.
pub struct Votes {
    by_pair: HashMap<Key, (f32, f32)>,
    /// SHA-256 over the rows in their order.
    pub hash: String,
}

impl Votes {
    /// Reads a labels table once, so that it may come from a pipe.
    pub fn read(table: &mut Inputs) -> Result<Self> {
        let needed = [labels::PAIR_ID, labels::TARGET, labels::WEIGHT];
        table.require(&needed, "--labels takes what `vote` writes")?;
        let (mut by_pair, mut hash) = (HashMap::new(), [0; 32]);
        for rows in table.read(Some(&needed), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let (ids, targets, weights) = (rows.text(needed[0])?, rows.f32(needed[1])?, rows.f32(needed[2])?);
            for i in 0..rows.len() {
                let (pair, vote) = (name_key(ids.value(i)), (targets.value(i), weights.value(i)));
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
        self.by_pair.get(&name_key(pair_id)).copied()
    }
}

/// The hash that is kept of a name or a text.
pub fn name_key(text: &str) -> Key {
    key(&[text.as_bytes()])
}
