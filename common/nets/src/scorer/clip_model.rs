//! A CLIP as a scorer uses it: both towers, tokenizer and preprocessing, out of either published layout.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use pipe::id;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::{Options, Picture, Scorer, open_clip};
use crate::{
    checkpoint::{Loader, Weights, read_json},
    image::{Antialias, CLIP, Normalise, Preprocess},
    text::{TextConfig, TextModel},
    tokenizer::{Style, Tokenizer},
    vit::{VisionConfig, VisionModel},
};

/// Whose preprocessing and tokenization a metric follows, whatever the layout of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// open_clip as HPS and Diffusion-DPO carry it: letterbox, text cleaned with ftfy.
    OpenClip(Antialias),
    /// transformers' CLIPProcessor.
    HuggingFace,
}

/// Whose names the tensors of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    OpenClip,
    HuggingFace,
}

/// What the files say of a model, in transformers' terms.
pub struct Description {
    pub vision: VisionConfig,
    pub text: TextConfig,
    /// What the file says of the image; the rest is CLIP's.
    pub size: Option<usize>,
    pub crop: Option<usize>,
    pub normalise: Normalise,
}

pub struct ClipModel {
    pub layout: Layout,
    /// The weight file, the first where there are several.
    pub file: PathBuf,
    pub preprocess: Preprocess,
    /// Over weights, settings and vocabulary.
    pub hash: String,
    pub id: String,
    vision: VisionModel,
    text: Option<(TextModel, Tokenizer)>,
    device: Device,
    dtype: DType,
    batch: usize,
}

impl ClipModel {
    /// `tower`: a weight file, or a folder with one; configuration and vocabulary lie beside it.
    ///
    /// # Errors
    /// A file is missing, damaged, or does not fit the others.
    pub fn open(tower: &Path, reading: Reading, with_text: bool, options: &Options) -> Result<Self> {
        let folder = folder_of(tower);
        let weights = Weights::open(tower)?;
        let layout = match weights.names().iter().any(|n| n.ends_with("visual.conv1.weight")) {
            true => Layout::OpenClip,
            false => Layout::HuggingFace,
        };
        let about = match layout {
            Layout::OpenClip => open_clip::describe(&folder, tower)?,
            Layout::HuggingFace => describe(&folder)?,
        };
        let (file, file_hash) = (PathBuf::from(&weights.name), weights.hash()?);
        let weights = if layout == Layout::OpenClip { open_clip::renamed(weights)? } else { weights };
        let preprocess = preprocess(&about, reading).with_context(|| format!("cannot use {}", weights.name))?;

        let loader = Loader::frozen(&weights, options.dtype, &options.device);
        let vision = VisionModel::load(loader.clone(), about.vision.clone())?;
        let mut settings = tower_settings(&about.vision.num_attention_heads, &about.vision.hidden_act);
        let mut id = preprocess.id();
        let text = match with_text {
            true => {
                let style = if reading == Reading::HuggingFace { Style::Hf } else { Style::OpenClip };
                let tokenizer = Tokenizer::from_folder(&folder, style)?;
                let vocabulary = about.text.vocab_size;
                ensure!(
                    (tokenizer.eos as usize) < vocabulary,
                    "{}: the text tower has {vocabulary} tokens, and its tokenizer's end token is number {}: they belong to different models",
                    folder.display(),
                    tokenizer.eos
                );
                settings += &tower_settings(&about.text.num_attention_heads, &about.text.hidden_act);
                settings += &format!("eos {}; vocabulary {}", about.text.eos_token_id, tokenizer.hash());
                id = format!("{id}; {}", tokenizer.id());
                Some((TextModel::load(loader, about.text)?, tokenizer))
            }
            false => None,
        };
        let hash = id::hex(&id::sha256_of(&[file_hash.as_bytes(), settings.as_bytes()]));
        Ok(Self {
            layout,
            file,
            preprocess,
            id: format!("sha256:{hash}; {id}"),
            hash,
            vision,
            text,
            device: options.device.clone(),
            dtype: options.dtype,
            batch: options.batch,
        })
    }

    /// Length of the vectors.
    pub fn width(&self) -> usize {
        self.vision.config.projection_dim
    }

    /// A vector of unit length for each picture.
    ///
    /// # Errors
    /// A picture was not prepared for this model.
    pub fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        if pictures.is_empty() {
            return Ok(vec![]);
        }
        let side = self.preprocess.side();
        let mut pixels = Vec::with_capacity(pictures.len() * 3 * side * side);
        for picture in pictures {
            pixels.extend_from_slice(picture.pixels(&self.preprocess)?);
        }
        let pixels = Tensor::from_vec(pixels, (pictures.len(), 3, side, side), &self.device)?;
        units(&self.vision.forward(&pixels.to_dtype(self.dtype)?)?)
    }

    /// A vector of unit length for each caption.
    ///
    /// What follows the end token changes nothing before it, so a caption is padded to a multiple of eight tokens only, and
    /// captions of one padded length go through the tower together.
    ///
    /// # Errors
    /// The vocabulary is another model's.
    pub fn caption_features(&self, captions: &[&str]) -> Result<Vec<Vec<f32>>> {
        let Some((model, tokenizer)) = &self.text else { bail!("this model was opened without its text tower") };
        let context = model.config.max_position_embeddings;
        let rows: Vec<Vec<u32>> = captions.par_iter().map(|c| tokenizer.ids(c, context)).collect::<Result<_>>()?;
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, row) in rows.iter().enumerate() {
            by_length.entry(row.len().next_multiple_of(8).min(context)).or_default().push(i);
        }
        let mut batches = vec![];
        for (length, rows) in &by_length {
            batches.extend(rows.chunks(self.batch.max(1)).map(|chunk| (*length, chunk)));
        }
        let embed = |(length, chunk): &(usize, &[usize])| -> Result<Vec<(usize, Vec<f32>)>> {
            let padded = |&i: &usize| {
                let mut ids = rows[i].clone();
                ids.resize(*length, tokenizer.pad);
                ids
            };
            let ids: Vec<_> = chunk.iter().map(padded).collect();
            let features = units(&model.project(&model.forward(&ids)?.pooled)?)?;
            Ok(chunk.iter().copied().zip(features).collect())
        };
        let embedded: Vec<_> = match self.device.is_cpu() {
            true => batches.par_iter().map(embed).collect::<Result<_>>()?,
            false => batches.iter().map(embed).collect::<Result<_>>()?,
        };
        let mut features = vec![vec![]; captions.len()];
        for (i, vector) in embedded.into_iter().flatten() {
            features[i] = vector;
        }
        Ok(features)
    }
}

/// A CLIP by itself scores by its cosine.
impl Scorer for ClipModel {
    fn id(&self) -> &str {
        &self.id
    }

    fn preprocess(&self) -> Option<Preprocess> {
        Some(self.preprocess)
    }

    fn reads_captions(&self) -> bool {
        true
    }

    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        self.image_features(pictures)
    }

    fn caption_features(&self, captions: &[&str]) -> Result<Vec<Vec<f32>>> {
        self.caption_features(captions)
    }

    fn score(&self, image: &[f32], caption: &[f32]) -> f32 {
        dot(image, caption)
    }
}

/// The scalar product, summed in f64.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
}

/// The rows of (B, D), each divided by its length.
fn units(x: &Tensor) -> Result<Vec<Vec<f32>>> {
    let mut rows = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    for row in &mut rows {
        let length = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
    Ok(rows)
}

fn folder_of(tower: &Path) -> PathBuf {
    match tower.is_dir() {
        true => tower.to_owned(),
        false => tower.parent().unwrap_or(Path::new("")).to_owned(),
    }
}

/// What the shapes of the weights leave open.
fn tower_settings(heads: &usize, act: &str) -> String {
    format!("heads {heads}, {act}; ")
}

/// How `reading` prepares images for this model.
fn preprocess(about: &Description, reading: Reading) -> Result<Preprocess> {
    let side = about.vision.image_size;
    let (size, crop, normalise) = (about.size.unwrap_or(side), about.crop.unwrap_or(side), about.normalise);
    match reading {
        Reading::OpenClip(antialias) => Ok(Preprocess::Letterbox { size: side, normalise, antialias }),
        Reading::HuggingFace => {
            ensure!(crop == side, "its images are cropped to {crop} pixels, and its image tower takes {side}");
            Ok(Preprocess::HfClip { size, crop, normalise })
        }
    }
}

/// `config.json` of a CLIPModel and `preprocessor_config.json` beside it, where it is.
fn describe(folder: &Path) -> Result<Description> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        text_config: TextConfig,
        vision_config: VisionConfig,
        #[serde(default = "projection_dim")]
        projection_dim: usize,
    }
    fn projection_dim() -> usize {
        512
    }
    let Config { text_config: mut text, vision_config: mut vision, projection_dim } =
        read_json(&folder.join("config.json")).context("the tower has to be a CLIPModel, with its config.json")?;
    (text.projection_dim, vision.projection_dim) = (projection_dim, projection_dim);
    let mut about = Description { vision, text, size: None, crop: None, normalise: CLIP };

    let path = folder.join("preprocessor_config.json");
    if path.is_file() {
        let config: Value = read_json(&path)?;
        let say = || format!("{} asks for a preprocessing that CLIP does not have", path.display());
        for step in ["do_resize", "do_center_crop", "do_normalize", "do_rescale"] {
            ensure!(config[step] != false, "{}: {step} is off", say());
        }
        ensure!(config["resample"].as_u64().unwrap_or(3) == 3, "{}: resample is not 3 (bicubic)", say());
        about.size = side(&config["size"], "shortest_edge").with_context(say)?;
        about.crop = side(&config["crop_size"], "height").with_context(say)?;
        about.normalise = normalise(&config["image_mean"], &config["image_std"]).with_context(say)?;
    }
    Ok(about)
}

/// 224, or {"shortest_edge": 224}, or {"height": 224, "width": 224}.
fn side(value: &Value, key: &str) -> Result<Option<usize>> {
    let number = match value {
        Value::Null => return Ok(None),
        Value::Object(sides) => {
            let (height, width) = (sides.get("height"), sides.get("width"));
            ensure!(height == width, "{value} is not square");
            sides.get(key).and_then(Value::as_u64)
        }
        number => number.as_u64(),
    };
    let number = number.filter(|&n| n > 0).with_context(|| format!("{value} is not a size"))?;
    Ok(Some(usize::try_from(number)?))
}

/// The constants of a configuration, or CLIP's where it has none.
pub fn normalise(mean: &Value, std: &Value) -> Result<Normalise> {
    let three = |value: &Value, default: [f32; 3]| -> Result<[f32; 3]> {
        if value.is_null() {
            return Ok(default);
        }
        let numbers: Option<Vec<f32>> =
            value.as_array().and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        let numbers = numbers.and_then(|n| <[f32; 3]>::try_from(n).ok());
        numbers.with_context(|| format!("{value} is not one number for each of red, green and blue"))
    };
    let normalise = Normalise { mean: three(mean, CLIP.mean)?, std: three(std, CLIP.std)? };
    ensure!(normalise.std.iter().all(|&s| s > 0.0), "{std} holds a deviation that is not positive");
    Ok(normalise)
}
