//! Moving pixels: image to tokens and back, upsampling, one-sided padding.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{has_kernel, values, with_values};

/// (B, C, H, W) -> (B, H * W, C)
pub fn to_tokens(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    swap_last_two(&x.reshape((b, c, h * w))?)
}

/// (B, h * w, C) -> (B, C, h, w)
pub fn from_tokens(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (b, _, c) = x.dims3()?;
    swap_last_two(x)?.reshape((b, c, h, w))
}

/// (B, C, H, W) -> (B, C, h, w), each pixel that of the nearest source at or before it (torch's "nearest").
pub fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    if has_kernel(x) { x.contiguous()?.apply_op1(Upsample { h, w }) } else { composed_upsample(x, h, w) }
}

/// The same from candle's operations. Not its own upsampling, the backward pass of which is a convolution for each channel, and
/// overwrites what other consumers of `x` have added.
fn composed_upsample(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (b, c, h0, w0) = x.dims4()?;
    if h.is_multiple_of(h0) && w.is_multiple_of(w0) {
        let apart = x.reshape(&[b, c, h0, 1, w0, 1])?;
        return apart.broadcast_as(&[b, c, h0, h / h0, w0, w / w0])?.reshape((b, c, h, w));
    }
    let source = |n: usize, n0: usize| Tensor::from_iter((0..n).map(|i| (i * n0 / n) as u32), x.device());
    x.index_select(&source(h, h0)?, 2)?.index_select(&source(w, w0)?, 3)
}

/// One row below and one column to the right of zeros: the VAE encoder's padding before its strided convolutions.
pub fn pad_bottom_right(x: &Tensor) -> Result<Tensor> {
    x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)
}

fn swap_last_two(x: &Tensor) -> Result<Tensor> {
    if has_kernel(x) { x.contiguous()?.apply_op1(Swap) } else { x.transpose(1, 2)?.contiguous() }
}

struct Swap;

/// Each (rows, cols) matrix of `x` transposed, in squares that fit the cache.
pub fn swap(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    const SIDE: usize = 16;
    const BAND: usize = 256;
    let mut y = vec![0f32; x.len()];
    let size = (rows * cols).max(1);
    y.par_chunks_mut(size).zip(x.par_chunks(size)).for_each(|(y, x)| {
        // One large matrix is cut into bands of columns.
        y.par_chunks_mut(BAND * rows.max(1)).enumerate().for_each(|(band, y)| {
            let (first, cols_here) = (band * BAND, y.len() / rows.max(1));
            for r0 in (0..rows).step_by(SIDE) {
                for c0 in (0..cols_here).step_by(SIDE) {
                    for c in c0..cols_here.min(c0 + SIDE) {
                        for r in r0..rows.min(r0 + SIDE) {
                            y[c * rows + r] = x[r * cols + first + c];
                        }
                    }
                }
            }
        });
    });
    y
}

impl CustomOp1 for Swap {
    fn name(&self) -> &'static str {
        "swap_last_two"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, rows, cols) = layout.shape().dims3()?;
        Ok((CpuStorage::F32(swap(values(x, layout)?, rows, cols)), (b, cols, rows).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let (_, rows, cols) = x.dims3()?;
        let gx = with_values([gy], |[gy]| swap(gy, cols, rows))?;
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }
}

struct Upsample {
    h: usize,
    w: usize,
}

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample_nearest"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (b, c, h, w) = layout.shape().dims4()?;
        let mut y = vec![0f32; b * c * self.h * self.w];
        y.par_chunks_mut(self.h * self.w).zip(x.par_chunks(h * w)).for_each(|(y, x)| {
            for (i, row) in y.chunks_exact_mut(self.w).enumerate() {
                let source = &x[i * h / self.h * w..];
                row.iter_mut().enumerate().for_each(|(j, y)| *y = source[j * w / self.w]);
            }
        });
        Ok((CpuStorage::F32(y), (b, c, self.h, self.w).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        let gx = with_values([gy], |[gy]| {
            let mut gx = vec![0f32; x.elem_count()];
            gx.par_chunks_mut(h * w).zip(gy.par_chunks(self.h * self.w)).for_each(|(gx, gy)| {
                for (i, row) in gy.chunks_exact(self.w).enumerate() {
                    let target = &mut gx[i * h / self.h * w..];
                    row.iter().enumerate().for_each(|(j, g)| target[j * w / self.w] += g);
                }
            });
            gx
        })?;
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{same, var};
    use super::*;

    #[test]
    fn tokens_and_back() {
        let x = var(&[2, 5, 3, 19], 1);
        let theirs = x.reshape((2, 5, 57)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        same(&[&x], &to_tokens(&x).unwrap(), &theirs);
        let back = from_tokens(&to_tokens(&x).unwrap(), 3, 19).unwrap();
        same(&[&x], &back, &(x.as_tensor() * 1.0).unwrap());
    }

    #[test]
    fn upsampling_equals_candles() {
        let x = var(&[2, 3, 4, 5], 1);
        same(&[&x], &upsample_nearest(&x, 8, 10).unwrap(), &x.upsample_nearest2d(8, 10).unwrap());
        for (h, w) in [(8, 10), (7, 9), (8, 9)] {
            same(&[&x], &composed_upsample(&x, h, w).unwrap(), &upsample_nearest(&x, h, w).unwrap());
        }
    }
}
