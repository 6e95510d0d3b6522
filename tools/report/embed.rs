//! Images inside the page: unchanged if there is room, else as JPEG, smaller and smaller until the page fits. Or in files beside it.

use std::borrow::Cow;

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use mozjpeg::{ColorSpace, Compress};
use nets::image::{self, Filter, Rgb};

use crate::beside::Beside;

#[derive(Clone, Copy)]
pub struct Fit {
    /// The longest side in pixels and the quality (0 to 100) of a JPEG; `None`: unchanged.
    jpeg: Option<(usize, f32)>,
    /// The number of prompts, evenly spaced, that show all their seeds.
    pub seeds: usize,
}

const ALL: usize = usize::MAX;

/// From the best to the smallest. Some prompts lose their other seeds before images become too small to judge.
pub const LADDER: [Fit; 12] = [
    Fit { jpeg: None, seeds: ALL },
    Fit { jpeg: Some((ALL, 93.0)), seeds: ALL },
    Fit { jpeg: Some((512, 88.0)), seeds: ALL },
    Fit { jpeg: Some((384, 85.0)), seeds: ALL },
    Fit { jpeg: None, seeds: 24 },
    Fit { jpeg: Some((512, 88.0)), seeds: 24 },
    Fit { jpeg: Some((384, 85.0)), seeds: 24 },
    Fit { jpeg: Some((320, 82.0)), seeds: 24 },
    Fit { jpeg: Some((256, 80.0)), seeds: 24 },
    Fit { jpeg: Some((192, 78.0)), seeds: 12 },
    Fit { jpeg: Some((128, 75.0)), seeds: 12 },
    Fit { jpeg: Some((96, 70.0)), seeds: 0 },
];

pub struct Embedded {
    /// The `src` of an `img`.
    pub src: String,
    /// The size of the image as it was drawn, in pixels.
    pub width: usize,
    pub height: usize,
}

impl Fit {
    /// Whether images stay as they were drawn.
    pub fn is_unchanged(self) -> bool {
        self.jpeg.is_none()
    }

    pub fn words(self, beside: Option<&Beside>) -> String {
        if let Some(beside) = beside {
            return format!("Images are as they were drawn, in the folder {} beside this page.", beside.name());
        }
        let Some((side, quality)) = self.jpeg else { return "Images are embedded as they were drawn.".into() };
        let most = if side == ALL { String::new() } else { format!(", at most {side} pixels wide and high") };
        format!("To keep the page small, images are embedded as JPEG of quality {quality}{most}.")
    }

    pub fn embed(self, bytes: &[u8], beside: Option<&Beside>) -> Result<Embedded> {
        let pixels = image::decode(bytes)?;
        let (width, height) = (pixels.width, pixels.height);
        let (kind, bytes) = match self.jpeg {
            None => (kind(bytes), Cow::Borrowed(bytes)),
            Some((side, quality)) => ("jpeg", Cow::Owned(jpeg(&shrink(pixels, side), quality)?)),
        };
        let src = match beside {
            None => uri(kind, &bytes),
            Some(beside) => beside.put(kind, &bytes)?,
        };
        Ok(Embedded { src, width, height })
    }
}

fn uri(kind: &str, bytes: &[u8]) -> String {
    format!("data:image/{kind};base64,{}", STANDARD.encode(bytes))
}

/// The format of bytes that could be decoded.
fn kind(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xff, 0xd8, ..] => "jpeg",
        [b'R', b'I', b'F', b'F', ..] => "webp",
        _ => "png",
    }
}

fn shrink(pixels: Rgb, side: usize) -> Rgb {
    let longest = pixels.width.max(pixels.height);
    if longest <= side {
        return pixels;
    }
    let scaled = |length: usize| ((length * side + longest / 2) / longest).max(1);
    image::resize(&pixels, scaled(pixels.width), scaled(pixels.height), Filter::Bicubic)
}

/// JPEG with full colour resolution from quality 90, and half of it below 90, as cameras do.
fn jpeg(pixels: &Rgb, quality: f32) -> Result<Vec<u8>> {
    let (width, height) = (pixels.width, pixels.height);
    ensure!(width.max(height) <= 65_500, "{width} x {height} is more than a JPEG can hold");
    let mut compress = Compress::new(ColorSpace::JCS_RGB);
    compress.set_size(width, height);
    compress.set_quality(quality);
    let chroma = if quality >= 90.0 { (1, 1) } else { (2, 2) };
    compress.set_chroma_sampling_pixel_sizes(chroma, chroma);
    let mut started = compress.start_compress(vec![]).context("cannot write a JPEG")?;
    started.write_scanlines(&pixels.data).context("cannot write a JPEG")?;
    started.finish().context("cannot write a JPEG")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Rgb {
        let at = |x: usize, y: usize| [(x * 255 / width) as u8, (y * 255 / height) as u8, 128];
        let data = (0..height).flat_map(|y| (0..width).flat_map(move |x| at(x, y))).collect();
        Rgb { width, height, data }
    }

    fn bytes(embedded: &Embedded) -> Vec<u8> {
        let (head, body) = embedded.src.split_once(";base64,").unwrap();
        assert!(head.starts_with("data:image/"));
        STANDARD.decode(body).unwrap()
    }

    #[test]
    fn as_it_is_or_as_jpeg_that_looks_the_same() {
        let png = image::png(&picture(96, 64), None).unwrap();
        let embed = |jpeg| Fit { jpeg, seeds: ALL }.embed(&png, None).unwrap();
        let same = embed(None);
        assert!(bytes(&same) == png && same.src.starts_with("data:image/png"));
        let jpeg = embed(Some((ALL, 93.0)));
        assert_eq!((jpeg.width, jpeg.height), (96, 64));
        let again = image::decode(&bytes(&jpeg)).unwrap();
        let worst = again.data.iter().zip(&picture(96, 64).data).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst < Some(12), "{worst:?}");
        let small = image::decode(&bytes(&embed(Some((48, 75.0))))).unwrap();
        assert_eq!((small.width, small.height), (48, 32));
    }
}
