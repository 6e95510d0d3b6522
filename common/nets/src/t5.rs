//! T5's encoder (arXiv 1910.10683, version 1.1), which reads prompts for Stable Diffusion 3 and FLUX.
//!
//! candle-transformers has one too. It keeps all weights in memory, which for T5-XXL in f32 are 19 GB, and copies a layer's weight
//! for each text of a batch. Here a large encoder stays in its file, and a layer is read when its turn comes.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Result as Candle, Tensor};

use crate::config::Rule::{Free, Only, Whole, Words};
use crate::config::{self, DEPTH, EPSILON, Rules, TRANSFORMERS, VOCABULARY, WIDTH};
use crate::layers::{Linear, RmsNorm};
use crate::{loader::Loader, weights::Weights};

/// The keys of transformers' T5Config.
const KEYS: Rules = &[
    ("model_type", Words(&["t5"])),
    ("vocab_size", VOCABULARY),
    ("d_model", WIDTH),
    ("d_kv", WIDTH),
    ("d_ff", WIDTH),
    ("num_layers", DEPTH),
    ("num_heads", WIDTH),
    ("relative_attention_num_buckets", Whole(4, 1 << 12)),
    ("relative_attention_max_distance", Whole(2, 1 << 16)),
    ("layer_norm_epsilon", EPSILON),
    ("feed_forward_proj", Only(&["\"gated-gelu\""])),
    ("dense_act_fn", Only(&["\"gelu_new\""])),
    ("is_gated_act", Only(&["true"])),
    // Keys of the decoder, or of training.
    ("classifier_dropout", Free),
    ("dropout_rate", Free),
    ("is_encoder_decoder", Free),
    ("n_positions", Free),
    ("num_decoder_layers", Free),
    ("output_past", Free),
    ("scale_decoder_outputs", Free),
];

crate::json::defaults! {
    /// `config.json` of a T5EncoderModel. A missing key takes transformers' default.
    #[derive(Clone, Debug)]
    pub struct T5Config {
        vocab_size: usize = 32128,
        pub d_model: usize = 512,
        d_kv: usize = 64,
        d_ff: usize = 2048,
        num_layers: usize = 6,
        num_heads: usize = 8,
        relative_attention_num_buckets: usize = 32,
        relative_attention_max_distance: usize = 128,
        layer_norm_epsilon: f64 = 1e-6,
    }
}

struct Layer {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    ff_norm: RmsNorm,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl Layer {
    /// `p` at the layer's `block.I`.
    fn load(p: Loader, c: &T5Config) -> Result<Self> {
        let (width, inner) = (c.d_model, c.num_heads * c.d_kv);
        let (a, f) = (p.pp("layer.0"), p.pp("layer.1"));
        let (attention, dense) = (a.pp("SelfAttention"), f.pp("DenseReluDense"));
        Ok(Self {
            norm: RmsNorm::load(a.pp("layer_norm"), width, c.layer_norm_epsilon)?,
            q: Linear::load_no_bias(attention.pp("q"), width, inner)?,
            k: Linear::load_no_bias(attention.pp("k"), width, inner)?,
            v: Linear::load_no_bias(attention.pp("v"), width, inner)?,
            o: Linear::load_no_bias(attention.pp("o"), inner, width)?,
            ff_norm: RmsNorm::load(f.pp("layer_norm"), width, c.layer_norm_epsilon)?,
            wi_0: Linear::load_no_bias(dense.pp("wi_0"), width, c.d_ff)?,
            wi_1: Linear::load_no_bias(dense.pp("wi_1"), width, c.d_ff)?,
            wo: Linear::load_no_bias(dense.pp("wo"), c.d_ff, width)?,
        })
    }

    /// `x` (B, T, width), `bias` (heads, T, T).
    fn forward(&self, x: &Tensor, bias: &Tensor, heads: usize) -> Candle<Tensor> {
        let h = self.norm.forward(x)?;
        let attended = attention(&self.q.forward(&h)?, &self.k.forward(&h)?, &self.v.forward(&h)?, bias, heads)?;
        let x = (x + self.o.forward(&attended)?)?;
        let h = self.ff_norm.forward(&x)?;
        let gated = (ops::gelu_tanh(&self.wi_0.forward(&h)?)? * self.wi_1.forward(&h)?)?;
        &x + self.wo.forward(&gated)?
    }
}

/// softmax(q k^T + bias) v for each head, one text at a time: the scores of a long one are large. Padding is attended to, and
/// there is no 1 / sqrt(d).
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor, heads: usize) -> Candle<Tensor> {
    let (b, t, inner) = q.dims3()?;
    let one = |i: usize| {
        let split = |x: &Tensor| x.get(i)?.reshape((t, heads, inner / heads))?.transpose(0, 1)?.contiguous();
        let (q, k, v) = (split(q)?, split(k)?, split(v)?); // (heads, T, d)
        let scores = (q.matmul(&k.t()?)? + bias)?.to_dtype(DType::F32)?;
        let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(v.dtype())?;
        weights.matmul(&v)?.transpose(0, 1)?.reshape((t, inner))
    };
    Tensor::stack(&(0..b).map(one).collect::<Candle<Vec<_>>>()?, 0)
}

/// The encoder.
pub struct T5 {
    pub config: T5Config,
    weights: Weights,
    dtype: DType,
    device: Device,
    /// The layers, where they are kept in memory.
    held: Vec<Layer>,
}

impl T5 {
    /// Loads the folder of a T5EncoderModel.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        const LARGE: usize = 50_000_000; // parameters: 200 MB
        // T5-XXL overflows in f16.
        let dtype = if dtype == DType::F16 { DType::BF16 } else { dtype };
        let config: T5Config = config::read(&folder.join("config.json"), &[KEYS, TRANSFORMERS])?;
        let weights = Weights::open(folder)?;
        let size: usize =
            weights.names().iter().filter_map(|n| weights.dims(n)).map(|d| d.iter().product::<usize>()).sum();
        let mut t5 = Self { config, weights, dtype, device: device.clone(), held: vec![] };
        if size < LARGE || !device.is_cpu() {
            t5.held = (0..t5.config.num_layers).map(|i| t5.load(i)).collect::<Result<_>>()?;
        }
        Ok(t5)
    }

    fn loader(&self) -> Loader<'_> {
        Loader::frozen(&self.weights, self.dtype, &self.device)
    }

    fn load(&self, i: usize) -> Result<Layer> {
        Layer::load(self.loader().pp("encoder.block").pp(i), &self.config)
    }

    /// `ids`: B rows of token ids, all of one length T -> the states after the last norm, (B, T, width).
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let (c, p) = (&self.config, self.loader());
        let t = ids.first().map_or(0, Vec::len);
        ensure!(t > 0 && ids.iter().all(|row| row.len() == t), "token rows are empty or differ in length");
        let mut x = self.embedded(&ids.concat())?.reshape((ids.len(), t, c.d_model))?;
        let table = p.pp("encoder.block.0.layer.0.SelfAttention.relative_attention_bias");
        let bias = bias(&table.get("weight", &[c.relative_attention_num_buckets, c.num_heads])?, c, t)?;
        for i in 0..c.num_layers {
            let read;
            let layer = match self.held.get(i) {
                Some(held) => held,
                None => {
                    read = self.load(i)?;
                    &read
                }
            };
            x = layer.forward(&x, &bias, c.num_heads)?;
        }
        Ok(RmsNorm::load(p.pp("encoder.final_layer_norm"), c.d_model, c.layer_norm_epsilon)?.forward(&x)?)
    }

    /// The rows of the embedding, which is not turned into another type as a whole.
    fn embedded(&self, ids: &[u32]) -> Result<Tensor> {
        let vocab = self.config.vocab_size;
        ensure!(
            ids.iter().all(|&id| (id as usize) < vocab),
            "a token id lies outside the text encoder's vocabulary of {vocab}: the tokenizer belongs to another model"
        );
        let name = if self.weights.has("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" };
        let table = self.weights.get(name, &[vocab, self.config.d_model])?;
        let rows = table.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?;
        Ok(rows.to_dtype(self.dtype)?.to_device(&self.device)?)
    }
}

/// The bias of each head for each pair of places, (heads, T, T), from the table (buckets, heads).
fn bias(table: &Tensor, c: &T5Config, t: usize) -> Candle<Tensor> {
    let buckets: Vec<u32> = (0..t).flat_map(|query| (0..t).map(move |key| bucket(c, query, key))).collect();
    let rows = table.index_select(&Tensor::from_vec(buckets, t * t, table.device())?, 0)?;
    rows.reshape((t, t, ()))?.permute((2, 0, 1))?.contiguous()
}

/// Half of the buckets are for keys after the query. In each half, the first half is for exact distances, the others for ranges
/// that grow with the logarithm.
fn bucket(c: &T5Config, query: usize, key: usize) -> u32 {
    let half = c.relative_attention_num_buckets / 2;
    let (exact, distance) = (half / 2, query.abs_diff(key));
    let from = if key > query { half } else { 0 };
    let within = if distance < exact {
        distance
    } else {
        let share =
            (distance as f32 / exact as f32).ln() / (c.relative_attention_max_distance as f32 / exact as f32).ln();
        (exact + (share * (half - exact) as f32) as usize).min(half - 1)
    };
    (from + within) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From transformers' T5Attention._relative_position_bucket.
    #[test]
    fn distances_fall_into_transformers_buckets() {
        let c = T5Config::default();
        for (query, key, expected) in [
            (0, 0, 0),
            (5, 0, 5),
            (0, 7, 23),
            (8, 0, 8),
            (0, 11, 24),
            (12, 0, 9),
            (0, 16, 26),
            (32, 0, 12),
            (0, 63, 29),
            (64, 0, 14),
            (0, 128, 31),
            (500, 0, 15),
        ] {
            assert_eq!(bucket(&c, query, key), expected, "{query} {key}");
        }
    }
}
