//! What one micro-batch brings to the networks.

use candle_core::Tensor;
use nets::prompt::{Conditioning, TimeIds};

use crate::loss::Label;

/// The inputs of one micro-batch of B pairs.
pub struct Batch {
    /// Scaled latents, (2B, C, h, w), the preferred images first.
    pub latents: Tensor,
    /// (2B, C, h, w), the same for both images of a pair.
    pub noise: Tensor,
    /// 2B, the same for both images of a pair.
    pub timesteps: Vec<u32>,
    /// The conditioning of the B captions; that of the empty prompt where a caption was dropped.
    pub conditioning: Conditioning,
    /// 2B, for SDXL: original size, crop and size of each image.
    pub sizes: Vec<TimeIds>,
    /// B, in the order of the images.
    pub labels: Vec<Label>,
}
