//! Files of adapters: read as diffusers or `train` wrote them, written for diffusers and for kohya's scripts, or merged
//! into a UNet's weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use pipe::origin::{self, Origin};
use serde_json::{Value, json};

use super::adapter::{Adapter, LoraConfig, modules};
use super::kohya;
use crate::folder::{ADAPTERS, DENOISERS};
use crate::weights::{self, Weights};
use crate::{denoiser::Config, params::Params, write};

/// The same adapters as in [`ADAPTERS`], under the names of kohya's scripts.
pub const KOHYA_FILE: &str = "kohya.safetensors";

/// diffusers' metadata key for rank and alpha.
pub(super) const PEFT_KEY: &str = "lora_adapter_metadata";

pub struct Adapters {
    pub config: LoraConfig,
    /// By name: `MODULE.lora_A.weight`, `MODULE.lora_B.weight`.
    pub tensors: BTreeMap<String, Tensor>,
    pub file: PathBuf,
    /// The denoiser's folder in a model folder, which begins the names in the file.
    part: &'static str,
}

impl Adapters {
    /// Reads what diffusers or `train` wrote. Without metadata alpha is the rank, as in diffusers.
    pub fn open(file: &Path) -> Result<Self> {
        let weights = Weights::open(file)?;
        let settings: BTreeMap<String, Value> = match weights::metadata(file)?.get(PEFT_KEY) {
            Some(text) => serde_json::from_str(text)
                .with_context(|| format!("{}: the metadata key {PEFT_KEY} is not a JSON object", file.display()))?,
            None => BTreeMap::new(),
        };
        let mut tensors = BTreeMap::new();
        let (part, prefix) = DENOISERS
            .map(|part| (part, format!("{part}.")))
            .into_iter()
            .find(|(_, prefix)| weights.names().iter().any(|name| name.starts_with(prefix)))
            .with_context(|| format!("{} holds no adapters of a UNet or a transformer", file.display()))?;
        for name in weights.names() {
            if let Some(inner) = name.strip_prefix(&prefix) {
                tensors.insert(inner.to_owned(), weights.floats(&name)?.to_dtype(DType::F32)?);
            }
        }
        let modules = modules(tensors.keys());
        let first = modules.first().with_context(|| format!("{} holds no adapters of a {part}", file.display()))?;
        let rank = tensors[&Adapter::names(first)[0]].dim(0)?;
        let alpha = settings.get(&format!("{part}.lora_alpha")).and_then(|a| a.as_f64()).unwrap_or(rank as f64);
        for module in &modules {
            let [a, b] = Adapter::names(module);
            let fits = tensors[&a].dim(0)? == rank && tensors.get(&b).is_some_and(|b| b.dims().get(1) == Some(&rank));
            ensure!(fits, "{}: module '{module}' has a rank other than {rank}, or lacks its B", file.display());
        }
        let targets: Option<Vec<String>> =
            settings.get(&format!("{part}.target_modules")).and_then(|t| serde_json::from_value(t.clone()).ok());
        let config = LoraConfig { rank, alpha, targets: targets.unwrap_or(modules) };
        Ok(Self { config, tensors, file: file.to_owned(), part })
    }

    pub fn fill(&self, params: &Params) -> Result<()> {
        let name = self.file.display();
        for (module, var) in params {
            let tensor = self
                .tensors
                .get(module)
                .with_context(|| format!("{name}: tensor '{}.{module}' is missing", self.part))?;
            let fits = tensor.dims() == var.dims();
            ensure!(fits, "{name}: '{}.{module}' has shape {:?}, expected {:?}", self.part, tensor.dims(), var.dims());
            var.set(&tensor.to_device(var.device())?)?;
        }
        let other = self.tensors.keys().find(|n| !params.contains_key(*n));
        ensure!(
            other.is_none(),
            "{name} adapts '{}', which is not one of the layers to adapt",
            other.map_or("", |n| n)
        );
        Ok(())
    }
}

/// Writes a denoiser's adapters into `folder` for diffusers ([`ADAPTERS`]) and, those of a UNet, for kohya's scripts
/// ([`KOHYA_FILE`]), which have other layers in a transformer; with `spec` and `origin` in their metadata.
pub fn write(
    folder: &Path,
    config: &LoraConfig,
    denoiser: &Config,
    tensors: &BTreeMap<String, Tensor>,
    spec: &BTreeMap<String, String>,
    origin: &Origin,
) -> Result<Vec<&'static str>> {
    let mut files = vec![];
    let origin = (origin::KEY.to_owned(), origin.to_json());
    if let Some(naming) = denoiser.kohya_naming() {
        let plain = [("ss_network_alpha", config.alpha.to_string()), ("ss_network_dim", config.rank.to_string())];
        let metadata =
            plain.map(|(k, v)| (k.to_owned(), v)).into_iter().chain([origin.clone()]).chain(spec.clone()).collect();
        write::tensors(&folder.join(KOHYA_FILE), &kohya::renamed(tensors, config, naming)?, metadata)?;
        files.push(KOHYA_FILE);
    }

    let part = denoiser.part;
    let settings = json!({
        format!("{part}.lora_alpha"): config.alpha,
        format!("{part}.peft_type"): "LORA",
        format!("{part}.r"): config.rank,
        format!("{part}.target_modules"): config.targets,
    });
    let settings = (PEFT_KEY.to_owned(), settings.to_string());
    let peft = tensors.iter().map(|(name, t)| (format!("{part}.{name}"), t.clone())).collect();
    write::tensors(&folder.join(ADAPTERS), &peft, spec.clone().into_iter().chain([origin, settings]).collect())?;
    files.push(ADAPTERS);
    Ok(files)
}

/// All weights of a base in f32, with the adapters added to the layers they belong to.
pub fn merged(
    base: &Weights,
    config: &LoraConfig,
    adapters: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut all = BTreeMap::new();
    for name in base.names() {
        all.insert(name.clone(), base.floats(&name)?.to_dtype(DType::F32)?);
    }
    for module in modules(adapters.keys()) {
        let delta = Adapter::of(&module, adapters, config)?.delta()?.to_device(&Device::Cpu)?;
        let weight = all.get_mut(&format!("{module}.weight"));
        let weight = weight.with_context(|| format!("{}: tensor '{module}.weight' is missing", base.name))?;
        *weight = (&*weight + delta.reshape(weight.dims())?)?;
    }
    Ok(all)
}
