//! Networks on candle that can be trained: Stable Diffusion's UNet, VAE and text encoder, CLIP's two towers, noise
//! schedules and samplers, optimisers, checkpoints, scorers.

pub mod ops;
