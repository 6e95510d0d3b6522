//! JSON files: the configurations of models and the indices of their weights.

use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

/// Reads a JSON file into `T`. Unknown keys are ignored; missing keys take `T`'s defaults.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} does not hold what is expected", path.display()))
}
