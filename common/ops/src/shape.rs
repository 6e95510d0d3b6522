//! Moving pixels: image to tokens and back, upsampling, one-sided padding.

#[cfg(feature = "cuda")]
use candle_core::{
    CudaDevice, CudaStorage,
    cuda_backend::cudarc::driver::{CudaSlice, CudaView},
};
use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{self, Number, launch, of_type};
use super::kernel::{Gradient, Kernel, Operand, apply1};

/// `x` (B, C, H, W) -> (B, H * W, C): pixels become tokens.
pub fn to_tokens(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    swap_last_two(&x.reshape((b, c, h * w))?)
}

/// `x` (B, h * w, C) -> (B, C, h, w): tokens become pixels.
pub fn from_tokens(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (b, _, c) = x.dims3()?;
    swap_last_two(x)?.reshape((b, c, h, w))
}

/// `x` (B, C, H, W) -> (B, C, h, w): each pixel is the nearest pixel of `x` at or before its place (torch's "nearest").
pub fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    x.dims4()?;
    apply1(Upsample { h, w }, x)
}

/// `x` (B, C, H, W) -> (B, C, H + 1, W + 1), with a row of zeros below and a column of zeros to the right: the VAE encoder's
/// padding before its strided convolutions.
pub fn pad_bottom_right(x: &Tensor) -> Result<Tensor> {
    x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)
}

/// `x` (B, rows, cols) -> (B, cols, rows).
pub(crate) fn swap_last_two(x: &Tensor) -> Result<Tensor> {
    x.dims3()?;
    apply1(Swap, x)
}

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

struct Swap;

impl Kernel<1> for Swap {
    const NAME: &'static str = "swap_last_two";
    const CUDA: &'static [DType] = &[DType::F32, DType::BF16];
    const CONFIRMED: bool = false;

    fn shape(&self, [x]: [&[usize]; 1]) -> Vec<usize> {
        vec![x[0], x[2], x[1]]
    }

    fn forward(&self, [x]: [Operand; 1]) -> Vec<f32> {
        swap(x.values, x.dims[1], x.dims[2])
    }

    fn backward(&self, [x]: [Operand; 1], gy: &[f32], [gx]: [&mut Gradient; 1]) -> Result<()> {
        gx.set(|| swap(gy, x.dims[2], x.dims[1]));
        Ok(())
    }

    fn composed(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        x.transpose(1, 2)?.contiguous()
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, [x]: [cuda::Operand; 1]) -> Result<CudaStorage> {
        fn of<T: Number>(x: cuda::Operand) -> Result<CudaStorage> {
            let (device, dims) = (cuda::device(x), x.1.dims());
            Ok(cuda::storage(swap_on_gpu(device, cuda::view::<T>(x)?, dims[1], dims[2])?, device))
        }
        of_type!(cuda::dtype(x), of(x))
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(&self, [x]: [&Tensor; 1], gy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        fn of<T: Number>(x: &Tensor, gy: &Tensor) -> Result<Tensor> {
            let (_, rows, cols) = x.dims3()?;
            cuda::with_views::<T, 1, _>([gy], |device, [gy]| {
                Ok(cuda::tensor(swap_on_gpu(device, gy, cols, rows)?, device, x.shape()))
            })
        }
        Ok([Some(of_type!(x.dtype(), of(x, gy))?)])
    }
}

/// [`swap`] of a GPU's numbers.
#[cfg(feature = "cuda")]
fn swap_on_gpu<T: Number>(device: &CudaDevice, x: CudaView<T>, rows: usize, cols: usize) -> Result<CudaSlice<T>> {
    const SIDE: usize = 32; // of the square on which a block of 256 threads works
    let (y, matrices) = (cuda::room::<T>(device, x.len())?, x.len() / (rows * cols).max(1));
    let blocks = matrices * rows.div_ceil(SIDE) * cols.div_ceil(SIDE);
    launch!(device, T::kernel("swap"), (blocks as u32, 256), x, y.as_view(), rows as i32, cols as i32)?;
    Ok(y)
}

pub(crate) struct Upsample {
    pub h: usize,
    pub w: usize,
}

impl Kernel<1> for Upsample {
    const NAME: &'static str = "upsample_nearest";
    const CUDA: &'static [DType] = &[DType::F32, DType::BF16];
    const CONFIRMED: bool = false;

    fn shape(&self, [x]: [&[usize]; 1]) -> Vec<usize> {
        vec![x[0], x[1], self.h, self.w]
    }

    fn forward(&self, [x]: [Operand; 1]) -> Vec<f32> {
        let (h, w) = (x.dims[2], x.dims[3]);
        let mut y = vec![0f32; x.dims[0] * x.dims[1] * self.h * self.w];
        y.par_chunks_mut(self.h * self.w).zip(x.values.par_chunks(h * w)).for_each(|(y, x)| {
            for (i, row) in y.chunks_exact_mut(self.w).enumerate() {
                let source = &x[i * h / self.h * w..];
                row.iter_mut().enumerate().for_each(|(j, y)| *y = source[j * w / self.w]);
            }
        });
        y
    }

    fn backward(&self, [x]: [Operand; 1], gy: &[f32], [gx]: [&mut Gradient; 1]) -> Result<()> {
        let (h, w) = (x.dims[2], x.dims[3]);
        gx.set(|| {
            let mut gx = vec![0f32; x.values.len()];
            gx.par_chunks_mut(h * w).zip(gy.par_chunks(self.h * self.w)).for_each(|(gx, gy)| {
                for (i, row) in gy.chunks_exact(self.w).enumerate() {
                    let target = &mut gx[i * h / self.h * w..];
                    row.iter().enumerate().for_each(|(j, g)| target[j * w / self.w] += g);
                }
            });
            gx
        });
        Ok(())
    }

    /// Not candle's own upsampling: its backward pass is a convolution for each channel, and overwrites what other consumers of
    /// `x` have added.
    fn composed(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let (b, c, h0, w0) = x.dims4()?;
        let (h, w) = (self.h, self.w);
        if h.is_multiple_of(h0) && w.is_multiple_of(w0) {
            let apart = x.reshape(&[b, c, h0, 1, w0, 1])?;
            return apart.broadcast_as(&[b, c, h0, h / h0, w0, w / w0])?.reshape((b, c, h, w));
        }
        let source = |n: usize, n0: usize| Tensor::from_iter((0..n).map(|i| (i * n0 / n) as u32), x.device());
        x.index_select(&source(h, h0)?, 2)?.index_select(&source(w, w0)?, 3)
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, [x]: [cuda::Operand; 1]) -> Result<CudaStorage> {
        fn of<T: Number>(op: &Upsample, x: cuda::Operand) -> Result<CudaStorage> {
            let (device, dims) = (cuda::device(x), x.1.dims());
            let (n, h0, w0, x) = (dims[0] * dims[1] * op.h * op.w, dims[2], dims[3], cuda::view::<T>(x)?);
            let y = cuda::room::<T>(device, n)?;
            launch!(device, T::kernel("upsample"), cuda::grid(n), x, y.as_view(), n, h0, w0, op.h, op.w)?;
            Ok(cuda::storage(y, device))
        }
        of_type!(cuda::dtype(x), of(self, x))
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(&self, [x]: [&Tensor; 1], gy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        fn of<T: Number>(op: &Upsample, x: &Tensor, gy: &Tensor) -> Result<Tensor> {
            let (_, _, h0, w0) = x.dims4()?;
            cuda::with_views::<T, 1, _>([gy], |device, [gy]| {
                let n = x.elem_count();
                let gx = cuda::room::<T>(device, n)?;
                launch!(device, T::kernel("upsample_grad"), cuda::grid(n), gy, gx.as_view(), n, h0, w0, op.h, op.w)?;
                Ok(cuda::tensor(gx, device, x.shape()))
            })
        }
        Ok([Some(of_type!(x.dtype(), of(self, x, gy))?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    #[test]
    fn tokens_and_back() {
        let x = var(&[2, 5, 3, 19], 1);
        let flat = x.reshape((2, 5, 57)).unwrap();
        same(&[&x], &to_tokens(&x).unwrap(), &Swap.composed([&flat]).unwrap());
        let back = from_tokens(&to_tokens(&x).unwrap(), 3, 19).unwrap();
        same(&[&x], &back, &(x.as_tensor() * 1.0).unwrap());
    }

    #[test]
    fn upsampling_equals_candles_and_its_composition() {
        let x = var(&[2, 3, 4, 5], 1);
        same(&[&x], &upsample_nearest(&x, 8, 10).unwrap(), &x.upsample_nearest2d(8, 10).unwrap());
        for (h, w) in [(8, 10), (7, 9), (8, 9)] {
            same(&[&x], &upsample_nearest(&x, h, w).unwrap(), &Upsample { h, w }.composed([&x]).unwrap());
        }
    }
}
