//! Group norm, with SiLU behind it or not, layer norm, with a scale and a shift for each image or for all, and RMS norm.

#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, cuda_backend::cudarc::driver::CudaSlice};
use candle_core::{D, DType, Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::hand::backward;
use super::kernel::{Gradient, Kernel, Operand, apply3, has_passes};
use super::math;
#[cfg(feature = "cuda")]
use super::{
    arithmetic::{add_columns, column_sums},
    cuda::{self, Number, launch, of_type},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    /// [`super::silu`]
    Silu,
}

/// `x` (B, C, ...), normalised over each of `groups` groups of channels, times `weight` (C) plus `bias` (C), then the
/// activation `then`. In f32, because half-precision sums over a group lose too much; the result has the type of `x`.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    then: Activation,
) -> Result<Tensor> {
    let channels = x.dim(1)?;
    if channels % groups != 0 || weight.dims() != [channels] || bias.dims() != [channels] {
        bail!("group_norm: {channels} channels do not fit {groups} groups and a weight of {:?}", weight.shape())
    }
    in_f32(GroupNorm { groups, eps: eps as f32, then }, [x, weight, bias])
}

/// `x` (..., C), normalised over C, times `weight` (C) plus `bias` (C). In f32; the result has the type of `x`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if weight.dims() != [width] || bias.dims() != [width] {
        bail!("layer_norm: input {:?} does not fit a weight of {:?}", x.shape(), weight.shape())
    }
    in_f32(LayerNorm { eps: eps as f32 }, [x, weight, bias])
}

/// `x` (B, N, C), normalised over C, times 1 + `scale` (B, C) plus `shift` (B, C): the layer norm of a diffusion transformer, which
/// the time modulates. In f32; the result has the type of `x`.
pub fn modulated_layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    let (b, _, width) = x.dims3()?;
    if scale.dims() != [b, width] || shift.dims() != [b, width] {
        bail!("modulated_layer_norm: input {:?} does not fit a scale of {:?}", x.shape(), scale.shape())
    }
    let weight = (scale + 1.0)?;
    if x.device().is_cpu() {
        return in_f32(LayerNorm { eps: eps as f32 }, [x, &weight, shift]);
    }
    // A GPU's kernel has one scale for all rows.
    let image = |i: usize| layer_norm(&x.get(i)?, &weight.get(i)?, &shift.get(i)?, eps);
    Tensor::stack(&(0..b).map(image).collect::<Result<Vec<_>>>()?, 0)
}

/// `x` (..., C), divided by its root mean square over C, times `weight` (C). In f32; the result has the type of `x`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if weight.dims() != [x.dim(D::Minus1)?] {
        bail!("rms_norm: input {:?} does not fit a weight of {:?}", x.shape(), weight.shape())
    }
    let none = Tensor::zeros(0, DType::F32, x.device())?; // the kernel has two operands
    in_f32(RmsNorm { eps: eps as f32 }, [x, weight, &none])
}

fn in_f32<K: Kernel<3>>(kernel: K, [x, weight, bias]: [&Tensor; 3]) -> Result<Tensor> {
    // A kernel that takes a narrow type computes in f32 all the same.
    let wide = if has_passes::<K, 3>(x) { x.clone() } else { x.to_dtype(DType::F32)? };
    let (weight, bias) = (weight.to_dtype(DType::F32)?, bias.to_dtype(DType::F32)?);
    apply3(kernel, [&wide, &weight, &bias])?.to_dtype(x.dtype())
}

/// `x` (..., n) with mean 0 and variance 1 over n, from candle's operations.
fn standardised(x: &Tensor, eps: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)
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

/// Threads of a block that works on one group of an image, on a GPU.
#[cfg(feature = "cuda")]
const GROUP_THREADS: u32 = 512;
/// Threads of a block that works on one row of tokens, on a GPU.
#[cfg(feature = "cuda")]
const ROW_THREADS: u32 = 128;
/// Rows of tokens whose gradients of the weight a block adds up there.
#[cfg(feature = "cuda")]
const EACH: usize = 16;

struct GroupNorm {
    groups: usize,
    eps: f32,
    then: Activation,
}

#[cfg(feature = "cuda")]
impl GroupNorm {
    /// For `x` (B, C, ...) of shape `dims`: blocks and threads; numbers of a group, and of a channel of an image; whether SiLU
    /// follows.
    fn launch(&self, dims: &[usize]) -> ((u32, u32), i32, i32, i32) {
        let pixels = dims[2..].iter().product::<usize>();
        let (blocks, size) = (dims[0] * self.groups, dims[1] / self.groups * pixels);
        ((blocks as u32, GROUP_THREADS), size as i32, pixels as i32, (self.then == Activation::Silu).into())
    }
}

impl Kernel<3> for GroupNorm {
    const NAME: &'static str = "group_norm";
    const CUDA: &'static [DType] = &[DType::F32, DType::BF16];

    fn forward(&self, [x, w, b]: [Operand; 3]) -> Vec<f32> {
        let (batch, channels) = (x.dims[0], x.dims[1]);
        let pixels = x.values.len() / (batch * channels).max(1);
        let per_group = channels / self.groups;
        let mut y = vec![0f32; x.values.len()];
        let size = (per_group * pixels).max(1);
        y.par_chunks_mut(size).zip(x.values.par_chunks(size)).enumerate().for_each(|(task, (y, x))| {
            let (mean, rstd) = moments(x, self.eps);
            let first = task % self.groups * per_group;
            for (i, (y, x)) in y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).enumerate() {
                let scale = rstd * w.values[first + i];
                affine(y, x, scale, b.values[first + i] - mean * scale, self.then);
            }
        });
        y
    }

    fn backward(&self, [x, w, b]: [Operand; 3], gy: &[f32], [gx, gw, gb]: [&mut Gradient; 3]) -> Result<()> {
        let (batch, channels) = (x.dims[0], x.dims[1]);
        let per_group = channels / self.groups;
        let (x, w, b) = (x.values, w.values, b.values);
        let pixels = x.len() / (batch * channels).max(1);
        let size = (per_group * pixels).max(1);
        let mut by_x = vec![0f32; x.len()];
        // Sums per image and channel, added up over the images in order afterwards.
        let mut parts = vec![[0f32; 2]; batch * channels];
        let tasks = by_x.par_chunks_mut(size).zip(parts.par_chunks_mut(per_group));
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
        let mut sums = [vec![0f32; channels], vec![0f32; channels]];
        for image in parts.chunks_exact(channels) {
            for (c, [dw, db]) in image.iter().enumerate() {
                sums[0][c] += dw;
                sums[1][c] += db;
            }
        }
        gx.set(|| by_x);
        gw.add(|gw| add(gw, &sums[0]))?;
        gb.add(|gb| add(gb, &sums[1]))
    }

    fn composed(&self, [x, w, b]: [&Tensor; 3]) -> Result<Tensor> {
        let grouped = x.reshape((x.dim(0)?, self.groups, ()))?;
        let mut per_channel = vec![1; x.rank()];
        per_channel[1] = x.dim(1)?;
        let [w, b] = [w, b].map(|t| t.reshape(&per_channel[..]));
        let y = standardised(&grouped, self.eps)?.reshape(x.shape())?.broadcast_mul(&w?)?.broadcast_add(&b?)?;
        if self.then == Activation::Silu { y.silu() } else { Ok(y) }
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, operands: [cuda::Operand; 3]) -> Result<CudaStorage> {
        fn of<T: Number>(norm: &GroupNorm, [x, w, b]: [cuda::Operand; 3]) -> Result<CudaStorage> {
            let (device, (grid, size, pixels, silu)) = (cuda::device(x), norm.launch(x.1.dims()));
            let y = cuda::room::<T>(device, x.1.shape().elem_count())?;
            let (x, w, b, groups) =
                (cuda::view::<T>(x)?, cuda::view::<f32>(w)?, cuda::view::<f32>(b)?, norm.groups as i32);
            launch!(device, T::kernel("group_norm"), grid, x, w, b, y.as_view(), size, pixels, groups, norm.eps, silu)?;
            Ok(cuda::storage(y, device))
        }
        of_type!(cuda::dtype(operands[0]), of(self, operands))
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(&self, [x, w, b]: [&Tensor; 3], gy: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (gx, sums, sizes) = self.gradients_on_gpu([x, w, b], gy, None)?;
        Ok(with_halves(gx, sums, sizes)?.map(Some))
    }
}

#[cfg(feature = "cuda")]
impl GroupNorm {
    /// The gradient of `x` plus `more`, and for each image the gradients of weight and bias side by side (B, 2C).
    fn gradients_on_gpu(
        &self,
        [x, w, b]: [&Tensor; 3],
        gy: &Tensor,
        more: Option<&Tensor>,
    ) -> Result<(Tensor, CudaSlice<f32>, [usize; 2])> {
        fn of<T: Number>(
            norm: &GroupNorm,
            [x, w, b, gy, more]: [&Tensor; 5],
            plus: i32,
        ) -> Result<(Tensor, CudaSlice<f32>, [usize; 2])> {
            let (grid, size, pixels, silu) = norm.launch(x.dims());
            let (shape, batch, channels) = (x.shape(), x.dim(0)?, x.dim(1)?);
            let (groups, eps) = (norm.groups as i32, norm.eps);
            let all = cuda::with_views::<T, 3, _>([x, gy, more], |device, [x, gy, more]| {
                cuda::with_views::<f32, 2, _>([w, b], |_, [w, b]| {
                    let (gx, sums) =
                        (cuda::room::<T>(device, x.len())?, cuda::room::<f32>(device, batch * 2 * channels)?);
                    let (to_x, to_w, to_b) = (gx.as_view(), sums.slice(..), sums.slice(channels..));
                    let (name, row) = (T::kernel("group_norm_grad"), 2 * channels as i32);
                    launch!(
                        device, name, grid, x, w, b, gy, more, to_x, to_w, to_b, size, pixels, groups, row, eps, silu,
                        plus
                    )?;
                    Ok((cuda::tensor(gx, device, shape), sums, [batch, 2 * channels]))
                })
            });
            all
        }
        of_type!(x.dtype(), of(self, [x, w, b, gy, more.unwrap_or(gy)], more.is_some().into()))
    }
}

/// Three gradients, from that of x and from rows of those of weight and bias, side by side.
#[cfg(feature = "cuda")]
fn with_halves(gx: Tensor, sums: CudaSlice<f32>, sizes: [usize; 2]) -> Result<[Tensor; 3]> {
    let device = gx.device().as_cuda_device()?;
    let sums = cuda::tensor(column_sums::<f32>(device, sums.as_view(), sizes)?, device, sizes[1]);
    let n = sizes[1] / 2;
    Ok([gx, sums.narrow(0, 0, n)?, sums.narrow(0, n, n)?])
}

/// The gradient of `x` plus `more`. Those of weight and bias are added to their sums.
#[cfg(feature = "cuda")]
fn add_halves((gx, sums, sizes): (Tensor, CudaSlice<f32>, [usize; 2]), [w, b]: [&Tensor; 2]) -> Result<Tensor> {
    let device = gx.device().as_cuda_device()?;
    add_columns::<f32>(device, sums.as_view(), sizes, &[w, b])?;
    Ok(gx)
}

/// The gradient of `x` of a group norm, plus `more`; those of weight and bias are added to their sums. See [`group_norm`].
#[allow(clippy::too_many_arguments)]
pub fn group_norm_grad(
    [x, weight, bias]: [&Tensor; 3],
    groups: usize,
    eps: f64,
    then: Activation,
    gy: &Tensor,
    more: Option<&Tensor>,
) -> Result<Tensor> {
    let norm = GroupNorm { groups, eps: eps as f32, then };
    #[cfg(feature = "cuda")]
    if cuda::fused(x) {
        return add_halves(norm.gradients_on_gpu([x, weight, bias], gy, more)?, [weight, bias]);
    }
    backward(&norm, [x, weight, bias], gy, more)
}

/// The gradient of `x` of a layer norm, plus `more`; those of weight and bias are added to their sums. See [`layer_norm`].
pub fn layer_norm_grad(
    [x, weight, bias]: [&Tensor; 3],
    eps: f64,
    gy: &Tensor,
    more: Option<&Tensor>,
) -> Result<Tensor> {
    let norm = LayerNorm { eps: eps as f32 };
    #[cfg(feature = "cuda")]
    if cuda::fused(x) {
        return add_halves(norm.gradients_on_gpu([x, weight, bias], gy, more)?, [weight, bias]);
    }
    backward(&norm, [x, weight, bias], gy, more)
}

/// Its weight and bias are (C), or (B, C): those of each image.
struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    /// C, and the numbers of `x` that share one weight.
    fn sizes(x: Operand, w: Operand) -> (usize, usize) {
        let images = if w.dims.len() == 2 { w.dims[0] } else { 1 };
        ((w.values.len() / images.max(1)).max(1), (x.values.len() / images.max(1)).max(1))
    }
}

/// Rows that one task handles. Their gradients of the weight form one partial sum.
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

impl Kernel<3> for LayerNorm {
    const NAME: &'static str = "layer_norm";
    const CUDA: &'static [DType] = &[DType::F32, DType::BF16];

    fn forward(&self, [x, w, b]: [Operand; 3]) -> Vec<f32> {
        let (width, size) = Self::sizes(x, w);
        let mut y = vec![0f32; x.values.len()];
        let parts = w.values.par_chunks(width).zip(b.values.par_chunks(width));
        y.par_chunks_mut(size).zip(x.values.par_chunks(size)).zip(parts).for_each(|((y, x), (w, b))| {
            y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let (mean, rstd) = moments(x, self.eps);
                    layer_norm_row(y, x, w, b, mean, rstd);
                }
            });
        });
        y
    }

    fn backward(&self, [x, w, _]: [Operand; 3], gy: &[f32], [gx, gw, gb]: [&mut Gradient; 3]) -> Result<()> {
        let (width, size) = Self::sizes(x, w);
        let (x, w) = (x.values, w.values);
        let mut by_x = vec![0f32; x.len()];
        let blocks = size.div_ceil(ROWS * width);
        let mut parts = vec![0f32; w.len() * blocks * 2];
        let images = by_x.par_chunks_mut(size).zip(parts.par_chunks_mut(blocks * 2 * width));
        let operands = x.par_chunks(size).zip(gy.par_chunks(size)).zip(w.par_chunks(width));
        images.zip(operands).for_each(|((gx, parts), ((x, gy), w))| {
            let tasks =
                gx.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width).zip(gy.par_chunks(ROWS * width)));
            // Each task has a partial sum of its own.
            tasks.zip(parts.par_chunks_mut(2 * width)).for_each(|((gx, (x, gy)), part)| {
                let (gw, gb) = part.split_at_mut(width);
                let rows = x.chunks_exact(width).zip(gy.chunks_exact(width));
                for (gx, (x, gy)) in gx.chunks_exact_mut(width).zip(rows) {
                    let (mean, rstd) = moments(x, self.eps);
                    layer_norm_row_grad(gx, gw, gb, x, w, gy, mean, rstd);
                }
            });
        });
        let mut sums = vec![0f32; 2 * w.len()];
        for (sums, parts) in sums.chunks_exact_mut(2 * width).zip(parts.chunks_exact(blocks * 2 * width)) {
            parts.chunks_exact(2 * width).for_each(|part| add(sums, part));
        }
        let halves = |from: usize| sums.chunks_exact(2 * width).flat_map(move |s| &s[from..from + width]);
        gx.set(|| by_x);
        gw.add(|gw| gw.iter_mut().zip(halves(0)).for_each(|(g, sum)| *g += sum))?;
        gb.add(|gb| gb.iter_mut().zip(halves(width)).for_each(|(g, sum)| *g += sum))
    }

    fn composed(&self, [x, w, b]: [&Tensor; 3]) -> Result<Tensor> {
        let each = |t: &Tensor| if t.rank() == 2 { t.unsqueeze(1) } else { Ok(t.clone()) };
        standardised(x, self.eps)?.broadcast_mul(&each(w)?)?.broadcast_add(&each(b)?)
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, operands: [cuda::Operand; 3]) -> Result<CudaStorage> {
        fn of<T: Number>(norm: &LayerNorm, [x, w, b]: [cuda::Operand; 3]) -> Result<CudaStorage> {
            let (device, x, w, b) =
                (cuda::device(x), cuda::view::<T>(x)?, cuda::view::<f32>(w)?, cuda::view::<f32>(b)?);
            let (y, n) = (cuda::room::<T>(device, x.len())?, w.len());
            let grid = ((x.len() / n) as u32, ROW_THREADS);
            launch!(device, T::kernel("layer_norm"), grid, x, w, b, y.as_view(), n as i32, norm.eps)?;
            Ok(cuda::storage(y, device))
        }
        of_type!(cuda::dtype(operands[0]), of(self, operands))
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(&self, [x, w, _]: [&Tensor; 3], gy: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (gx, sums, sizes) = self.gradients_on_gpu([x, w, w], gy, None)?;
        Ok(with_halves(gx, sums, sizes)?.map(Some))
    }
}

#[cfg(feature = "cuda")]
impl LayerNorm {
    /// The gradient of `x` plus `more`, and for some rows together the gradients of weight and bias side by side.
    fn gradients_on_gpu(
        &self,
        [x, w, _]: [&Tensor; 3],
        gy: &Tensor,
        more: Option<&Tensor>,
    ) -> Result<(Tensor, CudaSlice<f32>, [usize; 2])> {
        fn of<T: Number>(
            norm: &LayerNorm,
            [x, w, gy, more]: [&Tensor; 4],
            plus: i32,
        ) -> Result<(Tensor, CudaSlice<f32>, [usize; 2])> {
            let (shape, n) = (x.shape(), w.elem_count());
            let rows = x.elem_count() / n;
            let blocks = rows.div_ceil(EACH);
            cuda::with_views::<T, 3, _>([x, gy, more], |device, [x, gy, more]| {
                cuda::with_views::<f32, 1, _>([w], |_, [w]| {
                    let (gx, sums) = (cuda::room::<T>(device, x.len())?, cuda::room::<f32>(device, blocks * 2 * n)?);
                    let (to_x, to_w, to_b) = (gx.as_view(), sums.slice(..), sums.slice(n..));
                    let (name, grid) = (T::kernel("layer_norm_grad"), (blocks as u32, ROW_THREADS));
                    let (all, each, width, row) = (rows as i32, EACH as i32, n as i32, 2 * n as i32);
                    launch!(
                        device, name, grid, x, w, gy, more, to_x, to_w, to_b, all, each, width, row, norm.eps, plus
                    )?;
                    Ok((cuda::tensor(gx, device, shape), sums, [blocks, 2 * n]))
                })
            })
        }
        of_type!(x.dtype(), of(self, [x, w, gy, more.unwrap_or(gy)], more.is_some().into()))
    }
}

struct RmsNorm {
    eps: f32,
}

/// 1 / sqrt(mean of squares + eps)
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (math::sum_by(x.len(), |i| x[i] * x[i]) / x.len() as f32 + eps).sqrt()
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn rms_norm_row_grad(gx: &mut [f32], gw: &mut [f32], x: &[f32], w: &[f32], gy: &[f32], r: f32) {
    let n = x.len();
    let dot = math::sum_by(n, |i| gy[i] * w[i] * x[i]) * r * r / n as f32;
    for i in 0..n {
        gx[i] = r * (gy[i] * w[i] - x[i] * dot);
        gw[i] += gy[i] * x[i] * r;
    }
}

impl Kernel<3> for RmsNorm {
    const NAME: &'static str = "rms_norm";

    fn forward(&self, [x, w, _]: [Operand; 3]) -> Vec<f32> {
        let (w, width) = (w.values, w.values.len());
        let mut y = vec![0f32; x.values.len()];
        y.par_chunks_mut(ROWS * width).zip(x.values.par_chunks(ROWS * width)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let r = inverse_rms(x, self.eps);
                y.iter_mut().zip(x.iter().zip(w)).for_each(|(y, (x, w))| *y = x * r * w);
            }
        });
        y
    }

    fn backward(&self, [x, w, _]: [Operand; 3], gy: &[f32], [gx, gw, _]: [&mut Gradient; 3]) -> Result<()> {
        let (x, w, width) = (x.values, w.values, w.values.len());
        let mut by_x = vec![0f32; x.len()];
        let mut parts = vec![0f32; x.len().div_ceil(ROWS * width) * width];
        let tasks = by_x.par_chunks_mut(ROWS * width).zip(parts.par_chunks_mut(width));
        let operands = x.par_chunks(ROWS * width).zip(gy.par_chunks(ROWS * width));
        tasks.zip(operands).for_each(|((gx, gw), (x, gy))| {
            let rows = x.chunks_exact(width).zip(gy.chunks_exact(width));
            for (gx, (x, gy)) in gx.chunks_exact_mut(width).zip(rows) {
                rms_norm_row_grad(gx, gw, x, w, gy, inverse_rms(x, self.eps));
            }
        });
        gx.set(|| by_x);
        gw.add(|gw| parts.chunks_exact(width).for_each(|part| add(gw, part)))
    }

    fn composed(&self, [x, w, _]: [&Tensor; 3]) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + f64::from(self.eps))?.sqrt()?)?.broadcast_mul(w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    #[test]
    fn modulated_and_rms_norm_equal_their_compositions() {
        for (b, n, c) in [(3, 5, 6), (2, 130, 33), (1, 64, 16)] {
            let (x, scale, shift) = (var(&[b, n, c], 1), var(&[b, c], 2), var(&[b, c], 3));
            let ours = modulated_layer_norm(&x, &scale, &shift, 1e-6).unwrap();
            let weight = (scale.as_tensor() + 1.0).unwrap();
            same(&[&x, &scale, &shift], &ours, &LayerNorm { eps: 1e-6 }.composed([&x, &weight, &shift]).unwrap());
            let image = |i: usize| layer_norm(&x.get(i)?, &weight.get(i)?, &shift.get(i)?, 1e-6);
            let alone = Tensor::stack(&(0..b).map(image).collect::<Result<Vec<_>>>().unwrap(), 0).unwrap();
            same(&[&x, &scale, &shift], &ours, &alone);
            let w = var(&[c], 4);
            let theirs = RmsNorm { eps: 1e-6 }.composed([&x, &w, &w]).unwrap();
            same(&[&x, &w], &rms_norm(&x, &w, 1e-6).unwrap(), &theirs);
        }
    }

    #[test]
    fn group_norm_equals_its_composition() {
        for (shape, groups) in [(vec![2, 6, 5, 3], 3), (vec![3, 8, 16, 16], 8), (vec![1, 4, 70], 1)] {
            let (x, w, b) = (var(&shape, 1), var(&[shape[1]], 2), var(&[shape[1]], 3));
            for then in [Activation::None, Activation::Silu] {
                let ours = group_norm(&x, &w, &b, groups, 1e-5, then).unwrap();
                let composed = GroupNorm { groups, eps: 1e-5, then }.composed([&x, &w, &b]).unwrap();
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
            same(&[&x, &w, &b], &ours, &LayerNorm { eps: 1e-5 }.composed([&x, &w, &b]).unwrap());
        }
    }
}
