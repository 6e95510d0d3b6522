//! The network that predicts the noise in noisy latents, whichever architecture a checkpoint has.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use ops::accumulate_store;

use crate::conditioning::{Conditioning, Widths};
use crate::lora::{self, LoraConfig, kohya::Naming};
use crate::unet::{self, UNet, UNetConfig};
use crate::{loader::Loader, params::Params, weights::Weights};

/// What a denoiser's `config.json` says.
#[derive(Clone, Debug)]
pub struct Config {
    /// Channels of the latents that it takes, and of its prediction.
    pub channels: [usize; 2],
    /// Side of the latents that it was made for.
    pub side: usize,
    /// The conditioning that it was trained with.
    pub widths: Widths,
    architecture: Architecture,
}

#[derive(Clone, Debug)]
enum Architecture {
    UNet(Box<UNetConfig>),
}

impl Config {
    pub fn read(folder: &Path) -> Result<Self> {
        let unet = unet::read_config(&folder.join("config.json"))?;
        Ok(Self {
            channels: [unet.in_channels, unet.out_channels],
            side: unet.sample_size,
            widths: unet.widths(),
            architecture: Architecture::UNet(Box::new(unet)),
        })
    }

    /// Refuses text encoders that make other states than the denoiser was trained with.
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

    pub fn kohya_naming(&self) -> Naming {
        let Architecture::UNet(unet) = &self.architecture;
        unet.kohya_naming()
    }
}

pub struct Denoiser {
    pub config: Config,
    network: Network,
}

enum Network {
    UNet(Box<UNet>),
}

/// A denoiser some of whose tensors are variables.
pub struct Trainable {
    pub denoiser: Denoiser,
    pub params: Params,
}

/// What becomes of a forward pass's activations until the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    Kept,
    /// Only the input of each piece of the network is kept, and the backward pass computes the piece once more (gradient
    /// checkpointing).
    Recomputed,
}

/// A forward pass that a backward pass can follow.
pub struct Pass<'a> {
    prediction: Tensor,
    trace: Option<Trace<'a>>,
}

enum Trace<'a> {
    UNet(unet::Trace<'a>),
}

impl Pass<'_> {
    /// The prediction (B, C, h, w), without history.
    pub fn prediction(&self) -> Tensor {
        self.prediction.detach()
    }
}

impl Denoiser {
    /// Frozen weights, from the denoiser's own folder.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let weights = Weights::open(folder)?;
        Self::load(folder, Loader::frozen(&weights, dtype, device))
    }

    fn load(folder: &Path, p: Loader) -> Result<Self> {
        let config = Config::read(folder)?;
        let network = match &config.architecture {
            Architecture::UNet(unet) => UNet::load(p.clone(), *unet.clone()).map(|unet| Network::UNet(Box::new(unet))),
        };
        let network = network.and_then(|network| p.refuse_others().map(|()| network));
        let network = network.with_context(|| format!("{} does not fit its config.json", folder.display()))?;
        Ok(Self { config, network })
    }

    /// Predicts from the noisy latents `x` (B, C, h, w) at the times `t` (B), in the dtype of `x` -> (B, C, h, w).
    pub fn predict(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        let Network::UNet(unet) = &self.network;
        unet.forward(x, t, conditioning)
    }

    /// [`Denoiser::predict`], with what [`Denoiser::backward`] needs.
    pub fn forward_for<'a>(
        &self,
        activations: Activations,
        x: &'a Tensor,
        t: &'a [f32],
        conditioning: &'a Conditioning,
    ) -> Result<Pass<'a>> {
        let Network::UNet(unet) = &self.network;
        Ok(match activations {
            Activations::Kept => Pass { prediction: self.predict(x, t, conditioning)?, trace: None },
            Activations::Recomputed => {
                let (prediction, trace) = unet.forward_in_pieces(x, t, conditioning)?;
                Pass { prediction, trace: Some(Trace::UNet(trace)) }
            }
        })
    }

    /// Carries `gy` (B, C, h, w), the gradient by the prediction, back to the parameters: inside
    /// [`crate::params::accumulate`], which knows the parameters and adds up their gradients.
    pub fn backward(&self, pass: Pass, gy: &Tensor) -> Result<()> {
        let Network::UNet(unet) = &self.network;
        match pass.trace {
            None => Ok(accumulate_store(unet::backward_from(&pass.prediction, gy)?)?),
            Some(Trace::UNet(trace)) => unet.backward_in_pieces(trace, gy),
        }
    }
}

impl Trainable {
    /// All weights as f32 variables.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let weights = Weights::open(folder)?;
        Self::load(folder, Loader::variables(&weights, device, false))
    }

    /// The same, but no history is kept for their gradients: a reference that is refreshed in place.
    pub fn open_detached(folder: &Path, device: &Device) -> Result<Self> {
        let weights = Weights::open(folder)?;
        Self::load(folder, Loader::variables(&weights, device, true))
    }

    /// Policy and reference on the same frozen tensors, each with adapters of its own. New adapters add nothing, and no
    /// history is kept for those of the reference. `seed` decides the initial values.
    pub fn open_adapted(folder: &Path, config: &LoraConfig, seed: u64, device: &Device) -> Result<[Self; 2]> {
        let weights = Weights::open(folder)?;
        let shared = Loader::shared(&weights, device);
        let policy = Self::load(folder, shared.adapted(config, seed, false))?;
        let reference = Self::load(folder, shared.adapted(config, seed, true))?;
        let modules = lora::modules(policy.params.keys());
        let unused = config.targets.iter().find(|target| {
            let one = LoraConfig { targets: vec![(*target).clone()], ..config.clone() };
            !modules.iter().any(|module| one.adapts(module))
        });
        ensure!(unused.is_none(), "the denoiser has no linear layer '{}' to adapt", unused.map_or("", |t| t));
        Ok([policy, reference])
    }

    fn load(folder: &Path, p: Loader) -> Result<Self> {
        let denoiser = Denoiser::load(folder, p.clone())?;
        Ok(Self { denoiser, params: p.params() })
    }
}

/// A frozen denoiser that stays in its file: each piece is read when its turn comes, so that a large reference takes no
/// memory beside the policy. Its predictions equal those of [`Denoiser::predict`] to the bit.
pub struct Streamed {
    weights: Weights,
    prefix: &'static str,
    config: Config,
    device: Device,
}

impl Streamed {
    /// Missing tensors and wrong shapes are found by `predict`.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let config = Config::read(folder)?;
        Ok(Self { weights: Weights::open(folder)?, prefix: "", config, device: device.clone() })
    }

    /// Goes on with the tensors of another file, where they are called `prefix.NAME`.
    pub fn read_from(&mut self, weights: Weights, prefix: &'static str) {
        (self.weights, self.prefix) = (weights, prefix);
    }

    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let dims = |name: &str| self.weights.dims(name).unwrap_or_default().to_vec();
        self.weights.names().into_iter().map(|name| (name.clone(), dims(&name))).collect()
    }

    /// One of its tensors, f32.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.loader().get(name, shape)
    }

    pub fn predict(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        let Architecture::UNet(unet) = &self.config.architecture;
        unet::forward_streamed(&self.loader(), unet, x, t, conditioning)
    }

    fn loader(&self) -> Loader<'_> {
        Loader::frozen(&self.weights, DType::F32, &self.device).pp(self.prefix)
    }
}
