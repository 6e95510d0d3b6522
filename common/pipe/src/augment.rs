//! Which training images are mirrored: `encode` stores mirror images for what `train` then draws.

crate::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Augment {
        /// Mirror no image
        None = "none",
        /// Mirror both images of a pair or neither
        PairFlip = "pair-flip",
        /// Mirror each image by itself, as in Diffusion-DPO
        IndependentFlip = "independent-flip",
    }
}
