//! The conditioning of captions: from the text encoder, or from what `encode` has stored.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result};
use nets::conditioning::{Conditioning, Widths};
use nets::prompt::PromptEncoder;
use pipe::table::{BATCH, Inputs};
use pipe::{id::Key, schema::pairs, take::Taker};

use super::{cache::shape_of, images::lists, votes::name_key};

pub enum Captions {
    Encoder(Box<PromptEncoder>),
    /// Stored by `encode`: states (T, D) and in SDXL the pooled state (P), by caption.
    Cache {
        table: Taker,
        shape: [usize; 2],
        pooled: Option<usize>,
        rows: HashMap<Key, u32>,
    },
}

impl Captions {
    pub fn cached(path: &Path) -> Result<Self> {
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        let shape = shape_of(&inputs, "state_shape")?;
        let pooled = if inputs.has("pooled") { Some(shape_of::<1>(&inputs, "pooled_shape")?[0]) } else { None };
        let table = Taker::open(&inputs)?;
        let (mut rows, mut row) = (HashMap::new(), 0u32);
        for batch in inputs.read(Some(&[pairs::CAPTION]), 0..usize::MAX, BATCH)? {
            for caption in &batch?.text(pairs::CAPTION)? {
                rows.extend(caption.map(|caption| (name_key(caption), row)));
                row += 1; // the same caption may stand in several shards
            }
        }
        Ok(Self::Cache { table, shape, pooled, rows })
    }

    pub fn widths(&self) -> Widths {
        match self {
            Captions::Encoder(text) => text.widths(),
            Captions::Cache { shape: [_, states], pooled, .. } => Widths { states: *states, pooled: *pooled },
        }
    }

    pub fn conditioning(&self, captions: &[String]) -> Result<Conditioning> {
        match self {
            Captions::Encoder(text) => text.encode(captions),
            Captions::Cache { table, shape: [t, d], pooled, rows } => {
                let row = |c: &String| {
                    let row = rows.get(&name_key(c)).copied();
                    Ok(row.with_context(|| format!("the cache has no caption '{c}'; make it again with `encode`"))?
                        as usize)
                };
                let wanted = captions.iter().map(row).collect::<Result<Vec<_>>>()?;
                let found = table.take(&wanted, &["states", "pooled"])?;
                let states = lists(&found, "states")?.reshape((captions.len(), *t, *d))?;
                let pooled = match pooled {
                    Some(p) => Some(lists(&found, "pooled")?.reshape((captions.len(), *p))?),
                    None => None,
                };
                Ok(Conditioning::of_text(states, pooled))
            }
        }
    }
}
