//! Images as the Python peers see them: decoded as by Pillow, resized as by Pillow or torch, and normalised as by
//! transformers, open_clip or torchvision. Each step is exact.

mod decode;
mod float;
mod own_mode;
mod png;
mod preprocess;
mod resize;

pub use decode::{Beyond, MAX_PIXELS, Stored, decode, decode_stored};
pub use float::Antialias;
pub use png::png;
pub use preprocess::{
    CLIP, Normalise, Preprocess, TrainCrop, blip_u8, dpo_train, dpo_train_u8, hf_clip, hf_clip_u8, letterbox,
};
pub use resize::{Filter, resize};

/// An 8-bit RGB image, rows from the top, pixels interleaved (H, W, 3).
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb {
    pub width: usize,
    pub height: usize,
    /// `height * width * 3` bytes.
    pub data: Vec<u8>,
}

impl Rgb {
    /// Whether every byte is 0: a safety checker returns such an image instead of the picture.
    pub fn is_black(&self) -> bool {
        self.data.iter().all(|&v| v == 0)
    }

    pub fn mirrored(&self) -> Self {
        let mirror = |row: &[u8]| row.chunks_exact(3).rev().flatten().copied().collect::<Vec<u8>>();
        let data = self.data.chunks_exact(3 * self.width.max(1)).flat_map(mirror).collect();
        Self { data, ..*self }
    }
}

impl std::fmt::Debug for Rgb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rgb({}x{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests;
