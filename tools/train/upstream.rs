//! The flags of Diffusion-DPO's and diffusers' scripts, so that their launch lines can be pasted: some are translated into ours, and
//! some have no effect. The others are answered by `pipe::cli`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use pipe::device::{Device, Dtype};
use pipe::{augment::Augment, cli::Networks};

use crate::optimiser::{OptimiserFlags, OptimizerName};
use crate::{data::VisitFlags, models::ModelFlags, training_data::DataFlags};

/// All these flags. None of them is shown by --help.
#[derive(clap::Args, Clone, Debug)]
pub struct UpstreamFlags {
    #[arg(long, hide = true, conflicts_with = "policy")]
    unet_init: Option<PathBuf>,
    #[arg(long, hide = true, conflicts_with = "augment")]
    no_hflip: bool,
    #[arg(long, hide = true, conflicts_with = "data")]
    dataset_name: Option<PathBuf>,
    #[arg(long, hide = true)]
    sdxl: bool,
    #[arg(long, hide = true, value_parser = ["no", "fp16", "bf16"], conflicts_with = "dtype")]
    mixed_precision: Option<String>,
    #[arg(long, hide = true)]
    cache_dir: Option<PathBuf>,
    #[arg(long, hide = true)]
    allow_tf32: bool,
}

impl UpstreamFlags {
    /// Refuses flags for what is done in another way here, and precision that training cannot have.
    pub fn check(&self, networks: &Networks) -> Result<()> {
        let precision = self.mixed_precision.as_deref();
        ensure!(
            precision != Some("fp16"),
            "--mixed-precision fp16: small gradients would become 0; bf16 has the range of f32"
        );
        ensure!(
            precision != Some("bf16") || networks.device != Device::Cpu,
            "--mixed-precision bf16: the CPU computes in f32 only; leave the flag out, or name a GPU with --device cuda"
        );
        Ok(())
    }

    /// Refuses a base that is not the kind of model that the launch line takes it for.
    pub fn check_base(&self, models: &ModelFlags) -> Result<()> {
        let base = &models.base;
        ensure!(
            !self.sdxl || base.join("text_encoder_2").is_dir(),
            "--sdxl: {} is not an SDXL model, because it has no text_encoder_2/",
            base.display()
        );
        Ok(())
    }

    pub fn translate(
        &self,
        data: &mut DataFlags,
        models: &mut ModelFlags,
        visits: &mut VisitFlags,
        optimiser: &mut OptimiserFlags,
        networks: &mut Networks,
    ) -> Result<Vec<String>> {
        let mut notes = vec![];
        if let Some(path) = &self.dataset_name {
            ensure!(
                path.exists(),
                "--dataset-name {}: there is no such file; name the Parquet files of the data set as DATA, score them with \
                 `score`, and name what `vote` makes of the scores as --labels (`vote --rule human` for people's labels)",
                path.display()
            );
            data.data = vec![path.clone()];
        }
        if let Some(path) = &self.unet_init {
            // In Diffusion-DPO, policy and reference both start from it.
            models.reference.get_or_insert_with(|| path.clone());
            models.policy = Some(path.clone());
        }
        if self.no_hflip {
            visits.augment = Some(Augment::None);
        }
        if self.sdxl && optimiser.optimizer.is_none() && !optimiser.use_adafactor {
            optimiser.optimizer = Some(OptimizerName::Adafactor);
            optimiser.max_grad_norm.get_or_insert(1.0);
            let clipped = "Adafactor with gradients clipped at 1, as in Diffusion-DPO's code";
            notes.push(format!("--sdxl: {clipped}; --optimizer adamw selects AdamW"));
        }
        if self.mixed_precision.as_deref() == Some("bf16") {
            networks.dtype = Dtype::Bf16;
        }
        let unused = [("--cache-dir", self.cache_dir.is_some()), ("--allow-tf32", self.allow_tf32)];
        notes.extend(unused.iter().filter(|(_, used)| *used).map(|(flag, _)| format!("{flag} has no effect here")));
        Ok(notes)
    }
}
