//! MPS (Kwai-Kolors/MPS, CVPR 2024): a CLIP whose image tokens attend to those words of the caption that have to do with a fixed
//! condition. The score is the logit scale times the cosine of the crossed class token and the caption's end token.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Result as Candle, Tensor};
use ops::Mask;
use pipe::id;

use super::description::Description;
use super::hugging_face;
use super::metric::{Band, Metric, ModelFiles, Needs, Options, Role};
use super::model::{Joint, Model, Scorer};
use super::picture::Picture;
use crate::image::{CLIP, Preprocess};
use crate::layers::{LayerNorm, Linear};
use crate::text::{TextConfig, TextModel};
use crate::tokenizer::{Style, Tokenizer};
use crate::transformer::HiddenAct;
use crate::vit::{VisionConfig, VisionModel};
use crate::{folder, loader::Loader, weights::Weights};

pub const METRIC: Metric = Metric {
    name: "mps",
    role: Role::Judge,
    needs: Needs::Tower,
    // The means of published models; no standard deviation is published, so this one is wide.
    band: Band { mean: [8.0, 13.0], sd: [0.5, 6.0] },
    choices: &[],
    open,
};

/// The condition of an overall preference, word by word as in the repository's README.
const CONDITION: &str = "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, \
                         instance, texture, quantity, attributes, position, number, location, word, things.";

/// A caption's token is read where its similarity to the condition is above this share of the largest one: the number of the
/// model's class. The repository's evaluation scripts have 0.3 instead.
const THRESHOLD: f32 = 0.01;

/// No file says how wide a head of the cross model is: 64.
const HEAD: usize = 64;
const EPS: f64 = 1e-5;

/// CLIP-H at 224 pixels, which a folder without `config.json` means.
fn clip_h() -> Description {
    let vision = VisionConfig {
        hidden_size: 1280,
        intermediate_size: 5120,
        num_hidden_layers: 32,
        num_attention_heads: 16,
        patch_size: 14,
        hidden_act: HiddenAct::Gelu,
        projection_dim: 1024,
        ..Default::default()
    };
    let text = TextConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        hidden_act: HiddenAct::Gelu,
        projection_dim: 1024,
        ..Default::default()
    };
    Description { vision, text, size: None, crop: None, normalise: CLIP }
}

/// `silu(second half) * first half` of the last dimension.
fn swiglu(x: &Tensor) -> Candle<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (x, gate) = (x.narrow(D::Minus1, 0, half)?.contiguous()?, x.narrow(D::Minus1, half, half)?.contiguous()?);
    x * ops::silu(&gate)?
}

/// Attention of `q` (B, N, heads * 64) to one head of keys and values, (B, M, 64), that all heads share.
fn shared_keys(q: &Tensor, k: &Tensor, v: &Tensor) -> Candle<Tensor> {
    let (b, n, width) = q.dims3()?;
    let each = q.reshape((b, n * width / HEAD, HEAD))?; // every head of every token is a query of its own
    ops::attention(&each, k, v, 1, Mask::None)?.reshape((b, n, width))
}

/// Image tokens read the caption: x + to_out(attention(LN x, text)) + ff(LN x). The text is not normed.
struct Cross {
    norm: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    ff: [Linear; 2],
}

impl Cross {
    /// `w`: the width of the tokens of image and text.
    fn load(p: Loader, w: usize) -> Result<Self> {
        let [inner, _] = p.dims("to_q.weight")?;
        let [_, hidden] = p.dims("ff.2.weight")?;
        Ok(Self {
            norm: LayerNorm::load(p.pp("norm"), w, EPS)?,
            to_q: Linear::load_no_bias(p.pp("to_q"), w, inner)?,
            to_kv: Linear::load_no_bias(p.pp("to_kv"), w, 2 * HEAD)?,
            to_out: Linear::load_no_bias(p.pp("to_out"), inner, w)?,
            ff: [Linear::load_no_bias(p.pp("ff.0"), w, 2 * hidden)?, Linear::load_no_bias(p.pp("ff.2"), hidden, w)?],
        })
    }

    /// x (B, N, w), text (B, M, w) -> (B, N, w)
    fn forward(&self, x: &Tensor, text: &Tensor) -> Candle<Tensor> {
        let h = self.norm.forward(x)?;
        let kv = self.to_kv.forward(text)?; // (B, M, 128)
        let (k, v) = (kv.narrow(2, 0, HEAD)?.contiguous()?, kv.narrow(2, HEAD, HEAD)?.contiguous()?);
        let attended = self.to_out.forward(&shared_keys(&self.to_q.forward(&h)?, &k, &v)?)?;
        (x + attended)? + self.ff[1].forward(&swiglu(&self.ff[0].forward(&h)?)?)?
    }
}

/// Image tokens read each other: x + attn_out(attention(LN x)) + ff_out(LN x), whose first matrices are one.
struct Parallel {
    norm: LayerNorm,
    fused: Linear, // rows: queries, keys, values, feed-forward
    attn_out: Linear,
    ff_out: Linear,
    inner: usize,
    hidden: usize,
    /// Frequencies of the rotary positions, (32).
    inv_freq: Tensor,
}

impl Parallel {
    fn load(p: Loader, w: usize) -> Result<Self> {
        let [_, inner] = p.dims("attn_out.weight")?;
        let [_, hidden] = p.dims("ff_out.1.weight")?;
        Ok(Self {
            norm: LayerNorm::load(p.pp("norm"), w, EPS)?,
            fused: Linear::load_no_bias(p.pp("fused_attn_ff_proj"), w, inner + 2 * HEAD + 2 * hidden)?,
            attn_out: Linear::load_no_bias(p.pp("attn_out"), inner, w)?,
            ff_out: Linear::load_no_bias(p.pp("ff_out.1"), hidden, w)?,
            inner,
            hidden,
            inv_freq: p.get("rotary_emb.inv_freq", &[HEAD / 2])?,
        })
    }

    /// Turns the pairs (i, i + 32) of each head by angles that grow with the token's position. x (B, N, heads * 64)
    fn rotated(&self, x: &Tensor) -> Candle<Tensor> {
        let (b, n, width) = x.dims3()?;
        let positions = Tensor::arange(0f32, n as f32, x.device())?.reshape((n, 1))?;
        let angles = positions.matmul(&self.inv_freq.to_dtype(DType::F32)?.reshape((1, HEAD / 2))?)?; // (N, 32)
        let (cos, sin) = (angles.cos()?.to_dtype(x.dtype())?, angles.sin()?.to_dtype(x.dtype())?);
        let (cos, sin) = (cos.reshape((n, 1, HEAD / 2))?, sin.reshape((n, 1, HEAD / 2))?);
        let x = x.reshape((b, n, width / HEAD, HEAD))?;
        let (first, second) = (x.narrow(3, 0, HEAD / 2)?, x.narrow(3, HEAD / 2, HEAD / 2)?);
        let left = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
        let right = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
        Tensor::cat(&[left, right], 3)?.reshape((b, n, width))
    }

    /// x (B, N, w) -> (B, N, w)
    fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        let all = self.fused.forward(&self.norm.forward(x)?)?;
        let part = |from: usize, size: usize| all.narrow(2, from, size)?.contiguous();
        let (q, k) = (self.rotated(&part(0, self.inner)?)?, self.rotated(&part(self.inner, HEAD)?)?);
        let attended = self.attn_out.forward(&shared_keys(&q, &k, &part(self.inner + HEAD, HEAD)?)?)?;
        let ff = swiglu(&part(self.inner + 2 * HEAD, 2 * self.hidden)?)?;
        (x + attended)? + self.ff_out.forward(&ff)?
    }
}

struct Mps {
    vision: VisionModel,
    text: TextModel,
    tokenizer: Tokenizer,
    layers: Vec<(Cross, Parallel)>,
    /// Every token of the condition, (77, width).
    condition: Tensor,
    scale: f64,
    preprocess: Preprocess,
    device: Device,
    dtype: DType,
}

/// The part of a caption that the model reads.
struct Caption {
    /// The tokens that have to do with the condition, (1, kept, width).
    tokens: Tensor,
    /// The feature of the end token.
    end: Vec<f32>,
}

fn open(files: &ModelFiles, options: &Options) -> Result<Scorer> {
    let folder = folder::of(&files.tower);
    let weights = Weights::open(&files.tower)?;
    let about = match folder.join("config.json").is_file() {
        true => hugging_face::describe(&folder)?,
        false => clip_h(),
    };
    let side = about.vision.image_size;
    let (size, crop) = (about.size.unwrap_or(side), about.crop.unwrap_or(side));
    ensure!(
        crop == side,
        "{}: images are cropped to {crop} pixels, but the image tower takes {side}",
        folder.display()
    );
    let preprocess = Preprocess::HfClip { size, crop, normalise: about.normalise };
    let tokenizer = Tokenizer::from_folder(&folder, Style::Hf)?;
    let settings = format!(
        "heads {} {}, {} {}, eps {} {}, eos {}; vocabulary {}",
        about.vision.num_attention_heads,
        about.text.num_attention_heads,
        about.vision.hidden_act,
        about.text.hidden_act,
        about.vision.layer_norm_eps,
        about.text.layer_norm_eps,
        about.text.eos_token_id,
        tokenizer.hash()
    );
    let hash = id::hex(&id::sha256_of(&[weights.hash()?.as_bytes(), settings.as_bytes()]));
    let id = format!("sha256:{hash}; {}; {}; threshold {THRESHOLD}", preprocess.id(), tokenizer.id());
    let model = Mps::load(&weights, about, tokenizer, preprocess, options);
    let model = model.with_context(|| format!("cannot use {}", weights.name))?;
    Ok(Scorer { id, preprocess: Some(preprocess), model: Model::Joint(Box::new(model)) })
}

impl Mps {
    fn load(
        weights: &Weights,
        about: Description,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        options: &Options,
    ) -> Result<Self> {
        let root = Loader::frozen(weights, options.dtype, &options.device).pp("mps");
        let (clip, cross) = (root.pp("model"), root.pp("cross_model.layers"));
        let w = about.vision.projection_dim;
        let layer = |i: usize| -> Result<(Cross, Parallel)> {
            Ok((Cross::load(cross.pp(i).pp("0.fn"), w)?, Parallel::load(cross.pp(i).pp("1.fn"), w)?))
        };
        let layers = (0..root.count("cross_model.layers")).map(layer).collect::<Result<Vec<_>>>()?;
        ensure!(!layers.is_empty(), "it has no mps.cross_model.layers");
        let scale = clip.get("logit_scale", &[])?.to_dtype(DType::F64)?.to_scalar::<f64>()?.exp();
        let text = TextModel::load(clip.clone(), about.text)?;
        text.check_projection()?;
        ensure!(
            tokenizer.vocab_size() <= text.config.vocab_size,
            "the text tower has {} tokens, but the tokenizer {}: they belong to different models",
            text.config.vocab_size,
            tokenizer.vocab_size()
        );
        let mut model = Self {
            vision: VisionModel::load(clip, about.vision)?,
            condition: Tensor::zeros((1, 1), options.dtype, &options.device)?,
            text,
            tokenizer,
            layers,
            scale,
            preprocess,
            device: options.device.clone(),
            dtype: options.dtype,
        };
        model.condition = model.read(CONDITION)?.0;
        Ok(model)
    }

    /// A text's tokens, pads included, (77, width), and its end token, (1, width), projected.
    fn read(&self, text: &str) -> Result<(Tensor, Tensor)> {
        let ids = self.tokenizer.encode(text, self.text.config.max_position_embeddings)?;
        let states = self.text.forward(&[ids])?;
        Ok((self.text.project(&states.last)?.squeeze(0)?, self.text.project(&states.pooled)?))
    }

    fn caption(&self, text: &str) -> Result<Caption> {
        let (tokens, end) = self.read(text)?; // (77, width), (1, width)
        let similar = tokens.matmul(&self.condition.t()?)?.max(1)?; // (77)
        let similar = similar.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let most = similar.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let kept: Vec<u32> = (0u32..).zip(&similar).filter(|(_, s)| **s / most > THRESHOLD).map(|(i, _)| i).collect();
        ensure!(!kept.is_empty(), "no token of the caption has to do with the condition; the weights are damaged");
        let kept = Tensor::new(kept, &self.device)?;
        let end = end.squeeze(0)?.to_dtype(DType::F32)?.to_vec1()?;
        Ok(Caption { tokens: tokens.index_select(&kept, 0)?.unsqueeze(0)?, end })
    }

    fn score(&self, image: &[f32], caption: &Caption) -> Result<f32> {
        let width = caption.end.len();
        let mut x = Tensor::from_slice(image, (1, image.len() / width, width), &self.device)?.to_dtype(self.dtype)?;
        for (cross, parallel) in &self.layers {
            x = parallel.forward(&cross.forward(&x, &caption.tokens)?)?;
        }
        let class = x.narrow(1, 0, 1)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let lengths = (dot(&class, &class) * dot(&caption.end, &caption.end)).sqrt();
        Ok((self.scale * dot(&class, &caption.end) / lengths) as f32)
    }
}

impl Joint for Mps {
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        if pictures.is_empty() {
            return Ok(vec![]);
        }
        let pixels = Picture::batch(pictures, &self.preprocess, &self.device)?; // (B, 3, side, side)
        let features = self.vision.tokens(&pixels.to_dtype(self.dtype)?)?; // (B, tokens, width)
        Ok(features.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2()?)
    }

    /// Each caption is read once; each pair crosses by itself, because the kept tokens differ.
    fn scores(&self, images: &[&[f32]], captions: &[&str]) -> Result<Vec<f32>> {
        let mut read = BTreeMap::new();
        for caption in captions {
            if !read.contains_key(caption) {
                read.insert(*caption, self.caption(caption)?);
            }
        }
        images.iter().zip(captions).map(|(image, caption)| self.score(image, &read[caption])).collect()
    }
}
