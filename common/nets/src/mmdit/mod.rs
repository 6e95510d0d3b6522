//! The diffusion transformers of Stable Diffusion 3 and 3.5 (MMDiT, arXiv 2403.03206) and of FLUX.1, in diffusers' layout and
//! differentiable throughout.

mod block;
mod config;
mod embedding;
mod names;
mod pass;

use anyhow::{Context, Result};
use block::{JointBlock, Shared, SingleBlock, Tokens};
use candle_core::Tensor;
use config::Places;
pub use config::{FLUX, MMDiTConfig, PATCH, SD3};
use embedding::{Embedding, Enter, Leave, angles, squares};

use crate::{conditioning::Conditioning, loader::Loader};

pub struct MMDiT {
    config: MMDiTConfig,
    embedding: Embedding,
    enter: Enter,
    blocks: Vec<Block>,
    leave: Leave,
}

enum Block {
    Joint(Box<JointBlock>),
    Single(Box<SingleBlock>),
}

impl Block {
    /// The `i`-th block of all.
    fn load(p: &Loader, c: &MMDiTConfig, i: usize) -> Result<Self> {
        match i.checked_sub(c.joint) {
            None => JointBlock::load(p, c, i).map(|block| Block::Joint(Box::new(block))),
            Some(i) => SingleBlock::load(p, c, i).map(|block| Block::Single(Box::new(block))),
        }
    }

    fn forward(&self, tokens: &Tokens, shared: &Shared) -> Result<Tokens> {
        let Tokens { image, text } = tokens;
        match self {
            Block::Joint(block) => block.forward(image, text.as_ref().context("the text has ended")?, shared),
            Block::Single(block) => {
                let all = text.as_ref().map(|text| Tensor::cat(&[text, image], 1)).transpose()?;
                Ok(Tokens { image: block.forward(all.as_ref().unwrap_or(image), shared)?, text: None })
            }
        }
    }
}

impl MMDiTConfig {
    fn blocks(&self) -> usize {
        self.joint + self.single
    }

    fn shared(&self, x: &Tensor, temb: Tensor, states: &Tensor) -> Result<Shared> {
        let angles = match &self.places {
            Places::Rotary(axes) => Some(angles(axes, states.dim(1)?, squares(x)?, x.device())?),
            Places::Table(_) => None,
        };
        Ok(Shared { temb, angles })
    }
}

impl MMDiT {
    /// `p` at the root of its tensors.
    pub fn load(p: Loader, config: MMDiTConfig) -> Result<Self> {
        let blocks = (0..config.blocks()).map(|i| Block::load(&p, &config, i)).collect::<Result<_>>()?;
        Ok(Self {
            embedding: Embedding::load(&p, &config)?,
            enter: Enter::load(&p, &config)?,
            leave: Leave::load(&p, &config)?,
            blocks,
            config,
        })
    }

    /// `x` noisy latents (B, C, h, w), `t` one time per image, 1000 sigma -> the velocity (B, C, h, w).
    pub fn forward(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        let (temb, states) = (self.embedding.forward(x, t, conditioning)?, &conditioning.states);
        let shared = self.config.shared(x, temb, states)?;
        let [image, text] = self.enter.forward(x, states)?;
        let mut tokens = Tokens { image, text: Some(text) };
        for block in &self.blocks {
            tokens = block.forward(&tokens, &shared)?;
        }
        self.leave.forward(&tokens.image, &shared.temb, squares(x)?)
    }
}

/// As [`MMDiT::forward`], to the bit, of a transformer that is not in memory: each block is loaded when its turn comes and
/// dropped after it.
pub fn forward_streamed(
    p: &Loader,
    config: &MMDiTConfig,
    x: &Tensor,
    t: &[f32],
    conditioning: &Conditioning,
) -> Result<Tensor> {
    let (temb, states) = (Embedding::load(p, config)?.forward(x, t, conditioning)?, &conditioning.states);
    let shared = config.shared(x, temb, states)?;
    let [image, text] = Enter::load(p, config)?.forward(x, states)?;
    let mut tokens = Tokens { image, text: Some(text) };
    for i in 0..config.blocks() {
        tokens = Block::load(p, config, i)?.forward(&tokens, &shared)?;
    }
    Leave::load(p, config)?.forward(&tokens.image, &shared.temb, squares(x)?)
}
