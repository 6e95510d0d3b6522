//! 2-D convolution: patches become the columns of a matrix (im2col), and matrix products do the rest. The usual 3x3 kernels take
//! Winograd's way.

use std::ops::Range;

use candle_core::{Result, Tensor, TensorId, bail};
use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Operand, apply3};
use super::matrix::{Mat, Shared, gemm};
use super::{
    arithmetic::{add_bias, bias_gradient},
    math,
    narrow::narrow,
    precomputed::with_backward,
    unchanged::once,
    winograd,
};
#[cfg(feature = "cudnn")]
use super::{conv_cudnn, cuda};

/// `x` (B, C, H, W), `weight` (O, C, k, k), `bias` (O) -> (B, O, H', W').
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let ((_, c, h, w), (o, cw, k, kw)) = (x.dims4()?, weight.dims4()?);
    if c != cw || k != kw || h + 2 * padding < k || w + 2 * padding < k || bias.dims() != [o] {
        bail!("conv2d: input {:?} does not fit the weight {:?}", x.shape(), weight.shape())
    }
    apply3(Conv { stride, padding, weight: weight.id() }, [x, weight, bias])
}

#[derive(Clone, Copy)]
pub(crate) struct Conv {
    pub stride: usize,
    pub padding: usize,
    /// The identity of the weight.
    pub weight: TensorId,
}

impl Conv {
    /// The gradient of the input, a convolution again: gy, with stride - 1 zeros between its pixels, under the weight turned by
    /// half a turn and with its channels exchanged. `x` (B, C, H, W), `weight` (O, C, k, k), `gy` (B, O, H', W') -> like `x`.
    fn input_gradient(&self, x: &Tensor, weight: &Tensor, gy: &Tensor) -> Result<Tensor> {
        let ((_, _, h, w), k) = (x.dims4()?, weight.dim(2)?);
        let turned = weight.to_dtype(gy.dtype())?.contiguous()?.flip(&[2, 3])?.transpose(0, 1)?.contiguous()?; // (C, O, k, k)
        if self.stride == 1 && self.padding < k {
            return gy.contiguous()?.conv2d(&turned, k - 1 - self.padding, 1, 1, 1);
        }
        let spread = self.spread(&self.spread(gy, 2, h, k)?, 3, w, k)?;
        spread.contiguous()?.conv2d(&turned, 0, 1, 1, 1)
    }

    /// gy along one dimension, with stride - 1 zeros between its pixels, and with enough around them that a kernel of size `k` over
    /// it has `n` outputs, the first of which is pixel 0 of the input.
    fn spread(&self, gy: &Tensor, dim: usize, n: usize, k: usize) -> Result<Tensor> {
        let mut dims = gy.dims().to_vec();
        dims[dim] *= self.stride;
        let apart = gy.unsqueeze(dim + 1)?.pad_with_zeros(dim + 1, 0, self.stride - 1)?.reshape(dims)?;
        // Output 0 saw pixels -padding .. k - padding: those before pixel 0 of the input go.
        let (before, cut) = ((k - 1).saturating_sub(self.padding), self.padding.saturating_sub(k - 1));
        let room = n + k - 1 - before;
        let apart = apart.narrow(dim, cut, room.min(apart.dim(dim)? - cut))?;
        apart.pad_with_zeros(dim, before, room - apart.dim(dim)?)
    }

    /// The gradient of the weight, a convolution too: images as channels, gy as the weight. Tap (i, j) sums, over all output
    /// pixels, gy times the input pixel that the tap has met there. `x` (B, C, H, W), `gy` (B, O, H', W') -> like `weight`.
    fn weight_gradient(&self, x: &Tensor, weight: &Tensor, gy: &Tensor) -> Result<Tensor> {
        let k = weight.dim(2)?;
        let turned = |t: &Tensor| t.transpose(0, 1)?.contiguous();
        let g = turned(x)?.conv2d(&turned(gy)?, self.padding, 1, self.stride, 1)?; // (C, O, k or more, k or more)
        let g = g.narrow(2, 0, k)?.narrow(3, 0, k)?.transpose(0, 1)?;
        g.to_dtype(weight.dtype())?.contiguous()
    }
}

/// Columns of one matrix product: enough to pay for packing the weight, few enough for the cache.
const TILE: usize = 512;
/// Small images are grouped until a product has about this many columns.
const GROUP: usize = 256;
/// Floats of scratch space that a task may fill with columns.
const SCRATCH: usize = 1 << 20;

#[derive(Clone, Copy)]
struct Geometry {
    batch: usize,
    c: usize,
    h: usize,
    w: usize,
    o: usize,
    k: usize,
    oh: usize,
    ow: usize,
    stride: usize,
    padding: usize,
}

impl Geometry {
    /// `x` (B, C, H, W), `weight` (O, C, k, k)
    fn new(x: &[usize], weight: &[usize], conv: &Conv) -> Self {
        let (k, stride, padding) = (weight[2], conv.stride, conv.padding);
        let out = |n: usize| (n + 2 * padding - k) / stride + 1;
        let (batch, c, h, w) = (x[0], x[1], x[2], x[3]);
        Self { batch, c, h, w, o: weight[0], k, oh: out(h), ow: out(w), stride, padding }
    }

    /// Output pixels per image.
    fn pixels(&self) -> usize {
        self.oh * self.ow
    }

    /// Rows of the column matrix per channel.
    fn taps(&self) -> usize {
        self.k * self.k
    }

    /// Images that one product takes together.
    fn group(&self) -> usize {
        GROUP.div_ceil(self.pixels()).min(self.batch).max(1)
    }

    fn tile_rows(&self) -> usize {
        (TILE / self.ow).clamp(1, self.oh)
    }

    /// Whether the columns are the pixels themselves.
    fn is_pointwise(&self) -> bool {
        self.k == 1 && self.stride == 1 && self.padding == 0
    }

    /// Whether this is the UNet's and VAE's usual convolution, which keeps the size.
    fn is_winograd(&self) -> bool {
        (self.k, self.stride, self.padding) == (3, 1, 1) && !self.is_narrow()
    }

    /// Whether a large weight meets few pixels, as deep in a UNet. Reading the weight takes the time then.
    fn is_narrow(&self) -> bool {
        self.pixels() <= 64 && self.o * self.c >= 1 << 18
    }

    /// Which of the output positions `0..out` see a position inside the image through tap `tap`: the first, and one past the last.
    /// And the input position that output 0 sees, which may lie outside.
    fn span(&self, tap: usize, out: usize, len: usize) -> (usize, usize, isize) {
        let start = tap as isize - self.padding as isize;
        let first = if start < 0 { (-start as usize).div_ceil(self.stride) } else { 0 };
        let room = len as isize - start;
        let end = if room <= 0 { 0 } else { (room as usize).div_ceil(self.stride) };
        (first.min(out), end.clamp(first.min(out), out), start)
    }

    /// Columns of channels `channels` and output rows `rows` of one image `x` (C, H, W), written at column `at` of `col`,
    /// whose rows are `width` long.
    fn im2col(&self, col: &mut [f32], width: usize, at: usize, x: &[f32], channels: Range<usize>, rows: Range<usize>) {
        let mut line = 0;
        for c in channels {
            let plane = &x[c * self.h * self.w..(c + 1) * self.h * self.w];
            for ky in 0..self.k {
                for kx in 0..self.k {
                    let (first, end, start) = self.span(kx, self.ow, self.w);
                    let target = &mut col[line * width + at..line * width + at + rows.len() * self.ow];
                    line += 1;
                    for (oy, target) in rows.clone().zip(target.chunks_exact_mut(self.ow)) {
                        let iy = (oy * self.stride + ky) as isize - self.padding as isize;
                        if iy < 0 || iy >= self.h as isize {
                            target.fill(0.0);
                            continue;
                        }
                        let source = &plane[iy as usize * self.w..(iy as usize + 1) * self.w];
                        target[..first].fill(0.0);
                        target[end..].fill(0.0);
                        if first < end {
                            let from = (start + (first * self.stride) as isize) as usize;
                            if self.stride == 1 {
                                target[first..end].copy_from_slice(&source[from..from + end - first]);
                            } else {
                                let seen = source[from..].iter().step_by(self.stride);
                                target[first..end].iter_mut().zip(seen).for_each(|(t, s)| *t = *s);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The reverse: columns at `at` added to the pixels of `channels` planes `gx`.
    fn col2im(&self, gx: &mut [f32], col: &[f32], width: usize, at: usize, channels: usize) {
        let mut line = 0;
        for c in 0..channels {
            let plane = &mut gx[c * self.h * self.w..(c + 1) * self.h * self.w];
            for ky in 0..self.k {
                for kx in 0..self.k {
                    let (first, end, start) = self.span(kx, self.ow, self.w);
                    let source = &col[line * width + at..line * width + at + self.pixels()];
                    line += 1;
                    for (oy, source) in source.chunks_exact(self.ow).enumerate() {
                        let iy = (oy * self.stride + ky) as isize - self.padding as isize;
                        if iy < 0 || iy >= self.h as isize || first >= end {
                            continue;
                        }
                        let from = (start + (first * self.stride) as isize) as usize;
                        let target = &mut plane[iy as usize * self.w..(iy as usize + 1) * self.w][from..];
                        if self.stride == 1 {
                            target.iter_mut().zip(&source[first..end]).for_each(|(t, s)| *t += s);
                        } else {
                            let seen = target.iter_mut().step_by(self.stride);
                            seen.zip(&source[first..end]).for_each(|(t, s)| *t += s);
                        }
                    }
                }
            }
        }
    }

    /// For images of at least `GROUP` pixels, tile by tile: the product writes straight into the output.
    fn forward_large(&self, y: &mut [f32], x: &[f32], w: &[f32], b: &[f32]) {
        let (pixels, rows) = (self.pixels(), self.tile_rows());
        let tiles = self.oh.div_ceil(rows);
        let shared = Shared::new(y);
        (0..self.batch * tiles).into_par_iter().for_each_init(Vec::new, |col, task| {
            let (image, tile) = (task / tiles, task % tiles);
            let span = tile * rows..((tile + 1) * rows).min(self.oh);
            let (at, width) = (span.start * self.ow, span.len() * self.ow);
            let x = &x[image * self.c * self.h * self.w..(image + 1) * self.c * self.h * self.w];
            // SAFETY: a task writes columns at..at + width of each output plane of its image.
            let y = unsafe { shared.slice(image * self.o * pixels + at, (self.o - 1) * pixels + width) };
            y.chunks_mut(pixels).zip(b).for_each(|(y, b)| y[..width].fill(*b));
            let depth = self.c * self.taps();
            let weight = Mat::new(w, depth);
            if self.is_pointwise() {
                gemm(self.o, width, depth, y, pixels, true, 1.0, weight, Mat::new(&x[at..], pixels));
            } else {
                col.resize(depth * width, 0.0);
                self.im2col(col, width, 0, x, 0..self.c, span);
                gemm(self.o, width, depth, y, pixels, true, 1.0, weight, Mat::new(col, width));
            }
        });
    }

    /// For small images, several per product: the results are copied to their places.
    fn forward_small(&self, y: &mut [f32], x: &[f32], w: &[f32], b: &[f32]) {
        let (pixels, group) = (self.pixels(), self.group());
        let depth = self.c * self.taps();
        let (image_in, image_out) = (self.c * self.h * self.w, self.o * pixels);
        let tasks = y.par_chunks_mut(group * image_out).zip(x.par_chunks(group * image_in));
        tasks.for_each_init(
            || (vec![0f32; depth * group * pixels], vec![0f32; self.o * group * pixels]),
            |(col, out), (y, x)| {
                let width = x.len() / image_in * pixels;
                for (i, x) in x.chunks_exact(image_in).enumerate() {
                    self.im2col(col, width, i * pixels, x, 0..self.c, 0..self.oh);
                }
                gemm(self.o, width, depth, out, width, false, 1.0, Mat::new(w, depth), Mat::new(col, width));
                for (i, y) in y.chunks_exact_mut(image_out).enumerate() {
                    scatter(y, out, width, i * pixels..(i + 1) * pixels, b);
                }
            },
        );
    }

    /// For few pixels under a large weight: a task takes a block of output channels, so that the weight is read once.
    fn forward_narrow(&self, y: &mut [f32], x: &[f32], w: &[f32], b: &[f32]) {
        const BLOCK: usize = 64;
        let (pixels, group, depth) = (self.pixels(), self.group(), self.c * self.taps());
        let (image_in, image_out) = (self.c * self.h * self.w, self.o * pixels);
        for (y, x) in y.chunks_mut(group * image_out).zip(x.chunks(group * image_in)) {
            let width = x.len() / image_in * pixels;
            let mut col = vec![0f32; depth * width];
            col.par_chunks_mut(self.taps() * width).enumerate().for_each(|(c, col)| {
                for (i, x) in x.chunks_exact(image_in).enumerate() {
                    self.im2col(col, width, i * pixels, x, c..c + 1, 0..self.oh);
                }
            });
            let shared = Shared::new(y);
            let blocks = (0..self.o.div_ceil(BLOCK)).into_par_iter();
            blocks.for_each_init(
                || vec![0f32; BLOCK * width],
                |out, block| {
                    let first = block * BLOCK;
                    let n = BLOCK.min(self.o - first);
                    let w = Mat::new(&w[first * depth..], depth);
                    gemm(n, width, depth, out, width, false, 1.0, w, Mat::new(&col, width));
                    for i in 0..width / pixels {
                        // SAFETY: a task writes its own channels.
                        let y = unsafe { shared.slice(i * image_out + first * pixels, n * pixels) };
                        scatter(y, out, width, i * pixels..(i + 1) * pixels, &b[first..]);
                    }
                },
            );
        }
    }

    /// gy (B, O, P) -> (O, images * P) for each group of images.
    fn grouped(&self, gy: &[f32]) -> Vec<f32> {
        let (pixels, group) = (self.pixels(), self.group());
        let size = group * self.o * pixels;
        let mut out = vec![0f32; gy.len()];
        out.par_chunks_mut(size).zip(gy.par_chunks(size)).for_each(|(out, gy)| {
            let width = gy.len() / self.o;
            for (i, image) in gy.chunks_exact(self.o * pixels).enumerate() {
                for (o, gy) in image.chunks_exact(pixels).enumerate() {
                    out[o * width + i * pixels..o * width + (i + 1) * pixels].copy_from_slice(gy);
                }
            }
        });
        out
    }

    /// dx = col2im(W^T dy). A task is a group of images and a block of channels.
    fn grad_input(&self, w: &[f32], grouped: &[f32]) -> Vec<f32> {
        let (pixels, group, taps) = (self.pixels(), self.group(), self.taps());
        let (full, depth) = (group * pixels, self.c * taps);
        let most = if self.is_narrow() { self.c.div_ceil(16) } else { self.c };
        let block = (SCRATCH / (taps * full)).clamp(1, most);
        let blocks = self.c.div_ceil(block);
        let image = self.c * self.h * self.w;
        let mut gx = vec![0f32; self.batch * image];
        let shared = Shared::new(&mut gx);
        (0..self.batch.div_ceil(group) * blocks).into_par_iter().for_each_init(
            || vec![0f32; block * taps * full],
            |col, task| {
                let (g, first) = (task / blocks, task % blocks * block);
                let channels = block.min(self.c - first);
                let images = group.min(self.batch - g * group);
                let width = images * pixels;
                let gy = Mat::new(&grouped[g * self.o * full..], width);
                let w = Mat::new(&w[first * taps..], depth).t(); // (channels * taps, O)
                gemm(channels * taps, width, self.o, col, width, false, 1.0, w, gy);
                for i in 0..images {
                    let at = (g * group + i) * image + first * self.h * self.w;
                    // SAFETY: a task writes its own channels of its own images.
                    let gx = unsafe { shared.slice(at, channels * self.h * self.w) };
                    self.col2im(gx, col, width, i * pixels, channels);
                }
            },
        );
        gx
    }

    /// dW += sum over images of dy col^T. A task is a block of input channels, over all images in order.
    fn grad_weight(&self, gw: &mut [f32], x: &[f32], grouped: &[f32]) {
        let (pixels, group, taps) = (self.pixels(), self.group(), self.taps());
        let (full, depth) = (group * pixels, self.c * taps);
        // Large images go through in row tiles, so that the columns stay small.
        let rows = if group > 1 { self.oh } else { self.tile_rows() };
        let block = self.c.div_ceil(8).max(4).min(self.c);
        let image = self.c * self.h * self.w;
        let shared = Shared::new(gw);
        (0..self.c.div_ceil(block)).into_par_iter().for_each_init(
            || vec![0f32; block * taps * group * rows * self.ow],
            |col, task| {
                let channels = task * block..((task + 1) * block).min(self.c);
                let lines = channels.len() * taps;
                // SAFETY: a task writes its own columns of dW.
                let gw = unsafe { shared.slice(channels.start * taps, (self.o - 1) * depth + lines) };
                for (gy, images) in grouped.chunks(self.o * full).zip(x.chunks(group * image)) {
                    let width = gy.len() / self.o;
                    for from in (0..self.oh).step_by(rows) {
                        let span = from..(from + rows).min(self.oh);
                        let columns = images.len() / image * span.len() * self.ow;
                        for (i, x) in images.chunks_exact(image).enumerate() {
                            self.im2col(col, columns, i * pixels, x, channels.clone(), span.clone());
                        }
                        let gy = Mat::new(&gy[from * self.ow..], width); // (O, columns)
                        gemm(self.o, lines, columns, gw, depth, true, 1.0, gy, Mat::new(col, columns).t());
                    }
                }
            },
        );
    }
}

/// The columns `at` of a product `out` (O, width), each with its channel's bias, to the planes `y` of one image (O, P).
fn scatter(y: &mut [f32], out: &[f32], width: usize, at: Range<usize>, b: &[f32]) {
    for ((y, out), b) in y.chunks_exact_mut(at.len()).zip(out.chunks(width)).zip(b) {
        y.iter_mut().zip(&out[at.clone()]).for_each(|(y, out)| *y = out + b);
    }
}

impl Kernel<3> for Conv {
    const NAME: &'static str = "conv2d";

    fn shape(&self, [x, w, _]: [&[usize]; 3]) -> Vec<usize> {
        let g = Geometry::new(x, w, self);
        vec![g.batch, g.o, g.oh, g.ow]
    }

    fn forward(&self, [x, w, b]: [Operand; 3]) -> Vec<f32> {
        let g = Geometry::new(x.dims, w.dims, self);
        let (x, w, b) = (x.values, w.values, b.values);
        if g.is_winograd() {
            let weights = once(self.weight, false, w.len(), || winograd::Weights::new(w, g.o, g.c));
            return winograd::convolve(x, &weights, b, g.h, g.w);
        }
        let mut y = vec![0f32; g.batch * g.o * g.pixels()];
        if g.is_narrow() {
            g.forward_narrow(&mut y, x, w, b);
        } else if g.pixels() >= GROUP {
            g.forward_large(&mut y, x, w, b);
        } else {
            g.forward_small(&mut y, x, w, b);
        }
        y
    }

    fn backward(&self, [x, w, _]: [Operand; 3], gy: &[f32], [gx, gw, gb]: [&mut Gradient; 3]) -> Result<()> {
        let g = Geometry::new(x.dims, w.dims, self);
        let regroup = g.group() > 1 && !g.is_winograd();
        let grouped = if regroup { g.grouped(gy) } else { vec![] };
        let grouped = if regroup { &grouped[..] } else { gy };
        gx.set(|| match g.is_winograd() {
            true => {
                let make = || winograd::Weights::transposed(w.values, g.o, g.c);
                winograd::convolve(gy, &once(self.weight, true, w.values.len(), make), &[], g.h, g.w)
            }
            false => g.grad_input(w.values, grouped),
        });
        gw.add(|gw| match g.is_winograd() {
            true => winograd::grad_weight(gw, x.values, gy, g.o, g.c, g.h, g.w),
            false => g.grad_weight(gw, x.values, grouped),
        })?;
        gb.add(|gb| {
            for image in gy.chunks_exact(g.o * g.pixels()) {
                gb.iter_mut().zip(image.chunks_exact(g.pixels())).for_each(|(gb, gy)| *gb += math::sum(gy));
            }
        })
    }

    /// candle's own gradient of the input is a transposed convolution, which on a GPU takes many times as long as a convolution;
    /// so the backward pass here is made of convolutions.
    fn composed(&self, operands: [&Tensor; 3]) -> Result<Tensor> {
        let ([x, weight, bias], conv) = (operands, *self);
        let w = narrow(weight, x.dtype())?;
        #[cfg(feature = "cudnn")]
        if cuda::fused(x) {
            let y = conv_cudnn::forward(self, &x.detach(), &w, Some(&bias.detach()))?;
            return with_backward(y, operands, move |[x, weight, bias], gy, wanted| {
                let gx = wanted[0].then(|| conv_cudnn::input_gradient(&conv, x, &w, gy)).transpose()?;
                let gw = wanted[1]
                    .then(|| conv_cudnn::weight_gradient(&conv, x, &w, gy)?.to_dtype(weight.dtype()))
                    .transpose()?;
                let gb = wanted[2].then(|| bias_gradient(gy, gy.dim(2)? * gy.dim(3)?, bias.dtype())).transpose()?;
                Ok([gx, gw, gb])
            });
        }
        let y = x.detach().conv2d(&w, conv.padding, conv.stride, 1, 1)?;
        let pixels = y.dim(2)? * y.dim(3)?;
        let y = add_bias(y, &bias.detach(), pixels)?;
        with_backward(y, operands, move |[x, weight, bias], gy, wanted| {
            let gx = wanted[0].then(|| conv.input_gradient(x, weight, gy)).transpose()?;
            let gw = wanted[1].then(|| conv.weight_gradient(x, weight, gy)).transpose()?;
            let gb = wanted[2].then(|| bias_gradient(gy, gy.dim(2)? * gy.dim(3)?, bias.dtype())).transpose()?;
            Ok([gx, gw, gb])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    #[test]
    fn convolution_equals_candles() {
        // (batch, in, height, width, out, kernel, stride, padding): small and large images, odd sizes, all the UNet's forms
        let cases = [
            (2, 3, 5, 7, 4, 3, 1, 1),
            (3, 5, 20, 18, 6, 3, 1, 1),
            (5, 4, 8, 8, 7, 3, 2, 1),
            (2, 9, 6, 6, 3, 1, 1, 0),
            (2, 6, 33, 33, 2, 3, 2, 0),
            (1, 20, 40, 24, 5, 1, 1, 0),
            (3, 512, 4, 3, 520, 3, 1, 1),
            (2, 520, 8, 8, 512, 3, 2, 1),
        ];
        for (b, c, h, w, o, k, stride, padding) in cases {
            let (x, weight, bias) = (var(&[b, c, h, w], 1), var(&[o, c, k, k], 2), var(&[o], 3));
            let ours = conv2d(&x, &weight, &bias, stride, padding).unwrap();
            let theirs = x.conv2d(&weight, padding, stride, 1, 1).unwrap();
            let theirs = theirs.broadcast_add(&bias.reshape((1, o, 1, 1)).unwrap()).unwrap();
            same(&[&x, &weight, &bias], &ours, &theirs);
        }
    }

    #[test]
    fn the_composition_for_other_devices_has_the_same_gradients() {
        // (batch, in, height, width, out, kernel, stride, padding)
        let cases = [
            (2, 3, 5, 7, 4, 3, 1, 1),
            (2, 3, 6, 5, 4, 3, 1, 0),
            (3, 4, 8, 8, 5, 3, 2, 1),
            (2, 4, 9, 8, 5, 3, 2, 1),
            (2, 4, 8, 9, 3, 3, 2, 0),
            (1, 2, 7, 7, 3, 3, 2, 0),
            (2, 5, 6, 4, 3, 1, 1, 0),
            (2, 5, 7, 6, 3, 1, 2, 0),
            (1, 2, 4, 5, 3, 1, 1, 1),
            (1, 2, 3, 3, 2, 3, 1, 1),
        ];
        for (b, c, h, w, o, k, stride, padding) in cases {
            let (x, weight, bias) = (var(&[b, c, h, w], 1), var(&[o, c, k, k], 2), var(&[o], 3));
            let kernel = conv2d(&x, &weight, &bias, stride, padding).unwrap();
            let ours = Conv { stride, padding, weight: weight.id() }.composed([&x, &weight, &bias]).unwrap();
            same(&[&x, &weight, &bias], &ours, &kernel);
            // Frozen weights need no gradient.
            let frozen = weight.as_detached_tensor();
            let y = Conv { stride, padding, weight: frozen.id() }
                .composed([&x, &frozen, &bias.as_detached_tensor()])
                .unwrap();
            let grads = y.sum_all().unwrap().backward().unwrap();
            assert!(grads.get(&x).is_some() && grads.get(&frozen).is_none());
        }
    }

    #[test]
    fn an_image_meets_the_same_arithmetic_in_every_batch() {
        let (x, weight, bias) = (var(&[7, 5, 6, 6], 1), var(&[4, 5, 3, 3], 2), var(&[4], 3));
        let all = conv2d(&x, &weight, &bias, 1, 1).unwrap().detach();
        for (from, n) in [(0, 1), (2, 3), (6, 1)] {
            let some = conv2d(&x.narrow(0, from, n).unwrap(), &weight, &bias, 1, 1).unwrap();
            let gap = (some - all.narrow(0, from, n).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
            assert_eq!(gap.to_scalar::<f32>().unwrap(), 0.0);
        }
    }
}
