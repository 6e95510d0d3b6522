//! y = x W^T + b over the last dimension.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    Mat, Shared, accumulate, even, gemm, given::given, has_kernel, shape::swap, values, with_bias, with_values,
};

/// Rows that one task multiplies at a time, about: each packs the whole weight for itself.
const BLOCK: usize = 256;

/// The same in the backward pass where there are less than two blocks, and all but one task would be idle.
const FEW: usize = 64;

/// Output features of a task where there are few rows: reading the weight takes the time then, and each task reads its part.
const FEATURES: usize = 128;

/// The same in the gradients.
const ROWS: usize = 128;
/// And columns.
const COLUMNS: usize = 1024;

/// `x` (..., rows, in), `weight` (out, in) or (out, in, 1, 1) as a 1x1 convolution stores it, `bias` (out) -> (..., rows, out).
///
/// # Errors
/// The last dimension of `x` is not `in`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.dim(x.rank() - 1)? != weight.elem_count() / weight.dim(0)? {
        bail!("linear: input {:?} does not fit the weight {:?}", x.shape(), weight.shape())
    }
    // Without a bias the third operand is empty.
    let none = Tensor::zeros(0, x.dtype(), x.device())?;
    let bias = bias.unwrap_or(&none);
    if !has_kernel(x) {
        return composed(x, weight, bias);
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, bias, Linear)
}

/// `x` (..., C) as one matrix (rows, C). candle's product of many matrices with one copies that one for each, and sums as many
/// gradients of it afterwards.
fn rows(x: &Tensor) -> Result<Tensor> {
    x.reshape(((), x.dim(x.rank() - 1)?))
}

/// `x` (..., in) times `w` (in, out) plus `b` (out, or nothing), from candle's operations, without history.
pub(super) fn composed_product(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = w.dim(1)?;
    let y = rows(&x.detach())?.matmul(&w.detach())?;
    let y = if b.elem_count() > 0 { with_bias(y, &b.detach(), 1)? } else { y };
    y.reshape(shape)
}

/// The same as the kernel from candle's operations.
fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let matrix = |w: &Tensor, x: &Tensor| w.reshape((w.dim(0)?, ()))?.to_dtype(x.dtype());
    let y = composed_product(x, &matrix(weight, x)?.t()?, bias)?;
    given(y, [x, weight, bias], move |[x, weight, bias], gy, asked| {
        let (x2, gy) = (rows(x)?, rows(gy)?);
        let gx = asked[0].then(|| gy.matmul(&matrix(weight, x)?)?.reshape(x.shape())).transpose()?;
        let gw = || gy.t()?.matmul(&x2)?.to_dtype(weight.dtype())?.reshape(weight.shape());
        let gb = || gy.to_dtype(bias.dtype())?.sum(0);
        Ok((gx, asked[1].then(gw).transpose()?, asked[2].then(gb).transpose()?))
    })
}

struct Linear;

/// `x` of shape `dims` times `w` (in, out) plus `b` (out, or nothing), and its shape.
pub(super) fn product(x: &[f32], dims: &[usize], w: &[f32], out: usize, b: &[f32]) -> (Vec<f32>, Shape) {
    let inner = w.len() / out;
    let mut shape = dims.to_vec();
    shape.pop();
    shape.push(out);
    let mut y = if b.is_empty() { vec![0f32; x.len() / inner * out] } else { b.repeat(x.len() / inner) };
    let rows = x.len() / inner;
    let block = even(rows, if rows < 2 * BLOCK { FEW } else { BLOCK });
    y.par_chunks_mut(block * out).zip(x.par_chunks(block * inner)).for_each(|(y, x)| {
        gemm(x.len() / inner, out, inner, y, out, !b.is_empty(), 1.0, Mat::new(x, inner), Mat::new(w, out));
    });
    (y, shape.into())
}

/// The same for few rows, with `w` (out, in) as it lies: to turn it first would take longer than the product.
fn product_of_few(x: &[f32], dims: &[usize], w: &[f32], out: usize, b: &[f32]) -> (Vec<f32>, Shape) {
    let (inner, rows) = (w.len() / out, x.len() * out / w.len());
    let mut y = if b.is_empty() { vec![0f32; rows * out] } else { b.repeat(rows) };
    let all = Shared::new(&mut y);
    w.par_chunks(FEATURES * inner).enumerate().for_each(|(i, w)| {
        let (from, n) = (i * FEATURES, w.len() / inner);
        // SAFETY: every task writes columns of its own.
        let y = unsafe { all.slice(from, (rows - 1) * out + n) };
        gemm(rows, n, inner, y, out, !b.is_empty(), 1.0, Mat::new(x, inner), Mat::new(w, inner).t());
    });
    let mut shape = dims.to_vec();
    shape[dims.len() - 1] = out;
    (y, shape.into())
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = lw.dims()[0];
        let (x, w, b) = (values(x, lx)?, values(w, lw)?, values(b, lb)?);
        if (1..2 * BLOCK).contains(&(x.len() * out / w.len())) {
            let (y, shape) = product_of_few(x, lx.dims(), w, out, b);
            return Ok((CpuStorage::F32(y), shape));
        }
        // Packing a matrix whose rows lie apart is slow, and every block of rows would do it again: once is enough.
        let w = swap(w, out, w.len() / out); // (in, out)
        let (y, shape) = product(x, lx.dims(), &w, out, b);
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (out, inner) = (w.dim(0)?, w.elem_count() / w.dim(0)?);
        with_values([x, w, grad], |[vx, vw, gy]| {
            let gx = || {
                let (gx, shape) = product(gy, grad.dims(), vw, inner, &[]);
                Tensor::from_vec(gx, shape, x.device())
            };
            let gx = x.track_op().then(gx).transpose()?;
            let gw = accumulate::gradient(w, |gw| {
                let rows = gy.len() / out;
                // A task is a block of output features, over all rows in order.
                let block = out.div_ceil(8).next_multiple_of(16);
                gw.par_chunks_mut(block * inner).enumerate().for_each(|(i, gw)| {
                    let n = gw.len() / inner;
                    let gy = Mat::new(&gy[i * block..], out).t(); // (n, rows)
                    gemm(n, inner, rows, gw, inner, true, 1.0, gy, Mat::new(vx, inner));
                });
            })?;
            let gb = accumulate::gradient(b, |gb| {
                gb.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, gb)| {
                    // Partial sums over blocks of rows keep the rounding small.
                    for block in gy.chunks(ROWS * out) {
                        let mut part = vec![0f32; gb.len()];
                        for row in block.chunks_exact(out) {
                            part.iter_mut().zip(&row[i * COLUMNS..]).for_each(|(p, g)| *p += g);
                        }
                        gb.iter_mut().zip(&part).for_each(|(g, p)| *g += p);
                    }
                });
            })?;
            Ok((gx, gw, gb))
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{same, var};
    use super::*;

    #[test]
    fn linear_equals_matmul() {
        for (shape, out) in [(vec![3, 5, 7], 4), (vec![2, 300, 33], 70), (vec![9, 6], 5)] {
            let (x, w, b) = (var(&shape, 1), var(&[out, *shape.last().unwrap()], 2), var(&[out], 3));
            let ours = linear(&x, &w, Some(&b)).unwrap();
            let theirs = x.broadcast_matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
            same(&[&x, &w, &b], &ours, &theirs);
            same(&[&x, &w, &b], &composed(&x, &w, &b).unwrap(), &theirs);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_company() {
        let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (rows, inner, out) in [(1, 96, 40), (65, 96, 384), (257, 70, 33), (12, 1030, 96)] {
            let (x, w, b) = (var(&[7, rows, inner], 1), var(&[out, inner], 2), var(&[out], 3));
            let all = linear(&x, &w, Some(&b)).unwrap();
            for i in 0..7 {
                let alone = linear(&x.narrow(0, i, 1).unwrap(), &w, Some(&b)).unwrap();
                assert!(bits(alone) == bits(all.narrow(0, i, 1).unwrap()), "{rows} x {inner} x {out}, {i}");
            }
        }
    }
}
