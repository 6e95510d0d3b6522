//! The inputs that each peer gives its network: those of HF's CLIP processor, of the letterbox of HPS and CLIP, and of
//! Diffusion-DPO's training crop.

use super::Rgb;
use super::decode::Stored;
use super::float::{self, Antialias};
use super::own_mode::resize_own_mode;
use super::resize::{Filter, Window, resize, resize_window};

/// (value - mean) / std for each of red, green and blue, of values in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalise {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

/// OpenAI's constants, which all published CLIPs use.
pub const CLIP: Normalise =
    Normalise { mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.261_302_6, 0.275_777_1] };

/// How an image becomes a scorer's input, with everything that decides the numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Preprocess {
    /// [`hf_clip`]
    HfClip { size: usize, crop: usize, normalise: Normalise },
    /// [`letterbox`]
    Letterbox { size: usize, normalise: Normalise, antialias: Antialias },
    /// [`blip`]
    Blip { size: usize },
    /// [`squash`]
    Squash { size: usize, normalise: Normalise },
}

impl Preprocess {
    /// A stable name of the arithmetic, for provenance: equal names give equal numbers.
    pub fn id(&self) -> String {
        let constants = |n: &Normalise| match *n == CLIP {
            true => String::new(),
            false => format!("/mean={:?}/std={:?}", n.mean, n.std).replace(' ', ""),
        };
        match self {
            Self::HfClip { size, crop, normalise } if size == crop => {
                format!("hf-clip-430/{size}{}", constants(normalise))
            }
            Self::HfClip { size, crop, normalise } => format!("hf-clip-430/{size}/crop={crop}{}", constants(normalise)),
            Self::Letterbox { size, normalise, antialias } => {
                format!("letterbox-{antialias}/{size}{}", constants(normalise))
            }
            Self::Blip { size } => format!("blip/{size}"),
            Self::Squash { size, normalise } => format!("squash/{size}{}", constants(normalise)),
        }
    }

    pub fn side(&self) -> usize {
        match *self {
            Self::HfClip { crop, .. } => crop,
            Self::Letterbox { size, .. } | Self::Blip { size } | Self::Squash { size, .. } => size,
        }
    }

    /// The network's input: (3, side, side) values.
    pub fn apply(&self, image: &Stored) -> Vec<f32> {
        match self {
            Self::HfClip { size, crop, normalise } => hf_clip(&image.rgb, *size, *crop, normalise),
            Self::Letterbox { size, normalise, antialias } => letterbox(&image.rgb, *size, normalise, *antialias),
            Self::Blip { size } => blip(image, *size),
            Self::Squash { size, normalise } => squash(&image.rgb, *size, normalise),
        }
    }
}

/// Width and height after a resize that makes the shorter side `size` and the longer `int(size * long / short)`, as
/// transformers and torchvision do.
fn shortest_side(image: &Rgb, size: usize) -> (usize, usize) {
    let (short, long) = (image.width.min(image.height), image.width.max(image.height));
    let long = ((size * long) as f64 / short as f64) as usize;
    if image.width <= image.height { (size, long) } else { (long, size) }
}

/// transformers' CLIPImageProcessor 4.30 before rescaling: a bicubic resize of bytes, then a centre crop (offsets rounded
/// down). Gives (crop, crop, 3) bytes.
pub fn hf_clip_u8(image: &Rgb, size: usize, crop: usize) -> Rgb {
    let (width, height) = shortest_side(image, size);
    // An image that is smaller than the crop is surrounded by zeros (transformers' center_crop).
    let side = |length: usize| match length.checked_sub(crop) {
        Some(spare) => (spare / 2, crop, 0),
        None => (0, length, (crop - length).div_ceil(2)),
    };
    let (left, w, pad_left) = side(width);
    let (top, h, pad_top) = side(height);
    let inner = resize_window(image, width, height, Filter::Bicubic, Window { left, top, width: w, height: h });
    if (w, h) == (crop, crop) {
        return inner;
    }
    let mut data = vec![0; crop * crop * 3];
    for (row, y) in inner.data.chunks_exact(w * 3).zip(pad_top..) {
        data[(y * crop + pad_left) * 3..][..w * 3].copy_from_slice(row);
    }
    Rgb { width: crop, height: crop, data }
}

/// transformers' CLIPImageProcessor 4.30 (PickScore, CLIP-L): (3, crop, crop) normalised values.
pub fn hf_clip(image: &Rgb, size: usize, crop: usize, normalise: &Normalise) -> Vec<f32> {
    // numpy: uint8 * float64, then f32; subtraction and division in f32.
    let value = |v: u8, c: usize| ((f64::from(v) * (1.0 / 255.0)) as f32 - normalise.mean[c]) / normalise.std[c];
    planes_of_bytes(&hf_clip_u8(image, size, crop), value)
}

/// BLIP's evaluation transform before ToTensor, as ImageReward and CycleReward have it: the shorter side becomes `size`, the
/// middle is cut out (torchvision's offset, halves to even), both in the file's own mode, and then the image becomes RGB.
pub fn blip_u8(image: &Stored, size: usize) -> Rgb {
    let (width, height) = shortest_side(&image.rgb, size);
    let (left, top) = (torchvision_offset(width, size), torchvision_offset(height, size));
    resize_own_mode(image, width, height, Window { left, top, width: size, height: size })
}

/// [`blip_u8`] with ToTensor and CLIP's constants: (3, size, size) values.
pub fn blip(image: &Stored, size: usize) -> Vec<f32> {
    planes_of_bytes(&blip_u8(image, size), |v, c| (f32::from(v) / 255.0 - CLIP.mean[c]) / CLIP.std[c])
}

/// transformers' SiglipImageProcessor: a bicubic resize of bytes to a square without a crop. Gives (3, size, size) values.
pub fn squash(image: &Rgb, size: usize, normalise: &Normalise) -> Vec<f32> {
    let value = |v: u8, c: usize| ((f64::from(v) * (1.0 / 255.0)) as f32 - normalise.mean[c]) / normalise.std[c];
    planes_of_bytes(&resize(image, size, size, Filter::Bicubic), value)
}

/// Where torchvision's CenterCrop begins: int(round((length - crop) / 2.0)), halves to even.
fn torchvision_offset(length: usize, crop: usize) -> usize {
    ((length - crop) as f64 / 2.0).round_ties_even() as usize
}

/// (3, H, W) values from (H, W, 3) bytes, through a table of 256 values per channel.
fn planes_of_bytes(image: &Rgb, value: impl Fn(u8, usize) -> f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(image.data.len());
    for c in 0..3 {
        let table: [f32; 256] = std::array::from_fn(|v| value(v as u8, c));
        out.extend(image.data.iter().skip(c).step_by(3).map(|&v| table[usize::from(v)]));
    }
    out
}

/// The evaluation transform of the open_clip that HPSv2 and Diffusion-DPO carry (ResizeMaxSize): the float image is resized
/// so that its longer side is `size`, black fills the square, and then the constants apply. Gives (3, size, size) values.
///
/// An oblong image whose longer side already is `size` is padded too. The peers do not pad it, and then fail on its shape.
pub fn letterbox(image: &Rgb, size: usize, normalise: &Normalise, antialias: Antialias) -> Vec<f32> {
    let scale = size as f64 / image.width.max(image.height) as f64;
    // Python's round(). The clamp keeps an image that is 500 times as long as wide from vanishing.
    let side = |length: usize| ((length as f64 * scale).round_ties_even() as usize).clamp(1, size);
    let (width, height) = (side(image.width), side(image.height));
    let inner = float::resize(image, width, height, antialias);
    let (left, top) = ((size - width) / 2, (size - height) / 2);
    let mut out = Vec::with_capacity(3 * size * size);
    for c in 0..3 {
        let (mean, std) = (normalise.mean[c], normalise.std[c]);
        let start = out.len();
        out.resize(start + size * size, (0.0 - mean) / std);
        for (row, y) in inner.chunks_exact(width * 3).zip(top..) {
            let line = &mut out[start + y * size + left..][..width];
            for (v, &p) in line.iter_mut().zip(row.iter().skip(c).step_by(3)) {
                *v = (p - mean) / std;
            }
        }
    }
    out
}

/// The original size and the crop, in pixels, for SDXL's time ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainCrop {
    pub original_width: usize,
    pub original_height: usize,
    pub left: usize,
    pub top: usize,
}

/// Diffusion-DPO's `train_transforms` before ToTensor: Resize(resolution, BILINEAR) and CenterCrop. Gives (resolution,
/// resolution, 3) bytes.
pub fn dpo_train_u8(image: &Rgb, resolution: usize) -> (Rgb, TrainCrop) {
    let (width, height) = shortest_side(image, resolution);
    let (left, top) = (torchvision_offset(width, resolution), torchvision_offset(height, resolution));
    let window = Window { left, top, width: resolution, height: resolution };
    let crop = TrainCrop { original_width: image.width, original_height: image.height, left, top };
    (resize_window(image, width, height, Filter::Bilinear, window), crop)
}

/// Diffusion-DPO's `train_transforms` without the flip. Gives (3, resolution, resolution) values in [-1, 1].
pub fn dpo_train(image: &Rgb, resolution: usize) -> (Vec<f32>, TrainCrop) {
    let (bytes, crop) = dpo_train_u8(image, resolution);
    (planes_of_bytes(&bytes, |v, _| (f32::from(v) / 255.0 - 0.5) / 0.5), crop)
}
