//! The configurations of the models that are published in one file, which holds none, as diffusers' `from_single_file` takes them
//! from the models' folders on the hub.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use candle_core::DType;
use serde_json::{Value, json};

use crate::process::PredictionType;
use crate::weights::{self, Weights};

/// The model's family and prediction, from the file's tensors and metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub family: Family,
    pub prediction: PredictionType,
    /// The last timestep is pure noise.
    zero_snr: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V1,
    V2,
    Xl,
}

/// The configurations of the published model of this family: path in its folder, and content.
pub fn configs(family: Family, prediction: PredictionType) -> Vec<(&'static str, Value)> {
    Kind { family, prediction, zero_snr: false }.files()
}

impl Kind {
    /// Refuses what is none of these.
    pub fn of(file: &Path, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        let name = file.display();
        let has = |tensor: &str| shapes.contains_key(tensor);
        let channels = shapes.get("model.diffusion_model.input_blocks.0.0.weight").and_then(|shape| shape.get(1));
        ensure!(
            channels == Some(&4),
            "{name} takes {} channels: a model for inpainting, depth or edits is not supported",
            channels.copied().unwrap_or_default()
        );
        let edm = ["edm_mean", "edm_vpred.sigma_max"].into_iter().find(|tensor| has(tensor));
        ensure!(edm.is_none(), "{name} was trained by EDM ('{}'), which is not supported", edm.unwrap_or_default());
        let attends = shapes.iter().find(|(name, _)| name.ends_with(".transformer_blocks.0.attn2.to_k.weight"));
        let family = match attends.and_then(|(_, shape)| shape.last()) {
            Some(768) => Family::V1,
            Some(1024) => Family::V2,
            Some(2048) => Family::Xl,
            Some(1280) => bail!("{name} is SDXL's refiner, which is not supported"),
            other => bail!(
                "{name} is neither Stable Diffusion 1, 2 nor XL: it attends to text states of width {}",
                other.copied().unwrap_or_default()
            ),
        };
        let declared = weights::metadata(file).ok().and_then(|all| all.get("modelspec.prediction_type").cloned());
        let v = match (declared.as_deref(), family) {
            (Some("v"), _) => true,
            (Some("epsilon"), _) | (_, Family::V1) => false,
            (_, Family::V2) => looks_like_v(file)?,
            (_, Family::Xl) => has("v_pred"), // as NoobAI's files say it
        };
        let prediction = if v { PredictionType::VPrediction } else { PredictionType::Epsilon };
        Ok(Self { family, prediction, zero_snr: has("ztsnr") })
    }

    /// The files of the model's folder: path and content.
    pub fn files(self) -> Vec<(&'static str, Value)> {
        let v = self.prediction == PredictionType::VPrediction;
        let clip_l = text([768, 3072, 12, 12, 768], "quick_gelu", "CLIPTextModel");
        let own = match self.family {
            Family::V1 => vec![
                (
                    "unet/config.json",
                    unet(json!({ "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64 })),
                ),
                ("vae/config.json", vae(json!({ "sample_size": 512, "scaling_factor": 0.18215 }))),
                ("text_encoder/config.json", clip_l),
                ("tokenizer/special_tokens_map.json", json!({ "pad_token": "<|endoftext|>" })),
            ],
            Family::V2 => vec![
                (
                    "unet/config.json",
                    unet(json!({
                        "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true,
                        "sample_size": if v { 96 } else { 64 }, "upcast_attention": v,
                    })),
                ),
                ("vae/config.json", vae(json!({ "sample_size": 768, "scaling_factor": 0.18215 }))),
                // The last of open_clip's 24 layers is not used.
                ("text_encoder/config.json", text([1024, 4096, 16, 23, 512], "gelu", "CLIPTextModel")),
                ("tokenizer/special_tokens_map.json", json!({ "pad_token": "!" })),
            ],
            Family::Xl => vec![
                (
                    "unet/config.json",
                    unet(json!({
                        "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": true,
                        "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
                        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                        "projection_class_embeddings_input_dim": 2816, "sample_size": 128,
                    })),
                ),
                (
                    "vae/config.json",
                    vae(json!({ "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": true })),
                ),
                ("text_encoder/config.json", clip_l),
                ("text_encoder_2/config.json", text([1280, 5120, 20, 32, 1280], "gelu", "CLIPTextModelWithProjection")),
                ("tokenizer/special_tokens_map.json", json!({ "pad_token": "<|endoftext|>" })),
                ("tokenizer_2/special_tokens_map.json", json!({ "pad_token": "!" })),
                ("model_index.json", json!({ "force_zeros_for_empty_prompt": true })),
            ],
        };
        own.into_iter().chain([("scheduler/scheduler_config.json", self.scheduler())]).collect()
    }

    fn scheduler(self) -> Value {
        let (class, more) = match (self.family, self.prediction) {
            (Family::Xl, _) => ("EulerDiscreteScheduler", json!({ "timestep_spacing": "leading" })),
            (_, PredictionType::VPrediction) => ("DDIMScheduler", json!({})),
            _ => ("PNDMScheduler", json!({ "skip_prk_steps": true })),
        };
        let mut all = json!({
            "_class_name": class, "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "clip_sample": false, "num_train_timesteps": 1000, "prediction_type": self.prediction.to_string(), "set_alpha_to_one": false,
            "steps_offset": 1,
        });
        if self.zero_snr {
            add(&mut all, json!({ "rescale_betas_zero_snr": true, "timestep_spacing": "trailing" }));
        } else {
            add(&mut all, more);
        }
        all
    }
}

/// Whether Stable Diffusion 2 predicts v: ComfyUI's rule, by the spread of one bias.
fn looks_like_v(file: &Path) -> Result<bool> {
    let bias = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
    let weights = Weights::of_files(vec![file.to_owned()], |name| name == bias)?;
    let values = weights.raw(bias)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
    Ok(variance.sqrt() > 0.09)
}

fn add(all: &mut Value, more: Value) {
    if let (Value::Object(all), Value::Object(more)) = (all, more) {
        all.extend(more);
    }
}

fn unet(more: Value) -> Value {
    let mut all = json!({
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": false,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    });
    add(&mut all, more);
    all
}

fn vae(more: Value) -> Value {
    let mut all = json!({
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": vec!["DownEncoderBlock2D"; 4], "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "norm_num_groups": 32, "out_channels": 3, "up_block_types": vec!["UpDecoderBlock2D"; 4],
    });
    add(&mut all, more);
    all
}

/// Width, width of the MLP, heads, layers, width of the projection.
fn text([width, mlp, heads, layers, projection]: [u64; 5], act: &str, class: &str) -> Value {
    json!({
        "architectures": [class], "bos_token_id": 0, "eos_token_id": 2, "hidden_act": act, "hidden_size": width,
        "intermediate_size": mlp, "layer_norm_eps": 1e-5, "max_position_embeddings": 77, "model_type": "clip_text_model",
        "num_attention_heads": heads, "num_hidden_layers": layers, "pad_token_id": 1, "projection_dim": projection,
        "vocab_size": 49408,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::{config, process::Process, single, text, unet, vae::VaeConfig, write};

    /// A file that tells as little as it can: the width of the text states, and the spread by which v is known.
    fn file(path: &Path, width: usize, spread: f32, more: &[&str], metadata: &[(&str, &str)]) {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F16, &Device::Cpu).unwrap();
        let bias = Tensor::new(&[spread, -spread], &Device::Cpu).unwrap();
        let name = |name: &str| format!("{}{name}", crate::names::UNET);
        let mut all = BTreeMap::from([
            (name("input_blocks.0.0.weight"), zeros(&[320, 4, 3, 3])),
            (name("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"), zeros(&[2, width])),
            (name("output_blocks.11.1.transformer_blocks.0.norm1.bias"), bias),
        ]);
        all.extend(more.iter().map(|name| ((*name).to_owned(), zeros(&[1]))));
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        write::tensors(path, &all, metadata).unwrap();
    }

    #[test]
    fn the_tensors_tell_the_kind_and_its_configurations_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        for (width, spread, more, metadata, family, v, side, encoders) in [
            (768, 1.0, &[][..], &[][..], Family::V1, false, 64, 1),
            (1024, 0.01, &[], &[], Family::V2, false, 64, 1),
            (1024, 0.2, &[], &[], Family::V2, true, 96, 1),
            (1024, 0.2, &[], &[("modelspec.prediction_type", "epsilon")], Family::V2, false, 64, 1),
            (768, 0.0, &[], &[("modelspec.prediction_type", "v")], Family::V1, true, 64, 1),
            (2048, 0.0, &[], &[], Family::Xl, false, 128, 2),
            (2048, 0.0, &["v_pred", "ztsnr"], &[], Family::Xl, true, 128, 2),
        ] {
            file(&path, width, spread, more, metadata);
            let kind = Kind::of(&path, &weights::shapes(&path).unwrap()).unwrap();
            assert_eq!((kind.family, kind.prediction == PredictionType::VPrediction), (family, v));
            let folder = single::folder(&path, None).unwrap();
            let unet = unet::read_config(&folder.join("unet/config.json")).unwrap();
            assert_eq!((unet.sample_size, unet.cross_attention_dim, unet.widths().states), (side, width, width));
            assert_eq!(VaeConfig::read(&folder.join("vae/config.json")).unwrap().factor(), 8);
            for encoder in ["text_encoder", "text_encoder_2"].into_iter().take(encoders) {
                let file = folder.join(encoder).join("config.json");
                let config: text::TextConfig = config::read(&file, &[text::KEYS, config::TRANSFORMERS]).unwrap();
                assert_eq!(config.max_position_embeddings, 77);
            }
            let Process::Ddpm(ddpm) = Process::open(&folder).unwrap() else { panic!("not DDPM") };
            assert_eq!(ddpm.config.prediction_type == PredictionType::VPrediction, v);
            assert_eq!(ddpm.config.rescale_betas_zero_snr, more.contains(&"ztsnr"));
        }
        pipe::scratch::clear();
    }
}
