//! UNet2DConditionModel of the Stable Diffusion family, built from its own config.json, differentiable throughout.

mod block;
mod config;
mod embedding;
mod pass;
mod piece;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
pub use config::UNetConfig;
use embedding::Embedding;
pub use pass::Pass;
use piece::{Conditions, Piece, Plan};

use crate::{
    json,
    loader::Loader,
    lora::{self, LoraConfig},
    params::Params,
    weights::Weights,
};

/// SDXL's extra conditioning; [`crate::conditioning::Conditioning::added`] makes it.
pub struct Added {
    /// Pooled text state of the second encoder, (B, D).
    pub text_embeds: Tensor,
    /// (B, 6): original height and width, crop top and left, target height and width.
    pub time_ids: Tensor,
}

pub struct UNet {
    pub config: UNetConfig,
    embedding: Embedding,
    plans: Vec<Plan>,
    pieces: Vec<Piece>,
}

/// A UNet with its tensors as variables.
pub struct Trainable {
    pub unet: UNet,
    pub params: Params,
}

impl UNet {
    /// Frozen weights from a folder with `config.json` and weights.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let weights = Weights::open(folder)?;
        Self::load(Loader::frozen(&weights, dtype, device), read_config(folder)?)
            .with_context(|| format!("{} does not fit its config.json", folder.display()))
    }

    /// f32 variables; with `detached` the network does not track them (a reference that is refreshed in place).
    pub fn open_variables(folder: &Path, device: &Device, detached: bool) -> Result<Trainable> {
        let weights = Weights::open(folder)?;
        let loader = Loader::variables(&weights, device, detached);
        let unet = Self::load(loader.clone(), read_config(folder)?)
            .with_context(|| format!("{} does not fit its config.json", folder.display()))?;
        Ok(Trainable { unet, params: loader.params() })
    }

    /// Two networks on the same frozen tensors, each with adapters of its own: what is trained, and a reference that does
    /// not track its adapters. New adapters add nothing.
    ///
    /// # Errors
    /// No layer, or one that is not linear, is what `config` names.
    pub fn open_adapted(folder: &Path, config: &LoraConfig, seed: u64, device: &Device) -> Result<[Trainable; 2]> {
        let weights = Weights::open(folder)?;
        let shared = Loader::shared(&weights, device);
        let adapted = |detached| {
            let loader = shared.adapted(config, seed, detached);
            let unet = Self::load(loader.clone(), read_config(folder)?)
                .with_context(|| format!("{} does not fit its config.json", folder.display()))?;
            Ok::<_, anyhow::Error>(Trainable { unet, params: loader.params() })
        };
        let [policy, reference] = [adapted(false)?, adapted(true)?];
        let modules = lora::modules(policy.params.keys());
        let unused = config.targets.iter().find(|target| {
            let one = LoraConfig { targets: vec![(*target).clone()], ..config.clone() };
            !modules.iter().any(|module| one.adapts(module))
        });
        ensure!(unused.is_none(), "this UNet has no linear layer '{}' to adapt", unused.map_or("", |t| t));
        Ok([policy, reference])
    }

    pub fn load(p: Loader, config: UNetConfig) -> Result<Self> {
        let plans = Plan::all(&config)?;
        let embedding = Embedding::load(&p, &config)?;
        let pieces = plans.iter().map(|plan| plan.load(&p, &config)).collect::<Result<_>>()?;
        Ok(Self { config, embedding, plans, pieces })
    }

    /// `x` noisy latents (B, C, H, W), `timesteps` one an image, `context` text states (B, T, D) -> prediction (B, C, H, W).
    ///
    /// # Errors
    /// Shapes that do not fit; SDXL's conditioning missing where the config asks for it, or given where it does not.
    pub fn forward(&self, x: &Tensor, timesteps: &[f32], context: &Tensor, added: Option<&Added>) -> Result<Tensor> {
        let temb = self.embedding.forward(&self.config, x, timesteps, added)?;
        let conditions = Conditions { temb: &temb, context };
        piece::run(&self.plans, x, |i, input| self.pieces[i].forward(input, &conditions))
    }
}

/// A frozen UNet that stays in its files: each piece is read when its turn comes and forgotten after it, so that a large
/// reference takes no room beside what is trained. The same arithmetic, and so the same bits, as with weights in memory.
pub struct Streamed {
    weights: Weights,
    /// Before the names of its tensors.
    prefix: &'static str,
    config: UNetConfig,
    plans: Vec<Plan>,
    device: Device,
}

impl Streamed {
    /// # Errors
    /// As [`UNet::open`], for everything but the shapes of tensors, which `forward` meets.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let config = read_config(folder)?;
        let plans = Plan::all(&config)?;
        Ok(Self { weights: Weights::open(folder)?, prefix: "", config, plans, device: device.clone() })
    }

    /// Goes on with the tensors of another file, where they are called `prefix.NAME`.
    pub fn read_from(&mut self, weights: Weights, prefix: &'static str) {
        (self.weights, self.prefix) = (weights, prefix);
    }

    /// Names and shapes in its file, where that holds nothing else.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let dims = |name: &str| self.weights.dims(name).unwrap_or_default().to_vec();
        self.weights.names().into_iter().map(|name| (name.clone(), dims(&name))).collect()
    }

    /// One of its tensors, f32.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.loader().get(name, shape)
    }

    /// As [`UNet::forward`].
    pub fn forward(&self, x: &Tensor, timesteps: &[f32], context: &Tensor, added: Option<&Added>) -> Result<Tensor> {
        let p = self.loader();
        let temb = Embedding::load(&p, &self.config)?.forward(&self.config, x, timesteps, added)?;
        let conditions = Conditions { temb: &temb, context };
        piece::run(&self.plans, x, |i, input| self.plans[i].load(&p, &self.config)?.forward(input, &conditions))
    }

    fn loader(&self) -> Loader<'_> {
        Loader::frozen(&self.weights, DType::F32, &self.device).pp(self.prefix)
    }
}

fn read_config(folder: &Path) -> Result<UNetConfig> {
    json::read(&folder.join("config.json"))
}
