//! Writing images as PNG.

use anyhow::{Context, Result};
use png::{BitDepth, ColorType, Encoder};

use super::Rgb;

/// The image as PNG, with a key and its text or without. The same pixels give the same bytes.
pub fn png(image: &Rgb, text: Option<(&str, &str)>) -> Result<Vec<u8>> {
    let mut out = vec![];
    let mut encoder = Encoder::new(&mut out, u32::try_from(image.width)?, u32::try_from(image.height)?);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    if let Some((key, text)) = text {
        let (key, text) = (key.to_owned(), text.replace('\0', " "));
        // As Pillow does: Latin-1 if that can express the text, else UTF-8.
        match text.chars().all(|c| u32::from(c) < 256) {
            true => encoder.add_text_chunk(key, text)?,
            false => encoder.add_itxt_chunk(key, text)?,
        }
    }
    let cannot = || format!("cannot write a PNG of {} x {}", image.width, image.height);
    let mut writer = encoder.write_header().with_context(cannot)?;
    writer.write_image_data(&image.data).with_context(cannot)?;
    writer.finish().with_context(cannot)?;
    Ok(out)
}
