//! What a tool that runs networks begins with: device, arithmetic, worker threads, and where a UNet lies.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use pipe::device;

use crate::lora;

/// The device that `--device` names.
///
/// # Errors
/// CUDA was asked of a build without it, or the device is not there.
pub fn device(device: device::Device) -> Result<Device> {
    match device {
        device::Device::Cpu => Ok(Device::Cpu),
        device::Device::Cuda(n) => {
            ensure!(candle_core::utils::cuda_is_available(), "this build has no CUDA; build it with --features cuda");
            cuda(n).with_context(|| format!("cannot use CUDA device {n}"))
        }
    }
}

/// candle's own device has a stream a thread, between which nothing is in order: what the thread that reads the data has made
/// would be used before it is there. This one has one stream for all threads, and keeps freed memory for the next operation.
#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> candle_core::Result<Device> {
    use candle_core::cuda_backend::{
        WrapErr,
        cudarc::driver::{result, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as THRESHOLD},
    };
    let device = Device::new_cuda_with_stream(ordinal)?;
    let mut all = u64::MAX;
    // SAFETY: events order streams, of which there is one. The attribute is an unsigned 64-bit number of the device's own pool.
    unsafe {
        device.as_cuda_device()?.disable_event_tracking();
        let pool = result::device::get_default_mem_pool(result::device::get(ordinal as i32).w()?).w()?;
        result::mem_pool::set_attribute(pool, THRESHOLD, (&raw mut all).cast()).w()?;
    }
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn cuda(ordinal: usize) -> candle_core::Result<Device> {
    Device::new_cuda(ordinal)
}

/// Runs a tool's whole body on a worker thread: the many small parallel pieces then begin where they are, instead of
/// waking another thread each.
pub fn on_workers<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    keep_freed_memory();
    compute_f32_in_f32();
    rayon::scope(|_| body())
}

/// NVIDIA's libraries would otherwise compute f32 convolutions in TF32, with ten bits of mantissa. A user's own
/// `NVIDIA_TF32_OVERRIDE=1` stays, for those who want that.
fn compute_f32_in_f32() {
    const NAME: &str = "NVIDIA_TF32_OVERRIDE";
    if cfg!(feature = "cuda") && std::env::var_os(NAME).is_none() {
        // SAFETY: a tool's body has not begun, and no other thread runs yet.
        unsafe { std::env::set_var(NAME, "0") };
    }
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
pub fn dtype(dtype: device::Dtype, device: &Device) -> Result<DType> {
    match dtype {
        device::Dtype::F32 => Ok(DType::F32),
        _ if device.is_cpu() => bail!("the CPU computes in f32; leave --dtype out, or name a CUDA device"),
        device::Dtype::Bf16 => Ok(DType::BF16),
        device::Dtype::F16 => Ok(DType::F16),
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
