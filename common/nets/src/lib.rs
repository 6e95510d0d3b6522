//! Networks on candle that can be trained: Stable Diffusion's UNet, the transformers of Stable Diffusion 3 and FLUX, VAE and text
//! encoders, CLIP's two towers, noise schedules and samplers, optimisers, checkpoints, scorers.
//!
//! A function that opens a file fails if the file is missing, damaged or does not fit the others, and says which and why. A function
//! that takes tensors fails if shapes, types or devices do not fit.

pub mod blip;
pub mod clean;
pub mod conditioning;
pub mod config;
pub mod denoiser;
pub mod device;
pub mod drawing;
mod file;
pub mod folder;
pub mod foreign;
pub mod hub;
pub mod image;
pub mod json;
pub mod layers;
pub mod loader;
pub mod lora;
pub mod mmdit;
pub mod modelspec;
mod names;
pub mod optim;
pub mod params;
pub mod pass;
pub mod pickle;
pub mod process;
pub mod prompt;
pub mod sampler;
pub mod scorer;
pub mod single;
pub mod t5;
pub mod tensor_file;
pub mod text;
pub mod text_classifier;
pub mod tokenizer;
pub mod transformer;
pub mod unet;
pub mod vae;
pub mod vit;
pub mod weights;
pub mod write;
