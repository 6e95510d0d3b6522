//! The network that predicts the noise in noisy latents, whichever architecture a checkpoint has.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use ops::accumulate_store;

use crate::conditioning::{Conditioning, Widths};
use crate::lora::{self, LoraConfig, kohya::Naming};
use crate::mmdit::{self, MMDiT, MMDiTConfig};
use crate::pass::{Activations, Network, Pass, backward_from};
use crate::unet::{self, UNet, UNetConfig};
use crate::weights::{Shapes, Weights};
use crate::{config as configs, loader::Loader, params::Params};

/// The content of a denoiser's `config.json`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Channels of the latents that it takes, and of its prediction.
    pub channels: [usize; 2],
    /// Side of the latents that it was made for.
    pub side: usize,
    /// Sides of latents are multiples of this.
    pub multiple: usize,
    /// The conditioning that it was trained with.
    pub widths: Widths,
    pub guidance: Guided,
    /// Its folder in a model folder, which begins the names of its adapters too.
    pub part: &'static str,
    architecture: Architecture,
}

/// How the weight of the prompt enters, and the weight that diffusers' pipeline takes by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guided {
    /// Away from the prediction for the negative prompt: classifier-free guidance.
    ByNegative(f64),
    /// As an input of the network.
    AsInput(f64),
    /// Not at all: a model that was distilled to a few steps.
    Never,
}

#[derive(Clone, Debug)]
enum Architecture {
    UNet(Box<UNetConfig>),
    MMDiT(Box<MMDiTConfig>),
}

impl Config {
    pub fn read(folder: &Path) -> Result<Self> {
        let file = folder.join("config.json");
        match configs::class(&file)?.as_deref() {
            None | Some("UNet2DConditionModel") => Ok(Self::of_unet(unet::read_config(&file)?)),
            Some(class @ (mmdit::SD3 | mmdit::FLUX)) => Ok(Self::of_transformer(MMDiTConfig::read(&file, class)?)),
            Some(other) => bail!(
                "{}: a denoiser of the class {other} is not supported; expected UNet2DConditionModel, {} or {}",
                file.display(),
                mmdit::SD3,
                mmdit::FLUX
            ),
        }
    }

    fn of_unet(unet: UNetConfig) -> Self {
        Self {
            channels: [unet.in_channels, unet.out_channels],
            side: unet.sample_size,
            multiple: 1,
            widths: unet.widths(),
            guidance: Guided::ByNegative(7.5),
            part: "unet",
            architecture: Architecture::UNet(Box::new(unet)),
        }
    }

    fn of_transformer(c: MMDiTConfig) -> Self {
        Self {
            channels: c.channels,
            side: c.side,
            multiple: mmdit::PATCH,
            widths: c.widths,
            guidance: match (c.is_flux(), c.guidance) {
                (false, _) => Guided::ByNegative(7.0),
                (true, true) => Guided::AsInput(3.5),
                (true, false) => Guided::Never,
            },
            part: "transformer",
            architecture: Architecture::MMDiT(Box::new(c)),
        }
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

    /// The names of its adapters in kohya's files, if they have names there that differ in spelling only.
    pub fn kohya_naming(&self) -> Option<Naming> {
        match &self.architecture {
            Architecture::UNet(unet) => Some(unet.kohya_naming()),
            Architecture::MMDiT(_) => None,
        }
    }

    fn load(&self, p: Loader) -> Result<Box<dyn Network>> {
        Ok(match self.architecture.clone() {
            Architecture::UNet(unet) => Box::new(UNet::load(p, *unet)?),
            Architecture::MMDiT(transformer) => Box::new(MMDiT::load(p, *transformer)?),
        })
    }
}

pub struct Denoiser {
    pub config: Config,
    network: Box<dyn Network>,
}

/// The names and shapes of the tensors that the denoiser of this configuration has.
pub fn shapes(folder: &Path) -> Result<Shapes> {
    let weights = Weights::imagined(|_| true);
    Denoiser::of(folder, &weights, DType::F32, &Device::Cpu)?;
    Ok(weights.asked())
}

/// A denoiser some of whose tensors are variables.
pub struct Trainable {
    pub denoiser: Denoiser,
    pub params: Params,
    /// The part of its weights that is never trained: the table of positions of Stable Diffusion 3.
    pub constants: BTreeMap<String, Tensor>,
}

impl Denoiser {
    /// Frozen weights, from the denoiser's own folder.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Self::of(folder, &Weights::open(folder)?, dtype, device)
    }

    /// Frozen `weights` of the architecture that `folder` describes.
    pub fn of(folder: &Path, weights: &Weights, dtype: DType, device: &Device) -> Result<Self> {
        Self::load(folder, Loader::frozen(weights, dtype, device))
    }

    fn load(folder: &Path, p: Loader) -> Result<Self> {
        let config = Config::read(folder)?;
        let network = config.load(p.clone()).and_then(|network| p.refuse_others().map(|()| network));
        let network = network.with_context(|| format!("{} does not fit its config.json", folder.display()))?;
        Ok(Self { config, network })
    }

    /// Predicts from the noisy latents `x` (B, C, h, w) at the times `t` (B), in the dtype of `x` -> (B, C, h, w).
    pub fn predict(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        self.network.predict(x, t, conditioning)
    }

    /// [`Denoiser::predict`], with what [`Pass::backward`] needs.
    pub fn forward_for<'a>(
        &'a self,
        activations: Activations,
        x: &'a Tensor,
        t: &'a [f32],
        conditioning: &'a Conditioning,
    ) -> Result<Pass<'a>> {
        if ops::has_kernels(x.device())
            && let Some(pass) = self.forward_by_hand(activations, x, t, conditioning)
        {
            return pass;
        }
        match activations {
            Activations::Recomputed => self.network.forward_in_pieces(x, t, conditioning),
            Activations::Kept => {
                let y = self.predict(x, t, conditioning)?;
                Ok(Pass::new(y.clone(), move |gy: &Tensor| Ok(accumulate_store(backward_from(&y, gy)?)?)))
            }
        }
    }
}

impl Denoiser {
    /// As [`Denoiser::forward_for`], by passes that are written by hand, as on a GPU; `None` where this network has none.
    pub fn forward_by_hand<'a>(
        &'a self,
        activations: Activations,
        x: &'a Tensor,
        t: &'a [f32],
        conditioning: &'a Conditioning,
    ) -> Option<Result<Pass<'a>>> {
        self.network.forward_by_hand(activations, x, t, conditioning)
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
        Ok(Self { denoiser, params: p.params(), constants: p.constants() })
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

    /// The whole denoiser in memory, with matrices and kernels in the type that it computes in.
    pub fn narrowed(&self, dtype: DType) -> Result<Denoiser> {
        let network = self.config.load(self.loader().narrowed(dtype))?;
        Ok(Denoiser { config: self.config.clone(), network })
    }

    pub fn predict(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        match &self.config.architecture {
            Architecture::UNet(config) => unet::forward_streamed(&self.loader(), config, x, t, conditioning),
            Architecture::MMDiT(config) => mmdit::forward_streamed(&self.loader(), config, x, t, conditioning),
        }
    }

    fn loader(&self) -> Loader<'_> {
        Loader::frozen(&self.weights, DType::F32, &self.device).pp(self.prefix)
    }
}
