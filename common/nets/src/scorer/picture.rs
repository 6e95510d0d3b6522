//! A decoded image with the inputs that the scorers' networks take.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};

use crate::image::{self, Beyond, Preprocess, Rgb, Stored};

/// A decoded image and what each preprocessing makes of its pixels, each computed once.
pub struct Picture {
    pub rgb: Rgb,
    inputs: Vec<(Preprocess, Vec<f32>)>,
}

impl Picture {
    /// Decodes and prepares an image. `bytes`: JPEG, PNG or WebP.
    pub fn decode(bytes: &[u8], preprocesses: &[Preprocess]) -> Result<Self> {
        // Only BLIP's judges resize in the file's own mode.
        let image = match preprocesses.iter().any(|p| matches!(p, Preprocess::Blip { .. })) {
            true => image::decode_stored(bytes)?,
            false => Stored { rgb: image::decode(bytes)?, beyond: Beyond::Nothing },
        };
        let inputs = preprocesses.iter().map(|p| (*p, p.apply(&image))).collect();
        Ok(Self { rgb: image.rgb, inputs })
    }

    /// The network's input, (3, side, side) values.
    pub fn pixels(&self, preprocess: &Preprocess) -> Result<&[f32]> {
        let found = self.inputs.iter().find(|(p, _)| p == preprocess);
        let (_, pixels) = found.with_context(|| format!("the picture was not prepared for {}", preprocess.id()))?;
        Ok(pixels)
    }

    /// The networks' inputs of some pictures, (B, 3, side, side) in f32.
    pub(super) fn batch(pictures: &[&Self], preprocess: &Preprocess, device: &Device) -> Result<Tensor> {
        let side = preprocess.side();
        let mut pixels = Vec::with_capacity(pictures.len() * 3 * side * side);
        for picture in pictures {
            pixels.extend_from_slice(picture.pixels(preprocess)?);
        }
        Ok(Tensor::from_vec(pixels, (pictures.len(), 3, side, side), device)?)
    }
}
