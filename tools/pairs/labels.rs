//! Labels that `vote` made, by the pairs that they are of.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, ensure};
use pipe::id;
use pipe::schema::labels;
use pipe::table::{self, Inputs};

use crate::pair::Pair;

/// Target and weight of each pair that is decided.
pub struct Labels(HashMap<id::Key, (f32, f32)>);

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
            for i in 0..rows.len() {
                let label = (all.value(i), weights.value(i));
                let valid = (0.0..=1.0).contains(&label.0) && label.1 >= 0.0 && label.1.is_finite();
                ensure!(valid, "{}: target {} with weight {} is not a label", rows.at(i), label.0, label.1);
                if let Some(before) = targets.insert(id::key(&[ids.value(i).as_bytes()]), label) {
                    ensure!(before == label, "{}: pair {} has two different labels", rows.at(i), ids.value(i));
                }
            }
        }
        targets.retain(|_, (_, weight)| *weight > 0.0);
        Ok(Self(targets))
    }

    /// The pair with its label, if there is one.
    pub fn apply(&self, pair: Pair) -> Option<Pair> {
        let ranking = pair.ranking.as_deref().unwrap_or_default();
        let id = id::pair_id(&pair.caption, &pair.uid(0), &pair.uid(1), ranking);
        let (label, _) = self.0.get(&id::key(&[id.as_bytes()]))?;
        Some(Pair { label: Some(*label), ..pair })
    }
}
