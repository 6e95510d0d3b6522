//! What a tool that runs networks begins with: device, arithmetic, worker threads, and where a UNet lies.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use pipe::cli;

use crate::lora;

/// The device that `--device` names.
///
/// # Errors
/// CUDA was asked of a build without it, or the device is not there.
pub fn device(device: cli::Device) -> Result<Device> {
    match device {
        cli::Device::Cpu => Ok(Device::Cpu),
        cli::Device::Cuda(n) => {
            ensure!(candle_core::utils::cuda_is_available(), "this build has no CUDA; build it with --features cuda");
            Device::new_cuda(n).with_context(|| format!("cannot use CUDA device {n}"))
        }
    }
}

/// Runs a tool's whole body on a worker thread: the many small parallel pieces then begin where they are, instead of
/// waking another thread each.
pub fn on_workers<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    keep_freed_memory();
    rayon::scope(|_| body())
}

/// Every operation allocates its result, and glibc gives blocks of this size back to the system at once: page faults then
/// cost a tenth of the time. Blocks up to 32 MiB are kept for the next operation instead.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets two of the allocator's limits.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 20);
    }
}

/// The arithmetic that `--dtype` names.
///
/// # Errors
/// Half precision on the CPU, which computes in f32 only.
pub fn dtype(dtype: cli::Dtype, device: &Device) -> Result<DType> {
    match dtype {
        cli::Dtype::F32 => Ok(DType::F32),
        _ if device.is_cpu() => bail!("the CPU computes in f32; leave --dtype out, or name a CUDA device"),
        cli::Dtype::Bf16 => Ok(DType::BF16),
        cli::Dtype::F16 => Ok(DType::F16),
    }
}

/// A UNet's own folder, out of a checkpoint folder, its `unet/`, or a base.
///
/// # Errors
/// There is no `config.json` of a UNet.
pub fn unet_folder(path: &Path) -> Result<PathBuf> {
    for folder in [path.join("unet"), path.to_owned()] {
        if folder.join("config.json").is_file() {
            return Ok(folder);
        }
    }
    ensure!(path.exists(), "{} does not exist; expected a checkpoint folder with unet/config.json", path.display());
    ensure!(
        lora::find(path).is_none(),
        "{} holds adapters and no whole UNet; one is written beside them where `train` is given --merge",
        path.display()
    );
    bail!("{} holds no unet/config.json: not a checkpoint folder", path.display())
}
