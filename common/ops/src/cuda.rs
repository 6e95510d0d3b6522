//! What the launches of `kernels.cu` share. NVRTC compiles that file when the first kernel is asked for. The launches themselves
//! stand in the file of their operation.
//!
//! Every function here fails where an operand has another type, is not on the GPU or (in a forward pass) not contiguous, and where
//! the driver refuses a launch.

use std::{cell::RefCell, rc::Rc, sync::OnceLock};

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DevicePtr, DeviceRepr, DeviceSlice};
use candle_core::cuda_backend::cudarc::nvrtc::compile_ptx;
use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, backend::BackendStorage, bail,
    op::BackpropOp,
};
use half::bf16;

use super::way::is_composed;

/// Threads per block of the elementwise kernels, and their largest number of blocks.
const THREADS: u32 = 256;
const BLOCKS: u32 = 2048;

/// Whether a tensor may go through kernels that no GPU has confirmed yet.
pub(crate) fn fused(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::BF16) && !is_composed()
}

/// A type of activations that the kernels take.
pub(crate) trait Number: CudaDType + DeviceRepr {
    /// The end of a kernel's name.
    const NAME: &'static str;

    fn kernel(name: &str) -> String {
        format!("{name}_{}", Self::NAME)
    }
}

impl Number for f32 {
    const NAME: &'static str = "f32";
}

impl Number for bf16 {
    const NAME: &'static str = "bf16";
}

/// Calls a function that is generic over a [`Number`] for the type of a tensor.
macro_rules! of_type {
    ($dtype:expr, $f:ident($($arg:expr),*)) => {
        match $dtype {
            candle_core::DType::BF16 => $f::<half::bf16>($($arg),*),
            _ => $f::<f32>($($arg),*),
        }
    };
}
pub(crate) use of_type;

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
    ($device:expr, $name:expr, $grid:expr, $($arg:expr),+ $(,)?) => {{
        use candle_core::cuda_backend::{WrapErr, cudarc::driver::{LaunchConfig, PushKernelArg}};
        let function = $device.get_or_load_custom_func(&$name, "balanced-dpo", $crate::cuda::kernels()?)?;
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

pub(crate) fn dtype((storage, _): Operand) -> DType {
    storage.dtype()
}

pub(crate) fn view<'a, T: CudaDType>((storage, layout): Operand<'a>) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<T>()?.slice(from..to)),
        None => bail!("an operand of a kernel is not contiguous"),
    }
}

/// Runs `f` over contiguous tensors of one type on one GPU.
pub(crate) fn with_views<T: CudaDType, const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce(&CudaDevice, [CudaView<T>; N]) -> Result<R>,
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
    let Ok(views) = <[CudaView<T>; N]>::try_from(views) else { bail!("a kernel got too few operands") };
    f(tensors[0].device().as_cuda_device()?, views)
}

/// Memory for `n` numbers, not yet written.
pub(crate) fn room<T: DeviceRepr>(device: &CudaDevice, n: usize) -> Result<CudaSlice<T>> {
    // SAFETY: whoever asks for it launches a kernel that writes all of it.
    unsafe { device.alloc::<T>(n) }
}

/// A tensor of these numbers, without history.
pub(crate) fn tensor<T: CudaDType>(numbers: CudaSlice<T>, device: &CudaDevice, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage(numbers, device)), shape, BackpropOp::none(), false)
}

pub(crate) fn storage<T: CudaDType>(numbers: CudaSlice<T>, device: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(numbers, device.clone())
}

/// Many tensors for kernels that work on all of them in one launch: see `kernels.cu`. It holds none of them.
pub(crate) struct Table {
    /// For each tensor its length, and the addresses of its arrays.
    rows: CudaSlice<u64>,
    /// The tensor and the chunk of each block.
    places: CudaSlice<u32>,
    /// The tensor of each block.
    pub tensors: Vec<usize>,
}

/// Numbers that a block of such a kernel works on.
const CHUNK: usize = 65536;

thread_local! {
    /// The tables that were used last, by device and rows: most are needed again in the next step.
    static TABLES: RefCell<Vec<(usize, Vec<u64>, Rc<Table>)>> = const { RefCell::new(vec![]) };
}

/// Tables that are kept: a step has a few, and one for each piece of the network.
const TABLES_KEPT: usize = 256;

impl Table {
    /// `all` has for each tensor its arrays, which are f32 or, where the kernel takes that, bf16, contiguous and equally long.
    pub fn of<const N: usize>(device: &CudaDevice, all: &[[&Tensor; N]]) -> Result<Rc<Self>> {
        Self::with_numbers(device, all, &[])
    }

    /// The same, where `numbers` has one more number for each row, or is empty.
    pub fn with_numbers<const N: usize>(
        device: &CudaDevice,
        all: &[[&Tensor; N]],
        numbers: &[usize],
    ) -> Result<Rc<Self>> {
        let mut rows = vec![];
        for (i, arrays) in all.iter().enumerate() {
            let n = arrays[0].elem_count();
            rows.push(n as u64);
            for array in arrays {
                let (storage, layout) = array.storage_and_layout();
                let (Storage::Cuda(cuda), true) = (&*storage, array.elem_count() == n) else {
                    bail!("tensors of one step of the optimiser lie on several devices, or differ in length")
                };
                rows.push(match array.dtype() {
                    DType::BF16 => address(&view::<bf16>((cuda, layout))?),
                    _ => address(&view::<f32>((cuda, layout))?),
                });
            }
            rows.extend(numbers.get(i).map(|n| *n as u64));
        }
        let width = N + 1 + usize::from(!numbers.is_empty());
        let ordinal = device.cuda_stream().context().ordinal();
        TABLES.with_borrow_mut(|kept| {
            if let Some(i) = kept.iter().position(|(device, known, _)| (*device, known) == (ordinal, &rows)) {
                kept[i..].rotate_left(1); // the last used stands last
            } else {
                let table = Rc::new(Self::new(device, &rows, width)?);
                kept.drain(..kept.len().saturating_sub(TABLES_KEPT - 1));
                kept.push((ordinal, rows, table));
            }
            Ok(kept[kept.len() - 1].2.clone())
        })
    }

    fn new(device: &CudaDevice, rows: &[u64], width: usize) -> Result<Self> {
        let (mut places, mut tensors) = (vec![], vec![]);
        for (i, row) in rows.chunks_exact(width).enumerate() {
            let n = row[0] as usize;
            for chunk in 0..n.div_ceil(CHUNK) {
                places.extend([i as u32, chunk as u32]);
                tensors.push(i);
            }
        }
        Ok(Self { rows: device.clone_htod(rows)?, places: device.clone_htod(&places)?, tensors })
    }

    /// The first two arguments of the kernels.
    pub fn views(&self) -> (CudaView<'_, u64>, CudaView<'_, u32>) {
        (self.rows.as_view(), self.places.as_view())
    }

    /// Blocks and threads.
    pub fn grid(&self) -> (u32, u32) {
        (self.tensors.len() as u32, THREADS)
    }
}

/// The kernels that get it run on the one stream of the device, in order.
pub(crate) fn address<T>(view: &CudaView<T>) -> u64 {
    let stream = DeviceSlice::stream(view).clone();
    view.device_ptr(&stream).0
}
