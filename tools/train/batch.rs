//! The inputs of one micro-batch, ready for the networks.

use candle_core::Tensor;
use nets::conditioning::Conditioning;

use crate::loss::Label;

/// The inputs of one micro-batch of B pairs.
pub struct Batch {
    /// Scaled latents, (2B, C, h, w), the preferred images first.
    pub latents: Tensor,
    /// (2B, C, h, w), the same for both images of a pair.
    pub noise: Tensor,
    /// The 2B times of the noise, the same for both images of a pair.
    pub times: Vec<f32>,
    /// The conditioning of the 2B images: their captions, or the empty prompt where a caption was dropped.
    pub conditioning: Conditioning,
    /// B, in the order of the images.
    pub labels: Vec<Label>,
}
