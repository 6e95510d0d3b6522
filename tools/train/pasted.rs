//! Diffusion-DPO's launch lines, which can be pasted: flags that are said otherwise here, or mean nothing.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use pipe::cli::Dtype;

use crate::args::Args;

/// Those flags.
#[derive(clap::Args, Clone, Debug)]
pub struct Pasted {
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

impl Pasted {
    /// # Errors
    /// The base is not what the launch line takes it for.
    pub fn check(&self, base: &Path) -> Result<()> {
        ensure!(
            !self.sdxl || base.join("text_encoder_2").is_dir(),
            "--sdxl: {} is no SDXL model, it has no text_encoder_2/",
            base.display()
        );
        Ok(())
    }
}

impl Args {
    /// With what was pasted said as it is said here, and what means nothing here named.
    ///
    /// # Errors
    /// The data set is a name on the hub and no file.
    pub fn unpasted(mut self) -> Result<Self> {
        let Pasted { dataset_name, mixed_precision, cache_dir, allow_tf32, .. } = self.pasted.clone();
        if let Some(path) = dataset_name {
            ensure!(
                path.exists(),
                "--dataset_name {}: there is no such file; name the data set's Parquet files, and labels that `vote` made \
                 of them (`vote --rule human` for people's)",
                path.display()
            );
            self.data = vec![path];
        }
        match mixed_precision.as_deref() {
            Some("fp16") => self.common.dtype = Dtype::F16,
            Some("bf16") => self.common.dtype = Dtype::Bf16,
            _ => {}
        }
        for (flag, given) in [("--cache_dir", cache_dir.is_some()), ("--allow_tf32", allow_tf32)] {
            if given {
                self.common.say(format_args!("{flag} means nothing here"));
            }
        }
        Ok(self)
    }
}
