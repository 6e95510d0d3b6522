//! Aesthetic predictor v2.5 (discus0434): a head on SigLIP's pooled image vector of unit length. The caption does not matter.
//!
//! The tower is candle-transformers'. The published head is under the AGPL: its user brings the file, and nothing of it is here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use candle_nn::{Module, VarBuilder};
use candle_transformers::models::siglip::{VisionConfig, VisionModel};
use pipe::id;
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::aesthetic::head_in;
use super::clip_model::units;
use super::description::normalise;
use super::head::{Between, Form, Head};
use super::metric::{Band, Metric, ModelFiles, Needs, Options, Role};
use super::model::{Model, Scorer, Towers};
use super::{hugging_face, picture::Picture};
use crate::config::Rule::{Free, Only, Words};
use crate::config::{self, DEPTH, EPSILON, Rules, TRANSFORMERS, WIDTH};
use crate::image::{Normalise, Preprocess};
use crate::{folder, json, vit::SIDE, weights::Weights};

pub const METRIC: Metric = Metric {
    name: "aesthetic-v2.5",
    role: Role::Judge,
    needs: Needs::TowerAndHead,
    // Its author calls 5.5 and more great.
    band: Band { mean: [3.5, 6.5], sd: [0.3, 1.2] },
    choices: &[],
    open,
};

/// The keys of transformers' SiglipVisionConfig that decide what it computes.
const KEYS: Rules = &[
    ("model_type", Words(&["siglip", "siglip_vision_model"])),
    ("hidden_size intermediate_size num_attention_heads", WIDTH),
    ("num_hidden_layers", DEPTH),
    ("image_size patch_size", SIDE),
    ("num_channels", Only(&["3"])),
    ("hidden_act", Words(&["gelu_pytorch_tanh"])),
    ("layer_norm_eps", EPSILON),
    ("vision_use_head", Only(&["true", "null"])),
    ("text_config logit_scale_init_value", Free), // of the whole model
];

/// The difference between transformers' SiglipImageProcessor and CLIP's: it squeezes an image to a square.
const PREPROCESSOR: Rules = &[
    ("do_center_crop", Only(&["false", "null"])),
    ("image_processor_type", Words(&["SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil"])),
];

const FORM: Form = ([0, 2, 4, 6, 8], Between::Nothing);

/// SigLIP's constants: values between -1 and 1.
const HALF: Normalise = Normalise { mean: [0.5; 3], std: [0.5; 3] };

struct AestheticV25 {
    tower: VisionModel,
    head: Head,
    preprocess: Preprocess,
    device: Device,
    dtype: DType,
}

fn open(files: &ModelFiles, options: &Options) -> Result<Scorer> {
    let tower = tower_in(&files.tower);
    let head = match &files.head {
        Some(file) if !file.is_dir() => file.clone(),
        Some(folder) => head_in(folder)?,
        None => head_in(&files.tower)?,
    };
    let folder = folder::of(&tower);
    let config = config(&folder)?;
    let preprocess = Preprocess::Squash { size: config.image_size, normalise: constants(&folder, config.image_size)? };
    let (weights, head) = (Weights::open(&tower)?, Weights::open(&head)?);
    let settings =
        format!("heads {}, {:?}, eps {}", config.num_attention_heads, config.hidden_act, config.layer_norm_eps);
    let parts = [weights.hash()?, head.hash()?, settings];
    let hash = id::hex(&id::sha256_of(&parts.each_ref().map(|part| part.as_bytes())));
    let model = AestheticV25 {
        tower: vision(&weights, &config, options).with_context(|| format!("cannot use {}", weights.name))?,
        head: Head::read(&head, "scoring_head", config.hidden_size, &[FORM])?,
        preprocess,
        device: options.device.clone(),
        dtype: options.dtype,
    };
    Ok(Scorer {
        id: format!("sha256:{hash}; {}", preprocess.id()),
        preprocess: Some(preprocess),
        model: Model::Towers(Box::new(model)),
    })
}

/// The tower may lie in a folder `siglip` beside the head.
fn tower_in(path: &Path) -> PathBuf {
    let inner = path.join("siglip");
    if inner.is_dir() { inner } else { path.to_owned() }
}

/// `vision_config` of a SiglipModel's `config.json`, or the whole of a SiglipVisionModel's.
fn config(folder: &Path) -> Result<VisionConfig> {
    let path = folder.join("config.json");
    let mut keys: Map<String, Value> =
        json::read(&path).context("the tower has to be a SigLIP, with its config.json")?;
    let (keys, file) = match keys.remove("vision_config") {
        Some(Value::Object(vision)) => (vision, format!("{}, vision_config", path.display())),
        _ => (keys, path.display().to_string()),
    };
    let config: VisionConfig = config::checked(keys, &[KEYS, TRANSFORMERS], &file)?;
    let (w, heads, side, patch) =
        (config.hidden_size, config.num_attention_heads, config.image_size, config.patch_size);
    ensure!(w.is_multiple_of(heads), "{file}: width {w} does not divide into {heads} heads");
    ensure!(side >= patch, "{file}: images of {side} pixels have no patch of {patch}");
    Ok(config)
}

/// Mean and standard deviation of the folder's image processor for images of `side` pixels; SigLIP's own if it has none.
fn constants(folder: &Path, side: usize) -> Result<Normalise> {
    let rules = [PREPROCESSOR, hugging_face::PREPROCESSOR];
    let found = hugging_face::image_processor(folder, &rules).context("the images are not prepared as by SigLIP")?;
    let Some((file, config)) = found else { return Ok(HALF) };
    let get = |key: &str| config.get(key).unwrap_or(&Value::Null);
    let size = hugging_face::side(get("size"), "height").with_context(|| format!("{file}: size"))?;
    ensure!(size.is_none_or(|size| size == side), "{file}: size = {}, but the tower takes {side} pixels", get("size"));
    match (get("image_mean"), get("image_std")) {
        (Value::Null, Value::Null) => Ok(HALF),
        (mean, std) => normalise(mean, std).with_context(|| format!("{file}: image_mean or image_std")),
    }
}

fn vision(weights: &Weights, config: &VisionConfig, options: &Options) -> Result<VisionModel> {
    let names = weights.names().into_iter().filter(|name| name.starts_with("vision_model."));
    let tensors = names.map(|name| Ok((name.clone(), weights.raw(&name)?))).collect::<Result<_>>()?;
    let tensors = VarBuilder::from_tensors(tensors, options.dtype, &options.device);
    Ok(VisionModel::new(config, true, tensors.pp("vision_model"))?)
}

impl Towers for AestheticV25 {
    /// One picture at a time: the others of a call must not change a bit of its vector.
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        let one = |picture: &&Picture| -> Result<Vec<f32>> {
            let pixels = Picture::batch(&[*picture], &self.preprocess, &self.device)?; // (1, 3, side, side)
            let pooled = self.tower.forward(&pixels.to_dtype(self.dtype)?)?; // (1, width)
            Ok(units(&pooled)?.concat())
        };
        pictures.par_iter().map(one).collect()
    }

    fn score(&self, image: &[f32], _caption: &[f32]) -> f32 {
        self.head.apply(image) as f32
    }
}
