//! Writing a model in one file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use pipe::origin::{self, Origin};

use super::names::{self, UNET};
use super::{Part, network};
use crate::modelspec::ModelSpec;
use crate::text::{self, TextConfig};
use crate::transformer::HiddenAct;
use crate::weights::Weights;
use crate::{config, write};

/// Tensors by their names in the file.
type Tensors = BTreeMap<String, Tensor>;

/// Writes the model `base` with the UNet `unet` (diffusers' names) in place of its own, whose configuration is in the folder
/// `unet_config`. A base in one file keeps its other tensors as they are, except old averages of the UNet. `dtype`: of all
/// numbers, or as they are.
pub fn write(
    path: &Path,
    base: &Path,
    unet_config: &Path,
    unet: Tensors,
    dtype: Option<DType>,
    origin: &Origin,
) -> Result<()> {
    let mut all = match network(&base.join(Part::Unet.folder())) {
        Some(own) => {
            let rest = |name: &str| !name.starts_with(UNET) && !name.starts_with("model_ema.");
            let rest = Weights::of_files(vec![own.file], rest)?;
            rest.names().into_iter().map(|name| Ok((name.clone(), rest.raw(&name)?))).collect::<Result<Tensors>>()?
        }
        None => others(base)?,
    };
    add(&mut all, Part::Unet, unet_config, unet)?;
    if let Some(dtype) = dtype {
        for tensor in all.values_mut().filter(|tensor| tensor.dtype().is_float()) {
            *tensor = tensor.to_dtype(dtype)?;
        }
    }
    let title = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut metadata = ModelSpec::open(unet_config, base)?.whole(&title);
    metadata.insert(origin::KEY.to_owned(), origin.to_json());
    write::tensors(path, &all, metadata)
}

/// VAE and text encoders of a model folder.
fn others(base: &Path) -> Result<Tensors> {
    let first = base.join(Part::Clip.folder());
    let config: TextConfig = config::read(&first.join("config.json"), &[text::KEYS, config::TRANSFORMERS])?;
    let encoders = match (base.join(Part::OpenClipOfTwo.folder()).is_dir(), config.hidden_act) {
        (true, _) => &[Part::ClipOfTwo, Part::OpenClipOfTwo][..],
        (false, HiddenAct::QuickGelu) => &[Part::Clip], // OpenAI's
        (false, HiddenAct::Gelu) => &[Part::OpenClip],
    };
    let mut all = Tensors::new();
    for &part in [Part::Vae].iter().chain(encoders) {
        let folder = base.join(part.folder());
        let weights = Weights::open(&folder)?;
        let tensors = weights.names().into_iter().map(|name| Ok((name.clone(), weights.raw(&name)?)));
        add(&mut all, part, &folder, tensors.collect::<Result<_>>()?)?;
        if part == Part::OpenClip {
            add_unused(&mut all, config.num_hidden_layers, config.hidden_size)?;
        }
    }
    Ok(all)
}

/// The last layer and the projection of Stable Diffusion 2's text encoder, which are not used, and not in diffusers' folders, and
/// which other programs look for: the layer before it once more, and ones, as kohya's scripts write them.
fn add_unused(all: &mut Tensors, layers: usize, width: usize) -> Result<()> {
    let prefix = Part::OpenClip.prefix();
    let [last, unused] = [layers - 1, layers].map(|layer| format!("{prefix}transformer.resblocks.{layer}."));
    let copies: Vec<_> = all
        .iter()
        .filter_map(|(name, t)| Some((format!("{unused}{}", name.strip_prefix(&last)?), t.clone())))
        .collect();
    let dtype = copies.first().map_or(DType::F32, |(_, tensor)| tensor.dtype());
    all.extend(copies);
    all.insert(format!("{prefix}text_projection"), Tensor::ones((width, width), dtype, &Device::Cpu)?);
    Ok(())
}

/// Adds the tensors of a network, whose configuration is in `folder`, under their names in one file.
fn add(all: &mut Tensors, part: Part, folder: &Path, tensors: Tensors) -> Result<()> {
    let names = part.names(folder)?;
    let mut thirds: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
    for (ours, tensor) in tensors {
        if ours.ends_with("position_ids") {
            continue; // 0, 1, 2, ...: old files of text encoders have them
        }
        let place = || format!("{}: tensor '{ours}'", folder.display());
        let (name, form) = names
            .theirs(&usual(part, &ours))
            .with_context(|| format!("{} has no name in a model in one file", place()))?;
        let name = format!("{}{name}", part.prefix());
        let tensor = match form {
            names::Part::Whole => tensor,
            names::Part::Transposed => tensor.t().with_context(place)?.contiguous()?,
            names::Part::Pixel => {
                let [out, inner] = tensor.dims()[..2] else { bail!("{} is no matrix", place()) };
                tensor.reshape((out, inner, 1, 1)).with_context(place)?
            }
            names::Part::Third(i) => {
                thirds.entry(name).or_default().insert(i, tensor);
                continue;
            }
        };
        all.insert(name, tensor);
    }
    for (name, three) in thirds {
        ensure!(three.len() == 3, "{}: a part of '{name}' is missing", folder.display());
        all.insert(name, Tensor::cat(&three.into_values().collect::<Vec<_>>(), 0)?);
    }
    Ok(())
}

/// Today's name of a tensor: transformers 5 leaves `text_model.` out, and VAEs of 2022 call the parts of attention otherwise.
fn usual(part: Part, name: &str) -> String {
    const OLD: [[&str; 2]; 4] =
        [[".query.", ".to_q."], [".key.", ".to_k."], [".value.", ".to_v."], [".proj_attn.", ".to_out.0."]];
    match part {
        Part::Unet => name.to_owned(),
        Part::Vae => OLD.iter().fold(name.to_owned(), |name, [old, new]| name.replace(old, new)),
        _ if name.starts_with("text_") => name.to_owned(),
        _ => format!("text_model.{name}"),
    }
}
