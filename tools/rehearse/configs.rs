//! The configurations of the published models, and the same with small networks.

use nets::process::PredictionType;
use nets::single::{self, Family};
use serde_json::{Value, json};

pipe::names! {
    /// The base models of the paper.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Base {
        /// Stable Diffusion 1.5
        Sd15 = "sd15",
        /// Stable Diffusion 2.1, which predicts v
        Sd21 = "sd21",
        /// Stable Diffusion XL
        Sdxl = "sdxl",
    }
}

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Size {
        /// As published
        Published = "published",
        /// A sixteenth of every width and two layers: tests the layouts in seconds
        Tiny = "tiny",
    }
}

impl Base {
    /// The files of the model's folder: path and content.
    pub fn configs(self) -> Vec<(&'static str, Value)> {
        let (family, prediction, class) = match self {
            Self::Sd15 => (Family::V1, PredictionType::Epsilon, "StableDiffusionPipeline"),
            Self::Sd21 => (Family::V2, PredictionType::VPrediction, "StableDiffusionPipeline"),
            Self::Sdxl => (Family::Xl, PredictionType::Epsilon, "StableDiffusionXLPipeline"),
        };
        let mut all = single::configs(family, prediction);
        let scheduler =
            all.iter().find(|(path, _)| path.starts_with("scheduler/")).map(|(_, config)| &config["_class_name"]);
        let mut index = json!({
            "_class_name": class, "scheduler": ["diffusers", scheduler], "tokenizer": ["transformers", "CLIPTokenizer"],
            "text_encoder": ["transformers", "CLIPTextModel"], "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        match self {
            Self::Sdxl => {
                index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
                index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
                index["force_zeros_for_empty_prompt"] = true.into();
            }
            // Neither is needed here, as with the published model.
            _ => index["safety_checker"] = json!([null, null]),
        }
        if self != Self::Sdxl {
            index["feature_extractor"] = json!([null, null]);
        }
        all.retain(|(path, _)| *path != "model_index.json");
        all.push(("model_index.json", index));
        all
    }

    /// Pixels of the side of the pictures in its data set: Pick-a-Pic's, drawn for this model.
    pub fn side(self) -> usize {
        if self == Self::Sdxl { 1024 } else { 512 }
    }
}

impl Size {
    /// The configuration of a network of this size, from the published one.
    pub fn of(self, mut config: Value) -> Value {
        if self == Self::Tiny {
            shrink(&mut config);
        }
        config
    }
}

const WIDTHS: [&str; 12] = [
    "addition_time_embed_dim", "block_out_channels", "cross_attention_dim", "dim", "embed_dim", "head_width",
    "hidden_dim", "hidden_size", "intermediate_size", "projection_class_embeddings_input_dim", "projection_dim",
    "width",
];
const LAYERS: [&str; 4] = ["layers", "n_layers", "num_hidden_layers", "transformer_layers_per_block"];

fn shrink(config: &mut Value) {
    let Value::Object(keys) = config else { return };
    for (key, value) in keys {
        match &key[..] {
            key if WIDTHS.contains(&key) => numbers(value, |n| n / 16),
            key if LAYERS.contains(&key) => numbers(value, |n| n.min(2)),
            "norm_num_groups" => *value = 4.into(),
            // SD1.5's 8 heads do not divide 20 channels.
            "attention_head_dim" if value.is_u64() => *value = 4.into(),
            _ => shrink(value),
        }
    }
}

fn numbers(value: &mut Value, change: fn(u64) -> u64) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|value| numbers(value, change)),
        one => *one = one.as_u64().map(change).into(),
    }
}

/// HF's CLIPModel. For each tower: width, width of the MLP, heads, layers.
fn clip(text: [u64; 4], vision: [u64; 4], projection: u64, act: &str) -> Value {
    let tower = |[width, mlp, heads, layers]: [u64; 4], kind: &str| {
        json!({
            "hidden_act": act, "hidden_size": width, "intermediate_size": mlp, "layer_norm_eps": 1e-5, "model_type": kind,
            "num_attention_heads": heads, "num_hidden_layers": layers, "projection_dim": projection,
        })
    };
    let (mut text, mut vision) = (tower(text, "clip_text_model"), tower(vision, "clip_vision_model"));
    for (key, value) in
        [("bos_token_id", 0), ("eos_token_id", 2), ("max_position_embeddings", 77), ("vocab_size", 49408)]
    {
        text[key] = value.into();
    }
    for (key, value) in [("image_size", 224), ("num_channels", 3), ("patch_size", 14)] {
        vision[key] = value.into();
    }
    json!({
        "architectures": ["CLIPModel"], "logit_scale_init_value": 2.6592, "model_type": "clip", "projection_dim": projection,
        "text_config": text, "vision_config": vision,
    })
}

pub fn clip_h() -> Value {
    clip([1024, 4096, 16, 24], [1280, 5120, 16, 32], 1024, "gelu")
}

pub fn clip_l() -> Value {
    clip([768, 3072, 12, 12], [1024, 4096, 16, 24], 768, "quick_gelu")
}

/// `open_clip_config.json` of ViT-H-14.
pub fn open_clip() -> Value {
    json!({
        "model_cfg": {
            "embed_dim": 1024,
            "vision_cfg": { "image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14 },
            "text_cfg": { "context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24 },
        },
        "preprocess_cfg": { "mean": MEAN, "std": STD },
    })
}

pub fn preprocessor() -> Value {
    json!({
        "crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD, "resample": 3, "size": 224,
    })
}

const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// The classifier of prompts.
pub fn safe() -> Value {
    json!({
        "activation": "gelu", "architectures": ["DistilBertForSequenceClassification"], "dim": 768, "hidden_dim": 3072,
        "id2label": { "0": "SFW", "1": "NSFW" }, "label2id": { "SFW": 0, "NSFW": 1 }, "max_position_embeddings": 512,
        "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "problem_type": "single_label_classification",
        "sinusoidal_pos_embds": false, "vocab_size": 30522,
    })
}
