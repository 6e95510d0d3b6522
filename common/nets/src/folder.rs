//! Which files lie where in the folders of published models and of checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use crate::json;

pub const DIFFUSERS_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// The file of LoRA adapters that diffusers' `load_lora_weights` looks for.
pub const ADAPTERS: &str = "pytorch_lora_weights.safetensors";

/// File names that hold a network's weights, in order of preference.
pub(crate) const WEIGHTS: [&str; 13] = [
    DIFFUSERS_WEIGHTS,
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "model.fp16.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "HPS_v2.1_compressed.pt",
    "HPS_v2_compressed.pt",
    "ImageReward.pt",
    "CycleReward-Combo.pth",
    "CycleReward-T2I.pth",
];

/// The folder in which a model's configuration lies: `path`, or the folder of the weight file `path`.
pub(crate) fn of(path: &Path) -> PathBuf {
    if path.is_dir() { path.to_owned() } else { path.parent().unwrap_or(Path::new("")).to_owned() }
}

/// The weight files that `path` means: itself, the files that it lists if it is an index, or the first of the usual
/// names that the folder holds, whole or in shards.
pub(crate) fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return if path.extension().is_some_and(|e| e == "json") { shards(path) } else { Ok(vec![path.to_owned()]) };
    }
    ensure!(path.is_dir(), "{} does not exist; expected a model's folder or weight file", path.display());
    for name in WEIGHTS {
        let file = path.join(name);
        if file.is_file() {
            return Ok(vec![file]);
        }
        if let Some(index) = indices(name).map(|index| path.join(index)).into_iter().find(|index| index.is_file()) {
            return shards(&index);
        }
    }
    bail!("{} holds no weights (looked for {} and the like)", path.display(), WEIGHTS[..4].join(", "))
}

/// The names that the index of the weights `name` may have, where they lie in several files.
pub(crate) fn indices(name: &str) -> [String; 2] {
    [format!("{name}.index.json"), format!("{name}.index.fp16.json")]
}

fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let listed: Index = json::read(index)?;
    let mut files: Vec<_> = listed.weight_map.values().map(|file| index.with_file_name(file)).collect();
    files.sort();
    files.dedup();
    for file in &files {
        ensure!(file.is_file(), "{} lists {}, which is missing", index.display(), file.display());
    }
    Ok(files)
}

pub const DENOISER: &str = "unet";

/// The denoiser's own folder, given a checkpoint folder, a model folder, or that folder itself.
pub fn denoiser(path: &Path) -> Result<PathBuf> {
    for folder in [path.join(DENOISER), path.to_owned()] {
        if folder.join("config.json").is_file() {
            return Ok(folder);
        }
    }
    ensure!(
        path.exists(),
        "{} does not exist; expected a checkpoint folder with {DENOISER}/config.json",
        path.display()
    );
    ensure!(
        adapters(path).is_none(),
        "{} holds adapters but not a whole UNet; `train` can also write one with the adapters merged",
        path.display()
    );
    bail!("{} holds no {DENOISER}/config.json, so it is not a checkpoint folder", path.display())
}

/// The file of adapters in a checkpoint folder, in its `lora/`, or `path` itself, if there is one.
pub fn adapters(path: &Path) -> Option<PathBuf> {
    let is_adapters = |p: &PathBuf| p.is_file() && p.file_name().is_some_and(|name| name == ADAPTERS);
    [path.join("lora").join(ADAPTERS), path.join(ADAPTERS), path.to_owned()].into_iter().find(is_adapters)
}
