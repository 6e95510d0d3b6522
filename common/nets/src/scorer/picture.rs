//! A decoded image with the inputs that the scorers' networks take.

use anyhow::{Context, Result};

use crate::image::{self, Preprocess, Rgb};

/// A decoded image and what each preprocessing makes of its pixels, each computed once.
pub struct Picture {
    pub rgb: Rgb,
    inputs: Vec<(Preprocess, Vec<f32>)>,
}

impl Picture {
    /// Decodes and prepares an image. `bytes`: JPEG, PNG or WebP.
    pub fn decode(bytes: &[u8], preprocesses: &[Preprocess]) -> Result<Self> {
        let rgb = image::decode(bytes)?;
        let inputs = preprocesses.iter().map(|p| (*p, p.apply(&rgb))).collect();
        Ok(Self { rgb, inputs })
    }

    /// The network's input, (3, side, side) values.
    pub fn pixels(&self, preprocess: &Preprocess) -> Result<&[f32]> {
        let found = self.inputs.iter().find(|(p, _)| p == preprocess);
        let (_, pixels) = found.with_context(|| format!("the picture was not prepared for {}", preprocess.id()))?;
        Ok(pixels)
    }
}
