//! A CLIP as scorers use it: both towers, tokenizer and preprocessing, read from either published layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use pipe::{id, names::Names};
use rayon::prelude::*;

use super::metric::{Choice, Options};
use super::model::{Model, Scorer, Towers};
use super::{description::Description, hugging_face, open_clip, picture::Picture};
use crate::image::{Antialias, Preprocess};
use crate::tokenizer::{Style, Tokenizer};
use crate::transformer::HiddenAct;
use crate::weights::{Shapes, Weights};
use crate::{folder, loader::Loader, text::TextModel, vit::VisionModel};

/// Whose preprocessing and tokenization a metric follows, whatever the layout of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// open_clip as HPS and Diffusion-DPO carry it: letterbox, text cleaned with ftfy.
    OpenClip(Antialias),
    /// transformers' CLIPProcessor.
    HuggingFace,
}

/// How open_clip's letterbox resizes, for all metrics that follow it.
pub const RESIZE: Choice = Choice {
    name: "hps-resize",
    help: "How `hps` and `clip` resize images",
    values: Antialias::FORMS,
    default: Some("antialias"),
};

impl Reading {
    /// open_clip's, with the resizing that the user chose.
    pub fn open_clip(options: &Options) -> Result<Self> {
        Ok(Self::OpenClip(options.choice(&RESIZE)?.unwrap_or(Antialias::On)))
    }
}

/// Whose names the tensors of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    OpenClip,
    HuggingFace,
}

impl Layout {
    fn describe(self, folder: &Path, tower: &Path) -> Result<Description> {
        match self {
            Self::OpenClip => open_clip::describe(folder, tower),
            Self::HuggingFace => hugging_face::describe(folder),
        }
    }
}

/// The names and shapes of the tensors of a CLIP, whose configuration lies in `folder`.
pub fn shapes(folder: &Path, layout: Layout) -> Result<Shapes> {
    let about = layout.describe(folder, folder)?;
    // The text tower's prefix and projection are there.
    let weights = Weights::imagined(|name| name.starts_with("text_"));
    let loader = Loader::frozen(&weights, DType::F32, &Device::Cpu);
    VisionModel::load(loader.clone(), about.vision)?;
    TextModel::load(loader, about.text)?;
    let mut shapes = weights.asked();
    if layout == Layout::OpenClip {
        shapes = open_clip::theirs(shapes)?;
    }
    shapes.insert("logit_scale".into(), vec![]);
    Ok(shapes)
}

/// Both towers of a CLIP, or the image tower alone.
pub struct ClipModel {
    pub layout: Layout,
    /// The weight file, the first if there are several.
    pub file: PathBuf,
    pub preprocess: Preprocess,
    /// SHA-256 over weights, settings and vocabulary, in hexadecimal.
    pub hash: String,
    id: String,
    vision: VisionModel,
    text: Option<(TextModel, Tokenizer)>,
    device: Device,
    dtype: DType,
    batch: usize,
}

impl ClipModel {
    /// Opens a CLIP. `tower`: a weight file, or a folder with one; configuration and vocabulary lie beside it.
    pub fn open(tower: &Path, reading: Reading, with_text: bool, options: &Options) -> Result<Self> {
        let folder = folder::of(tower);
        let weights = Weights::open(tower)?;
        let layout = match weights.names().iter().any(|n| n.ends_with("visual.conv1.weight")) {
            true => Layout::OpenClip,
            false => Layout::HuggingFace,
        };
        let about = layout.describe(&folder, tower)?;
        let (file, file_hash) = (PathBuf::from(&weights.name), weights.hash()?);
        let weights = if layout == Layout::OpenClip { open_clip::renamed(weights)? } else { weights };
        let preprocess = preprocess(&about, reading).with_context(|| format!("cannot use {}", weights.name))?;

        let loader = Loader::frozen(&weights, options.dtype, &options.device);
        let vision = VisionModel::load(loader.clone(), about.vision.clone())?;
        let v = &about.vision;
        let mut settings = tower_settings(v.num_attention_heads, v.hidden_act, v.layer_norm_eps);
        let mut id = preprocess.id();
        let text = match with_text {
            true => {
                let style = if reading == Reading::HuggingFace { Style::Hf } else { Style::OpenClip };
                let tokenizer = Tokenizer::from_folder(&folder, style)?;
                let vocabulary = about.text.vocab_size;
                ensure!(
                    (tokenizer.eos as usize) < vocabulary,
                    "{}: the text tower has {vocabulary} tokens, but its tokenizer's end token is number {}: they belong to different models",
                    folder.display(),
                    tokenizer.eos
                );
                let t = &about.text;
                settings += &tower_settings(t.num_attention_heads, t.hidden_act, t.layer_norm_eps);
                settings += &format!("eos {}; vocabulary {}", t.eos_token_id, tokenizer.hash());
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

    pub fn width(&self) -> usize {
        self.vision.config.projection_dim
    }

    pub fn scorer(self) -> Scorer {
        Scorer { id: self.id.clone(), preprocess: Some(self.preprocess), model: Model::Towers(Box::new(self)) }
    }
}

impl Towers for ClipModel {
    /// A vector of unit length for each picture.
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        if pictures.is_empty() {
            return Ok(vec![]);
        }
        let pixels = Picture::batch(pictures, &self.preprocess, &self.device)?;
        units(&self.vision.forward(&pixels.to_dtype(self.dtype)?)?)
    }

    /// A vector of unit length for each caption.
    ///
    /// Tokens after the end token change nothing before it, so a caption is only padded to a multiple of eight tokens, and
    /// captions of one padded length go through the tower in batches.
    fn caption_features(&self, captions: &[&str]) -> Result<Vec<Vec<f32>>> {
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

    fn score(&self, image: &[f32], caption: &[f32]) -> f32 {
        dot(image, caption)
    }
}

/// The scalar product, summed in f64.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
}

/// The rows of (B, D), each divided by its length.
pub(super) fn units(x: &Tensor) -> Result<Vec<Vec<f32>>> {
    let mut rows = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    for row in &mut rows {
        let length = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
    Ok(rows)
}

/// The settings of a tower that do not follow from the shapes of its weights.
fn tower_settings(heads: usize, act: HiddenAct, eps: f64) -> String {
    format!("heads {heads}, {act}, eps {eps}; ")
}

/// How `reading` prepares images for this model.
fn preprocess(about: &Description, reading: Reading) -> Result<Preprocess> {
    let side = about.vision.image_size;
    let (size, crop, normalise) = (about.size.unwrap_or(side), about.crop.unwrap_or(side), about.normalise);
    match reading {
        Reading::OpenClip(antialias) => Ok(Preprocess::Letterbox { size: side, normalise, antialias }),
        Reading::HuggingFace => {
            ensure!(crop == side, "its images are cropped to {crop} pixels, but its image tower takes {side}");
            Ok(Preprocess::HfClip { size, crop, normalise })
        }
    }
}
