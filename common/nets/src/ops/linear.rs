//! y = x W^T + b over the last dimension.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{Mat, Shared, gemm, has_kernel, shape::swap, sum, values, with_values};

/// Rows that one task multiplies at a time. Rows of different sequences never share a block.
const ROWS: usize = 128;
/// And columns.
const COLUMNS: usize = 1024;

/// `x` (..., rows, in), `weight` (out, in) or (out, in, 1, 1) as a 1x1 convolution stores it, `bias` (out) -> (..., rows, out).
///
/// # Errors
/// The last dimension of `x` is not `in`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, inner) = (weight.dim(0)?, weight.elem_count() / weight.dim(0)?);
    if x.dim(x.rank() - 1)? != inner {
        bail!("linear: input {:?} does not fit the weight {:?}", x.shape(), weight.shape())
    }
    if !has_kernel(x) {
        let y = x.broadcast_matmul(&weight.reshape((out, inner))?.to_dtype(x.dtype())?.t()?)?;
        return bias.map_or(Ok(y.clone()), |b| y.broadcast_add(&b.to_dtype(x.dtype())?));
    }
    // Without a bias the third operand is empty.
    let none = Tensor::zeros(0, x.dtype(), x.device())?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, bias.unwrap_or(&none), Linear)
}

struct Linear;

/// y (sequences * rows, out) = x (sequences * rows, inner) w (inner, out), plus `b` (out) if there is one. A task is a block
/// of rows of one sequence and a block of columns.
fn product(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], rows: usize, inner: usize, out: usize) {
    let all = x.len() / inner.max(1);
    let (row_blocks, col_blocks) = (rows.div_ceil(ROWS), out.div_ceil(COLUMNS));
    let shared = Shared::new(y);
    (0..all / rows.max(1) * row_blocks * col_blocks).into_par_iter().for_each(|task| {
        let (block, column) = (task / col_blocks, task % col_blocks * COLUMNS);
        let row = block / row_blocks * rows + block % row_blocks * ROWS;
        let (n, m) = (ROWS.min(rows - block % row_blocks * ROWS), COLUMNS.min(out - column));
        // SAFETY: a task writes m columns of its own rows.
        let y = unsafe { shared.slice(row * out + column, (n - 1) * out + m) };
        if !b.is_empty() {
            y.chunks_mut(out).for_each(|y| y[..m].copy_from_slice(&b[column..column + m]));
        }
        let (x, w) = (Mat::new(&x[row * inner..], inner), Mat::new(&w[column..], out));
        gemm(n, m, inner, y, out, !b.is_empty(), 1.0, x, w);
    });
}

/// (sequences, rows a sequence, in)
fn rows_of(dims: &[usize]) -> (usize, usize) {
    match dims {
        [.., rows, inner] => (*rows, *inner),
        [inner] => (1, *inner),
        [] => (1, 1),
    }
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
        let (x, w, b) = (values(x, lx)?, values(w, lw)?, values(b, lb)?);
        let (rows, inner) = rows_of(lx.dims());
        let out = lw.dims()[0];
        let mut dims = lx.dims().to_vec();
        dims.pop();
        dims.push(out);
        // Packing a matrix whose rows lie apart is slow, and every block of rows would do it again: once is enough.
        let w = swap(w, out, inner); // (in, out)
        let mut y = vec![0f32; x.len() / inner * out];
        product(&mut y, x, &w, b, rows, inner, out);
        Ok((CpuStorage::F32(y), dims.into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (out, inner) = (w.dim(0)?, w.elem_count() / w.dim(0)?);
        with_values([x, w, gy], |[vx, vw, gy]| {
            let gx = || {
                let mut gx = vec![0f32; gy.len() / out * inner];
                product(&mut gx, gy, vw, &[], gy.len() / out, out, inner);
                Tensor::from_vec(gx, x.shape(), x.device())
            };
            let gx = x.track_op().then(gx).transpose()?;
            let gw = sum::gradient(w, |gw| {
                let rows = gy.len() / out;
                // A task is a block of output features, over all rows in order.
                let block = out.div_ceil(8).next_multiple_of(16);
                gw.par_chunks_mut(block * inner).enumerate().for_each(|(i, gw)| {
                    let n = gw.len() / inner;
                    let gy = Mat::new(&gy[i * block..], out).t(); // (n, rows)
                    gemm(n, inner, rows, gw, inner, true, 1.0, gy, Mat::new(vx, inner));
                });
            })?;
            let gb = sum::gradient(b, |gb| {
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
        }
    }
}
