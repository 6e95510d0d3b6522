//! Linear maps on a GPU, by cuBLAS. The gradient of a weight is f32, whatever the type of the activations.

use candle_core::{Result, Shape, Tensor};

use super::arithmetic::add_bias_to;
use super::cuda::{self, Number, of_type};
use super::precomputed::Computed;
use super::product::{Matrix, product};

/// Rows of `x` (..., in), and in.
fn sizes(x: &Tensor) -> Result<[usize; 2]> {
    let inner = x.dim(x.rank() - 1)?;
    Ok([x.elem_count() / inner.max(1), inner])
}

fn shape(x: &Tensor, last: usize) -> Shape {
    [&x.dims()[..x.rank() - 1], &[last]].concat().into()
}

/// `x` (..., in), `w` (out, in) of the same type, `b` (out, or nothing) -> (..., out), without history.
pub(crate) fn forward(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Computed> {
    fn of<T: Number>(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Computed> {
        let ([rows, inner], out) = (sizes(x)?, w.dim(0)?);
        cuda::with_views::<T, 2, _>([x, w], |device, [of_x, of_w]| {
            let y = cuda::room::<T>(device, rows * out)?;
            let (of_x, of_w) = (Matrix::new(&of_x, inner, 0), Matrix::new(&of_w, inner, 0));
            product(device, 1, [out, rows, inner], of_w.t(), of_x, Matrix::new(&y.as_view(), out, 0), 0.0)?;
            if b.elem_count() > 0 {
                add_bias_to(device, &y.as_view(), b, 1)?;
            }
            Ok(Computed::Cuda(cuda::storage(y, device), shape(x, out)))
        })
    }
    of_type!(x.dtype(), of(x, w, b))
}

/// The gradient of an input like `x`.
pub(crate) fn input_gradient(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<Tensor> {
    fn of<T: Number>(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<Tensor> {
        let ([rows, inner], out) = (sizes(x)?, w.dim(0)?);
        cuda::with_views::<T, 2, _>([w, gy], |device, [of_w, of_gy]| {
            let gx = cuda::room::<T>(device, rows * inner)?;
            let (of_w, of_gy) = (Matrix::new(&of_w, inner, 0), Matrix::new(&of_gy, out, 0));
            product(device, 1, [inner, rows, out], of_w, of_gy, Matrix::new(&gx.as_view(), inner, 0), 0.0)?;
            Ok(cuda::tensor(gx, device, x.shape()))
        })
    }
    of_type!(gy.dtype(), of(x, w, gy))
}

/// The gradient of a weight like `w`, in f32.
pub(crate) fn weight_gradient(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<Tensor> {
    fn of<T: Number>(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<Tensor> {
        let ([rows, inner], out) = (sizes(x)?, w.dim(0)?);
        cuda::with_views::<T, 2, _>([x, gy], |device, [of_x, of_gy]| {
            let gw = cuda::room::<f32>(device, out * inner)?;
            let (of_x, of_gy) = (Matrix::new(&of_x, inner, 0), Matrix::new(&of_gy, out, 0));
            product(device, 1, [inner, out, rows], of_x, of_gy.t(), Matrix::new(&gw.as_view(), inner, 0), 0.0)?;
            Ok(cuda::tensor(gw, device, w.shape()))
        })
    }
    of_type!(gy.dtype(), of(x, w, gy))
}
