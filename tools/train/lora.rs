//! The flags of low-rank adapters (LoRA).

use std::num::NonZeroUsize;

use anyhow::{Result, ensure};
use nets::lora::LoraConfig;

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "LoRA")]
pub struct LoraFlags {
    /// Train low-rank adapters of rank R beside a frozen UNet instead of all its weights
    #[arg(long, alias = "rank", value_name = "R")]
    pub lora_rank: Option<NonZeroUsize>,
    /// Scale adapters by ALPHA / R [default: R]
    #[arg(long, value_name = "ALPHA", requires = "lora_rank")]
    lora_alpha: Option<f64>,
    /// The linear layers that get an adapter, by their names in PEFT
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "to_q,to_k,to_v,to_out.0")]
    #[arg(requires = "lora_rank")]
    lora_targets: Vec<String>,
    /// Also write unet/, the base with the adapters added to its weights, for `sample --unet`
    #[arg(long, requires = "lora_rank")]
    pub merge: bool,
}

impl LoraFlags {
    /// # Errors
    /// An alpha below 0, NaN or infinite.
    pub fn check(&self) -> Result<()> {
        let alpha = self.lora_alpha.unwrap_or_default();
        ensure!(alpha >= 0.0 && alpha.is_finite(), "--lora-alpha must not be below 0, it is {alpha}");
        Ok(())
    }

    /// The adapters to train; `None` where the whole UNet is trained.
    pub fn config(&self) -> Option<LoraConfig> {
        let rank = self.lora_rank?.get();
        Some(LoraConfig { rank, alpha: self.lora_alpha.unwrap_or(rank as f64), targets: self.lora_targets.clone() })
    }
}
