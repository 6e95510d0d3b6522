//! SigLIP's image tower, whose pooled vector is what a learned probe attends to.

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};
use ops::Mask;

use crate::layers::{LayerNorm, Linear};
use crate::loader::Loader;
use crate::transformer::{Encoder, HiddenAct, Shape};

crate::json::defaults! {
    /// transformers' SiglipVisionConfig. A missing key takes its default.
    #[derive(Clone, Debug)]
    pub struct VisionConfig {
        pub hidden_size: usize = 768,
        pub intermediate_size: usize = 3072,
        pub num_hidden_layers: usize = 12,
        pub num_attention_heads: usize = 12,
        pub image_size: usize = 224,
        pub patch_size: usize = 16,
        pub layer_norm_eps: f64 = 1e-6,
    }
}

pub struct VisionModel {
    patch_size: usize,
    patch_weight: Tensor,       // (width, 3, patch, patch)
    patch_bias: Tensor,         // (width)
    position_embedding: Tensor, // (patches, width)
    encoder: Encoder,
    post_layernorm: LayerNorm,
    head: Head,
}

/// One attention of the probe to all tokens, and a perceptron.
struct Head {
    heads: usize,
    probe: Tensor,     // (1, 1, width)
    in_weight: Tensor, // (3 width, width): q, k, v
    in_bias: Tensor,   // (3 width)
    out_proj: Linear,
    layernorm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl VisionModel {
    /// `p` at the model's `vision_model`.
    pub fn load(p: Loader, config: &VisionConfig) -> Result<Self> {
        let (w, mlp, eps, heads) =
            (config.hidden_size, config.intermediate_size, config.layer_norm_eps, config.num_attention_heads);
        ensure!(config.patch_size <= config.image_size, "patch_size is larger than image_size");
        let patches = (config.image_size / config.patch_size).pow(2);
        let shape =
            Shape { width: w, mlp, layers: config.num_hidden_layers, heads, act: HiddenAct::GeluPytorchTanh, eps };
        let (embeddings, head) = (p.pp("embeddings"), p.pp("head"));
        let patch = embeddings.pp("patch_embedding");
        Ok(Self {
            patch_size: config.patch_size,
            patch_weight: patch.get("weight", &[w, 3, config.patch_size, config.patch_size])?,
            patch_bias: patch.get("bias", &[w])?,
            position_embedding: embeddings.get("position_embedding.weight", &[patches, w])?,
            encoder: Encoder::load(p.pp("encoder"), shape)?,
            post_layernorm: LayerNorm::load(p.pp("post_layernorm"), w, eps)?,
            head: Head {
                heads,
                probe: head.get("probe", &[1, 1, w])?,
                in_weight: head.get("attention.in_proj_weight", &[3 * w, w])?,
                in_bias: head.get("attention.in_proj_bias", &[3 * w])?,
                out_proj: Linear::load(head.pp("attention.out_proj"), w, w)?,
                layernorm: LayerNorm::load(head.pp("layernorm"), w, eps)?,
                fc1: Linear::load(head.pp("mlp.fc1"), w, mlp)?,
                fc2: Linear::load(head.pp("mlp.fc2"), mlp, w)?,
            },
        })
    }

    /// `pixels` (1, 3, image_size, image_size), between -1 and 1 -> the pooled vector (1, width), not of unit length.
    pub fn forward(&self, pixels: &Tensor) -> Candle<Tensor> {
        let patches = ops::conv2d(pixels, &self.patch_weight, &self.patch_bias, self.patch_size, 0)?;
        let x = ops::to_tokens(&patches)?.broadcast_add(&self.position_embedding)?; // (1, patches, width)
        let states = self.encoder.hidden_states(&x, Mask::None)?;
        self.head.forward(&self.post_layernorm.forward(&states[states.len() - 1])?)
    }
}

impl Head {
    fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        let width = self.probe.dim(2)?;
        let project = |x: &Tensor, which: usize| {
            let part = |all: &Tensor| all.narrow(0, which * width, width)?.contiguous();
            ops::linear(x, &part(&self.in_weight)?, Some(&part(&self.in_bias)?))
        };
        let attended =
            ops::attention(&project(&self.probe, 0)?, &project(x, 1)?, &project(x, 2)?, self.heads, Mask::None)?;
        let x = self.out_proj.forward(&attended)?; // (1, 1, width)
        let more =
            self.fc2.forward(&HiddenAct::GeluPytorchTanh.apply(&self.fc1.forward(&self.layernorm.forward(&x)?)?)?)?;
        (x + more)?.squeeze(1)
    }
}
