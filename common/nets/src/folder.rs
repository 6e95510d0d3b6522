//! Which files lie where in the folders of published models and of checkpoints.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::{config, json};

pub const DIFFUSERS_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// The file of LoRA adapters that diffusers' `load_lora_weights` looks for.
pub const ADAPTERS: &str = "pytorch_lora_weights.safetensors";

/// How files of weights are called, in order of preference.
const STEMS: [[&str; 2]; 11] = [
    ["diffusion_pytorch_model", "safetensors"],
    ["model", "safetensors"],
    ["open_clip_model", "safetensors"],
    ["open_clip_pytorch_model", "bin"],
    ["diffusion_pytorch_model", "bin"],
    ["pytorch_model", "bin"],
    ["HPS_v2.1_compressed", "pt"],
    ["HPS_v2_compressed", "pt"],
    ["ImageReward", "pt"],
    ["CycleReward-Combo", "pth"],
    ["CycleReward-T2I", "pth"],
];

/// diffusers' variants, the most exact numbers first.
const VARIANTS: [&str; 4] = ["", ".fp32", ".fp16", ".bf16"];

/// The folder in which a model's configuration lies: `path`, or the folder of the weight file `path`.
pub(crate) fn of(path: &Path) -> PathBuf {
    if path.is_dir() { path.to_owned() } else { path.parent().unwrap_or(Path::new("")).to_owned() }
}

/// One way to call the weights of a network.
pub(crate) struct Naming {
    stem: &'static str,
    variant: &'static str,
    kind: &'static str,
}

impl Naming {
    /// All of them, in order of preference.
    pub fn all() -> impl Iterator<Item = Self> {
        STEMS.iter().flat_map(|&[stem, kind]| VARIANTS.iter().map(move |&variant| Self { stem, variant, kind }))
    }

    /// The whole weights, as `model.fp16.safetensors`.
    pub fn whole(&self) -> String {
        format!("{}{}.{}", self.stem, self.variant, self.kind)
    }

    /// The list of the shards, as `model.safetensors.index.fp16.json`.
    pub fn index(&self) -> String {
        format!("{}.{}.index{}.json", self.stem, self.kind, self.variant)
    }

    /// Whether `name` is a shard, as `model.fp16-00001-of-00002.safetensors` or `model-00001-of-00002.fp16.safetensors`.
    pub fn is_shard(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.stem).and_then(|rest| rest.strip_suffix(self.kind));
        rest.is_some_and(|rest| {
            let varies = VARIANTS[1..]
                .iter()
                .find(|variant| rest.contains(&format!("{variant}-")) || rest.contains(&format!("{variant}.")));
            rest.contains("-of-") && varies.copied().unwrap_or_default() == self.variant
        })
    }
}

/// The weight files that `path` means: itself, the files that it lists if it is an index, or the first of the usual
/// names that the folder holds, whole or in shards.
pub(crate) fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return if path.extension().is_some_and(|e| e == "json") { shards(path) } else { Ok(vec![path.to_owned()]) };
    }
    ensure!(path.is_dir(), "{} does not exist; expected a model's folder or weight file", path.display());
    for naming in Naming::all() {
        let (file, index) = (path.join(naming.whole()), path.join(naming.index()));
        if file.is_file() {
            return Ok(vec![file]);
        }
        if index.is_file() {
            return shards(&index);
        }
        if let Ok(target) = file.read_link() {
            bail!("{} is a link to {}, which is missing: fetch the model again", file.display(), target.display());
        }
    }
    let cannot = || format!("cannot read {}", path.display());
    let mut others = vec![];
    for entry in path.read_dir().with_context(cannot)? {
        let name = entry.with_context(cannot)?.file_name().to_string_lossy().into_owned();
        if ["safetensors", "bin", "pt", "pth", "ckpt", "msgpack", "h5", "onnx", "gguf"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            others.push(name);
        }
    }
    others.sort();
    let [first, ..] = &others[..] else {
        bail!("{} holds no weights: {DIFFUSERS_WEIGHTS}, model.safetensors or the like", path.display())
    };
    bail!(
        "{} holds no weights under a name that is known ({DIFFUSERS_WEIGHTS}, model.safetensors and the like, with .fp16 or .bf16 before \
         the ending); it holds {first}",
        path.display()
    )
}

/// The files that an index lists, which lie in its folder.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let listed: Index = json::read(index)?;
    let mut names: Vec<String> = listed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    ensure!(!names.is_empty(), "{} lists no file", index.display());
    for name in &names {
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(inside && !name.is_empty(), "{} lists {name:?}, which does not lie in its folder", index.display());
        let file = index.with_file_name(name);
        ensure!(file.is_file(), "{} lists {}, which is missing", index.display(), file.display());
    }
    Ok(names.iter().map(|name| index.with_file_name(name)).collect())
}

pub const DENOISER: &str = "unet";

/// The denoiser of Stable Diffusion 3 and FLUX.
pub const TRANSFORMER: &str = "transformer";

/// The name of the denoiser's own folder in a model folder.
pub const DENOISERS: [&str; 2] = [DENOISER, TRANSFORMER];

/// The class of a model folder's transformer, if it has one.
pub fn transformer_class(base: &Path) -> Result<Option<String>> {
    let file = base.join(TRANSFORMER).join("config.json");
    if file.is_file() { config::class(&file) } else { Ok(None) }
}

/// The denoiser's own folder, given a checkpoint folder, a model folder, that folder itself, or its weight file.
pub fn denoiser(path: &Path) -> Result<PathBuf> {
    let beside = path
        .parent()
        .filter(|folder| path.is_file() && weight_files(folder).is_ok_and(|files| files.contains(&path.to_owned())));
    let inside = DENOISERS.map(|part| Some(path.join(part)));
    for folder in inside.into_iter().chain([Some(path.to_owned()), beside.map(Path::to_owned)]).flatten() {
        if folder.join("config.json").is_file() {
            return Ok(folder);
        }
    }
    ensure!(
        path.exists(),
        "{} does not exist; expected a checkpoint folder with {DENOISER}/config.json or {TRANSFORMER}/config.json",
        path.display()
    );
    ensure!(
        adapters(path).is_none(),
        "{} holds adapters but not a whole denoiser: `sample` draws with adapters too, and `train` can write one with the adapters merged",
        path.display()
    );
    model(path)?;
    bail!(
        "{} holds no {DENOISER}/config.json and no {TRANSFORMER}/config.json, so it is not a checkpoint folder",
        path.display()
    )
}

/// Refuses a file: that of a whole model has become a folder before ([`crate::single::folder`]).
pub fn model(path: &Path) -> Result<()> {
    ensure!(
        !path.is_file(),
        "{} is not a model in one file: it lacks Stable Diffusion's UNet under its original tensor names ({}...); for weights \
         saved by diffusers, name the folder with their config.json",
        path.display(),
        crate::names::UNET
    );
    Ok(())
}

/// The file of adapters in a checkpoint folder, in its `lora/`, or `path` itself, if there is one.
pub fn adapters(path: &Path) -> Option<PathBuf> {
    let is_adapters = |p: &PathBuf| p.is_file() && p.file_name().is_some_and(|name| name == ADAPTERS);
    [path.join("lora").join(ADAPTERS), path.join(ADAPTERS), path.to_owned()].into_iter().find(is_adapters)
}
