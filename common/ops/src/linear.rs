//! y = x W^T + b over the last dimension.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::kernel::{Gradient, Kernel, Operand, apply3};
use super::matrix::{Mat, Shared, even, gemm};
use super::{
    arithmetic::{add_bias, bias_gradient},
    precomputed::with_backward,
};
#[cfg(feature = "cuda")]
use super::{linear_cuda, narrow::narrow};

/// Rows and output features of a task. Each task packs its part of the weight and of the rows for itself, which costs the less the
/// larger both are; with few rows or few features, all threads have work.
const TASK: [usize; 2] = [512, 256];
const FEW: usize = 128;

/// Rows that form one partial sum of the bias' gradient.
const ROWS: usize = 128;
/// Columns of one task of that sum.
const COLUMNS: usize = 1024;

/// `x` (..., rows, in), `weight` (out, in) or (out, in, 1, 1) as a 1x1 convolution stores it, `bias` (out) -> (..., rows, out).
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.dim(x.rank() - 1)? != weight.elem_count() / weight.dim(0)? {
        bail!("linear: input {:?} does not fit the weight {:?}", x.shape(), weight.shape())
    }
    // Without a bias the third operand is empty.
    let none = Tensor::zeros(0, x.dtype(), x.device())?;
    apply3(Linear, [x, weight, bias.unwrap_or(&none)])
}

/// `x` (..., C) as one matrix (rows, C). candle multiplies many matrices by one by copying that one for each of them, and sums as
/// many gradients of it afterwards.
fn rows(x: &Tensor) -> Result<Tensor> {
    x.reshape(((), x.dim(x.rank() - 1)?))
}

/// `x` (..., in) times `w` (in, out) plus `b` (out, or nothing), from candle's operations, without history.
pub(super) fn composed_product(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = w.dim(1)?;
    let y = rows(&x.detach())?.matmul(&w.detach())?;
    let y = if b.elem_count() > 0 { add_bias(y, &b.detach(), 1)? } else { y };
    y.reshape(shape)
}

/// y = scale x w, or y += scale x w if `add`: `x` (rows, in), `w` (in, out), `y` (rows, out).
pub(super) fn product(y: &mut [f32], add: bool, scale: f32, x: &[f32], w: Mat, [inner, out]: [usize; 2]) {
    let rows = y.len() / out.max(1);
    let block = even(rows, if out <= TASK[1] { FEW } else { TASK[0] });
    let features = if rows < TASK[0] { FEW } else { TASK[1] };
    let (down, across) = (rows.div_ceil(block), out.div_ceil(features));
    let all = Shared::new(y);
    (0..down * across).into_par_iter().for_each(|task| {
        let (row, column) = (task / across * block, task % across * features);
        let (m, n) = (block.min(rows - row), features.min(out - column));
        // SAFETY: every task writes a rectangle of its own.
        let y = unsafe { all.slice(row * out + column, (m - 1) * out + n) };
        gemm(m, n, inner, y, out, add, scale, Mat::new(&x[row * inner..], inner), w.skip_columns(column));
    });
}

/// `x` (rows, in) times `w` (in, out) plus `b` (out, or nothing) -> (rows, out).
pub(super) fn affine(x: &[f32], w: Mat, b: &[f32], [inner, out]: [usize; 2]) -> Vec<f32> {
    let rows = x.len() / inner.max(1);
    let mut y = if b.is_empty() { vec![0f32; rows * out] } else { b.repeat(rows) };
    product(&mut y, !b.is_empty(), 1.0, x, w, [inner, out]);
    y
}

/// gw += scale gy^T x: the gradient of a weight (out, in), from `gy` (rows, out) and `x` (rows, in).
pub(super) fn add_weight_gradient(gw: &mut [f32], scale: f32, gy: &[f32], x: &[f32], [inner, out]: [usize; 2]) {
    let rows = gy.len() / out;
    // A task is a block of output features, over all rows in order.
    let block = out.div_ceil(8).next_multiple_of(16);
    gw.par_chunks_mut(block * inner).enumerate().for_each(|(i, gw)| {
        let n = gw.len() / inner;
        let gy = Mat::new(&gy[i * block..], out).t(); // (n, rows)
        gemm(n, inner, rows, gw, inner, true, scale, gy, Mat::new(x, inner));
    });
}

pub(crate) struct Linear;

impl Kernel<3> for Linear {
    const NAME: &'static str = "linear";

    fn shape(&self, [x, w, _]: [&[usize]; 3]) -> Vec<usize> {
        [&x[..x.len() - 1], &w[..1]].concat()
    }

    fn forward(&self, [x, w, b]: [Operand; 3]) -> Vec<f32> {
        let (out, inner) = (w.dims[0], w.values.len() / w.dims[0]);
        affine(x.values, Mat::new(w.values, inner).t(), b.values, [inner, out])
    }

    fn backward(&self, [x, w, _]: [Operand; 3], gy: &[f32], [gx, gw, gb]: [&mut Gradient; 3]) -> Result<()> {
        let (out, inner) = (w.dims[0], w.values.len() / w.dims[0]);
        gx.set(|| affine(gy, Mat::new(w.values, inner), &[], [out, inner]));
        gw.add(|gw| add_weight_gradient(gw, 1.0, gy, x.values, [inner, out]))?;
        gb.add(|gb| {
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
        })
    }

    fn composed(&self, operands: [&Tensor; 3]) -> Result<Tensor> {
        let matrix = |w: &Tensor, x: &Tensor| w.reshape((w.dim(0)?, ()))?.to_dtype(x.dtype()); // (out, in)
        let [x, weight, bias] = operands;
        #[cfg(feature = "cuda")]
        if cuda::fused(x) {
            let w = narrow(weight, x.dtype())?.reshape((weight.dim(0)?, ()))?;
            let bias_of = bias.detach();
            let y = linear_cuda::forward(&x.detach(), &w, Some(&bias_of).filter(|b| b.elem_count() > 0))?;
            return with_backward(y, operands, move |[x, weight, bias], gy, wanted| {
                let gx = wanted[0].then(|| linear_cuda::input_gradient(x, &w, gy, None)).transpose()?;
                let gw =
                    wanted[1].then(|| linear_cuda::weight_gradient(x, &w, gy)?.reshape(weight.shape())).transpose()?;
                let gb = wanted[2].then(|| bias_gradient(&rows(gy)?, 1, bias.dtype())).transpose()?;
                Ok([gx, gw.map(|g| g.to_dtype(weight.dtype())).transpose()?, gb])
            });
        }
        let y = composed_product(x, &matrix(weight, x)?.t()?, bias)?;
        with_backward(y, operands, move |[x, weight, bias], gy, wanted| {
            let (x2, gy) = (rows(x)?, rows(gy)?);
            let gx = || gy.matmul(&matrix(weight, x)?)?.reshape(x.shape());
            let gw = || gy.t()?.matmul(&x2)?.to_dtype(weight.dtype())?.reshape(weight.shape());
            let gb = || bias_gradient(&gy, 1, bias.dtype());
            Ok([wanted[0].then(gx).transpose()?, wanted[1].then(gw).transpose()?, wanted[2].then(gb).transpose()?])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    #[test]
    fn linear_equals_matmul() {
        for (shape, out) in [(vec![3, 5, 7], 4), (vec![2, 300, 33], 70), (vec![9, 6], 5)] {
            let (x, w, b) = (var(&shape, 1), var(&[out, *shape.last().unwrap()], 2), var(&[out], 3));
            let ours = linear(&x, &w, Some(&b)).unwrap();
            let theirs = x.broadcast_matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
            same(&[&x, &w, &b], &ours, &theirs);
            same(&[&x, &w, &b], &Linear.composed([&x, &w, &b]).unwrap(), &theirs);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_batch() {
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
