//! What the configurations of transformers' files say.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::description::{Description, normalise};
use crate::{image::CLIP, json, text::TextConfig, vit::VisionConfig};

/// Reads `config.json` of a CLIPModel, and `preprocessor_config.json` beside it if there is one.
pub fn describe(folder: &Path) -> Result<Description> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        text_config: TextConfig,
        vision_config: VisionConfig,
        #[serde(default = "projection_dim")]
        projection_dim: usize,
    }
    fn projection_dim() -> usize {
        512
    }
    let Config { text_config: mut text, vision_config: mut vision, projection_dim } =
        json::read(&folder.join("config.json")).context("the tower has to be a CLIPModel, with its config.json")?;
    (text.projection_dim, vision.projection_dim) = (projection_dim, projection_dim);
    let mut about = Description { vision, text, size: None, crop: None, normalise: CLIP };

    let path = folder.join("preprocessor_config.json");
    if path.is_file() {
        let config: Value = json::read(&path)?;
        let unlike_clip = || format!("{} asks for a preprocessing that CLIP does not have", path.display());
        for step in ["do_resize", "do_center_crop", "do_normalize", "do_rescale"] {
            ensure!(config[step] != false, "{}: {step} is off", unlike_clip());
        }
        ensure!(config["resample"].as_u64().unwrap_or(3) == 3, "{}: resample is not 3 (bicubic)", unlike_clip());
        about.size = side(&config["size"], "shortest_edge").with_context(unlike_clip)?;
        about.crop = side(&config["crop_size"], "height").with_context(unlike_clip)?;
        about.normalise = normalise(&config["image_mean"], &config["image_std"]).with_context(unlike_clip)?;
    }
    Ok(about)
}

/// A size in pixels, written as 224, or {"shortest_edge": 224}, or {"height": 224, "width": 224}.
fn side(value: &Value, key: &str) -> Result<Option<usize>> {
    let number = match value {
        Value::Null => return Ok(None),
        Value::Object(sides) => {
            let (height, width) = (sides.get("height"), sides.get("width"));
            ensure!(height == width, "{value} is not square");
            sides.get(key).and_then(Value::as_u64)
        }
        number => number.as_u64(),
    };
    let number = number.filter(|&n| n > 0).with_context(|| format!("{value} is not a size"))?;
    Ok(Some(usize::try_from(number)?))
}
