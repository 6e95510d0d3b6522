//! The judges on BLIP, ImageReward and CycleReward: image and caption meet in BERT's first token, and a head turns it into a score.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{DType, Device, Tensor};
use pipe::id;
use rayon::prelude::*;
use tokenizers::Tokenizer;

use super::head::{Form, Head};
use super::metric::{ModelFiles, Options};
use super::model::{Joint, Model, Scorer};
use super::picture::Picture;
use crate::blip::{self, Text, TextConfig, Vision};
use crate::config::{self, TRANSFORMERS};
use crate::folder;
use crate::image::Preprocess;
use crate::loader::Loader;
use crate::tokenizer::{beginning, wordpiece};
use crate::weights::Weights;

/// In what the two judges differ.
pub(super) struct Kind {
    pub head: Form,
    /// The longest caption, in tokens; what follows is cut.
    pub tokens: usize,
    /// The score is (head - mean) / sd.
    pub mean: f64,
    pub sd: f64,
}

struct BlipReward {
    vision: Vision,
    text: Text,
    tokenizer: Tokenizer,
    head: Head,
    preprocess: Preprocess,
    kind: &'static Kind,
    device: Device,
    dtype: DType,
}

/// Opens a judge: a weight file, or a folder with one; `med_config.json` and `vocab.txt` may lie beside it.
pub(super) fn open(kind: &'static Kind, files: &ModelFiles, options: &Options) -> Result<Scorer> {
    let folder = folder::of(&files.tower);
    let weights = Weights::open(&files.tower)?;
    let hash = weights.hash()?;
    let config = folder.join("med_config.json");
    let config: TextConfig =
        if config.is_file() { config::read(&config, &[blip::KEYS, TRANSFORMERS])? } else { TextConfig::default() };
    let (tokenizer, vocabulary) = wordpiece::blip(&folder, kind.tokens)?;
    let weights = blip::renamed(weights)?;
    let load = || -> Result<(Vision, Text, Head)> {
        let root = Loader::frozen(&weights, options.dtype, &options.device).pp("blip");
        let vision = Vision::load(root.pp("visual_encoder"))?;
        let text = Text::load(root.pp("text_encoder"), &config, vision.tokens().1)?;
        let head = Head::read(&weights, "mlp.layers", text.width(), &[kind.head])?;
        Ok((vision, text, head))
    };
    let (vision, text, head) = load().with_context(|| format!("cannot use {}", weights.name))?;
    let (known, positions) = text.sizes();
    let tokens = tokenizer.get_vocab_size(true);
    ensure!(
        tokens <= known && kind.tokens <= positions,
        "{}: the text encoder has {known} tokens and {positions} positions, its tokenizer {tokens} tokens and captions of up to {}: \
         they belong to different models",
        weights.name,
        kind.tokens
    );
    let preprocess = Preprocess::Blip { size: vision.side() };
    let settings =
        format!("heads {}, eps {}; vocabulary {vocabulary}", config.num_attention_heads, config.layer_norm_eps);
    let hash = id::hex(&id::sha256_of(&[hash.as_bytes(), settings.as_bytes()]));
    Ok(Scorer {
        id: format!("sha256:{hash}; {}; wordpiece/{}", preprocess.id(), kind.tokens),
        preprocess: Some(preprocess),
        model: Model::Joint(Box::new(BlipReward {
            vision,
            text,
            tokenizer,
            head,
            preprocess,
            kind,
            device: options.device.clone(),
            dtype: options.dtype,
        })),
    })
}

impl BlipReward {
    /// [CLS], the caption, cut to the judge's length, [SEP].
    fn ids(&self, caption: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(beginning(caption), true).map_err(|e| anyhow!("{e}"))?.get_ids().to_vec())
    }

    /// BERT's first token for pairs whose captions have one length.
    fn hidden(&self, ids: &[&[u32]], images: &[&[f32]]) -> Result<Vec<Vec<f32>>> {
        let (tokens, width) = self.vision.tokens();
        let image = Tensor::from_vec(images.concat(), (images.len(), tokens, width), &self.device)?;
        let hidden = self.text.forward(ids, &image.to_dtype(self.dtype)?)?; // (B, width)
        Ok(hidden.to_dtype(DType::F32)?.to_vec2()?)
    }
}

impl Joint for BlipReward {
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        if pictures.is_empty() {
            return Ok(vec![]);
        }
        let pixels = Picture::batch(pictures, &self.preprocess, &self.device)?; // (B, 3, side, side)
        let features = self.vision.forward(&pixels.to_dtype(self.dtype)?)?; // (B, tokens, width)
        Ok(features.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2()?)
    }

    /// Captions of one length are read together, none is padded: the other pairs of a call do not change a score.
    fn scores(&self, images: &[&[f32]], captions: &[&str]) -> Result<Vec<f32>> {
        let ids: Vec<Vec<u32>> = captions.par_iter().map(|caption| self.ids(caption)).collect::<Result<_>>()?;
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, row) in ids.iter().enumerate() {
            by_length.entry(row.len()).or_default().push(i);
        }
        let mut scores = vec![0f32; images.len()];
        for rows in by_length.into_values() {
            let row_ids: Vec<&[u32]> = rows.iter().map(|&i| &ids[i][..]).collect();
            let row_images: Vec<&[f32]> = rows.iter().map(|&i| images[i]).collect();
            for (i, hidden) in rows.iter().zip(self.hidden(&row_ids, &row_images)?) {
                scores[*i] = ((self.head.apply(&hidden) - self.kind.mean) / self.kind.sd) as f32;
            }
        }
        Ok(scores)
    }
}
