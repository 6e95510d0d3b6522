//! The description of a CLIP model by its files, in transformers' terms.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::image::{CLIP, Normalise};
use crate::{text::TextConfig, vit::VisionConfig};

/// Both towers, and what the files say of the image's preparation. What they do not say is as in OpenAI's CLIP.
pub struct Description {
    pub vision: VisionConfig,
    pub text: TextConfig,
    /// Pixels of the image's shorter side.
    pub size: Option<usize>,
    /// Pixels of the side of the square that is cut out.
    pub crop: Option<usize>,
    pub normalise: Normalise,
}

/// Mean and standard deviation as a configuration has them; CLIP's if it has none.
pub fn normalise(mean: &Value, std: &Value) -> Result<Normalise> {
    let three = |value: &Value, default: [f32; 3]| -> Result<[f32; 3]> {
        if value.is_null() {
            return Ok(default);
        }
        let numbers: Option<Vec<f32>> =
            value.as_array().and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        let numbers = numbers.and_then(|n| <[f32; 3]>::try_from(n).ok());
        numbers.with_context(|| format!("{value} is not one number for each of red, green and blue"))
    };
    let normalise = Normalise { mean: three(mean, CLIP.mean)?, std: three(std, CLIP.std)? };
    ensure!(normalise.std.iter().all(|&s| s > 0.0), "{std} holds a deviation that is not positive");
    Ok(normalise)
}
