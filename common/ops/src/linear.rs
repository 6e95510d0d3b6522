//! y = x W^T + b over the last dimension.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Operand, apply3};
use super::matrix::{Mat, Shared, even, gemm};
use super::{arithmetic::add_bias, precomputed::with_backward, shape::swap};

/// Rows that one task multiplies, about; each task packs the whole weight for itself.
const BLOCK: usize = 256;

/// The same in the backward pass where there are fewer rows than two blocks, so that all threads have work.
const FEW: usize = 64;

/// Output features of a task where there are few rows: reading the weight takes the time then, and each task reads its part.
const FEATURES: usize = 128;

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

/// `x` (rows, in) times `w` (in, out) plus `b` (out, or nothing) -> (rows, out).
pub(super) fn product(x: &[f32], w: &[f32], out: usize, b: &[f32]) -> Vec<f32> {
    let inner = w.len() / out;
    let rows = x.len() / inner;
    let mut y = if b.is_empty() { vec![0f32; rows * out] } else { b.repeat(rows) };
    let block = even(rows, if rows < 2 * BLOCK { FEW } else { BLOCK });
    y.par_chunks_mut(block * out).zip(x.par_chunks(block * inner)).for_each(|(y, x)| {
        gemm(x.len() / inner, out, inner, y, out, !b.is_empty(), 1.0, Mat::new(x, inner), Mat::new(w, out));
    });
    y
}

/// The same for few rows, with `w` (out, in) as it lies: to transpose it first would take longer than the product.
fn product_of_few(x: &[f32], w: &[f32], out: usize, b: &[f32]) -> Vec<f32> {
    let (inner, rows) = (w.len() / out, x.len() * out / w.len());
    let mut y = if b.is_empty() { vec![0f32; rows * out] } else { b.repeat(rows) };
    let all = Shared::new(&mut y);
    w.par_chunks(FEATURES * inner).enumerate().for_each(|(i, w)| {
        let (from, n) = (i * FEATURES, w.len() / inner);
        // SAFETY: every task writes columns of its own.
        let y = unsafe { all.slice(from, (rows - 1) * out + n) };
        gemm(rows, n, inner, y, out, !b.is_empty(), 1.0, Mat::new(x, inner), Mat::new(w, inner).t());
    });
    y
}

struct Linear;

impl Kernel<3> for Linear {
    const NAME: &'static str = "linear";

    fn shape(&self, [x, w, _]: [&[usize]; 3]) -> Vec<usize> {
        [&x[..x.len() - 1], &w[..1]].concat()
    }

    fn forward(&self, [x, w, b]: [Operand; 3]) -> Vec<f32> {
        let out = w.dims[0];
        let (x, w, b) = (x.values, w.values, b.values);
        if (1..2 * BLOCK).contains(&(x.len() * out / w.len())) {
            return product_of_few(x, w, out, b);
        }
        // Packing a matrix whose rows lie apart is slow, and every block of rows would do it again: once is enough.
        let w = swap(w, out, w.len() / out); // (in, out)
        product(x, &w, out, b)
    }

    fn backward(&self, [x, w, _]: [Operand; 3], gy: &[f32], [gx, gw, gb]: [&mut Gradient; 3]) -> Result<()> {
        let (out, inner) = (w.dims[0], w.values.len() / w.dims[0]);
        gx.set(|| product(gy, w.values, inner, &[]));
        gw.add(|gw| {
            let rows = gy.len() / out;
            // A task is a block of output features, over all rows in order.
            let block = out.div_ceil(8).next_multiple_of(16);
            gw.par_chunks_mut(block * inner).enumerate().for_each(|(i, gw)| {
                let n = gw.len() / inner;
                let gy = Mat::new(&gy[i * block..], out).t(); // (n, rows)
                gemm(n, inner, rows, gw, inner, true, 1.0, gy, Mat::new(x.values, inner));
            });
        })?;
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
        let y = composed_product(x, &matrix(weight, x)?.t()?, bias)?;
        with_backward(y, operands, move |[x, weight, bias], gy, wanted| {
            let (x2, gy) = (rows(x)?, rows(gy)?);
            let gx = || gy.matmul(&matrix(weight, x)?)?.reshape(x.shape());
            let gw = || gy.t()?.matmul(&x2)?.to_dtype(weight.dtype())?.reshape(weight.shape());
            let gb = || gy.to_dtype(bias.dtype())?.sum(0);
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
