//! Adapters of diffusers, PEFT and kohya's scripts that a model draws with: added to the weights of its networks as they are read.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use serde_json::Value;

use super::adapter::Adapter;
use super::file::PEFT_KEY;
use super::kohya::{self, Naming};
use crate::denoiser::Config;
use crate::weights::{self, Weights};

/// The tensors of one module in a file.
#[derive(Default)]
struct Piece {
    /// (rank, in), or (rank, in, k, k) of a convolution.
    a: Option<Tensor>,
    /// (out, rank), or (out, rank, 1, 1).
    b: Option<Tensor>,
    alpha: Option<f64>,
    /// Whether alpha is divided by the root of the rank (rsLoRA).
    by_root: bool,
}

/// The ends of the tensors' names, and what they are: PEFT's, diffusers' older ones, kohya's.
const ENDS: [(&str, char); 9] = [
    (".lora_A.weight", 'a'),
    (".lora_B.weight", 'b'),
    (".lora.down.weight", 'a'),
    (".lora.up.weight", 'b'),
    ("_lora.down.weight", 'a'),
    ("_lora.up.weight", 'b'),
    (".lora_down.weight", 'a'),
    (".lora_up.weight", 'b'),
    (".alpha", '*'),
];

/// From now on the denoiser in the folder `denoiser`, and the text encoders of the model folder `base`, have the adapters of
/// `file` in their weights: W + scale (alpha / rank) B A. Fails where the file is damaged, is of another kind, or adapts a module
/// that the model does not have.
pub fn add(file: &Path, scale: f64, base: &Path, denoiser: &Path) -> Result<()> {
    let name = file.display();
    let config = Config::read(denoiser)?;
    let mut networks = vec![(config.part, denoiser.to_owned())];
    networks.extend(["text_encoder", "text_encoder_2"].map(|part| (part, base.join(part))));
    networks.retain(|(_, folder)| folder.is_dir());
    let known = modules_by_key(&networks, config.kohya_naming())?;

    let mut adapted: BTreeMap<usize, BTreeMap<String, Arc<Adapter>>> = BTreeMap::new();
    for (key, piece) in pieces(file)? {
        // diffusers' older files call `to_out.0` `to_out`.
        let Some((network, module)) = known.get(&key).or_else(|| known.get(&format!("{key}.0"))) else {
            bail!(
                "{name} adapts '{key}', which {} does not have: it was made for another kind of model",
                base.display()
            )
        };
        let (Some(a), Some(b)) = (piece.a, piece.b) else {
            bail!("{name} holds only a part of the adapter of '{key}'")
        };
        let rank = a.dim(0)?;
        ensure!(
            rank > 0 && b.dims().get(1) == Some(&rank),
            "{name}: the adapter of '{key}' has the shapes {:?} and {:?}, which do not fit each other",
            a.dims(),
            b.dims()
        );
        let over = if piece.by_root { (rank as f64).sqrt() } else { rank as f64 };
        let scale = scale * piece.alpha.unwrap_or(rank as f64) / over;
        let adapter = Arc::new(Adapter { a, b, scale });
        let other = adapted.entry(*network).or_default().insert(format!("{module}.weight"), adapter.clone());
        // Some files hold SDXL's adapters under both of kohya's names.
        ensure!(
            other.map_or(Ok(true), |other| other.equals(&adapter))?,
            "{name} holds two different adapters of '{module}', one as '{key}'"
        );
    }
    ensure!(!adapted.is_empty(), "{name} holds no adapters (LoRA)");
    for (network, adapters) in adapted {
        weights::adapt(networks[network].1.clone(), adapters, name.to_string());
    }
    Ok(())
}

/// The network and the module that each name in a file may mean.
fn modules_by_key(networks: &[(&str, PathBuf)], naming: Option<Naming>) -> Result<HashMap<String, (usize, String)>> {
    let mut known = HashMap::new();
    for (i, (part, folder)) in networks.iter().enumerate() {
        let prefixes: &[&str] = match *part {
            "text_encoder" => &["lora_te", "lora_te1"],
            "text_encoder_2" => &["lora_te2"],
            "unet" => &["lora_unet"],
            _ => &["lora_transformer", "lora_unet"],
        };
        for name in Weights::open(folder)?.names() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            // transformers 5 leaves `text_model.` out of a text encoder's names.
            let mut names = vec![module.to_owned()];
            if part.starts_with("text_encoder") {
                names.push(
                    module.strip_prefix("text_model.").map_or_else(|| format!("text_model.{module}"), str::to_owned),
                );
            }
            let mut keys: Vec<_> = names.iter().map(|name| format!("{part}.{name}")).collect();
            let flat = |prefix: &&str| {
                names.iter().map(|name| format!("{prefix}_{}", name.replace('.', "_"))).collect::<Vec<_>>()
            };
            keys.extend(prefixes.iter().flat_map(flat));
            keys.extend(naming.filter(|_| *part == "unet").map(|naming| kohya::name(module, naming)));
            known.extend(keys.into_iter().map(|key| (key, (i, module.to_owned()))));
        }
    }
    Ok(known)
}

/// The file's content by module, under the file's own names.
fn pieces(file: &Path) -> Result<BTreeMap<String, Piece>> {
    let weights = Weights::open(file)?;
    let settings = Settings::of(file)?;
    let mut pieces: BTreeMap<String, Piece> = BTreeMap::new();
    for name in weights.names() {
        let Some((key, kind)) = ENDS.iter().find_map(|(end, kind)| Some((name.strip_suffix(end)?, *kind))) else {
            bail!(
                "{}: tensor '{name}' is not of a LoRA as PEFT, diffusers and kohya's scripts write it; other kinds (LoHa, LoKr, DoRA) \
                 are not read",
                file.display()
            )
        };
        let key = key.replace(".processor.", "."); // in diffusers' older files
        let tensor = weights.floats(&name)?.to_dtype(DType::F32)?;
        ensure!(
            kind == '*' || tensor.rank() >= 2,
            "{}: '{name}' has shape {:?}, expected a matrix",
            file.display(),
            tensor.dims()
        );
        let part = key.split('.').next().unwrap_or_default().to_owned();
        let piece = pieces.entry(key).or_default();
        let twice = match kind {
            'a' => piece.a.replace(tensor).is_some(),
            'b' => piece.b.replace(tensor).is_some(),
            _ => {
                let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                piece.alpha = Some(f64::from(*values.first().with_context(|| format!("{name} is empty"))?));
                false
            }
        };
        ensure!(!twice, "{}: it holds two adapters of one module, one as '{name}'", file.display());
        piece.alpha = piece.alpha.or_else(|| settings.alphas.get(&part).copied());
        piece.by_root = settings.by_root.contains(&part);
    }
    Ok(pieces)
}

/// The settings of each network in diffusers' metadata.
#[derive(Default)]
struct Settings {
    alphas: HashMap<String, f64>,
    by_root: HashSet<String>,
}

impl Settings {
    fn of(file: &Path) -> Result<Self> {
        let metadata = weights::metadata(file).unwrap_or_default(); // a pickle has none
        let Some(text) = metadata.get(PEFT_KEY) else { return Ok(Self::default()) };
        let name = file.display();
        let all: BTreeMap<String, Value> = serde_json::from_str(text)
            .with_context(|| format!("{name}: the metadata key {PEFT_KEY} is not a JSON object"))?;
        let mut settings = Self::default();
        for (key, value) in &all {
            let Some((part, what)) = key.split_once('.') else { continue };
            match what {
                "lora_alpha" => {
                    let alpha = value
                        .as_f64()
                        .with_context(|| format!("{name}: its metadata has the {key} {value}, expected a number"))?;
                    settings.alphas.insert(part.to_owned(), alpha);
                }
                "use_rslora" if value == true => drop(settings.by_root.insert(part.to_owned())),
                "use_dora" if value == true => bail!("{name}: its adapters are DoRA's, which are not read"),
                "rank_pattern" | "alpha_pattern" if value.as_object().is_some_and(|all| !all.is_empty()) => {
                    bail!(
                        "{name}: its metadata has a {key}, which is not read: save the adapters with one rank and alpha"
                    )
                }
                _ => {}
            }
        }
        Ok(settings)
    }
}
