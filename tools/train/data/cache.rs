//! The folder that `encode` writes, as training data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nets::weights::Weights;
use pipe::{
    origin::{InputOrigin, Origin},
    table::Inputs,
};

/// The tables in the folder.
pub struct Cache<'a>(&'a Path);

impl<'a> Cache<'a> {
    /// The folder that `encode` wrote, if that is what the data are.
    pub fn find(data: &'a [PathBuf]) -> Option<Self> {
        match data {
            [one] if one.join("latents.parquet").exists() => Some(Self(one)),
            _ => None,
        }
    }

    pub fn latents(&self) -> PathBuf {
        self.0.join("latents.parquet")
    }

    pub fn captions(&self) -> PathBuf {
        self.0.join("captions.parquet")
    }

    pub fn pairs(&self) -> PathBuf {
        self.0.join("pairs.parquet")
    }
}

/// Makes sure that a cache among these inputs was made with the VAE and the text encoders of this run.
///
/// # Errors
/// It was made with others; weights that cannot be read.
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
