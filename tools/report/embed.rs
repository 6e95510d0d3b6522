//! Pictures inside the page: as they are where there is room, else as JPEG, smaller and smaller until they fit.

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use mozjpeg::{ColorSpace, Compress};
use nets::image::{self, Filter, Rgb};

/// How pictures are written into the page, and of how many prompts all seeds are shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    pub form: Form,
    pub seeds: Seeds,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    AsIs,
    /// The longer side at most so many pixels; quality from 0 to 100.
    Jpeg {
        side: usize,
        quality: f32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seeds {
    OfAll,
    /// Of so many prompts, evenly spread.
    Of(usize),
}

/// From the best to the smallest. Seeds of every prompt are given up before pictures become too small to judge.
pub const LADDER: [Fit; 12] = {
    const fn fit(side: usize, quality: f32, seeds: Seeds) -> Fit {
        Fit { form: Form::Jpeg { side, quality }, seeds }
    }
    [
        Fit { form: Form::AsIs, seeds: Seeds::OfAll },
        fit(usize::MAX, 93.0, Seeds::OfAll),
        fit(512, 88.0, Seeds::OfAll),
        fit(384, 85.0, Seeds::OfAll),
        Fit { form: Form::AsIs, seeds: Seeds::Of(24) },
        fit(512, 88.0, Seeds::Of(24)),
        fit(384, 85.0, Seeds::Of(24)),
        fit(320, 82.0, Seeds::Of(24)),
        fit(256, 80.0, Seeds::Of(24)),
        fit(192, 78.0, Seeds::Of(12)),
        fit(128, 75.0, Seeds::Of(12)),
        fit(96, 70.0, Seeds::Of(0)),
    ]
};

impl Form {
    /// For readers of the page.
    pub fn words(self) -> String {
        match self {
            Form::AsIs => "Images are embedded as they were drawn.".into(),
            Form::Jpeg { side: usize::MAX, quality } => {
                format!("To keep the page small, images are embedded as JPEG of quality {quality}.")
            }
            Form::Jpeg { side, quality } => {
                format!(
                    "To keep the page small, images are embedded as JPEG of quality {quality}, at most {side} pixels wide and high."
                )
            }
        }
    }

    /// An encoded image as the `src` of an `img`, with its width and height in pixels.
    ///
    /// # Errors
    /// It is no JPEG, PNG or WebP, or damaged.
    pub fn embed(self, bytes: &[u8]) -> Result<Embedded> {
        let pixels = image::decode(bytes)?;
        let (width, height) = (pixels.width, pixels.height);
        let src = match self {
            Form::AsIs => uri(kind(bytes), bytes),
            Form::Jpeg { side, quality } => uri("jpeg", &jpeg(&shrink(pixels, side), quality)?),
        };
        Ok(Embedded { src, width, height })
    }
}

pub struct Embedded {
    pub src: String,
    /// Of the image as it was drawn.
    pub width: usize,
    pub height: usize,
}

fn uri(kind: &str, bytes: &[u8]) -> String {
    format!("data:image/{kind};base64,{}", STANDARD.encode(bytes))
}

/// Of bytes that could be decoded.
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

/// JPEG with full colour resolution from quality 90 on, and half of it below, as cameras do.
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
        let png = image::png(&picture(96, 64)).unwrap();
        let same = Form::AsIs.embed(&png).unwrap();
        assert!(bytes(&same) == png && same.src.starts_with("data:image/png"));
        let jpeg = Form::Jpeg { side: usize::MAX, quality: 93.0 }.embed(&png).unwrap();
        assert_eq!((jpeg.width, jpeg.height), (96, 64));
        let again = image::decode(&bytes(&jpeg)).unwrap();
        let worst = again.data.iter().zip(&picture(96, 64).data).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst < Some(12), "{worst:?}");
        let small = image::decode(&bytes(&Form::Jpeg { side: 48, quality: 75.0 }.embed(&png).unwrap())).unwrap();
        assert_eq!((small.width, small.height), (48, 32));
    }
}
