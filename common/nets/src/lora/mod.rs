//! LoRA (Hu et al. 2021, Eq. 3): a trained layer of low rank beside a frozen linear layer W, W x + (alpha / rank) B A x.
//!
//! Layers and tensors have PEFT's names. The files are those of diffusers and of kohya's scripts.

mod adapter;
mod file;
pub mod kohya;
mod load;

pub use adapter::{Adapter, LoraConfig, modules};
pub use file::{Adapters, KOHYA_FILE, merged, write};
pub use load::add;
