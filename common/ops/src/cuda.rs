//! What the launches of `kernels.cu` share. NVRTC compiles that file when the first kernel is asked for. The launches themselves
//! stand in the file of their operation.
//!
//! Every function here fails where an operand is not f32, not on the GPU or (in a forward pass) not contiguous, and where the
//! driver refuses a launch.

use std::sync::OnceLock;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::cuda_backend::cudarc::nvrtc::compile_ptx;
use candle_core::{
    CudaDevice, CudaStorage, Layout, Result, Shape, Storage, Tensor, backend::BackendStorage, bail, op::BackpropOp,
};

/// Threads per block of the elementwise kernels, and their largest number of blocks.
const THREADS: u32 = 256;
const BLOCKS: u32 = 2048;

/// The compiled kernels, as PTX.
pub(crate) fn kernels() -> Result<&'static str> {
    static PTX: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compile = || compile_ptx(include_str!("kernels.cu")).map(|ptx| ptx.to_src()).map_err(|e| format!("{e:?}"));
    match PTX.get_or_init(compile) {
        Ok(ptx) => Ok(ptx),
        Err(e) => bail!("NVRTC cannot compile the kernels: {e}"),
    }
}

/// Launches a kernel of this name with (blocks, threads) and these arguments, each a view or a number.
macro_rules! launch {
    ($device:expr, $name:literal, $grid:expr, $($arg:expr),+ $(,)?) => {{
        use candle_core::cuda_backend::{WrapErr, cudarc::driver::{LaunchConfig, PushKernelArg}};
        let function = $device.get_or_load_custom_func($name, "balanced-dpo", $crate::cuda::kernels()?)?;
        let (blocks, threads) = $grid;
        let mut call = function.builder();
        $(let arg = $arg; call.arg(&arg);)+
        let shape = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are the kernel's, in its order, and every array is as long as the shapes say.
        unsafe { call.launch(shape) }.w().map(|_| ())
    }};
}
pub(crate) use launch;

/// Blocks and threads for `n` elements.
pub(crate) fn grid(n: usize) -> (u32, u32) {
    ((n.div_ceil(THREADS as usize) as u32).clamp(1, BLOCKS), THREADS)
}

/// An operand of a forward pass.
pub(crate) type Operand<'a> = (&'a CudaStorage, &'a Layout);

pub(crate) fn device<'a>((storage, _): Operand<'a>) -> &'a CudaDevice {
    storage.device()
}

pub(crate) fn view<'a>((storage, layout): Operand<'a>) -> Result<CudaView<'a, f32>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<f32>()?.slice(from..to)),
        None => bail!("an operand of a kernel is not contiguous"),
    }
}

/// Runs `f` over contiguous f32 tensors on one GPU.
pub(crate) fn with_views<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce(&CudaDevice, [CudaView<f32>; N]) -> Result<R>,
) -> Result<R> {
    let mut held = Vec::with_capacity(N);
    for tensor in tensors {
        held.push(tensor.contiguous()?);
    }
    let guards: Vec<_> = held.iter().map(|t| t.storage_and_layout()).collect();
    let mut views = Vec::with_capacity(N);
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cuda(cuda) => views.push(view((cuda, layout))?),
            _ => bail!("a GPU's kernel met a tensor of another device"),
        }
    }
    let Ok(views) = <[CudaView<f32>; N]>::try_from(views) else { bail!("a kernel got too few operands") };
    f(tensors[0].device().as_cuda_device()?, views)
}

/// Memory for `n` numbers, not yet written.
pub(crate) fn room(device: &CudaDevice, n: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: whoever asks for it launches a kernel that writes all of it.
    unsafe { device.alloc::<f32>(n) }
}

/// A tensor of these numbers, without history.
pub(crate) fn tensor(numbers: CudaSlice<f32>, device: &CudaDevice, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage(numbers, device)), shape, BackpropOp::none(), false)
}

pub(crate) fn storage(numbers: CudaSlice<f32>, device: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(numbers, device.clone())
}

/// Checks that tensors which a kernel changes in place are contiguous: the kernel would change a copy otherwise.
pub(crate) fn check_in_place<const N: usize>(tensors: [&Tensor; N]) -> Result<()> {
    match tensors.iter().all(|t| t.is_contiguous()) {
        true => Ok(()),
        false => bail!("a tensor that is changed in place is not contiguous"),
    }
}
