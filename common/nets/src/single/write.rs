//! Writing a model in one file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use pipe::origin::{self, Origin};

use super::{Part, network};
use crate::modelspec::ModelSpec;
use crate::names::{self, UNET};
use crate::text::{self, TextConfig};
use crate::transformer::HiddenAct;
use crate::weights::{self, Weights};
use crate::{config, mmdit, write};

/// Tensors by their names in the file.
type Tensors = BTreeMap<String, Tensor>;

/// Writes the model `base` with the denoiser `unet` (diffusers' names) in place of its own, whose configuration is in the folder
/// `unet_config`. A base in one file keeps its other tensors as they are, except old averages of the denoiser. From a folder, VAE and
/// text encoders come too; as the published files, one of Stable Diffusion 3 has the VAE alone, and one of FLUX the transformer alone.
/// `dtype`: of all numbers, or as they are.
pub fn write(
    path: &Path,
    base: &Path,
    unet_config: &Path,
    unet: Tensors,
    dtype: Option<DType>,
    origin: &Origin,
) -> Result<()> {
    let part = if class_of(unet_config)?.is_some() { Part::Transformer } else { Part::Unet };
    let mut all = match network(&base.join(part.folder())) {
        Some(own) if own.prefix.is_empty() => Tensors::new(),
        Some(own) => {
            let rest = |name: &str| !name.starts_with(UNET) && !name.starts_with("model_ema.");
            let rest = Weights::of_files(vec![own.file], rest)?;
            rest.names().into_iter().map(|name| Ok((name.clone(), rest.raw(&name)?))).collect::<Result<Tensors>>()?
        }
        None => others(base, class_of(unet_config)?)?,
    };
    add(&mut all, part, unet_config, unet)?;
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

/// The class of a transformer; `None` of a UNet.
fn class_of(denoiser: &Path) -> Result<Option<String>> {
    Ok(config::class(&denoiser.join("config.json"))?
        .filter(|class| [mmdit::SD3, mmdit::FLUX].contains(&class.as_str())))
}

/// VAE and text encoders of a model folder, whose transformer has this class.
fn others(base: &Path, transformer: Option<String>) -> Result<Tensors> {
    let mut all = Tensors::new();
    match transformer.as_deref() {
        Some(mmdit::FLUX) => return Ok(all),
        Some(_) => return add_folder(&mut all, base, Part::Vae).map(|()| all),
        None => {}
    }
    let first = base.join(Part::Clip.folder());
    let config: TextConfig = config::read(&first.join("config.json"), &[text::KEYS, config::TRANSFORMERS])?;
    let encoders = match (base.join(Part::OpenClipOfTwo.folder()).is_dir(), config.hidden_act) {
        (true, _) => &[Part::ClipOfTwo, Part::OpenClipOfTwo][..],
        (false, HiddenAct::QuickGelu) => &[Part::Clip], // OpenAI's
        (false, HiddenAct::Gelu) => &[Part::OpenClip],
    };
    for &part in [Part::Vae].iter().chain(encoders) {
        add_folder(&mut all, base, part)?;
        if part == Part::OpenClip {
            add_unused(&mut all, config.num_hidden_layers, config.hidden_size)?;
        }
    }
    Ok(all)
}

/// Adds a network of a model folder.
fn add_folder(all: &mut Tensors, base: &Path, part: Part) -> Result<()> {
    let folder = base.join(part.folder());
    let weights = Weights::open(&folder)?;
    let tensors = weights.names().into_iter().map(|name| Ok((name.clone(), weights.raw(&name)?)));
    add(all, part, &folder, tensors.collect::<Result<_>>()?)
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
    // FLUX's published files have no beginning.
    let bare = class_of(folder)?.is_some_and(|class| class == mmdit::FLUX);
    let prefix = if bare { "" } else { part.prefix() };
    let mut pieces: BTreeMap<(String, usize), BTreeMap<usize, (usize, Tensor)>> = BTreeMap::new();
    for (ours, tensor) in tensors {
        if ours.ends_with("position_ids") {
            continue; // 0, 1, 2, ...: old files of text encoders have them
        }
        let place = || format!("{}: tensor '{ours}'", folder.display());
        let (name, form) = names
            .theirs(&usual(part, &ours))
            .with_context(|| format!("{} has no name in a model in one file", place()))?;
        let name = format!("{prefix}{name}");
        let tensor = match form {
            names::Part::Whole => tensor,
            names::Part::Transposed => tensor.t().with_context(place)?.contiguous()?,
            names::Part::Pixel => {
                let [out, inner] = tensor.dims()[..2] else { bail!("{} is not a matrix", place()) };
                tensor.reshape((out, inner, 1, 1)).with_context(place)?
            }
            names::Part::Exchanged => weights::exchanged(&tensor).with_context(place)?,
            names::Part::Rows { from, count, of } => {
                pieces.entry((name, of)).or_default().insert(from, (count, tensor));
                continue;
            }
        };
        all.insert(name, tensor);
    }
    for ((name, of), pieces) in pieces {
        let (counts, tensors): (Vec<usize>, Vec<Tensor>) = pieces.into_values().unzip();
        ensure!(counts.iter().sum::<usize>() == of, "{}: a part of '{name}' is missing", folder.display());
        all.insert(name, Tensor::cat(&tensors, 0)?);
    }
    Ok(())
}

/// Today's name of a tensor: transformers 5 leaves `text_model.` out, and VAEs of 2022 call the parts of attention otherwise.
fn usual(part: Part, name: &str) -> String {
    const OLD: [[&str; 2]; 4] =
        [[".query.", ".to_q."], [".key.", ".to_k."], [".value.", ".to_v."], [".proj_attn.", ".to_out.0."]];
    match part {
        Part::Unet | Part::Transformer => name.to_owned(),
        Part::Vae => OLD.iter().fold(name.to_owned(), |name, [old, new]| name.replace(old, new)),
        _ if name.starts_with("text_") => name.to_owned(),
        _ => format!("text_model.{name}"),
    }
}
