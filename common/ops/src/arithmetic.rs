//! Sums, factors, biases and squares of whole tensors, in place where that is possible.

#[cfg(feature = "cuda")]
use candle_core::{
    CudaDevice,
    cuda_backend::cudarc::driver::{CudaSlice, CudaView},
};
use candle_core::{DType, Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{self, Number, Table, launch, of_type};
use super::values::{with_values, write};

/// Numbers that one task works on: enough to pay for the task, few enough to stay in the cache. Pieces of fixed size, in
/// order, give the same sums on any number of threads.
pub(crate) const CHUNK: usize = 1 << 14;

/// x = f(x) for every number of a contiguous f32 CPU tensor, in place.
pub fn map_in_place(x: &Tensor, f: impl Fn(f32) -> f32 + Sync) -> Result<()> {
    write(x, |x| x.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(|x| *x = f(*x))))
}

/// sum += g, element by element; both are f32 CPU tensors.
pub(crate) fn add_in_place(sum: &Tensor, g: &Tensor) -> Result<()> {
    with_values([g], |[g]| {
        write(sum, |sum| {
            sum.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(sum, g)| {
                sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
            });
        })
    })?
}

/// sum += g, element by element: in place on the CPU, as a new tensor elsewhere.
pub fn add_to(sum: &mut Tensor, g: &Tensor) -> Result<()> {
    if sum.device().is_cpu() {
        return add_in_place(sum, g);
    }
    *sum = (&*sum + g)?;
    Ok(())
}

/// x *= factor for contiguous f32 tensors on one device, in place.
pub fn scale<'a>(tensors: impl Iterator<Item = &'a Tensor>, factor: f64) -> Result<()> {
    let tensors: Vec<[&Tensor; 1]> = tensors.map(|x| [x]).collect();
    #[cfg(feature = "cuda")]
    if let Some([x]) = tensors.first()
        && x.device().is_cuda()
    {
        let device = x.device().as_cuda_device()?;
        let table = Table::new(device, &tensors)?;
        let (rows, places) = table.views();
        return launch!(device, "scale", table.grid(), rows, places, factor as f32);
    }
    tensors.iter().try_for_each(|[x]| map_in_place(x, |x| x * factor as f32))
}

/// y + b, where each channel of `b` (C) stands for `pixels` consecutive numbers of `y`, which nobody else holds.
pub(crate) fn add_bias(y: Tensor, b: &Tensor, pixels: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if y.device().is_cuda() && y.is_contiguous() && (y.dtype() == DType::F32 || cuda::fused(&y)) {
        fn of<T: Number>(y: &Tensor, b: &Tensor, pixels: usize) -> Result<()> {
            cuda::with_views::<T, 1, _>([y], |device, [y]| add_bias_to(device, &y, b, pixels))
        }
        of_type!(y.dtype(), of(&y, b, pixels))?;
        return Ok(y);
    }
    let b = b.to_dtype(y.dtype())?;
    if pixels == 1 { y.broadcast_add(&b) } else { y.broadcast_add(&b.reshape((1, (), 1, 1))?) }
}

/// The same in place, for the numbers of a GPU.
#[cfg(feature = "cuda")]
pub(crate) fn add_bias_to<T: Number>(device: &CudaDevice, y: &CudaView<T>, b: &Tensor, pixels: usize) -> Result<()> {
    let (n, channels, y) = (y.len(), b.elem_count(), y.slice(..));
    cuda::with_views::<f32, 1, _>([&b.to_dtype(DType::F32)?], |_, [b]| {
        launch!(device, T::kernel("add_bias"), cuda::grid(n), y, b, n, pixels, channels)
    })
}

/// The gradient of such a bias, in the type `dtype`, from that of the sum (B, C, H, W) or, where `pixels` is 1, (rows, C).
pub(crate) fn bias_gradient(gy: &Tensor, pixels: usize, dtype: DType) -> Result<Tensor> {
    let channels = gy.dim(1)?;
    #[cfg(feature = "cuda")]
    if cuda::fused(gy) {
        fn of<T: Number>(gy: &Tensor, channels: usize, pixels: usize) -> Result<Tensor> {
            cuda::with_views::<T, 1, _>([gy], |device, [gy]| {
                let images = gy.len() / (channels * pixels).max(1);
                if pixels == 1 {
                    return Ok(cuda::tensor(column_sums::<T>(device, gy, [images, channels])?, device, channels));
                }
                let sums = cuda::room::<f32>(device, channels)?;
                let (images, all, pixels) = (images as i32, channels as i32, pixels as i32);
                launch!(
                    device,
                    T::kernel("channel_sums"),
                    (channels as u32, 256),
                    gy,
                    sums.as_view(),
                    images,
                    all,
                    pixels
                )?;
                Ok(cuda::tensor(sums, device, channels))
            })
        }
        return of_type!(gy.dtype(), of(gy, channels, pixels))?.to_dtype(dtype);
    }
    let gy = gy.to_dtype(dtype)?.reshape((gy.dim(0)?, channels, ()))?;
    if pixels == 1 { gy.squeeze(2)?.sum(0) } else { gy.sum((0, 2)) }
}

/// The sums of the columns of a matrix (rows, n).
#[cfg(feature = "cuda")]
pub(crate) fn column_sums<T: Number>(
    device: &CudaDevice,
    x: CudaView<T>,
    [rows, n]: [usize; 2],
) -> Result<CudaSlice<f32>> {
    const EACH: usize = 512; // rows of one partial sum: enough blocks for a GPU, few partial sums
    let (chunks, tiles) = (rows.div_ceil(EACH), n.div_ceil(32));
    let sums = cuda::room::<f32>(device, chunks * n)?;
    let (rows, all, each) = (rows as i32, n as i32, EACH as i32);
    launch!(device, T::kernel("column_sums"), ((chunks * tiles) as u32, 256), x, sums.as_view(), rows, all, each)?;
    if chunks == 1 { Ok(sums) } else { column_sums::<f32>(device, sums.as_view(), [chunks, n]) }
}

/// The sum of squares of each f32 tensor, added up in f64. All tensors lie on one device; a GPU is waited for once.
pub fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    #[cfg(feature = "cuda")]
    if tensors.first().is_some_and(|x| x.device().is_cuda()) {
        return squares_on_gpu(tensors);
    }
    let one = |x: &&Tensor| {
        let parts: Vec<f64> = with_values([x], |[x]| x.par_chunks(CHUNK).map(squares).collect())?;
        Ok(parts.into_iter().sum())
    };
    tensors.iter().map(one).collect()
}

pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    Ok(sums_of_squares(&[x])?.into_iter().sum())
}

/// A block leaves the sum of a chunk; all of them are read at once.
#[cfg(feature = "cuda")]
fn squares_on_gpu(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let Some(first) = tensors.first() else { return Ok(vec![]) };
    let device = first.device().as_cuda_device()?;
    let held = tensors.iter().map(|x| x.contiguous()).collect::<Result<Vec<_>>>()?;
    let table = Table::new(device, &held.iter().map(|x| [x]).collect::<Vec<_>>())?;
    let sums = cuda::room::<f32>(device, table.tensors.len())?;
    let (rows, places) = table.views();
    launch!(device, "squares", table.grid(), rows, places, sums.as_view())?;
    let mut squares = vec![0f64; tensors.len()];
    for (part, &tensor) in device.clone_dtoh(&sums)?.into_iter().zip(&table.tensors) {
        squares[tensor] += f64::from(part);
    }
    Ok(squares)
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn squares(x: &[f32]) -> f64 {
    let mut lanes = [0f64; 16];
    let (whole, rest) = x.split_at(x.len() / 16 * 16);
    for x in whole.chunks_exact(16) {
        lanes.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()
}
