//! open_clip's files: their configuration, and their tensors under transformers' names.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::description::{Description, normalise};
use crate::config::Rule::{self, Flag, Free, Number, Only, Read, Same, Words};
use crate::config::{self, DEPTH, POSITIONS, Rules, VOCABULARY, WIDTH};
use crate::names::{Names, Part};
use crate::vit::{SIDE, VisionConfig};
use crate::weights::{Shapes, Weights};
use crate::{text::TextConfig, transformer::HiddenAct};

/// `model_cfg` of `open_clip_config.json`.
const MODEL: Rules = &[
    ("embed_dim", WIDTH),
    ("quick_gelu", Flag),
    ("vision_cfg text_cfg", Read),
    ("custom_text", Only(&["false", "null"])),
    ("multimodal_cfg", Only(&["null"])),
    ("init_logit_bias init_logit_scale", Free), // neither changes the cosine
];

/// The fields of open_clip's CLIPVisionCfg.
const VISION: Rules = &[
    ("layers", DEPTH), // a list is a ResNet's
    ("width head_width", WIDTH),
    ("mlp_ratio", MLP_RATIO),
    ("patch_size", SIDE),
    ("image_size", Same(&SIDE)),
    ("act_kwargs norm_kwargs", Only(&["null", "{}"])),
    (
        "attentional_pool final_ln_after_pool global_average_pool input_patchnorm no_ln_pre output_tokens",
        Only(&["false", "null"]),
    ),
    ("ls_init_value timm_model_name", Only(&["null"])),
    ("pool_type", Only(&["\"tok\""])),
    ("pos_embed_type", Only(&["\"learnable\""])),
    ("attn_pooler_heads attn_pooler_queries", Free), // of attentional_pool
    ("patch_dropout", Free),                         // in training only
    ("timm_drop timm_drop_path timm_model_pretrained timm_pool timm_proj timm_proj_bias", Free), // of timm_model_name
];

/// The fields of open_clip's CLIPTextCfg.
const TEXT: Rules = &[
    ("context_length", POSITIONS),
    ("vocab_size", VOCABULARY),
    ("width heads", WIDTH),
    ("layers", DEPTH),
    ("mlp_ratio", MLP_RATIO),
    ("act_kwargs norm_kwargs tokenizer_kwargs", Only(&["null", "{}"])),
    ("embed_cls final_ln_after_pool no_causal_mask output_tokens proj_bias", Only(&["false", "null"])),
    ("hf_model_name ls_init_value", Only(&["null"])),
    ("pool_type", Only(&["\"argmax\""])),
    ("proj_type", Only(&["\"linear\""])),
    ("bos_id eos_id", Free), // the end is the largest id of a text
    ("hf_model_config hf_model_pretrained hf_pooler_type hf_proj_type", Free), // of hf_model_name
    ("hf_tokenizer_name", Free), // the tokenizer's files lie beside the weights
    ("pad_id", Free),        // what follows the end changes nothing
];

const PREPROCESS: Rules = &[
    ("mean std size", Read),
    ("mode", Only(&["\"RGB\""])),
    ("interpolation", Only(&["\"bicubic\""])),
    ("resize_mode", Words(&["shortest", "longest"])), // the metric decides between the two
    ("fill_color", Only(&["0"])),
];

const MLP_RATIO: Rule = Number(0.1, 100.0);

crate::json::defaults! {
    /// `model_cfg` of `open_clip_config.json`. Missing keys take open_clip's defaults; a missing file means ViT-H-14.
    struct ModelCfg {
        embed_dim: usize = 1024,
        quick_gelu: bool = false,
        vision_cfg: Map<String, Value> = Map::new(),
        text_cfg: Map<String, Value> = Map::new(),
    }
}

crate::json::defaults! {
    struct VisionCfg {
        layers: usize = 12,
        width: usize = 768,
        head_width: usize = 64,
        mlp_ratio: f64 = 4.0,
        patch_size: usize = 16,
        image_size: usize = 224,
    }
}

crate::json::defaults! {
    struct TextCfg {
        context_length: usize = 77,
        vocab_size: usize = 49408,
        width: usize = 512,
        heads: usize = 8,
        layers: usize = 12,
        mlp_ratio: f64 = 4.0,
    }
}

/// `open_clip_config.json`; a missing file means ViT-H-14, the architecture of HPS and CLIP-H.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    model_cfg: Map<String, Value>,
    preprocess_cfg: Map<String, Value>,
}

impl Default for Config {
    fn default() -> Self {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        let vision = json!({ "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14 });
        let text = json!({ "width": 1024, "heads": 16, "layers": 24 });
        Self {
            model_cfg: object(json!({ "embed_dim": 1024, "vision_cfg": vision, "text_cfg": text })),
            preprocess_cfg: Map::new(),
        }
    }
}

/// The configuration beside an open_clip file, in transformers' terms.
pub fn describe(folder: &Path, tower: &Path) -> Result<Description> {
    let path = folder.join("open_clip_config.json");
    let config = match path.is_file() {
        true => config::read(&path, &[&[("model_cfg", Read), ("preprocess_cfg", Read)]])?,
        false => Config::default(),
    };
    let part = |name: &str| format!("{}, {name}", path.display());
    let model: ModelCfg = config::checked(config.model_cfg, &[MODEL], &part("model_cfg"))?;
    let v: VisionCfg = config::checked(model.vision_cfg, &[VISION], &part("vision_cfg"))?;
    let t: TextCfg = config::checked(model.text_cfg, &[TEXT], &part("text_cfg"))?;
    ensure!(
        v.width.is_multiple_of(v.head_width),
        "{}: width {} does not divide into heads of {}",
        part("vision_cfg"),
        v.width,
        v.head_width
    );
    let prepared = part("preprocess_cfg");
    let prepare: Map<String, Value> = config::checked(config.preprocess_cfg, &[PREPROCESS], &prepared)?;
    let get = |key| prepare.get(key).unwrap_or(&Value::Null);
    let side = Value::from(v.image_size);
    let fits = [&Value::Null, &side, &json!([side, side])].contains(&get("size"));
    ensure!(fits, "{prepared}: size = {}, but its image tower takes {side} pixels", get("size"));
    let normalise = normalise(get("mean"), get("std")).with_context(|| format!("{prepared}: mean or std"))?;
    // As in open_clip's names of models; a folder on the way may be called anything.
    let named = tower.file_name().is_some_and(|n| n.to_string_lossy().to_lowercase().contains("quickgelu"));
    let hidden_act = if model.quick_gelu || named { HiddenAct::QuickGelu } else { HiddenAct::Gelu };
    Ok(Description {
        vision: VisionConfig {
            hidden_size: v.width,
            intermediate_size: (v.width as f64 * v.mlp_ratio) as usize,
            num_hidden_layers: v.layers,
            num_attention_heads: v.width / v.head_width,
            image_size: v.image_size,
            patch_size: v.patch_size,
            hidden_act,
            layer_norm_eps: 1e-5,
            projection_dim: model.embed_dim,
        },
        text: TextConfig {
            vocab_size: t.vocab_size,
            hidden_size: t.width,
            intermediate_size: (t.width as f64 * t.mlp_ratio) as usize,
            num_hidden_layers: t.layers,
            num_attention_heads: t.heads,
            max_position_embeddings: t.context_length,
            hidden_act,
            layer_norm_eps: 1e-5,
            projection_dim: model.embed_dim,
            eos_token_id: 2, // the largest id, first occurrence: text.argmax(dim=-1)
        },
        size: None,
        crop: None,
        normalise,
    })
}

/// The weights under transformers' names. What neither tower needs is left out.
pub fn renamed(weights: Weights) -> Result<Weights> {
    let names = Names::open_clip();
    // `module.`: saved from several GPUs
    let mut renamed = weights.renamed(|name| names.ours(name.strip_prefix("module.").unwrap_or(name)))?;
    renamed.name += " (under transformers' names)";
    Ok(renamed)
}

/// The shapes of tensors under open_clip's names.
pub fn theirs(ours: Shapes) -> Result<Shapes> {
    let names = Names::open_clip();
    let theirs = ours.into_iter().map(|(name, mut shape)| {
        let (theirs, part) = names.theirs(&name).with_context(|| format!("open_clip has no tensor '{name}'"))?;
        match part {
            Part::Transposed => shape.reverse(),
            Part::Rows { count, of, .. } => shape[0] = shape[0] / count * of,
            Part::Whole | Part::Exchanged | Part::Pixel => {}
        }
        Ok((theirs, shape))
    });
    theirs.collect()
}
