//! Sums, factors, biases and squares of whole tensors, in place where that is possible.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{self, launch};
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

/// x *= factor: in place on the CPU, as a new tensor elsewhere.
pub fn scale(x: &mut Tensor, factor: f64) -> Result<()> {
    if x.device().is_cpu() {
        return map_in_place(x, |x| x * factor as f32);
    }
    *x = (&*x * factor)?;
    Ok(())
}

/// y + b, where each channel of `b` (C) stands for `pixels` consecutive numbers of `y`, which nobody else holds.
pub(crate) fn add_bias(y: Tensor, b: &Tensor, pixels: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if y.device().is_cuda() && y.dtype() == DType::F32 && y.is_contiguous() {
        let channels = b.elem_count();
        cuda::with_views([&y, &b.to_dtype(DType::F32)?], |device, [y, b]| {
            let n = y.len();
            launch!(device, "add_bias", cuda::grid(n), y, b, n, pixels, channels)
        })?;
        return Ok(y);
    }
    let b = b.to_dtype(y.dtype())?;
    if pixels == 1 { y.broadcast_add(&b) } else { y.broadcast_add(&b.reshape((1, (), 1, 1))?) }
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

/// Each kernel leaves `PARTS` partial sums; all of them are read at once.
#[cfg(feature = "cuda")]
fn squares_on_gpu(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    const PARTS: usize = 256;
    let Some(first) = tensors.first() else { return Ok(vec![]) };
    let device = first.device().as_cuda_device()?;
    let sums = device.alloc_zeros::<f32>(tensors.len() * PARTS)?;
    for (i, x) in tensors.iter().enumerate() {
        cuda::with_views([x], |device, [x]| {
            let (n, (blocks, threads)) = (x.len(), cuda::grid(x.len()));
            let parts = sums.slice(i * PARTS..(i + 1) * PARTS);
            launch!(device, "squares", (blocks.min(PARTS as u32), threads), x, parts, n)
        })?;
    }
    let sums = device.clone_dtoh(&sums)?;
    Ok(sums.chunks_exact(PARTS).map(|parts| parts.iter().map(|&v| f64::from(v)).sum()).collect())
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
