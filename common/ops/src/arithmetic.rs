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
use super::{
    accumulate::sum_of,
    cuda::{self, Number, Table, launch, of_type},
};
use super::{
    adamw::Clip,
    values::{with_values, write},
};

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
        let table = Table::of(device, &tensors)?;
        let ((rows, places), factor) = (table.views(), device.clone_htod(&[factor as f32])?);
        return launch!(device, "scale", table.grid(), rows, places, factor.as_view());
    }
    tensors.iter().try_for_each(|[x]| map_in_place(x, |x| x * factor as f32))
}

/// x = 0 for contiguous f32 tensors on one device, in place.
pub fn clear<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<()> {
    let tensors: Vec<[&Tensor; 1]> = tensors.map(|x| [x]).collect();
    #[cfg(feature = "cuda")]
    if let Some([x]) = tensors.first()
        && x.device().is_cuda()
    {
        let device = x.device().as_cuda_device()?;
        let table = Table::of(device, &tensors)?;
        let (rows, places) = table.views();
        return launch!(device, "clear", table.grid(), rows, places);
    }
    tensors.iter().try_for_each(|[x]| map_in_place(x, |_| 0.0))
}

/// a x + b y of each image; `x` and `y` (B, C, h, w), f32, `a` and `b` (B).
pub fn mix(a: &[f32], x: &Tensor, b: &[f32], y: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::fused(x) && [x.dtype(), y.dtype()] == [DType::F32; 2] && x.shape() == y.shape() && x.dim(0)? == a.len() {
        let numbers: Vec<f32> = a.iter().zip(b).flat_map(|(a, b)| [*a, *b]).collect();
        return cuda::with_views::<f32, 2, _>([x, y], |device, [of_x, of_y]| {
            let (numbers, n) = (device.clone_htod(&numbers)?, of_x.len());
            let (mixed, each) = (cuda::room::<f32>(device, n)?, n / a.len().max(1));
            launch!(device, "mix", cuda::grid(n), of_x, of_y, numbers.as_view(), mixed.as_view(), n, each)?;
            Ok(cuda::tensor(mixed, device, x.shape()))
        });
    }
    let column = |values: &[f32]| Tensor::from_slice(values, (values.len(), 1, 1, 1), x.device())?.to_dtype(x.dtype());
    x.broadcast_mul(&column(a)?)? + y.broadcast_mul(&column(b)?)?
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
    let (sums, chunks) = partial_sums(device, x, [rows, n])?;
    if chunks == 1 { Ok(sums) } else { column_sums::<f32>(device, sums.as_view(), [chunks, n]) }
}

/// Rows of one partial sum: enough blocks for a GPU, few partial sums.
#[cfg(feature = "cuda")]
const EACH: usize = 512;

/// The sums of the columns over `EACH` rows each, (chunks, n), and the number of these.
#[cfg(feature = "cuda")]
fn partial_sums<T: Number>(
    device: &CudaDevice,
    x: CudaView<T>,
    [rows, n]: [usize; 2],
) -> Result<(CudaSlice<f32>, usize)> {
    let (chunks, tiles) = (rows.div_ceil(EACH), n.div_ceil(32));
    let sums = cuda::room::<f32>(device, chunks * n)?;
    let (rows, all, each) = (rows as i32, n as i32, EACH as i32);
    launch!(device, T::kernel("column_sums"), ((chunks * tiles) as u32, 256), x, sums.as_view(), rows, all, each)?;
    Ok((sums, chunks))
}

/// The norm of f32 tensors on one GPU, and the factor that makes it at most `most`. Nobody waits for them.
#[cfg(feature = "cuda")]
pub fn clip(tensors: &[&Tensor], most: f64) -> Result<Clip> {
    let Some(first) = tensors.first() else { candle_core::bail!("there are no gradients") };
    let device = first.device().as_cuda_device()?;
    let table = Table::of(device, &tensors.iter().map(|x| [*x]).collect::<Vec<_>>())?;
    let sums = squares_of(device, &table)?;
    let (norm, factor, n) = (cuda::room::<f64>(device, 1)?, cuda::room::<f32>(device, 1)?, table.tensors.len() as i32);
    launch!(device, "whole_norm", (1, 512), sums.as_view(), norm.as_view(), factor.as_view(), n, most)?;
    Ok(Clip { norm: cuda::tensor(norm, device, 1), factor: cuda::tensor(factor, device, 1) })
}

#[cfg(not(feature = "cuda"))]
pub fn clip(_: &[&Tensor], _: f64) -> Result<Clip> {
    Err(candle_core::Error::NotCompiledWithCudaSupport)
}

/// x *= the factor of `clip`, for contiguous f32 tensors on one GPU, in place.
pub fn scale_to<'a>(tensors: impl Iterator<Item = &'a Tensor>, clip: &Clip) -> Result<()> {
    #[cfg(feature = "cuda")]
    {
        let tensors: Vec<[&Tensor; 1]> = tensors.map(|x| [x]).collect();
        cuda::with_views::<f32, 1, _>([&clip.factor], |device, [factor]| {
            let table = Table::of(device, &tensors)?;
            let (rows, places) = table.views();
            launch!(device, "scale", table.grid(), rows, places, factor)
        })
    }
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (tensors, clip);
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }
}

/// sum += g, for a contiguous f32 tensor on a GPU, in place.
#[cfg(feature = "cuda")]
pub(crate) fn add_on_gpu(sum: &Tensor, g: &Tensor) -> Result<()> {
    fn of<T: Number>(sum: &Tensor, g: &Tensor) -> Result<()> {
        cuda::with_views::<T, 1, _>([g], |device, [g]| {
            cuda::with_views::<f32, 1, _>([sum], |_, [sum]| {
                let n = g.len();
                launch!(device, T::kernel("add_to"), cuda::grid(n), sum, g, n)
            })
        })
    }
    if sum.elem_count() != g.elem_count() {
        candle_core::bail!("a gradient of shape {:?} does not fit a parameter of shape {:?}", g.shape(), sum.shape())
    }
    of_type!(g.dtype(), of(sum, g))
}

/// The sums of the columns of a matrix (rows, n), added to the sums of the gradients of one parameter (n) or of two, which share the
/// columns. Nothing happens where no gradient of them is wanted.
#[cfg(feature = "cuda")]
pub(crate) fn add_columns<T: Number>(
    device: &CudaDevice,
    x: CudaView<T>,
    [rows, n]: [usize; 2],
    to: &[&Tensor],
) -> Result<()> {
    if rows > EACH {
        let (some, fewer) = partial_sums::<T>(device, x, [rows, n])?;
        return add_columns::<f32>(device, some.as_view(), [fewer, n], to);
    }
    let sums = to.iter().map(|parameter| sum_of(parameter)).collect::<Result<Vec<_>>>()?;
    let (Some(Some(a)), Some(Some(b))) = (sums.first(), sums.last()) else { return Ok(()) };
    let grid = (n.div_ceil(32) as u32, 256);
    cuda::with_views::<f32, 2, _>([a, b], |device, [a, b]| {
        let (rows, all, split) = (rows as i32, n as i32, a.len() as i32);
        launch!(device, T::kernel("add_columns"), grid, x, a, b, rows, all, split)
    })
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
    let table = Table::of(device, &held.iter().map(|x| [x]).collect::<Vec<_>>())?;
    let sums = squares_of(device, &table)?;
    let mut squares = vec![0f64; tensors.len()];
    for (part, &tensor) in device.clone_dtoh(&sums)?.into_iter().zip(&table.tensors) {
        squares[tensor] += f64::from(part);
    }
    Ok(squares)
}

#[cfg(feature = "cuda")]
fn squares_of(device: &CudaDevice, table: &Table) -> Result<CudaSlice<f32>> {
    let sums = cuda::room::<f32>(device, table.tensors.len())?;
    let (rows, places) = table.views();
    launch!(device, "squares", table.grid(), rows, places, sums.as_view())?;
    Ok(sums)
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
