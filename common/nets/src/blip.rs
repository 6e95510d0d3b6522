//! BLIP as its judges use it: a ViT whose tokens a BERT attends to while it reads the caption
//! (salesforce/BLIP's `vit.py` and `med.py`, in the layout of ImageReward and CycleReward).

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};
use ops::Mask;

use crate::config::Rule::{Free, Only, Words};
use crate::config::{EPSILON, Rules, WIDTH};
use crate::layers::{LayerNorm, Linear};
use crate::loader::Loader;
use crate::names::Part;
use crate::transformer::{Encoder, HiddenAct, Shape};
use crate::weights::Weights;

/// No file says how wide a head of the ViT is. It is 64 in every published BLIP.
const VIT_HEAD: usize = 64;
const VIT_EPS: f64 = 1e-6;

/// BLIP's image tower: every token of the last layer, normed.
pub struct Vision {
    cls_token: Tensor,  // (width)
    patch: Tensor,      // (width, 3, patch, patch)
    patch_bias: Tensor, // (width)
    pos_embed: Tensor,  // (tokens, width)
    encoder: Encoder,
    norm: LayerNorm,
    side: usize,
}

impl Vision {
    /// `p` at the tower, whose blocks were renamed by [`renamed`]. Sizes follow from the tensors.
    pub fn load(p: Loader) -> Result<Self> {
        let [w, _, k, _] = p.dims("patch_embed.proj.weight")?;
        let [_, tokens, _] = p.dims("pos_embed")?;
        let [mlp, _] = p.dims("layers.0.mlp.fc1.weight")?;
        let grid = (tokens.max(1) - 1).isqrt();
        ensure!(
            grid * grid + 1 == tokens && grid > 0,
            "pos_embed has {tokens} tokens, which are not a class and a square"
        );
        ensure!(w.is_multiple_of(VIT_HEAD), "its width {w} does not divide into heads of {VIT_HEAD}");
        let layers = p.count("layers");
        let shape = Shape { width: w, mlp, layers, heads: w / VIT_HEAD, act: HiddenAct::Gelu, eps: VIT_EPS };
        Ok(Self {
            cls_token: p.get("cls_token", &[1, 1, w])?.reshape(w)?,
            patch: p.get("patch_embed.proj.weight", &[w, 3, k, k])?,
            patch_bias: p.get("patch_embed.proj.bias", &[w])?,
            pos_embed: p.get("pos_embed", &[1, tokens, w])?.reshape((tokens, w))?,
            norm: LayerNorm::load(p.pp("norm"), w, VIT_EPS)?,
            encoder: Encoder::load(p, shape)?,
            side: grid * k,
        })
    }

    /// The side of the square image that it takes, in pixels.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Tokens of an image, and numbers per token.
    pub fn tokens(&self) -> (usize, usize) {
        (self.pos_embed.dims()[0], self.pos_embed.dims()[1])
    }

    /// pixels (B, 3, side, side) -> (B, tokens, width)
    pub fn forward(&self, pixels: &Tensor) -> Candle<Tensor> {
        let (b, w) = (pixels.dim(0)?, self.patch.dim(0)?);
        let patches = ops::conv2d(pixels, &self.patch, &self.patch_bias, self.patch.dim(2)?, 0)?;
        let class = self.cls_token.reshape((1, 1, w))?.broadcast_as((b, 1, w))?.contiguous()?;
        let x = Tensor::cat(&[&class, &ops::to_tokens(&patches)?], 1)?.broadcast_add(&self.pos_embed)?;
        let states = self.encoder.hidden_states(&x, Mask::None)?;
        self.norm.forward(&states[states.len() - 1])
    }
}

/// The weights with the ViT's blocks under the names of transformers' encoders: `attn.qkv` is split in three.
pub fn renamed(weights: Weights) -> Result<Weights> {
    weights.renamed(|name| {
        let Some((tower, block)) = name.split_once("visual_encoder.blocks.") else {
            return vec![(name.to_owned(), Part::Whole)];
        };
        let (layer, part) = block.split_once('.').unwrap_or((block, ""));
        let at = |part: &str| format!("{tower}visual_encoder.layers.{layer}.{part}");
        if let Some(kind) = part.strip_prefix("attn.qkv.") {
            let third = |(i, p): (usize, &str)| (at(&format!("self_attn.{p}_proj.{kind}")), Part::third(i));
            return ["q", "k", "v"].into_iter().enumerate().map(third).collect();
        }
        let part = part.replace("attn.proj.", "self_attn.out_proj.").replace("norm1.", "layer_norm1.");
        vec![(at(&part.replace("norm2.", "layer_norm2.")), Part::Whole)]
    })
}

/// The keys of transformers' BertConfig. Sizes follow from the tensors.
pub const KEYS: Rules = &[
    ("num_attention_heads", WIDTH),
    ("layer_norm_eps", EPSILON),
    ("hidden_act", Words(&["gelu"])),
    ("add_cross_attention", Only(&["null", "true"])),
    ("position_embedding_type", Only(&["\"absolute\""])),
    (
        "attention_probs_dropout_prob classifier_dropout encoder_width fusion_layer hidden_dropout_prob \
         hidden_size intermediate_size max_position_embeddings num_hidden_layers type_vocab_size vocab_size",
        Free,
    ),
];

crate::json::defaults! {
    /// `med_config.json`. A missing key has the default of bert-base. `encoder_width` is not read: BLIP's code replaces it by the
    /// ViT's width.
    #[derive(Clone, Debug)]
    pub struct TextConfig {
        pub num_attention_heads: usize = 12,
        pub layer_norm_eps: f64 = 1e-12,
    }
}

/// Attention with the projection and the norm behind it.
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
}

impl Attention {
    /// `context`: the width of keys and values.
    fn load(p: Loader, w: usize, context: usize, eps: f64) -> Result<Self> {
        let (own, out) = (p.pp("self"), p.pp("output"));
        Ok(Self {
            query: Linear::load(own.pp("query"), w, w)?,
            key: Linear::load(own.pp("key"), context, w)?,
            value: Linear::load(own.pp("value"), context, w)?,
            dense: Linear::load(out.pp("dense"), w, w)?,
            norm: LayerNorm::load(out.pp("LayerNorm"), w, eps)?,
        })
    }

    /// x (B, N, w), context (B, M, ..) -> (B, N, w)
    fn forward(&self, x: &Tensor, context: &Tensor, heads: usize) -> Candle<Tensor> {
        let (q, k, v) = (self.query.forward(x)?, self.key.forward(context)?, self.value.forward(context)?);
        let attended = ops::attention(&q, &k, &v, heads, Mask::None)?;
        self.norm.forward(&(self.dense.forward(&attended)? + x)?)
    }
}

struct Layer {
    attention: Attention,
    cross: Attention,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
}

/// BLIP's text encoder: BERT without token types, with a cross attention to the image in every layer.
pub struct Text {
    words: Tensor,     // (vocabulary, width)
    positions: Tensor, // (positions, width)
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
}

impl Text {
    /// `p` at the encoder. `context`: the width of the image's tokens.
    pub fn load(p: Loader, config: &TextConfig, context: usize) -> Result<Self> {
        let (e, eps) = (p.pp("embeddings"), config.layer_norm_eps);
        let [vocabulary, w] = e.dims("word_embeddings.weight")?;
        let [positions, _] = e.dims("position_embeddings.weight")?;
        let heads = config.num_attention_heads;
        ensure!(heads > 0 && w.is_multiple_of(heads), "width {w} does not divide into {heads} heads");
        let layers = p.pp("encoder.layer");
        let layer = |i: usize| -> Result<Layer> {
            let p = layers.pp(i);
            let [mlp, _] = p.dims("intermediate.dense.weight")?;
            Ok(Layer {
                attention: Attention::load(p.pp("attention"), w, w, eps)?,
                cross: Attention::load(p.pp("crossattention"), w, context, eps)?,
                intermediate: Linear::load(p.pp("intermediate.dense"), w, mlp)?,
                output: Linear::load(p.pp("output.dense"), mlp, w)?,
                norm: LayerNorm::load(p.pp("output.LayerNorm"), w, eps)?,
            })
        };
        Ok(Self {
            words: e.get("word_embeddings.weight", &[vocabulary, w])?,
            positions: e.get("position_embeddings.weight", &[positions, w])?,
            norm: LayerNorm::load(e.pp("LayerNorm"), w, eps)?,
            layers: (0..p.count("encoder.layer")).map(layer).collect::<Result<_>>()?,
            heads,
        })
    }

    /// Tokens that it knows, and the longest caption that it takes.
    pub fn sizes(&self) -> (usize, usize) {
        (self.words.dims()[0], self.positions.dims()[0])
    }

    /// The length of its vectors.
    pub fn width(&self) -> usize {
        self.words.dims()[1]
    }

    /// The first token's state after the last layer, (B, width). `ids`: B rows of one length N; `image` (B, M, context).
    pub fn forward(&self, ids: &[&[u32]], image: &Tensor) -> Candle<Tensor> {
        let (b, n) = (ids.len(), ids.first().map_or(0, |row| row.len()));
        let flat = Tensor::from_vec(ids.concat(), b * n, self.words.device())?;
        let words = self.words.index_select(&flat, 0)?.reshape((b, n, ()))?;
        let mut x = self.norm.forward(&words.broadcast_add(&self.positions.narrow(0, 0, n)?)?)?; // (B, N, width)
        for layer in &self.layers {
            x = layer.attention.forward(&x, &x, self.heads)?;
            x = layer.cross.forward(&x, image, self.heads)?;
            let h = ops::gelu(&layer.intermediate.forward(&x)?)?;
            x = layer.norm.forward(&(layer.output.forward(&h)? + &x)?)?;
        }
        x.narrow(1, 0, 1)?.contiguous()?.squeeze(1)
    }
}
