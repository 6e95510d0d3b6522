//! The rows of an images table: which image each row is, and what its PNG says about itself.

use std::{collections::HashSet, sync::Arc};

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use nets::image::{self, Rgb};
use pipe::{id, prompt_source::Prompt, schema, seed};
use rayon::prelude::*;

use crate::draw::Settings;

pub struct Image<'a> {
    pub prompt: &'a Prompt,
    /// Number of the prompt in the list.
    pub index: usize,
    /// Which of the prompt's images this is.
    k: u32,
    pub seed: u64,
    /// Identifies the picture: images with the same uid are equal.
    pub uid: String,
}

pub enum Noise {
    /// From the image's seed.
    Drawn,
    /// Noise from a file, one row per image. Also holds the numbers of the prompts whose text has appeared before.
    Given(HashSet<usize>),
}

impl Noise {
    pub fn given(prompts: &[Prompt]) -> Self {
        let mut known = HashSet::new();
        let came_before = prompts.iter().enumerate().filter(|(_, prompt)| !known.insert(&prompt.prompt_id));
        Self::Given(came_before.map(|(i, _)| i).collect())
    }
}

/// The model and the settings that draw.
pub struct Artist {
    pub name: String,
    pub unet: String,
    /// Everything that a picture depends on besides its prompt and seed, as JSON.
    pub content: String,
    pub sampler: String,
    pub settings: Settings,
    pub n: u32,
    pub seed: u64,
    pub noise: Noise,
}

impl Artist {
    /// The image in this row, which is `prompt * n + k`.
    pub fn image<'a>(&self, row: usize, prompts: &'a [Prompt]) -> Image<'a> {
        let (index, k) = (row / self.n as usize, (row % self.n as usize) as u32);
        let prompt = &prompts[index];
        let seed = seed::draws(self.seed, "image", &prompt.prompt_id, k as u64).next_u64();
        let (row, seed_bytes) = (row.to_le_bytes(), seed.to_le_bytes());
        let mut parts = vec![self.content.as_bytes(), prompt.prompt.as_bytes(), &seed_bytes];
        // Given noise differs between rows of the same text and seed.
        if matches!(&self.noise, Noise::Given(came_before) if came_before.contains(&index)) {
            parts.push(&row);
        }
        Image { prompt, index, k, seed, uid: id::hex(&id::sha256_of(&parts)[..16]) }
    }

    /// The pictures as PNG files that say how they were drawn.
    pub fn pngs(&self, images: &[&Image], drawn: &[Rgb]) -> Result<Vec<Vec<u8>>> {
        let png = |(image, rgb): (&&Image, &Rgb)| image::png(rgb, Some(("parameters", &self.parameters(image, rgb))));
        images.par_iter().zip(drawn).map(png).collect::<Result<_>>().context("cannot write an image")
    }

    pub fn table(&self, images: &[Image], pngs: &[Vec<u8>]) -> Result<RecordBatch> {
        let text = |f: &dyn Fn(&Image) -> Option<String>| -> ArrayRef {
            Arc::new(StringArray::from_iter(images.iter().map(f)))
        };
        let columns: Vec<ArrayRef> = vec![
            text(&|i| Some(i.prompt.prompt_id.clone())),
            text(&|i| Some(i.prompt.prompt.clone())),
            text(&|i| Some(i.prompt.set.clone())),
            text(&|i| i.prompt.category.clone()),
            text(&|i| i.prompt.challenge.clone()),
            text(&|i| Some(i.uid.clone())),
            Arc::new(UInt32Array::from_iter_values(images.iter().map(|i| i.k))),
            Arc::new(UInt64Array::from_iter_values(images.iter().map(|i| i.seed))),
            text(&|_| Some(self.name.clone())),
            Arc::new(BinaryArray::from_iter_values(pngs)),
        ];
        Ok(RecordBatch::try_new(Arc::new(schema::images()), columns)?)
    }

    /// The settings as AUTOMATIC1111's web UI writes them into its PNGs, and as other programs read them.
    fn parameters(&self, image: &Image, drawn: &Rgb) -> String {
        let (Settings { sampling, negative, .. }, sampler) = (&self.settings, &self.sampler);
        let guidance = self.settings.weight();
        let negative = match negative {
            Some(text) if !text.is_empty() => format!("\nNegative prompt: {text}"),
            _ => String::new(),
        };
        // A name that would look like two values is quoted, as the web UI does.
        let name = if self.name.contains([',', ':', '\n']) { format!("{:?}", self.name) } else { self.name.clone() };
        format!(
            "{}{negative}\nSteps: {}, Sampler: {sampler}, CFG scale: {guidance}, Seed: {}, Size: {}x{}, \
             Model hash: {}, Model: {name}, RNG: balanced-dpo, Version: balanced-dpo {}",
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
