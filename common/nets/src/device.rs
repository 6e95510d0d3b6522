//! Where networks run: the device, its arithmetic, and the threads of a program.

use std::error::Error;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use pipe::device;
use rayon::ThreadPoolBuilder;

pub fn open(device: device::Device) -> Result<Device> {
    match device {
        device::Device::Cpu => Ok(Device::Cpu),
        device::Device::Cuda(n) => {
            let way = std::env::var_os("BDPO_GPU").unwrap_or_default();
            ensure!(
                way.is_empty() || way == "composed",
                "BDPO_GPU is {way:?} in the environment; `composed` is the only value that is known: set that, or nothing"
            );
            ensure!(candle_core::utils::cuda_is_available(), "this build has no CUDA (cargo's feature `cuda`)");
            cuda(n).with_context(|| format!("cannot use CUDA device {n}"))
        }
    }
}

/// A device with one stream for all threads, which keeps freed memory for the next operation. candle's own device has one
/// stream per thread, and nothing orders them: a tensor that another thread made could be used before it is ready.
#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> candle_core::Result<Device> {
    use candle_core::cuda_backend::{
        WrapErr,
        cudarc::driver::{result, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as THRESHOLD},
    };
    let device = Device::new_cuda_with_stream(ordinal)?;
    let mut all = u64::MAX;
    // SAFETY: events order streams, and there is only one. The attribute is an unsigned 64-bit number of the device's own pool.
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

/// candle's number type for the networks on `device`.
pub fn dtype(dtype: device::Dtype, device: &Device) -> Result<DType> {
    match dtype {
        device::Dtype::F32 => Ok(DType::F32),
        _ if device.is_cpu() => bail!("the CPU computes in f32 only; half precision needs a CUDA device"),
        device::Dtype::Bf16 => Ok(DType::BF16),
        device::Dtype::F16 => Ok(DType::F16),
    }
}

/// Runs a program's whole body on a worker thread: its many small parallel pieces then start on the thread that asks for
/// them, instead of waking another one each time. To be called once, before the program has threads.
pub fn on_workers<R: Send>(body: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    set_up_libraries();
    // It fails without a cause where the workers are there already.
    let workers = ThreadPoolBuilder::new().build_global();
    if let Some(cause) = workers.as_ref().err().and_then(Error::source) {
        bail!("cannot start the worker threads: {cause}");
    }
    rayon::scope(|_| body())
}

/// Settings that libraries read from the environment. A user's own are respected.
fn set_up_libraries() {
    // On a GPU, f32 stays f32: NVIDIA's libraries would otherwise compute f32 convolutions in TF32, with ten bits of mantissa.
    let tf32 = cfg!(feature = "cuda").then_some(("NVIDIA_TF32_OVERRIDE", "0"));
    // candle has threads of its own for sums of tensors. They spin while they wait, and so does whoever waits for them: with
    // two workers on two cores, a mini training step took half as much processor time again.
    let candle = Some(("CANDLE_NUM_THREADS", "1"));
    for (name, value) in [tf32, candle].into_iter().flatten() {
        if std::env::var_os(name).is_none() {
            // SAFETY: the program's body has not begun, and no other thread runs yet.
            unsafe { std::env::set_var(name, value) };
        }
    }
}
