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

/// `x` (..., in), `w` (out, in) of the same type, `b` (out) -> (..., out), without history.
pub(crate) fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Computed> {
    fn of<T: Number>(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Computed> {
        let ([rows, inner], out) = (sizes(x)?, w.dim(0)?);
        cuda::with_views::<T, 2, _>([x, w], |device, [of_x, of_w]| {
            let y = cuda::room::<T>(device, rows * out)?;
            let (of_x, of_w) = (Matrix::new(&of_x, inner, 0), Matrix::new(&of_w, inner, 0));
            product(device, 1, [out, rows, inner], of_w.t(), of_x, Matrix::new(&y.as_view(), out, 0), 0.0)?;
            if let Some(b) = b {
                add_bias_to(device, &y.as_view(), b, 1)?;
            }
            Ok(Computed::Cuda(cuda::storage(y, device), shape(x, out)))
        })
    }
    of_type!(x.dtype(), of(x, w, b))
}

/// The gradient of an input like `x`, plus `more`, which nobody else holds and which becomes the result.
pub(crate) fn input_gradient(x: &Tensor, w: &Tensor, gy: &Tensor, more: Option<Tensor>) -> Result<Tensor> {
    fn of<T: Number>(x: &Tensor, w: &Tensor, gy: &Tensor, more: Option<Tensor>) -> Result<Tensor> {
        let ([rows, inner], out) = (sizes(x)?, w.dim(0)?);
        let (gx, before) = match more {
            Some(more) => (more.contiguous()?, 1.0),
            None => {
                let device = x.device().as_cuda_device()?;
                (cuda::tensor(cuda::room::<T>(device, rows * inner)?, device, x.shape()), 0.0)
            }
        };
        cuda::with_views::<T, 3, _>([w, gy, &gx], |device, [of_w, of_gy, of_gx]| {
            let (of_w, of_gy) = (Matrix::new(&of_w, inner, 0), Matrix::new(&of_gy, out, 0));
            product(device, 1, [inner, rows, out], of_w, of_gy, Matrix::new(&of_gx, inner, 0), before)
        })?;
        Ok(gx)
    }
    if more.as_ref().is_some_and(|more| more.shape() != x.shape() || more.dtype() != gy.dtype()) {
        candle_core::bail!("what is added to the gradient of {:?} has another shape or type", x.shape())
    }
    of_type!(gy.dtype(), of(x, w, gy, more))
}

/// The gradient of a weight like `w`, in f32.
pub(crate) fn weight_gradient(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<Tensor> {
    let device = x.device().as_cuda_device()?;
    let gw = cuda::tensor(cuda::room::<f32>(device, w.elem_count())?, device, w.shape());
    weight_gradient_to(x, gy, &gw, 0.0)?;
    Ok(gw)
}

/// sum += the gradient of a weight, which is like `sum`: f32, contiguous.
pub(crate) fn add_weight_gradient(x: &Tensor, gy: &Tensor, sum: &Tensor) -> Result<()> {
    weight_gradient_to(x, gy, sum, 1.0)
}

fn weight_gradient_to(x: &Tensor, gy: &Tensor, gw: &Tensor, before: f32) -> Result<()> {
    fn of<T: Number>(x: &Tensor, gy: &Tensor, gw: &Tensor, before: f32) -> Result<()> {
        let ([rows, inner], out) = (sizes(x)?, gw.dim(0)?);
        cuda::with_views::<T, 2, _>([x, gy], |device, [of_x, of_gy]| {
            cuda::with_views::<f32, 1, _>([gw], |_, [of_gw]| {
                let (of_x, of_gy) = (Matrix::new(&of_x, inner, 0), Matrix::new(&of_gy, out, 0));
                product(device, 1, [inner, out, rows], of_x, of_gy.t(), Matrix::new(&of_gw, inner, 0), before)
            })
        })
    }
    of_type!(gy.dtype(), of(x, gy, gw, before))
}
