//! The networks of a run: the policy that is trained, the reference it is compared with, and the frozen rest.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use nets::denoiser::{Config, Trainable};
use nets::lora::{Adapters, LoraConfig};
use nets::weights::{self, Weights};
use nets::{folder, hub, prompt::TEXT_ENCODERS, single};
use pipe::cli::{Diffusion, not_negative};

use crate::reference::{Reference, ReferenceFlags};

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Models")]
pub struct ModelFlags {
    /// Folder, hub id or single file of a Stable Diffusion or FLUX model: text encoders, VAE, scheduler, and the denoiser to start
    /// from
    #[arg(long, help_heading = None, alias = "pretrained-model-name-or-path", value_name = "DIR")]
    pub base: PathBuf,
    /// VAE to use instead of the base's own, such as SDXL's that works in half precision
    #[arg(long, alias = "pretrained-vae-model-name-or-path", value_name = "DIR")]
    vae: Option<PathBuf>,
    /// Checkpoint to start from instead of the base's own denoiser
    #[arg(long, value_name = "DIR")]
    pub policy: Option<PathBuf>,
    /// Checkpoint to compare the policy with instead of the base's own denoiser
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    #[command(flatten)]
    files: Diffusion,
}

impl ModelFlags {
    /// The same flags with local folders in place of hub ids and of models in one file.
    pub fn resolve(&self) -> Result<Self> {
        let folder = |path: &PathBuf, base: Option<&Path>| self.files.folder(path, base, hub::resolve, single::folder);
        let base = folder(&self.base, None)?;
        let local = |path: &PathBuf| folder(path, Some(&base));
        let named = self.base.display();
        ensure!(
            base.is_dir(),
            "--base {named}: there is no such model; name the folder of a Stable Diffusion model, its single file, or its hub id"
        );
        let [vae, policy, reference] =
            [&self.vae, &self.policy, &self.reference].map(|path| path.as_ref().map(local).transpose());
        Ok(Self { vae: vae?, policy: policy?, reference: reference?, base, files: self.files.clone() })
    }

    pub fn vae_folder(&self) -> PathBuf {
        match &self.vae {
            Some(path) if path.join("vae").is_dir() => path.join("vae"),
            Some(path) => path.clone(),
            None => self.base.join("vae"),
        }
    }

    /// The frozen networks that prepare the data: role and folder.
    pub fn frozen_networks(&self) -> Vec<(&'static str, PathBuf)> {
        let encoders = TEXT_ENCODERS.map(|role| (role, self.base.join(role)));
        [("vae", self.vae_folder())].into_iter().chain(encoders).filter(|(_, folder)| folder.is_dir()).collect()
    }

    /// The configuration of the base's denoiser.
    pub fn denoiser(&self) -> Result<Config> {
        Config::read(&folder::denoiser(&self.base)?)
    }
}

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "LoRA")]
pub struct LoraFlags {
    /// Train low-rank adapters of rank R beside a frozen denoiser instead of all its weights
    #[arg(long, alias = "rank", value_name = "R")]
    pub lora_rank: Option<NonZeroUsize>,
    /// Scale adapters by ALPHA / R [default: R]
    #[arg(long, value_name = "ALPHA", requires = "lora_rank", value_parser = not_negative())]
    lora_alpha: Option<f64>,
    /// The linear layers that get an adapter, by their names in PEFT
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "to_q,to_k,to_v,to_out.0")]
    #[arg(requires = "lora_rank")]
    lora_targets: Vec<String>,
    /// Also write unet/ or transformer/, the base with the adapters added to its weights, for `sample --unet`
    #[arg(long, requires = "lora_rank")]
    pub merge: bool,
}

impl LoraFlags {
    /// The adapters to train; `None` if the whole UNet is trained.
    pub fn config(&self) -> Option<LoraConfig> {
        let rank = self.lora_rank?.get();
        Some(LoraConfig { rank, alpha: self.lora_alpha.unwrap_or(rank as f64), targets: self.lora_targets.clone() })
    }
}

/// Policy and reference, as they are before the first step.
pub struct Models {
    pub policy: Trainable,
    pub reference: Reference,
    /// SHA-256 of the weights of policy and reference.
    pub hashes: [String; 2],
    /// The folder of the UNet that training starts from.
    pub unet: PathBuf,
}

impl Models {
    /// All weights of the policy are trained, and the reference is a second UNet.
    pub fn whole(models: &ModelFlags, reference: &ReferenceFlags, compute: DType, device: &Device) -> Result<Self> {
        let unet_of = |path: &Option<PathBuf>| folder::denoiser(path.as_ref().unwrap_or(&models.base));
        let (unet, other) = (unet_of(&models.policy)?, unet_of(&models.reference)?);
        let policy = Trainable::open(&unet, device)?;
        let reference = Reference::open(&other, &policy, reference, compute, device)?;
        let hashes = [Weights::open(&unet)?.hash()?, Weights::open(&other)?.hash()?];
        Ok(Self { policy, reference, hashes, unet })
    }

    /// Adapters are trained beside a frozen UNet. The reference is the same UNet with adapters of its own, which at first
    /// change nothing.
    pub fn adapted(models: &ModelFlags, config: &LoraConfig, seed: u64, device: &Device) -> Result<Self> {
        let adapters = [&models.policy, &models.reference].map(|path| path.as_deref().and_then(folder::adapters));
        let under = models.policy.as_ref().filter(|_| adapters[0].is_none()).unwrap_or(&models.base);
        let unet = folder::denoiser(under)?;
        let [policy, reference] = Trainable::open_adapted(&unet, config, seed, device)
            .context("cannot add the adapters of --lora-rank and --lora-targets")?;
        let base = Weights::open(&unet)?.hash()?;
        let mut hashes = [base.clone(), base.clone()];
        for ((file, hash), network) in adapters.iter().zip(&mut hashes).zip([&policy, &reference]) {
            let Some(file) = file else { continue };
            let saved = Adapters::open(file)?;
            let (rank, alpha) = (saved.config.rank, saved.config.alpha);
            ensure!(
                rank == config.rank && alpha == config.alpha,
                "{}: its adapters have rank {rank} and alpha {alpha}; give these as --lora-rank and --lora-alpha",
                file.display()
            );
            saved.fill(&network.params).context("--lora-targets names other layers than the file")?;
            *hash = weights::file_hash(file)?;
        }
        if let (Some(path), None) = (&models.reference, &adapters[1]) {
            ensure!(
                Weights::open(&folder::denoiser(path)?)?.hash()? == base,
                "--reference {} is another UNet than the policy's; with --lora-rank, policy and reference share one UNet and \
                 differ in their adapters alone",
                path.display()
            );
        }
        Ok(Self { policy, reference: Reference::Held(reference), hashes, unet })
    }
}
