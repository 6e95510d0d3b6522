use candle_core::Tensor;
use std::{collections::BTreeMap, path::Path};
pub fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Tensor>> {
    Ok(candle_core::pickle::read_all(path)?.into_iter().collect())
}
