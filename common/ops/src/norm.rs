//! Group norm, with SiLU behind it or not, and layer norm.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{Shared, accumulate, math, values, with_values};

/// What follows the norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    Silu,
}

/// `x` (B, C, ...), normalised over each of `groups` groups of channels, times `weight` (C) plus `bias` (C).
///
/// # Errors
/// The number of channels is not divisible by `groups`, or is not that of the weight.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    then: Activation,
) -> Result<Tensor> {
    let channels = x.dim(1)?;
    if channels % groups != 0 || weight.dims() != [channels] {
        bail!("group_norm: {channels} channels do not fit {groups} groups and a weight of {:?}", weight.shape())
    }
    // In f32: half-precision sums over a group lose too much.
    let [wide, w, b] = [x, weight, bias].map(|t| t.to_dtype(DType::F32));
    wide?.contiguous()?.apply_op3(&w?, &b?, GroupNorm { groups, eps: eps as f32, then })?.to_dtype(x.dtype())
}

/// `x` (..., C), normalised over C, times `weight` (C) plus `bias` (C).
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if x.dim(D::Minus1)? != weight.elem_count() {
        bail!("layer_norm: input {:?} does not fit a weight of {:?}", x.shape(), weight.shape())
    }
    let [wide, w, b] = [x, weight, bias].map(|t| t.to_dtype(DType::F32));
    wide?.contiguous()?.apply_op3(&w?, &b?, LayerNorm { eps: eps as f32 })?.to_dtype(x.dtype())
}

/// Mean and 1 / sqrt(variance + eps), two passes: a one-pass variance cancels.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = math::sum_by(x.len(), |i| x[i]) / n;
    let variance = math::sum_by(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// y = act(x * scale + shift)
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn affine(y: &mut [f32], x: &[f32], scale: f32, shift: f32, then: Activation) {
    match then {
        Activation::None => y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * scale + shift),
        Activation::Silu => y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::silu(x * scale + shift)),
    }
}

/// gu = gy * act'(x * scale + shift), written to `gu`; returns (sum gu, sum gu * (x - mean)).
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn through_activation(
    gu: &mut [f32],
    x: &[f32],
    gy: &[f32],
    scale: f32,
    shift: f32,
    mean: f32,
    then: Activation,
) -> (f32, f32) {
    match then {
        Activation::None => gu.copy_from_slice(gy),
        Activation::Silu => {
            let all = gu.iter_mut().zip(x.iter().zip(gy));
            all.for_each(|(gu, (&x, &gy))| *gu = gy * math::silu_grad(x * scale + shift));
        }
    }
    (math::sum_by(x.len(), |i| gu[i]), math::sum_by(x.len(), |i| gu[i] * (x[i] - mean)))
}

/// gx = a * gu + b * (x - mean) + c, over gu
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn combine(gu: &mut [f32], x: &[f32], mean: f32, a: f32, b: f32, c: f32) {
    gu.iter_mut().zip(x).for_each(|(gu, &x)| *gu = a * *gu + b * (x - mean) + c);
}

fn add(sum: &mut [f32], g: &[f32]) {
    sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
}

#[derive(Clone, Copy)]
pub(super) struct GroupNorm {
    pub groups: usize,
    pub eps: f32,
    pub then: Activation,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
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
        let (batch, channels) = (lx.dims()[0], lx.dims()[1]);
        let pixels = x.len() / (batch * channels).max(1);
        let per_group = channels / self.groups;
        let mut y = vec![0f32; x.len()];
        let size = (per_group * pixels).max(1);
        y.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate().for_each(|(task, (y, x))| {
            let (mean, rstd) = moments(x, self.eps);
            let first = task % self.groups * per_group;
            for (i, (y, x)) in y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).enumerate() {
                let scale = rstd * w[first + i];
                affine(y, x, scale, b[first + i] - mean * scale, self.then);
            }
        });
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
        b: &CudaStorage,
        lb: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((cuda::group_norm(*self, (x, lx), (w, lw), (b, lb))?, lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let [gx, gw, gb] = cuda::group_norm_grad(*self, x, w, b, gy)?;
            return Ok((Some(gx), Some(gw), Some(gb)));
        }
        let (batch, channels) = (x.dim(0)?, x.dim(1)?);
        let per_group = channels / self.groups;
        let (gx, gw, gb) = with_values([x, w, b, gy], |[x, w, b, gy]| {
            let pixels = x.len() / (batch * channels).max(1);
            let size = (per_group * pixels).max(1);
            let mut gx = vec![0f32; x.len()];
            // Sums a (image, channel), added up over images in order afterwards.
            let mut parts = vec![[0f32; 2]; batch * channels];
            let tasks = gx.par_chunks_mut(size).zip(parts.par_chunks_mut(per_group));
            tasks.zip(x.par_chunks(size).zip(gy.par_chunks(size))).enumerate().for_each(
                |(task, ((gx, parts), (x, gy)))| {
                    let (mean, rstd) = moments(x, self.eps);
                    let first = task % self.groups * per_group;
                    let (mut sum, mut dot) = (0f32, 0f32); // of gu w, and of gu w (x - mean), over the group
                    for i in 0..per_group {
                        let at = i * pixels..(i + 1) * pixels;
                        let (weight, bias) = (w[first + i], b[first + i]);
                        let scale = rstd * weight;
                        let (gu, x, gy) = (&mut gx[at.clone()], &x[at.clone()], &gy[at]);
                        let (s, d) = through_activation(gu, x, gy, scale, bias - mean * scale, mean, self.then);
                        parts[i] = [d * rstd, s];
                        sum += s * weight;
                        dot += d * weight;
                    }
                    let n = size as f32;
                    for (i, (gx, x)) in gx.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).enumerate() {
                        combine(gx, x, mean, rstd * w[first + i], -rstd * rstd * rstd * dot / n, -rstd * sum / n);
                    }
                },
            );
            let (mut gw, mut gb) = (vec![0f32; channels], vec![0f32; channels]);
            for image in parts.chunks_exact(channels) {
                for (c, [dw, db]) in image.iter().enumerate() {
                    gw[c] += dw;
                    gb[c] += db;
                }
            }
            (gx, gw, gb)
        })?;
        let gx = x.track_op().then(|| Tensor::from_vec(gx, x.shape(), x.device())).transpose()?;
        Ok((gx, accumulate::gradient(w, |sum| add(sum, &gw))?, accumulate::gradient(b, |sum| add(sum, &gb))?))
    }
}

struct LayerNorm {
    eps: f32,
}

/// Rows a task handles; their weight gradients form one partial sum.
const ROWS: usize = 64;

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn layer_norm_row(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], mean: f32, rstd: f32) {
    let operands = x.iter().zip(w.iter().zip(b));
    y.iter_mut().zip(operands).for_each(|(y, (&x, (&w, &b)))| *y = (x - mean) * rstd * w + b);
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
#[allow(clippy::too_many_arguments)]
fn layer_norm_row_grad(
    gx: &mut [f32],
    gw: &mut [f32],
    gb: &mut [f32],
    x: &[f32],
    w: &[f32],
    gy: &[f32],
    mean: f32,
    rstd: f32,
) {
    let n = x.len();
    let sum = math::sum_by(n, |i| gy[i] * w[i]) / n as f32;
    let dot = math::sum_by(n, |i| gy[i] * w[i] * (x[i] - mean)) * rstd * rstd / n as f32;
    for i in 0..n {
        let centred = x[i] - mean;
        gx[i] = rstd * (gy[i] * w[i] - sum - centred * dot);
        gw[i] += gy[i] * centred * rstd;
        gb[i] += gy[i];
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
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
        let width = w.len();
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let (mean, rstd) = moments(x, self.eps);
                layer_norm_row(y, x, w, b, mean, rstd);
            }
        });
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
        b: &CudaStorage,
        lb: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((cuda::layer_norm((x, lx), (w, lw), (b, lb), self.eps)?, lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let [gx, gw, gb] = cuda::layer_norm_grad(x, w, gy, self.eps)?;
            return Ok((Some(gx), Some(gw), Some(gb)));
        }
        let width = w.elem_count();
        let (gx, gw, gb) = with_values([x, w, gy], |[x, w, gy]| {
            let mut gx = vec![0f32; x.len()];
            let blocks = x.len().div_ceil(ROWS * width);
            let mut parts = vec![0f32; blocks * 2 * width];
            let shared = Shared::new(&mut parts);
            let tasks =
                gx.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width).zip(gy.par_chunks(ROWS * width)));
            tasks.enumerate().for_each(|(task, (gx, (x, gy)))| {
                // SAFETY: each task has a partial sum of its own.
                let (gw, gb) = unsafe { shared.slice(task * 2 * width, 2 * width) }.split_at_mut(width);
                let rows = x.chunks_exact(width).zip(gy.chunks_exact(width));
                for (gx, (x, gy)) in gx.chunks_exact_mut(width).zip(rows) {
                    let (mean, rstd) = moments(x, self.eps);
                    layer_norm_row_grad(gx, gw, gb, x, w, gy, mean, rstd);
                }
            });
            let mut sums = vec![0f32; 2 * width];
            parts.chunks_exact(2 * width).for_each(|p| sums.iter_mut().zip(p).for_each(|(s, p)| *s += p));
            let gb = sums.split_off(width);
            (gx, sums, gb)
        })?;
        let gx = x.track_op().then(|| Tensor::from_vec(gx, x.shape(), x.device())).transpose()?;
        Ok((gx, accumulate::gradient(w, |sum| add(sum, &gw))?, accumulate::gradient(b, |sum| add(sum, &gb))?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{same, var};
    use super::*;

    /// `x` (..., n), normalised over n.
    fn normed(x: &Tensor, eps: f64) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        centred.broadcast_div(&(variance + eps)?.sqrt()?)
    }

    /// `x` (B, C, ...), `w` and `b` (C) -> like `x`, from candle's operations.
    fn composed_group_norm(x: &Tensor, w: &Tensor, b: &Tensor, norm: GroupNorm) -> Result<Tensor> {
        let grouped = x.reshape((x.dim(0)?, norm.groups, ()))?;
        let mut per_channel = vec![1; x.rank()];
        per_channel[1] = x.dim(1)?;
        let [w, b] = [w, b].map(|t| t.reshape(&per_channel[..]));
        let y = normed(&grouped, norm.eps.into())?.reshape(x.shape())?.broadcast_mul(&w?)?.broadcast_add(&b?)?;
        if norm.then == Activation::Silu { y.silu() } else { Ok(y) }
    }

    #[test]
    fn group_norm_equals_its_composition() {
        for (shape, groups) in [(vec![2, 6, 5, 3], 3), (vec![3, 8, 16, 16], 8), (vec![1, 4, 70], 1)] {
            let (x, w, b) = (var(&shape, 1), var(&[shape[1]], 2), var(&[shape[1]], 3));
            for then in [Activation::None, Activation::Silu] {
                let ours = group_norm(&x, &w, &b, groups, 1e-5, then).unwrap();
                let composed = composed_group_norm(&x, &w, &b, GroupNorm { groups, eps: 1e-5, then }).unwrap();
                same(&[&x, &w, &b], &ours, &composed);
            }
        }
    }

    #[test]
    fn layer_norm_equals_its_composition() {
        for shape in [vec![3, 7], vec![2, 100, 33]] {
            let width = *shape.last().unwrap();
            let (x, w, b) = (var(&shape, 1), var(&[width], 2), var(&[width], 3));
            let ours = layer_norm(&x, &w, &b, 1e-5).unwrap();
            let composed = normed(&x, 1e-5).unwrap().broadcast_mul(&w).unwrap().broadcast_add(&b).unwrap();
            same(&[&x, &w, &b], &ours, &composed);
        }
    }
}
