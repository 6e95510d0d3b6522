//! open_clip's files: their configuration, and their tensors under transformers' names.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use super::description::{Description, normalise};
use crate::{image::CLIP, json, text::TextConfig, vit::VisionConfig, weights::Weights};

/// `open_clip_config.json`. Missing keys take open_clip's defaults; a missing file means ViT-H-14.
#[derive(Deserialize)]
struct Config {
    model_cfg: ModelCfg,
    #[serde(default)]
    preprocess_cfg: Value,
}

#[derive(Deserialize)]
struct ModelCfg {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    #[serde(default)]
    vision_cfg: VisionCfg,
    #[serde(default)]
    text_cfg: TextCfg,
}

#[derive(Deserialize)]
#[serde(default)]
struct VisionCfg {
    layers: Value,
    width: usize,
    head_width: usize,
    mlp_ratio: f64,
    patch_size: usize,
    image_size: Value,
    timm_model_name: Option<String>,
    attentional_pool: Value,
}

impl Default for VisionCfg {
    fn default() -> Self {
        Self {
            layers: 12.into(),
            width: 768,
            head_width: 64,
            mlp_ratio: 4.0,
            patch_size: 16,
            image_size: 224.into(),
            timm_model_name: None,
            attentional_pool: false.into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct TextCfg {
    context_length: usize,
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
    mlp_ratio: f64,
    hf_model_name: Option<String>,
}

impl Default for TextCfg {
    fn default() -> Self {
        Self {
            context_length: 77,
            vocab_size: 49408,
            width: 512,
            heads: 8,
            layers: 12,
            mlp_ratio: 4.0,
            hf_model_name: None,
        }
    }
}

/// ViT-H-14, the architecture of HPS and CLIP-H.
fn vit_h_14() -> Config {
    let vision = VisionCfg { layers: 32.into(), width: 1280, head_width: 80, patch_size: 14, ..VisionCfg::default() };
    let text = TextCfg { width: 1024, heads: 16, layers: 24, ..TextCfg::default() };
    Config {
        model_cfg: ModelCfg { embed_dim: 1024, quick_gelu: false, vision_cfg: vision, text_cfg: text },
        preprocess_cfg: Value::Null,
    }
}

/// The configuration beside an open_clip file, in transformers' terms.
pub fn describe(folder: &Path, tower: &Path) -> Result<Description> {
    let path = folder.join("open_clip_config.json");
    let Config { model_cfg: model, preprocess_cfg } = if path.is_file() { json::read(&path)? } else { vit_h_14() };
    let unsupported = || format!("{} describes a model that is not supported", path.display());
    let (v, t) = (&model.vision_cfg, &model.text_cfg);
    if let Some(name) = v.timm_model_name.as_ref().or(t.hf_model_name.as_ref()) {
        bail!("{}: its tower is {name}, expected a plain transformer", unsupported());
    }
    ensure!(!v.attentional_pool.as_bool().unwrap_or(true), "{}: it pools by attention", unsupported());
    let layers = v.layers.as_u64().with_context(|| format!("{}: its image tower is a ResNet", unsupported()))?;
    let side = v.image_size.as_u64().or_else(|| match &v.image_size.as_array()?[..] {
        [a, b] if a == b => a.as_u64(),
        _ => None,
    });
    let image_size =
        side.filter(|&s| s > 0).with_context(|| format!("{}: image_size {}", unsupported(), v.image_size))?;
    let fits = v.head_width > 0 && v.width % v.head_width == 0 && v.patch_size > 0;
    ensure!(fits, "{}: width {} does not divide into heads of {}", unsupported(), v.width, v.head_width);
    // As in open_clip's names of models; a folder on the way may be called anything.
    let named = tower.file_name().is_some_and(|n| n.to_string_lossy().to_lowercase().contains("quickgelu"));
    let hidden_act = if model.quick_gelu || named { "quick_gelu" } else { "gelu" };
    let constants = match &preprocess_cfg {
        Value::Object(cfg) => {
            let get = |key| cfg.get(key).unwrap_or(&Value::Null);
            normalise(get("mean"), get("std")).with_context(unsupported)?
        }
        _ => CLIP,
    };
    Ok(Description {
        vision: VisionConfig {
            hidden_size: v.width,
            intermediate_size: (v.width as f64 * v.mlp_ratio) as usize,
            num_hidden_layers: usize::try_from(layers)?,
            num_attention_heads: v.width / v.head_width,
            image_size: usize::try_from(image_size)?,
            patch_size: v.patch_size,
            hidden_act: hidden_act.into(),
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
            hidden_act: hidden_act.into(),
            layer_norm_eps: 1e-5,
            projection_dim: model.embed_dim,
            eos_token_id: 2, // the largest id, first occurrence: text.argmax(dim=-1)
        },
        size: None,
        crop: None,
        normalise: constants,
    })
}

/// The weights under transformers' names. What neither tower needs is left out.
pub fn renamed(weights: Weights) -> Result<Weights> {
    let file = weights.name.clone();
    let mut renamed =
        weights.renamed(|name, tensor| rename(name, tensor).with_context(|| format!("{file}: tensor '{name}'")))?;
    renamed.name += " (under transformers' names)";
    Ok(renamed)
}

fn rename(name: &str, tensor: Tensor) -> Result<Vec<(String, Tensor)>> {
    let name = name.strip_prefix("module.").unwrap_or(name); // saved from several GPUs
    let one = |name: &str| Ok(vec![(name.to_owned(), tensor.clone())]);
    // `x @ P` -> `x W^T`
    let transposed = |name: &str| {
        ensure!(tensor.rank() == 2, "it has shape {:?}, expected a matrix", tensor.dims());
        Ok(vec![(name.to_owned(), tensor.t()?.contiguous()?)])
    };
    match name {
        "positional_embedding" => return one("text_model.embeddings.position_embedding.weight"),
        "token_embedding.weight" => return one("text_model.embeddings.token_embedding.weight"),
        "ln_final.weight" => return one("text_model.final_layer_norm.weight"),
        "ln_final.bias" => return one("text_model.final_layer_norm.bias"),
        "text_projection" => return transposed("text_projection.weight"),
        "visual.class_embedding" => return one("vision_model.embeddings.class_embedding"),
        "visual.positional_embedding" => return one("vision_model.embeddings.position_embedding.weight"),
        "visual.conv1.weight" => return one("vision_model.embeddings.patch_embedding.weight"),
        "visual.ln_pre.weight" => return one("vision_model.pre_layrnorm.weight"), // sic
        "visual.ln_pre.bias" => return one("vision_model.pre_layrnorm.bias"),
        "visual.ln_post.weight" => return one("vision_model.post_layernorm.weight"),
        "visual.ln_post.bias" => return one("vision_model.post_layernorm.bias"),
        "visual.proj" => return transposed("visual_projection.weight"),
        _ => {}
    }
    let (model, block) = match (name.strip_prefix("visual.transformer.resblocks."), name) {
        (Some(block), _) => ("vision_model", block),
        (None, name) => match name.strip_prefix("transformer.resblocks.") {
            Some(block) => ("text_model", block),
            None => return Ok(vec![]),
        },
    };
    let Some((layer, part)) = block.split_once('.') else { return Ok(vec![]) };
    let at = |part: &str| format!("{model}.encoder.layers.{layer}.{part}");
    if let Some(kind) = part.strip_prefix("attn.in_proj_") {
        let rows = tensor.dims().first().copied().unwrap_or(0);
        ensure!(rows % 3 == 0, "it has shape {:?}, which is not q, k and v", tensor.dims());
        let third =
            |i: usize, p: &str| Ok((at(&format!("self_attn.{p}.{kind}")), tensor.narrow(0, i * rows / 3, rows / 3)?));
        return [third(0, "q_proj"), third(1, "k_proj"), third(2, "v_proj")].into_iter().collect();
    }
    for (theirs, ours) in [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ] {
        if let Some(kind) = part.strip_prefix(theirs) {
            return one(&at(&format!("{ours}{kind}")));
        }
    }
    Ok(vec![])
}
