//! The configurations of transformers' files.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::description::{Description, normalise};
use crate::config::Rule::{Free, Number, Only, Read, Words};
use crate::config::{self, Rules, TRANSFORMERS, WIDTH};
use crate::{image::CLIP, json, text, vit};

/// A CLIPModel's `config.json`.
const KEYS: Rules = &[
    ("model_type", Words(&["clip"])),
    ("projection_dim", WIDTH),
    ("text_config vision_config text_config_dict vision_config_dict", Read),
    ("logit_scale_init_value", Free), // of a training from the start
];

/// The arguments of transformers' CLIPImageProcessor.
pub(super) const PREPROCESSOR: Rules = &[
    ("do_resize do_center_crop do_rescale do_normalize", Only(&["true"])),
    ("do_pad use_square_size default_to_square", Only(&["false", "null"])),
    ("resample", Only(&["3"])),                             // bicubic
    ("rescale_factor", Number(0.003_921_56, 0.003_921_57)), // 1 / 255
    ("size crop_size image_mean image_std", Read),
    ("image_processor_type", Words(&["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"])),
    ("feature_extractor_type", Words(&["CLIPFeatureExtractor", "CLIPImageProcessor"])),
    ("input_data_format pad_size", Only(&["null"])),
    ("data_format", Free), // how Python stores the numbers
    ("device disable_grouping processor_class return_tensors", Free),
    ("do_convert_rgb", Free), // images are RGB here
];

/// Reads `config.json` of a CLIPModel, and what lies beside it of its CLIPImageProcessor.
pub fn describe(folder: &Path) -> Result<Description> {
    #[derive(Deserialize)]
    #[serde(default)]
    struct Config {
        text_config: Map<String, Value>,
        vision_config: Map<String, Value>,
        /// The keys that transformers reads in place of the two above, one by one; its files say the same twice.
        text_config_dict: Map<String, Value>,
        vision_config_dict: Map<String, Value>,
        projection_dim: usize,
    }
    impl Default for Config {
        fn default() -> Self {
            let none = Map::new;
            Self {
                text_config: none(),
                vision_config: none(),
                text_config_dict: none(),
                vision_config_dict: none(),
                projection_dim: 512,
            }
        }
    }
    let file = folder.join("config.json");
    let config: Config =
        config::read(&file, &[KEYS, TRANSFORMERS]).context("the tower has to be a CLIPModel, with its config.json")?;
    let part = |name: &str| format!("{}, {name}", file.display());
    for (name, old, new) in [
        ("text_config", &config.text_config_dict, &config.text_config),
        ("vision_config", &config.vision_config_dict, &config.vision_config),
    ] {
        let differs = old.iter().find(|(key, value)| new.get(*key).is_some_and(|new| new != *value));
        let known = |key: &str| config::rule(&[text::KEYS, vit::KEYS], key).is_some();
        if let Some((key, value)) = differs.filter(|(key, _)| known(key)) {
            bail!("{}: {key} is {}, but {value} in {name}_dict", part(name), new[key]);
        }
    }
    let mut text: text::TextConfig =
        config::checked(config.text_config, &[text::KEYS, TRANSFORMERS], &part("text_config"))?;
    let mut vision: vit::VisionConfig =
        config::checked(config.vision_config, &[vit::KEYS, TRANSFORMERS], &part("vision_config"))?;
    (text.projection_dim, vision.projection_dim) = (config.projection_dim, config.projection_dim);
    let mut about = Description { vision, text, size: None, crop: None, normalise: CLIP };
    preprocessor(folder, &mut about)?;
    Ok(about)
}

/// The arguments of a folder's image processor, which `rules` know, and the file that has them: `processor_config.json`, which
/// transformers 5 writes, before `preprocessor_config.json`, as transformers does.
pub(super) fn image_processor(folder: &Path, rules: &[Rules]) -> Result<Option<(String, Map<String, Value>)>> {
    let (new, old) = (folder.join("processor_config.json"), folder.join("preprocessor_config.json"));
    let nested = if new.is_file() { json::read::<Value>(&new)?["image_processor"].take() } else { Value::Null };
    let (file, keys) = match nested {
        Value::Object(keys) => (new, keys),
        _ if old.is_file() => (old.clone(), json::read(&old)?),
        _ => return Ok(None),
    };
    let file = file.display().to_string();
    let config = config::checked(keys, rules, &file)?;
    Ok(Some((file, config)))
}

fn preprocessor(folder: &Path, about: &mut Description) -> Result<()> {
    let found = image_processor(folder, &[PREPROCESSOR]).context("the images are not prepared as by CLIP")?;
    let Some((file, config)) = found else { return Ok(()) };
    let get = |key: &str| config.get(key).unwrap_or(&Value::Null);
    let in_file = |key: &str| format!("{file}: {key}");
    about.size = side(get("size"), "shortest_edge").with_context(|| in_file("size"))?;
    about.crop = side(get("crop_size"), "height").with_context(|| in_file("crop_size"))?;
    about.normalise =
        normalise(get("image_mean"), get("image_std")).with_context(|| in_file("image_mean or image_std"))?;
    Ok(())
}

/// A size in pixels, written as 224, or {"shortest_edge": 224}, or {"height": 224, "width": 224}.
pub(super) fn side(value: &Value, key: &str) -> Result<Option<usize>> {
    let number = match value {
        Value::Null => return Ok(None),
        Value::Object(sides) => {
            let set = |name: &str| sides.get(name).filter(|side| !side.is_null());
            ensure!(set("height") == set("width"), "{value} is not square");
            ensure!(set("longest_edge").is_none(), "{value} limits the longer side, which CLIP does not");
            set(key).and_then(Value::as_u64)
        }
        number => number.as_u64(),
    };
    let number = number.filter(|n| (1..=vit::LARGEST as u64).contains(n));
    let number = number.with_context(|| format!("{value} is not a size from 1 to {} with {key}", vit::LARGEST))?;
    Ok(Some(number as usize))
}
