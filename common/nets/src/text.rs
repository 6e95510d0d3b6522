//! CLIP's text tower: Stable Diffusion's text encoder and the text half of the scorers.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Result as Candle, Tensor};
use ops::Mask;
use pipe::names::Names;

use crate::config::Rule::{Named, Only, Whole, Words};
use crate::config::{self, DEPTH, EPSILON, POSITIONS, Rules, TRANSFORMERS, VOCABULARY, WIDTH};
use crate::layers::{LayerNorm, Linear};
use crate::loader::Loader;
use crate::transformer::{Encoder, HiddenAct, Shape};
use crate::weights::{Shapes, Weights};

/// The keys of transformers' CLIPTextConfig that decide what it computes.
pub const KEYS: Rules = &[
    ("model_type", Words(&["clip_text_model", "clip"])),
    ("vocab_size", VOCABULARY),
    ("hidden_size intermediate_size num_attention_heads projection_dim", WIDTH),
    ("num_hidden_layers", DEPTH),
    ("max_position_embeddings", POSITIONS),
    ("hidden_act", Named(HiddenAct::FORMS)),
    ("layer_norm_eps", EPSILON),
    ("eos_token_id", Whole(0, u32::MAX as u64)),
    ("text_config", Only(&["null"])), // a CLIPModel's
];

crate::json::defaults! {
    /// `config.json` of a CLIPTextModel. A missing key takes transformers' default.
    #[derive(Clone, Debug)]
    pub struct TextConfig {
        pub vocab_size: usize = 49408,
        pub hidden_size: usize = 512,
        pub intermediate_size: usize = 2048,
        pub num_hidden_layers: usize = 12,
        pub num_attention_heads: usize = 8,
        pub max_position_embeddings: usize = 77,
        pub hidden_act: HiddenAct = HiddenAct::QuickGelu,
        pub layer_norm_eps: f64 = 1e-5,
        pub projection_dim: usize = 512,
        pub eos_token_id: u32 = 49407,
    }
}

pub struct TextModel {
    pub config: TextConfig,
    token_embedding: Tensor,    // (vocab, width)
    position_embedding: Tensor, // (positions, width)
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

/// The tower's states for (B, T) token ids.
pub struct TextStates {
    /// After the last layer and the final norm, (B, T, width): what Stable Diffusion 1 and 2 attend to.
    pub last: Tensor,
    /// Before the last layer, not normed, (B, T, width): SDXL.
    pub penultimate: Tensor,
    /// `last` at the end-of-text token, (B, width).
    pub pooled: Tensor,
}

/// The names and shapes of the tensors that the text encoder of a folder's `config.json` has. `projection`: `text_projection` is one.
pub fn shapes(folder: &Path, projection: bool) -> Result<Shapes> {
    let weights = Weights::imagined(move |name| projection && name.starts_with("text_projection"));
    let config = config::read(&folder.join("config.json"), &[KEYS, TRANSFORMERS])?;
    TextModel::load(Loader::frozen(&weights, DType::F32, &Device::Cpu), config)?;
    Ok(weights.asked())
}

impl TextModel {
    /// Loads the folder of a CLIPTextModel or CLIPTextModelWithProjection.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config = config::read(&folder.join("config.json"), &[KEYS, TRANSFORMERS])?;
        Self::load(Loader::frozen(&Weights::open(folder)?, dtype, device), config)
    }

    /// `p` at the root of the file. The prefix `text_model.` is optional, because transformers 5 leaves it out.
    pub fn load(p: Loader, config: TextConfig) -> Result<Self> {
        let root = if p.has("embeddings.token_embedding.weight") { p.clone() } else { p.pp("text_model") };
        let shape = Shape {
            width: config.hidden_size,
            mlp: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        let embeddings = root.pp("embeddings");
        let (w, positions) = (config.hidden_size, config.max_position_embeddings);
        let text_projection = match p.has("text_projection.weight") {
            true => Some(Linear::load_no_bias(p.pp("text_projection"), w, config.projection_dim)?),
            false => None,
        };
        Ok(Self {
            token_embedding: embeddings.get("token_embedding.weight", &[config.vocab_size, w])?,
            position_embedding: embeddings.get("position_embedding.weight", &[positions, w])?,
            encoder: Encoder::load(root.pp("encoder"), shape)?,
            final_layer_norm: LayerNorm::load(root.pp("final_layer_norm"), w, config.layer_norm_eps)?,
            text_projection,
            config,
        })
    }

    /// `ids`: B rows of at most `max_position_embeddings` token ids, all of one length.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<TextStates> {
        let length = ids.first().map_or(0, Vec::len);
        ensure!(ids.iter().all(|row| row.len() == length), "token rows differ in length");
        let most = self.config.max_position_embeddings;
        ensure!(length <= most, "{length} tokens do not fit the text encoder's {most} positions");
        let vocab = self.config.vocab_size;
        ensure!(
            ids.iter().flatten().all(|&id| (id as usize) < vocab),
            "a token id lies outside the text encoder's vocabulary of {vocab}: the tokenizer belongs to another model"
        );
        Ok(self.states(ids, length)?)
    }

    fn states(&self, ids: &[Vec<u32>], length: usize) -> Candle<TextStates> {
        let device = self.token_embedding.device();
        let flat = Tensor::from_vec(ids.concat(), ids.len() * length, device)?;
        let tokens = self.token_embedding.index_select(&flat, 0)?.reshape((ids.len(), length, ()))?;
        let x = tokens.broadcast_add(&self.position_embedding.narrow(0, 0, length)?)?;
        let states = self.encoder.hidden_states(&x, Mask::Causal)?;
        let last = self.final_layer_norm.forward(&states[states.len() - 1])?;
        let penultimate = states[states.len().saturating_sub(2)].clone();
        let rows: Vec<u32> = ids.iter().enumerate().map(|(i, row)| (i * length + self.end(row)) as u32).collect();
        let rows = Tensor::from_vec(rows, ids.len(), device)?;
        let pooled = last.reshape((ids.len() * length, last.dim(D::Minus1)?))?.index_select(&rows, 0)?;
        Ok(TextStates { last, penultimate, pooled })
    }

    /// Position of the end-of-text token. In configs from 2022 `eos_token_id` is 2, which means the first occurrence of the
    /// largest id.
    fn end(&self, row: &[u32]) -> usize {
        let eos = match self.config.eos_token_id {
            2 => row.iter().copied().max().unwrap_or(0),
            eos => eos,
        };
        row.iter().position(|&id| id == eos).unwrap_or(0)
    }

    pub fn check_projection(&self) -> Result<()> {
        ensure!(self.text_projection.is_some(), "this text encoder has no text_projection");
        Ok(())
    }

    /// The pooled state through `text_projection`, (B, projection_dim).
    pub fn project(&self, pooled: &Tensor) -> Result<Tensor> {
        match &self.text_projection {
            Some(projection) => Ok(projection.forward(pooled)?),
            None => anyhow::bail!("this text encoder has no text_projection"),
        }
    }
}
