//! The rows of an images table: which image each is, the noise it begins with, and what its PNG says of itself.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use nets::image::{self, Rgb};
use pipe::{id, prompt_source::Prompt, schema, seed};
use rayon::prelude::*;

use crate::draw::Settings;

/// One image to draw.
pub struct Image<'a> {
    pub prompt: &'a Prompt,
    k: u32,
    pub seed: u64,
}

impl<'a> Image<'a> {
    /// Row `prompt * n + k`.
    pub fn of(row: usize, n: u32, run_seed: u64, prompts: &'a [Prompt]) -> Self {
        let (prompt, k) = (&prompts[row / n as usize], (row % n as usize) as u32);
        let seed = seed::draws(run_seed, "image", &prompt.prompt_id, k as u64).next_u64();
        Self { prompt, k, seed }
    }
}

/// What drew them.
pub struct Artist {
    /// What column `model` says.
    pub name: String,
    /// SHA-256 of the UNet.
    pub unet: String,
    /// Everything else than prompt and seed that an image follows from, as JSON.
    pub content: String,
    /// The sampler's name in AUTOMATIC1111's web UI.
    pub sampler: String,
    pub settings: Settings,
}

impl Artist {
    pub fn table(&self, images: &[Image], drawn: &[Rgb]) -> Result<RecordBatch> {
        let png = |(image, rgb): (&Image, &Rgb)| image::png_with(rgb, "parameters", &self.parameters(image, rgb));
        let pngs =
            images.par_iter().zip(drawn).map(png).collect::<Result<Vec<_>>>().context("cannot write an image")?;
        let text = |f: &dyn Fn(&Image) -> Option<String>| -> ArrayRef {
            Arc::new(StringArray::from_iter(images.iter().map(f)))
        };
        let uid = |i: &Image| {
            let parts = [self.content.as_bytes(), i.prompt.prompt.as_bytes(), &i.seed.to_le_bytes()];
            id::hex(&id::sha256_of(&parts)[..16])
        };
        let columns: Vec<ArrayRef> = vec![
            text(&|i| Some(i.prompt.prompt_id.clone())),
            text(&|i| Some(i.prompt.prompt.clone())),
            text(&|i| Some(i.prompt.set.clone())),
            text(&|i| i.prompt.category.clone()),
            text(&|i| i.prompt.challenge.clone()),
            text(&|i| Some(uid(i))),
            Arc::new(UInt32Array::from_iter_values(images.iter().map(|i| i.k))),
            Arc::new(UInt64Array::from_iter_values(images.iter().map(|i| i.seed))),
            text(&|_| Some(self.name.clone())),
            Arc::new(BinaryArray::from_iter_values(&pngs)),
        ];
        Ok(RecordBatch::try_new(Arc::new(schema::images()), columns)?)
    }

    /// The settings in the form that AUTOMATIC1111's web UI writes into its PNGs, and that other programs read.
    fn parameters(&self, image: &Image, drawn: &Rgb) -> String {
        let (Settings { sampling, guidance, negative, .. }, sampler) = (&self.settings, &self.sampler);
        let negative = match negative {
            Some(text) if !text.is_empty() => format!("\nNegative prompt: {text}"),
            _ => String::new(),
        };
        // A value that would look like two is quoted there.
        let name = if self.name.contains([',', ':', '\n']) { format!("{:?}", self.name) } else { self.name.clone() };
        format!(
            "{}{negative}\nSteps: {}, Sampler: {sampler}, CFG scale: {guidance}, Seed: {}, Size: {}x{}, \
             Model hash: {}, Model: {name}, Version: balanced-dpo {}",
            image.prompt.prompt,
            sampling.steps,
            image.seed,
            drawn.width,
            drawn.height,
            &self.unet[..10],
            env!("CARGO_PKG_VERSION")
        )
    }
}
