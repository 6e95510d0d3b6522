//! CLIP's image tower.

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};
use ops::Mask;
use pipe::names::Names;

use crate::config::Rule::{self, Named, Only, Whole};
use crate::config::{DEPTH, EPSILON, Rules, WIDTH};
use crate::layers::{LayerNorm, Linear};
use crate::loader::Loader;
use crate::transformer::{Encoder, HiddenAct, Shape};

/// The keys of transformers' CLIPVisionConfig that decide what it computes.
pub const KEYS: Rules = &[
    ("hidden_size intermediate_size num_attention_heads projection_dim", WIDTH),
    ("num_hidden_layers", DEPTH),
    ("image_size patch_size", SIDE),
    ("num_channels", Only(&["3"])),
    ("hidden_act", Named(HiddenAct::FORMS)),
    ("layer_norm_eps", EPSILON),
];

/// Pixels of an image tower's side: four times the largest published one.
pub const LARGEST: usize = 4096;
pub const SIDE: Rule = Whole(1, LARGEST as u64);

crate::json::defaults! {
    /// `vision_config` of a CLIPModel. A missing key takes transformers' default.
    #[derive(Clone, Debug)]
    pub struct VisionConfig {
        pub hidden_size: usize = 768,
        pub intermediate_size: usize = 3072,
        pub num_hidden_layers: usize = 12,
        pub num_attention_heads: usize = 12,
        pub image_size: usize = 224,
        pub patch_size: usize = 32,
        pub hidden_act: HiddenAct = HiddenAct::QuickGelu,
        pub layer_norm_eps: f64 = 1e-5,
        pub projection_dim: usize = 512,
    }
}

pub struct VisionModel {
    pub config: VisionConfig,
    class_embedding: Tensor,    // (width)
    patch_embedding: Tensor,    // (width, 3, patch, patch)
    no_bias: Tensor,            // (width) zeros
    position_embedding: Tensor, // (1 + patches, width)
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
}

impl VisionModel {
    /// `p` at the root of a CLIPModel. `projection_dim` of the config is that of the root's `visual_projection`.
    pub fn load(p: Loader, config: VisionConfig) -> Result<Self> {
        let root = p.pp("vision_model");
        ensure!(
            config.patch_size <= config.image_size,
            "patch_size {} is larger than image_size {}",
            config.patch_size,
            config.image_size
        );
        let (w, patch) = (config.hidden_size, config.patch_size);
        let patches = (config.image_size / patch).pow(2);
        let shape = Shape {
            width: w,
            mlp: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        let embeddings = root.pp("embeddings");
        let class_embedding = embeddings.get("class_embedding", &[w])?;
        Ok(Self {
            no_bias: class_embedding.zeros_like()?,
            class_embedding,
            patch_embedding: embeddings.get("patch_embedding.weight", &[w, 3, patch, patch])?,
            position_embedding: embeddings.get("position_embedding.weight", &[1 + patches, w])?,
            pre_layrnorm: LayerNorm::load(root.pp("pre_layrnorm"), w, config.layer_norm_eps)?, // sic
            encoder: Encoder::load(root.pp("encoder"), shape)?,
            post_layernorm: LayerNorm::load(root.pp("post_layernorm"), w, config.layer_norm_eps)?,
            visual_projection: Linear::load_no_bias(p.pp("visual_projection"), w, config.projection_dim)?,
            config,
        })
    }

    /// `pixels` (B, 3, image_size, image_size), normalised -> projected image features (B, projection_dim), not of unit length.
    pub fn forward(&self, pixels: &Tensor) -> Candle<Tensor> {
        let class = self.encoder.first(&self.embed(pixels)?)?; // (B, width)
        self.visual_projection.forward(&self.post_layernorm.forward(&class)?)
    }

    /// `pixels` (B, 3, image_size, image_size) -> every token of the last layer, projected without the norm that
    /// [`Self::forward`] puts before: (B, 1 + patches, projection_dim).
    pub fn tokens(&self, pixels: &Tensor) -> Candle<Tensor> {
        let states = self.encoder.hidden_states(&self.embed(pixels)?, Mask::None)?;
        self.visual_projection.forward(&states[states.len() - 1])
    }

    /// The class and the patches with their positions, normed: (B, 1 + patches, width).
    fn embed(&self, pixels: &Tensor) -> Candle<Tensor> {
        let (b, w) = (pixels.dim(0)?, self.config.hidden_size);
        let patches = ops::conv2d(pixels, &self.patch_embedding, &self.no_bias, self.config.patch_size, 0)?;
        let patches = ops::to_tokens(&patches)?; // (B, patches, width)
        let class = self.class_embedding.reshape((1, 1, w))?.broadcast_as((b, 1, w))?;
        let x = Tensor::cat(&[&class.contiguous()?, &patches], 1)?.broadcast_add(&self.position_embedding)?;
        self.pre_layrnorm.forward(&x)
    }
}
