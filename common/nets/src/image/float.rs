//! torch's bicubic resize of a float image tensor. The results are neither clamped nor rounded.

use std::ops::Range;

use multiversion::multiversion;

use super::Rgb;

pipe::names! {
    /// How `torchvision.transforms.functional.resize` resizes a tensor, which depends on its version.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Antialias {
        /// Antialiased, as in torchvision 0.17 and later
        On = "antialias",
        /// Four pixels at any scale, as in torchvision 0.16 and earlier
        Legacy = "legacy",
    }
}

/// For each output position: the input positions that it reads (clamped to the image) and their weights.
struct Taps(Vec<(Range<usize>, Vec<f32>)>);

impl Taps {
    fn new(size_in: usize, size_out: usize, antialias: Antialias) -> Self {
        let scale = size_in as f32 / size_out as f32; // area_pixel_compute_scale<float>
        Self(match antialias {
            Antialias::On => (0..size_out).map(|i| antialiased(i, size_in, scale)).collect(),
            Antialias::Legacy => (0..size_out).map(|i| legacy(i, size_in, scale)).collect(),
        })
    }
}

/// The taps of ATen's UpSampleKernel.cpp, `_compute_indices_min_size_weights_aa`, in its types: f32, and f64 where a literal
/// is a double.
fn antialiased(i: usize, size_in: usize, scale: f32) -> (Range<usize>, Vec<f32>) {
    const A: f32 = -0.5;
    let filter = |x: f32| match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    };
    let support = 2.0 * scale.max(1.0);
    let inverse = if scale >= 1.0 { 1.0 / scale } else { 1.0 };
    let center = (f64::from(scale) * (i as f64 + 0.5)) as f32;
    let first = ((f64::from(center - support) + 0.5) as isize).max(0) as usize;
    let end = ((f64::from(center + support) + 0.5) as usize).clamp(first, size_in);
    let mut weights: Vec<f32> =
        (first..end).map(|x| filter(((f64::from(x as f32 - center) + 0.5) * f64::from(inverse)) as f32)).collect();
    let sum: f32 = weights.iter().sum();
    if sum != 0.0 {
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    (first..end, weights)
}

/// The taps of ATen's `get_cubic_upsample_coefficients` with a = -0.75. A tap outside the image falls on its border.
fn legacy(i: usize, size_in: usize, scale: f32) -> (Range<usize>, Vec<f32>) {
    const A: f32 = -0.75;
    let inner = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let outer = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let real = scale.mul_add(i as f32 + 0.5, -0.5);
    let floor = real.floor();
    let t = real - floor;
    let clamped = |offset: isize| (floor as isize + offset).clamp(0, size_in as isize - 1) as usize;
    let first = clamped(-1);
    let mut weights = vec![0.0; clamped(2) - first + 1];
    for (offset, w) in (-1..).zip([outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)]) {
        weights[clamped(offset) - first] += w;
    }
    (first..clamped(2) + 1, weights)
}

/// `resize(to_tensor(image), (height, width), BICUBIC)`: (height, width, 3) values. White is 1.0; at sharp edges values lie
/// outside [0, 1].
pub(super) fn resize(image: &Rgb, width: usize, height: usize, antialias: Antialias) -> Vec<f32> {
    let columns = (width != image.width).then(|| Taps::new(image.width, width, antialias));
    let rows = (height != image.height).then(|| Taps::new(image.height, height, antialias));
    let mut wide = vec![[0f32; 4]; image.width];
    let mut narrow = vec![0f32; image.height * width * 3];
    for (row, out) in image.data.chunks_exact(image.width * 3).zip(narrow.chunks_exact_mut(width * 3)) {
        match &columns {
            Some(taps) => horizontal_row(row, &mut wide, taps, out),
            None => out.iter_mut().zip(row).for_each(|(v, &p)| *v = f32::from(p) / 255.0),
        }
    }
    let Some(rows) = rows else { return narrow };
    let mut out = vec![0f32; height * width * 3];
    for ((reach, weights), out) in rows.0.iter().zip(out.chunks_exact_mut(width * 3)) {
        vertical_row(&narrow[reach.start * width * 3..reach.end * width * 3], weights, out);
    }
    out
}

#[multiversion(targets("x86_64+avx2+fma", "x86_64+sse4.1"))]
fn horizontal_row(row: &[u8], wide: &mut [[f32; 4]], taps: &Taps, out: &mut [f32]) {
    for (lanes, p) in wide.iter_mut().zip(row.chunks_exact(3)) {
        *lanes = [f32::from(p[0]) / 255.0, f32::from(p[1]) / 255.0, f32::from(p[2]) / 255.0, 0.0];
    }
    for ((reach, weights), out) in taps.0.iter().zip(out.chunks_exact_mut(3)) {
        let mut sum = [0f32; 4];
        for (p, &w) in wide[reach.clone()].iter().zip(weights) {
            for c in 0..4 {
                sum[c] += p[c] * w;
            }
        }
        out.copy_from_slice(&sum[..3]);
    }
}

#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn vertical_row(rows: &[f32], weights: &[f32], out: &mut [f32]) {
    for (row, &w) in rows.chunks_exact(out.len()).zip(weights) {
        for (sum, &p) in out.iter_mut().zip(row) {
            *sum += p * w;
        }
    }
}
