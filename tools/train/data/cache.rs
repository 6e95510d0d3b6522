//! The folder that `encode` writes, as training data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nets::weights::Weights;
use pipe::origin::{InputOrigin, Origin};
use pipe::table::Inputs;

pub const LATENTS: &str = "latents.parquet";
pub const CAPTIONS: &str = "captions.parquet";
pub const PAIRS: &str = "pairs.parquet";

pub fn folder(data: &[PathBuf]) -> Option<&Path> {
    match data {
        [one] if one.join(LATENTS).exists() => Some(one),
        _ => None,
    }
}

/// Makes sure that a cache among these inputs was made with the VAE and the text encoders of this run.
pub fn check_networks(inputs: &[InputOrigin], networks: &[(&'static str, PathBuf)]) -> Result<()> {
    let caches = inputs.iter().filter_map(|i| i.origin.as_deref()).filter(|o: &&Origin| o.tool == "encode");
    for cache in caches {
        for (role, folder) in networks {
            let ours = Weights::open(folder)?.hash()?;
            let same = cache.models.get(*role).is_none_or(|theirs| *theirs == ours);
            ensure!(same, "the cache was made with another {role} than {}", folder.display());
        }
    }
    Ok(())
}

/// The shape of a row, from the schema metadata of a table that `encode` wrote.
pub fn shape_of<const N: usize>(table: &Inputs, name: &str) -> Result<[usize; N]> {
    let text = table.schema().metadata().get(name);
    let dims: Option<Vec<usize>> = text.and_then(|t| serde_json::from_str(t).ok());
    dims.and_then(|d| d.try_into().ok())
        .with_context(|| format!("{}: the metadata lacks {name}; make it with `encode`", table.name()))
}
