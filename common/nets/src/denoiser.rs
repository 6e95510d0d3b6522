//! The network that predicts the noise in noisy latents, whichever architecture a checkpoint has.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

use crate::{
    conditioning::{Conditioning, Widths},
    json,
    unet::{UNet, UNetConfig},
};

/// What a denoiser's `config.json` says.
#[derive(Clone, Debug)]
pub struct Config {
    /// Channels of the latents that it takes, and of its prediction.
    pub channels: [usize; 2],
    /// Side of the latents that it was made for.
    pub side: usize,
    /// The conditioning that it was trained with.
    pub widths: Widths,
}

impl Config {
    /// From the denoiser's own folder.
    ///
    /// # Errors
    /// The file is missing, or asks for an architecture that is not built.
    pub fn read(folder: &Path) -> Result<Self> {
        let unet: UNetConfig = json::read(&folder.join("config.json"))?;
        Ok(Self { channels: [unet.in_channels, unet.out_channels], side: unet.sample_size, widths: unet.widths() })
    }

    /// # Errors
    /// The text encoders make other states than the denoiser was trained with.
    pub fn check_text(&self, made: Widths) -> Result<()> {
        let (takes, gets) = (self.widths.states, made.states);
        ensure!(gets == takes, "the denoiser attends to states of width {takes}, the text encoder makes {gets}");
        let pooled = |widths: Widths| match widths.pooled {
            Some(width) => format!("a pooled state of width {width}"),
            None => "no pooled state".into(),
        };
        let (takes, gets) = (pooled(self.widths), pooled(made));
        ensure!(gets == takes, "the denoiser takes {takes}, the text encoder makes {gets}");
        Ok(())
    }
}

/// A denoiser in memory.
pub struct Denoiser {
    pub config: Config,
    network: Network,
}

enum Network {
    UNet(UNet),
}

impl Denoiser {
    /// Frozen weights, from the denoiser's own folder.
    ///
    /// # Errors
    /// A file is missing or damaged, or the weights do not fit the configuration.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self { config: Config::read(folder)?, network: Network::UNet(UNet::open(folder, dtype, device)?) })
    }

    /// Predicts from the noisy latents `x` (B, C, h, w) at the times `t` (B), in the dtype of `x` -> (B, C, h, w).
    ///
    /// # Errors
    /// Shapes or conditioning that do not fit.
    pub fn predict(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        let Network::UNet(unet) = &self.network;
        unet.forward(x, t, &conditioning.states, conditioning.added(&conditioning.sizes)?.as_ref())
    }
}
