//! Which training images are mirrored: `encode` stores mirror images for what `train` then draws.

crate::names! {
    /// Which images are mirrored at random.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Augment {
        /// No image
        None = "none",
        /// Both images of a pair or neither
        PairFlip = "pair-flip",
        /// Each image by itself, as in Diffusion-DPO
        IndependentFlip = "independent-flip",
    }
}
