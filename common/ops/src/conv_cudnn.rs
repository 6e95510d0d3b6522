//! Convolutions and their gradients by cuDNN's own routines. It is asked once for each shape which algorithm is best, and all
//! convolutions share one workspace. Sums are f32; f32 numbers are multiplied as f32.

use std::cell::RefCell;
use std::collections::{HashMap, hash_map::Entry};
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvForward, Cudnn, CudnnDataType, CudnnError, sys,
};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaDevice, DType, Result, Tensor, WithDType};
use half::bf16;

use super::arithmetic::add_bias_to;
use super::precomputed::Computed;
use super::{
    conv::Conv,
    cuda::{self, of_type},
};

/// A type of activations that cuDNN takes.
trait Number: cuda::Number + CudnnDataType + WithDType {}

impl Number for f32 {}
impl Number for bf16 {}

#[derive(Clone, Copy)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Data(sys::cudnnConvolutionBwdDataAlgo_t),
    Filter(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// The result to compute: y, the gradient of x, or the gradient of w.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Wanted {
    Y,
    X,
    W,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    wanted: Wanted,
    dtype: DType,
    x: [i32; 4],
    w: [i32; 4],
    stride: usize,
    padding: usize,
}

/// cuDNN on one device, for one thread.
struct Library {
    cudnn: Arc<Cudnn>,
    /// The algorithm and the bytes of its workspace, for every shape met so far.
    plans: HashMap<Key, (Algorithm, usize)>,
    workspace: Option<CudaSlice<u8>>,
}

thread_local! {
    static LIBRARIES: RefCell<HashMap<usize, Library>> = RefCell::default();
}

fn dims(shape: &[usize]) -> Result<[i32; 4]> {
    let fit = |n: &usize| i32::try_from(*n).ok();
    match shape {
        [a, b, c, d] => match [a, b, c, d].map(fit) {
            [Some(a), Some(b), Some(c), Some(d)] => Ok([a, b, c, d]),
            _ => candle_core::bail!("a convolution of {shape:?} numbers is too large for cuDNN"),
        },
        _ => candle_core::bail!("a convolution of a tensor of shape {shape:?}"),
    }
}

/// Runs one convolution of `x`, `w` and `y`, of which the one that is wanted is written, and of which the others are read.
fn run<T: Number>(
    device: &CudaDevice,
    conv: &Conv,
    wanted: Wanted,
    shapes: [&[usize]; 3],
    [read, other]: [&CudaView<T>; 2],
    written: &mut CudaSlice<T>,
) -> Result<()> {
    let mut call = |library: &mut Library| -> std::result::Result<(), CudnnError> {
        let Library { cudnn, plans, workspace } = library;
        let [Ok(x), Ok(w), Ok(y)] = shapes.map(dims) else { unreachable!("checked by the caller") };
        let (nchw, both) = (sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW, |n: usize| [n as i32; 2]);
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let mut how = cudnn.create_conv2d::<f32>(both(conv.padding), both(conv.stride), [1, 1], mode)?;
        how.set_math_type(match T::DTYPE {
            DType::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            _ => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        })?;
        let (of_x, of_y) = (cudnn.create_4d_tensor::<T>(nchw, x)?, cudnn.create_4d_tensor::<T>(nchw, y)?);
        let of_w = cudnn.create_4d_filter::<T>(nchw, w)?;
        let forward = ConvForward { conv: &how, x: &of_x, w: &of_w, y: &of_y };
        let data = ConvBackwardData { conv: &how, dx: &of_x, w: &of_w, dy: &of_y };
        let filter = ConvBackwardFilter { conv: &how, x: &of_x, dw: &of_w, dy: &of_y };
        let key = Key { wanted, dtype: T::DTYPE, x, w, stride: conv.stride, padding: conv.padding };
        let plan = || {
            Ok::<_, CudnnError>(match wanted {
                Wanted::Y => {
                    let best = forward.pick_algorithm()?;
                    (Algorithm::Forward(best), forward.get_workspace_size(best)?)
                }
                Wanted::X => {
                    let best = data.pick_algorithm()?;
                    (Algorithm::Data(best), data.get_workspace_size(best)?)
                }
                Wanted::W => {
                    let best = filter.pick_algorithm()?;
                    (Algorithm::Filter(best), filter.get_workspace_size(best)?)
                }
            })
        };
        let (algorithm, bytes) = match plans.get(&key) {
            Some(known) => *known,
            None => *plans.entry(key).or_insert(plan()?),
        };
        let room = workspace.as_ref().map_or(0, CudaSlice::len);
        if bytes > room {
            *workspace = None; // its memory may be needed for the larger one
            // SAFETY: a workspace needs no content.
            *workspace = unsafe { device.alloc::<u8>(bytes) }.ok();
        }
        let (workspace, numbers) = (workspace.as_mut(), (T::one(), T::zero()));
        // SAFETY: the descriptors have the types and shapes of the three arrays.
        unsafe {
            match algorithm {
                Algorithm::Forward(best) => forward.launch(best, workspace, numbers, read, other, written),
                Algorithm::Data(best) => data.launch(best, workspace, numbers, written, read, other),
                Algorithm::Filter(best) => filter.launch(best, workspace, numbers, read, written, other),
            }
        }
    };
    for shape in shapes {
        dims(shape)?;
    }
    with_library(device, |library| call(library).map_err(candle_core::Error::wrap))
}

/// Runs `f` with cuDNN on this device, which is opened once per thread.
fn with_library(device: &CudaDevice, f: impl FnOnce(&mut Library) -> Result<()>) -> Result<()> {
    LIBRARIES.with_borrow_mut(|libraries| {
        let stream = device.cuda_stream();
        match libraries.entry(stream.context().ordinal()) {
            Entry::Occupied(mut known) => f(known.get_mut()),
            Entry::Vacant(free) => {
                let cudnn = Cudnn::new(stream).map_err(candle_core::Error::wrap)?;
                f(free.insert(Library { cudnn, plans: HashMap::new(), workspace: None }))
            }
        }
    })
}

/// `x` (B, C, H, W), `w` (O, C, k, k) of the same type, `b` (O) -> (B, O, H', W'), without history.
pub(crate) fn forward(conv: &Conv, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Computed> {
    fn of<T: Number>(conv: &Conv, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Computed> {
        let [(_, _, h, width), (o, _, k, _)] = [x.dims4()?, w.dims4()?];
        let out = |n: usize| (n + 2 * conv.padding - k) / conv.stride + 1;
        let y = [x.dim(0)?, o, out(h), out(width)];
        cuda::with_views::<T, 2, _>([x, w], |device, [of_x, of_w]| {
            let mut to = cuda::room::<T>(device, y.iter().product())?;
            run(device, conv, Wanted::Y, [x.dims(), w.dims(), &y], [&of_x, &of_w], &mut to)?;
            if let Some(b) = b {
                add_bias_to(device, &to.as_view(), b, y[2] * y[3])?;
            }
            Ok(Computed::Cuda(cuda::storage(to, device), (&y[..]).into()))
        })
    }
    of_type!(x.dtype(), of(conv, x, w, b))
}

/// The gradient of an input like `x`.
pub(crate) fn input_gradient(conv: &Conv, x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<Tensor> {
    fn of<T: Number>(conv: &Conv, x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<Tensor> {
        cuda::with_views::<T, 2, _>([w, gy], |device, [of_w, of_gy]| {
            let mut to = cuda::room::<T>(device, x.elem_count())?;
            run(device, conv, Wanted::X, [x.dims(), w.dims(), gy.dims()], [&of_w, &of_gy], &mut to)?;
            Ok(cuda::tensor(to, device, x.shape()))
        })
    }
    of_type!(gy.dtype(), of(conv, x, w, gy))
}

/// The gradient of a weight of the shape of `w`, in the type of `x`.
pub(crate) fn weight_gradient(conv: &Conv, x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<Tensor> {
    fn of<T: Number>(conv: &Conv, x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<Tensor> {
        cuda::with_views::<T, 2, _>([x, gy], |device, [of_x, of_gy]| {
            let mut to = cuda::room::<T>(device, w.elem_count())?;
            run(device, conv, Wanted::W, [x.dims(), w.dims(), gy.dims()], [&of_x, &of_gy], &mut to)?;
            Ok(cuda::tensor(to, device, w.shape()))
        })
    }
    of_type!(gy.dtype(), of(conv, x, w, gy))
}
