//! The same text in two sets is two prompts with one picture for each k: it is drawn once and stands in both rows.

use std::collections::HashMap;

use anyhow::{Context, Result};
use pipe::{column::Rows, prompt_source::Prompt, schema::images};

use crate::rows::Image;

/// The texts that come more than once, and their pictures while a later row needs them.
#[derive(Default)]
pub struct Repeats {
    /// The first and the last prompt with the same text, by prompt_id.
    spans: HashMap<String, (usize, usize)>,
    kept: HashMap<String, Vec<u8>>,
    /// Bytes in `kept`.
    bytes: usize,
    /// Rows whose picture was not drawn for them.
    shared: usize,
}

/// Bytes of pictures that are kept at most. Pictures beyond are drawn again, which takes time and gives the same pictures.
const LIMIT: usize = 1 << 30;

impl Repeats {
    pub fn of(prompts: &[Prompt]) -> Self {
        let mut spans: HashMap<&str, (usize, usize)> = HashMap::new();
        for (i, prompt) in prompts.iter().enumerate() {
            spans.entry(&prompt.prompt_id).and_modify(|(_, last)| *last = i).or_insert((i, i));
        }
        let repeated = spans.into_iter().filter(|(_, (first, last))| first < last);
        Self { spans: repeated.map(|(id, span)| (id.to_owned(), span)).collect(), ..Self::default() }
    }

    /// The PNGs of `images`, of which `draw` makes those that no earlier row has.
    pub fn pictures<'a>(
        &mut self,
        images: &'a [Image],
        draw: impl FnOnce(&[&'a Image]) -> Result<Vec<Vec<u8>>>,
    ) -> Result<Vec<Vec<u8>>> {
        let mut new: Vec<&Image> = vec![];
        for image in images {
            let repeated = self.spans.contains_key(&image.prompt.prompt_id);
            let known = self.kept.contains_key(&image.uid) || new.iter().any(|other| other.uid == image.uid);
            if !(repeated && known) {
                new.push(image);
            }
        }
        self.shared += images.len() - new.len();
        let drawn = if new.is_empty() { vec![] } else { draw(&new)? };
        let drawn: HashMap<&str, Vec<u8>> = new.iter().map(|image| image.uid.as_str()).zip(drawn).collect();
        let png = |image: &Image| drawn.get(image.uid.as_str()).or_else(|| self.kept.get(&image.uid)).cloned();
        let pngs = images.iter().map(|image| png(image).context("a picture is missing")).collect::<Result<Vec<_>>>()?;
        self.keep(images, pngs.iter().map(Vec::as_slice));
        Ok(pngs)
    }

    /// Keeps the pictures of a part that an earlier run finished, where later rows need them.
    pub fn keep_part(&mut self, images: &[Image], part: &Rows) -> Result<()> {
        if !self.spans.is_empty() {
            self.keep(images, part.bytes(images::IMAGE)?.iter().map(Option::unwrap_or_default));
        }
        Ok(())
    }

    fn keep<'a>(&mut self, images: &[Image], pngs: impl Iterator<Item = &'a [u8]>) {
        for (image, png) in images.iter().zip(pngs) {
            let Some((_, last)) = self.spans.get(&image.prompt.prompt_id) else { continue };
            if image.index == *last {
                self.bytes -= self.kept.remove(&image.uid).map_or(0, |png| png.len());
            } else if !self.kept.contains_key(&image.uid) && self.bytes + png.len() <= LIMIT {
                self.bytes += png.len();
                self.kept.insert(image.uid.clone(), png.to_owned());
            }
        }
    }

    /// Rows whose picture is a copy of an earlier row's.
    pub fn copies(&self) -> usize {
        self.shared
    }

    pub fn note(&self) -> String {
        match self.shared {
            0 => String::new(),
            1 => "; 1 image is a copy, because its prompt repeats the text of an earlier one".into(),
            n => format!("; {n} images are copies, because their prompt repeats the text of an earlier one"),
        }
    }
}
