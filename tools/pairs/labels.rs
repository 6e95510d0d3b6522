//! Labels that `vote` made, by the pairs that they are of.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, ensure};
use pipe::id;
use pipe::schema::labels;
use pipe::table::{self, Inputs};

use crate::pair::Pair;

/// The target of each pair that is decided.
pub struct Labels(HashMap<id::Key, f32>);

impl Labels {
    pub fn read(path: &Path) -> Result<Self> {
        let columns = [labels::PAIR_ID, labels::TARGET, labels::WEIGHT];
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        inputs.require(&columns, "expected a labels table, as `vote` writes it")?;
        let mut targets = HashMap::new();
        for rows in inputs.read(Some(&columns), 0..usize::MAX, table::BATCH)? {
            let rows = rows?;
            let (ids, all) = (rows.text(labels::PAIR_ID)?, rows.f32(labels::TARGET)?);
            let weights = rows.f32(labels::WEIGHT)?;
            for i in (0..rows.len()).filter(|&i| weights.value(i) > 0.0) {
                if let Some(before) = targets.insert(id::key(&[ids.value(i).as_bytes()]), all.value(i)) {
                    let same = before == all.value(i);
                    ensure!(same, "{}: pair {} has two different labels", rows.at(i), ids.value(i));
                }
            }
        }
        Ok(Self(targets))
    }

    /// The pair with its label, if there is one.
    pub fn apply(&self, pair: Pair) -> Option<Pair> {
        let ranking = pair.ranking.as_deref().unwrap_or_default();
        let id = id::pair_id(&pair.caption, &pair.uid(0), &pair.uid(1), ranking);
        let label = self.0.get(&id::key(&[id.as_bytes()]))?;
        Some(Pair { label: Some(*label), ..pair })
    }
}
