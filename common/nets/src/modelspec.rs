//! The metadata by which web UIs know what a file of weights is: Stability AI's ModelSpec 1.0.1, with kohya's spellings. The date is
//! left out, so that the same work gives the same bytes.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use serde_json::Value;

use crate::{json, process::Process, vae::VaeConfig};

/// Architecture, prediction and image size of a model.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    architecture: &'static str,
    /// kohya's own name of it.
    version: &'static str,
    /// `None`: the velocity of flow matching, for which there is no word.
    prediction: Option<&'static str>,
    /// Side of its images in pixels.
    side: usize,
}

const STABILITY: &str = "https://github.com/Stability-AI/generative-models";

impl ModelSpec {
    /// Describes the denoiser in the folder `denoiser`, with the VAE and the scheduler of `base`.
    pub fn open(denoiser: &Path, base: &Path) -> Result<Self> {
        let config: Value = json::read(&denoiser.join("config.json"))?;
        let scheduler: Value = json::read(&base.join(Process::FILE))?;
        let class = config["_class_name"].as_str().unwrap_or_default();
        let v = scheduler["prediction_type"] == "v_prediction";
        let prediction = if v { "v" } else { "epsilon" };
        let (architecture, version, prediction) = match class {
            "SD3Transformer2DModel" => ("stable-diffusion-3", "sd3", None),
            "FluxTransformer2DModel" => ("flux-1", "flux1", None),
            _ if config["addition_embed_type"] == "text_time" => {
                ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", Some(prediction))
            }
            _ if config["use_linear_projection"] == true && v => ("stable-diffusion-v2-768-v", "sd_v2_v", Some("v")),
            _ if config["use_linear_projection"] == true => ("stable-diffusion-v2-512", "sd_v2", Some(prediction)),
            _ => ("stable-diffusion-v1", "sd_v1", Some(prediction)),
        };
        let factor = VaeConfig::read(&base.join("vae/config.json"))?.factor();
        let side = config["sample_size"].as_u64().unwrap_or(if prediction.is_some() { 64 } else { 128 }) as usize;
        Ok(Self { architecture, version, prediction, side: side * factor })
    }

    /// The metadata of a whole model in one file.
    pub fn whole(&self, title: &str) -> BTreeMap<String, String> {
        self.entries(self.architecture.to_owned(), STABILITY, title)
    }

    /// The metadata of adapters, with what kohya's scripts and web UIs look for too.
    pub fn lora(&self, title: &str) -> BTreeMap<String, String> {
        let implementation = if self.version.starts_with("sdxl") { STABILITY } else { "diffusers" };
        let mut all = self.entries(format!("{}/lora", self.architecture), implementation, title);
        for (key, value) in [("ss_network_module", "networks.lora"), ("ss_base_model_version", self.version)] {
            all.insert(key.to_owned(), value.to_owned());
        }
        all
    }

    fn entries(&self, architecture: String, implementation: &str, title: &str) -> BTreeMap<String, String> {
        let version = concat!("balanced-dpo/", env!("CARGO_PKG_VERSION")).to_owned();
        [
            ("sai_model_spec", "1.0.1".to_owned()),
            ("architecture", architecture),
            ("implementation", implementation.to_owned()),
            ("implementation_version", version),
            ("title", title.to_owned()),
            ("resolution", format!("{0}x{0}", self.side)),
        ]
        .into_iter()
        .chain(self.prediction.map(|prediction| ("prediction_type", prediction.to_owned())))
        .map(|(key, value)| (format!("modelspec.{key}"), value))
        .collect()
    }
}
