//! Launches the kernels of `kernels.cu`, which NVRTC compiles when the first is asked for.
//!
//! Only what would else be a dozen passes over memory, or hundreds of launches a step: norms, GEGLU, biases, AdamW, norms of
//! gradients. Products, convolutions and the rest are cuBLAS', cuDNN's and candle's.
//!
//! Every function here fails where an operand is not f32, not on the GPU or (a custom operation's) not contiguous, and where the
//! driver refuses a launch.

use std::sync::OnceLock;

use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::{
            driver::{CudaSlice, CudaView, LaunchConfig, PushKernelArg},
            nvrtc::compile_ptx,
        },
    },
    op::BackpropOp,
};

use super::{Activation, norm::GroupNorm};

/// Threads of a block that works on a group of an image, or on a row of tokens.
const GROUP_THREADS: u32 = 512;
const ROW_THREADS: u32 = 128;
/// Threads of a block that takes every so many'th element, and blocks at most.
const THREADS: u32 = 256;
const BLOCKS: u32 = 2048;
/// Partial sums of squares of a tensor.
const PARTS: usize = 256;

fn kernels() -> Result<&'static str> {
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
        let function = $device.get_or_load_custom_func($name, "balanced-dpo", kernels()?)?;
        let (blocks, threads) = $grid;
        let mut call = function.builder();
        $(let arg = $arg; call.arg(&arg);)+
        let shape = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are the kernel's, in its order, and every array is as long as the shapes say.
        unsafe { call.launch(shape) }.w().map(|_| ())
    }};
}

/// Blocks and threads for `n` elements.
fn grid(n: usize) -> (u32, u32) {
    ((n.div_ceil(THREADS as usize) as u32).clamp(1, BLOCKS), THREADS)
}

/// The numbers of a contiguous f32 operand.
fn view<'a>((storage, layout): Operand<'a>) -> Result<CudaView<'a, f32>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<f32>()?.slice(from..to)),
        None => bail!("an operand of a kernel is not contiguous"),
    }
}

/// Runs `f` over contiguous f32 tensors on one GPU.
fn with_views<const N: usize, R>(
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

/// Room for `n` numbers, whatever they are.
fn room(device: &CudaDevice, n: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: whoever asks for it launches a kernel that writes all of it.
    unsafe { device.alloc::<f32>(n) }
}

fn tensor(numbers: CudaSlice<f32>, device: &CudaDevice, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage(numbers, device)), shape, BackpropOp::none(), false)
}

/// An operand of a custom operation.
pub type Operand<'a> = (&'a CudaStorage, &'a Layout);

fn storage(numbers: CudaSlice<f32>, device: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(numbers, device.clone())
}

/// Of a group norm of (B, C, ...): blocks; numbers of a group, and of a channel of an image; whether SiLU follows.
fn sizes(norm: GroupNorm, dims: &[usize]) -> (u32, i32, i32, i32) {
    let pixels = dims[2..].iter().product::<usize>();
    let (blocks, size) = (dims[0] * norm.groups, dims[1] / norm.groups * pixels);
    (blocks as u32, size as i32, pixels as i32, (norm.then == Activation::Silu).into())
}

/// `x` (B, C, ...), `w` and `b` (C) -> like `x`.
pub(super) fn group_norm(norm: GroupNorm, x: Operand, w: Operand, b: Operand) -> Result<CudaStorage> {
    let (device, (blocks, size, pixels, silu)) = (x.0.device(), sizes(norm, x.1.dims()));
    let y = room(device, x.1.shape().elem_count())?;
    let (x, w, b, grid, groups) = (view(x)?, view(w)?, view(b)?, (blocks, GROUP_THREADS), norm.groups as i32);
    launch!(device, "group_norm", grid, x, w, b, y.as_view(), size, pixels, groups, norm.eps, silu)?;
    Ok(storage(y, device))
}

/// Gradients of `x` (B, C, ...), `w` and `b` (C), of a `gy` like `x`.
pub(super) fn group_norm_grad(norm: GroupNorm, x: &Tensor, w: &Tensor, b: &Tensor, gy: &Tensor) -> Result<[Tensor; 3]> {
    let (blocks, size, pixels, silu) = sizes(norm, x.dims());
    let (shape, by_image) = (x.shape(), (x.dim(0)?, x.dim(1)?));
    let [gx, gw, gb] = with_views([x, w, b, gy], |device, [x, w, b, gy]| {
        let n = by_image.0 * by_image.1;
        let (gx, gw, gb) = (room(device, x.len())?, room(device, n)?, room(device, n)?);
        let (to_x, to_w, to_b, grid) = (gx.as_view(), gw.as_view(), gb.as_view(), (blocks, GROUP_THREADS));
        let (groups, eps) = (norm.groups as i32, norm.eps);
        launch!(device, "group_norm_grad", grid, x, w, b, gy, to_x, to_w, to_b, size, pixels, groups, eps, silu)?;
        Ok([tensor(gx, device, shape), tensor(gw, device, by_image), tensor(gb, device, by_image)])
    })?;
    Ok([gx, gw.sum(0)?, gb.sum(0)?])
}

/// `x` (..., C), normalised over C, `w` and `b` (C) -> like `x`.
pub fn layer_norm(x: Operand, w: Operand, b: Operand, eps: f32) -> Result<CudaStorage> {
    let (device, x, w, b) = (x.0.device(), view(x)?, view(w)?, view(b)?);
    let (y, n) = (room(device, x.len())?, w.len());
    launch!(device, "layer_norm", ((x.len() / n) as u32, ROW_THREADS), x, w, b, y.as_view(), n as i32, eps)?;
    Ok(storage(y, device))
}

/// Gradients of `x` (..., C), `w` and `b` (C), of a `gy` like `x`.
pub fn layer_norm_grad(x: &Tensor, w: &Tensor, gy: &Tensor, eps: f32) -> Result<[Tensor; 3]> {
    let (shape, n) = (x.shape(), w.elem_count());
    let rows = x.elem_count() / n;
    let [gx, gw] = with_views([x, w, gy], |device, [x, w, gy]| {
        let (gx, gw) = (room(device, x.len())?, room(device, x.len())?);
        let grid = (rows as u32, ROW_THREADS);
        launch!(device, "layer_norm_grad", grid, x, w, gy, gx.as_view(), gw.as_view(), n as i32, eps)?;
        Ok([tensor(gx, device, shape), tensor(gw, device, (rows, n))])
    })?;
    // Sums over rows as products: candle's own sum over the first dimension has few threads.
    let ones = Tensor::ones((1, rows), DType::F32, x.device())?;
    let over_rows = |g: &Tensor| ones.matmul(&g.reshape((rows, n))?)?.reshape(n);
    Ok([gx, over_rows(&gw)?, over_rows(&gy.contiguous()?)?])
}

/// `x` (..., 2F), hidden before gate -> (..., F).
pub fn geglu(x: Operand) -> Result<CudaStorage> {
    let (device, width) = (x.0.device(), x.1.dims()[x.1.dims().len() - 1] / 2);
    let x = view(x)?;
    let n = x.len() / 2;
    let y = room(device, n)?;
    launch!(device, "geglu", grid(n), x, y.as_view(), n, width)?;
    Ok(storage(y, device))
}

/// The gradient of `x` (..., 2F), of a `gy` (..., F).
pub fn geglu_grad(x: &Tensor, gy: &Tensor) -> Result<Tensor> {
    let (shape, width) = (x.shape(), x.dim(x.rank() - 1)? / 2);
    with_views([x, gy], |device, [x, gy]| {
        let (gx, n) = (room(device, x.len())?, gy.len());
        launch!(device, "geglu_grad", grid(n), x, gy, gx.as_view(), n, width)?;
        Ok(tensor(gx, device, shape))
    })
}

/// y += b, in place: `y` is fresh and of nobody else; `pixels` numbers of it for each channel of `b` (C).
pub fn add_bias(y: &Tensor, b: &Tensor, pixels: usize) -> Result<()> {
    let channels = b.elem_count();
    whole([y])?;
    with_views([y, b], |device, [y, b]| {
        let n = y.len();
        launch!(device, "add_bias", grid(n), y, b, n, pixels, channels)
    })
}

/// Numbers of an AdamW step that are the same for all tensors.
#[derive(Clone, Copy)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    /// 1 - lr * weight decay
    pub decay: f32,
    /// lr / (1 - beta1^t)
    pub rate: f32,
    /// sqrt(1 - beta2^t)
    pub root2: f32,
    pub eps: f32,
}

impl AdamW {
    /// One tensor's step: parameter, first and second moment in place, by a gradient of the same shape.
    pub fn step(&self, p: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor) -> Result<()> {
        whole([p, m, v])?;
        with_views([p, m, v, g], |device, [p, m, v, g]| {
            let (n, Self { beta1, beta2, decay, rate, root2, eps }) = (g.len(), *self);
            launch!(device, "adamw", grid(n), p, m, v, g, n, beta1, beta2, decay, rate, root2, eps)
        })
    }
}

/// What is changed in place must not be a copy.
fn whole<const N: usize>(tensors: [&Tensor; N]) -> Result<()> {
    match tensors.iter().all(|t| t.is_contiguous()) {
        true => Ok(()),
        false => bail!("a tensor that is changed in place is not contiguous"),
    }
}

/// The sum of squares of each tensor, f32, added up in f64; they are waited for once.
pub fn squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let Some(first) = tensors.first() else { return Ok(vec![]) };
    let device = first.device().as_cuda_device()?;
    let sums = device.alloc_zeros::<f32>(tensors.len() * PARTS)?;
    for (i, x) in tensors.iter().enumerate() {
        with_views([x], |device, [x]| {
            let (n, (blocks, threads)) = (x.len(), grid(x.len()));
            let parts = sums.slice(i * PARTS..(i + 1) * PARTS);
            launch!(device, "squares", (blocks.min(PARTS as u32), threads), x, parts, n)
        })?;
    }
    let sums = device.clone_dtoh(&sums)?;
    Ok(sums.chunks_exact(PARTS).map(|parts| parts.iter().map(|&v| f64::from(v)).sum()).collect())
}
