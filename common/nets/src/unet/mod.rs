//! UNet2DConditionModel of the Stable Diffusion family, built from its config.json and differentiable throughout.

mod block;
mod by_hand;
mod config;
mod embedding;
mod pass;
mod piece;

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Tensor;
use config::KEYS;
pub use config::UNetConfig;
use embedding::Embedding;
use piece::{Piece, PieceSpec, Shared};

use crate::{conditioning::Conditioning, config as configs, loader::Loader};

pub struct UNet {
    config: UNetConfig,
    embedding: Embedding,
    specs: Vec<PieceSpec>,
    pieces: Vec<Piece>,
    /// The matrices and kernels of each piece.
    weights: Vec<Vec<Tensor>>,
}

/// Reads `unet/config.json`.
pub fn read_config(file: &Path) -> Result<UNetConfig> {
    let config = configs::read(file, &[KEYS])?;
    PieceSpec::all(&config).with_context(|| format!("{} cannot be used", file.display()))?;
    Ok(config)
}

impl UNet {
    /// `p` at the root of its tensors.
    pub fn load(p: Loader, config: UNetConfig) -> Result<Self> {
        let specs = PieceSpec::all(&config)?;
        let embedding = Embedding::load(&p, &config)?;
        let (mut pieces, mut weights) = (vec![], vec![]);
        for spec in &specs {
            let p = p.noting();
            pieces.push(spec.load(&p, &config)?);
            weights.push(p.noted());
        }
        Ok(Self { config, embedding, specs, pieces, weights })
    }

    /// `x` noisy latents (B, C, H, W), `t` one timestep per image -> the prediction (B, C, H, W). On a GPU it has no history.
    pub fn forward(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        let temb = self.embedding.forward(&self.config, x, t, conditioning)?;
        let shared = Shared { temb: &temb, context: &conditioning.states };
        let by_hand = ops::has_kernels(x.device());
        piece::run(&self.specs, x, |i, input| {
            let piece = &self.pieces[i];
            ops::with_copies(&self.weights[i], x.dtype(), || match by_hand && piece.is_plain() {
                true => piece.finish(input, &piece.kept(input, &shared)?),
                false => piece.forward(input, &shared),
            })?
        })
    }
}

/// As [`UNet::forward`], to the bit, of a UNet that is not in memory: each piece is loaded when its turn comes and dropped
/// after it.
pub fn forward_streamed(
    p: &Loader,
    config: &UNetConfig,
    x: &Tensor,
    t: &[f32],
    conditioning: &Conditioning,
) -> Result<Tensor> {
    let specs = PieceSpec::all(config)?;
    let temb = Embedding::load(p, config)?.forward(config, x, t, conditioning)?;
    let shared = Shared { temb: &temb, context: &conditioning.states };
    piece::run(&specs, x, |i, input| specs[i].load(p, config)?.forward(input, &shared))
}
