//! Pillow's 8-bit `Image.resize` (libImaging/Resample.c), equal to the bit: antialiased filters, 22-bit fixed-point
//! coefficients, each pass rounded to bytes, and no pass along a side that keeps its length.
//!
//! The order of the passes is that of Pillow 13, the first version that sometimes makes the vertical pass first.
//! fast_image_resize 6 was tried and is not used: for `wide_420.jpg` of the parity kit (173 x 87 to 96 x 57, bilinear) it differs from Pillow
//! by 1 in 3,355 of 16,416 bytes.

use std::ops::Range;

use multiversion::multiversion;

use super::Rgb;

/// The resampling filters of Pillow that image processors of diffusion and CLIP models use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    /// Keys's cubic with a = -0.5.
    Bicubic,
}

impl Filter {
    /// Half the width of the filter, in source pixels, before it is stretched for shrinking.
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    /// The filter's value at distance `x` from its centre.
    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Bilinear if x < 1.0 => 1.0 - x,
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

/// The image resized to `width` x `height`, both above zero: Pillow's `Image.resize((width, height), filter)`.
pub fn resize(image: &Rgb, width: usize, height: usize, filter: Filter) -> Rgb {
    resize_window(image, width, height, filter, Window { left: 0, top: 0, width, height })
}

/// The part `window` of the image resized to `width` x `height`; pixels outside it are not computed.
pub(super) fn resize_window(image: &Rgb, width: usize, height: usize, filter: Filter, window: Window) -> Rgb {
    let columns = window.left..window.left + window.width;
    let rows = window.top..window.top + window.height;
    let across = (width != image.width).then(|| Taps::new(image.width, width, columns.clone(), filter));
    let down = (height != image.height).then(|| Taps::new(image.height, height, rows.clone(), filter));
    // The first pass computes only what the second one reads.
    let columns = across.as_ref().map_or(columns, Taps::reach);
    let rows = down.as_ref().map_or(rows, Taps::reach);
    match (across, down) {
        (None, None) => crop(image, columns, rows),
        (Some(across), None) => horizontal(image, &across, rows),
        (None, Some(down)) => vertical(image, &down, columns),
        (Some(across), Some(down)) if vertical_first(image, width, height) => {
            let flat = vertical(image, &down, columns.clone());
            horizontal(&flat, &across.from(columns.start), 0..flat.height)
        }
        (Some(across), Some(down)) => {
            let narrow = horizontal(image, &across, rows.clone());
            vertical(&narrow, &down.from(rows.start), 0..narrow.width)
        }
    }
}

/// Pillow 13's rule: the vertical pass comes first if the height loses more than twice as many pixels as the width.
fn vertical_first(image: &Rgb, width: usize, height: usize) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let (down, across) = (lost(image.height, height), lost(image.width, width));
    down > 0 && down > 2 * across
}

fn crop(image: &Rgb, columns: Range<usize>, rows: Range<usize>) -> Rgb {
    let (width, height) = (columns.len(), rows.len());
    let mut data = Vec::with_capacity(width * height * 3);
    for y in rows {
        data.extend_from_slice(&image.data[(y * image.width + columns.start) * 3..][..width * 3]);
    }
    Rgb { width, height, data }
}

/// `precompute_coeffs` of Resample.c for the output position `out`: the first source position, how many are read, and their
/// weights in `weights`. `scale`: source positions per output position.
fn exact_taps(size_in: usize, scale: f64, out: usize, filter: Filter, weights: &mut [f64]) -> (usize, usize) {
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let center = (out as f64 + 0.5) * scale;
    let first = ((center - support + 0.5) as isize).max(0) as usize;
    let count = ((center + support + 0.5) as usize).min(size_in) - first;
    let inverse = 1.0 / filter_scale;
    let mut sum = 0.0;
    for (x, w) in weights[..count].iter_mut().enumerate() {
        *w = filter.at(((x + first) as f64 - center + 0.5) * inverse);
        sum += *w;
    }
    if sum != 0.0 {
        weights[..count].iter_mut().for_each(|w| *w /= sum);
    }
    (first, count)
}

/// For each output position along one side: the first source position it reads, how many, and their weights.
struct Taps {
    first: Vec<usize>,
    count: Vec<usize>,
    weights: Vec<i32>,
    stride: usize,
}

/// Fractional bits of a weight: 32, less 8 for the pixel and 2 for overshoot (Resample.c, PRECISION_BITS).
const BITS: u32 = 32 - 8 - 2;

impl Taps {
    /// `normalize_coeffs_8bpc` of Resample.c, for the output positions `wanted` out of `size_out`.
    fn new(size_in: usize, size_out: usize, wanted: Range<usize>, filter: Filter) -> Self {
        let scale = size_in as f64 / size_out as f64;
        let support = filter.support() * scale.max(1.0);
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Self {
            first: Vec::with_capacity(wanted.len()),
            count: Vec::with_capacity(wanted.len()),
            weights: vec![0; wanted.len() * stride],
            stride,
        };
        let mut exact = vec![0.0; stride];
        for (i, out) in wanted.enumerate() {
            let (first, count) = exact_taps(size_in, scale, out, filter, &mut exact);
            for (w, fixed) in exact[..count].iter().zip(&mut taps.weights[i * stride..]) {
                let w = w * f64::from(1 << BITS);
                *fixed = (w + if w < 0.0 { -0.5 } else { 0.5 }) as i32; // truncates towards zero
            }
            taps.first.push(first);
            taps.count.push(count);
        }
        taps
    }

    fn reach(&self) -> Range<usize> {
        let start = self.first.first().copied().unwrap_or(0);
        let end = self.first.last().zip(self.count.last()).map_or(start, |(first, count)| first + count);
        start..end
    }

    /// The same weights for a source without its first `start` positions.
    fn from(mut self, start: usize) -> Self {
        self.first.iter_mut().for_each(|first| *first -= start);
        self
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let weights = self.weights.chunks_exact(self.stride);
        self.first.iter().zip(&self.count).zip(weights).map(|((&first, &count), w)| (first, &w[..count]))
    }
}

const HALF: i32 = 1 << (BITS - 1);

fn to_byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

fn horizontal(image: &Rgb, taps: &Taps, rows: Range<usize>) -> Rgb {
    let (width, height) = (taps.first.len(), rows.len());
    let mut data = vec![0; width * height * 3];
    // Four lanes per pixel, so that each weight costs one multiply-add of a vector.
    let mut wide = vec![[0i32; 4]; image.width];
    for (y, out) in rows.zip(data.chunks_exact_mut(width * 3)) {
        let row = &image.data[y * image.width * 3..][..image.width * 3];
        horizontal_row(row, &mut wide, taps, out);
    }
    Rgb { width, height, data }
}

#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn horizontal_row(row: &[u8], wide: &mut [[i32; 4]], taps: &Taps, out: &mut [u8]) {
    for (lanes, p) in wide.iter_mut().zip(row.chunks_exact(3)) {
        *lanes = [i32::from(p[0]), i32::from(p[1]), i32::from(p[2]), 0];
    }
    for ((first, weights), out) in taps.iter().zip(out.chunks_exact_mut(3)) {
        let mut sum = [HALF; 4];
        for (p, &w) in wide[first..].iter().zip(weights) {
            for c in 0..4 {
                sum[c] += p[c] * w;
            }
        }
        for c in 0..3 {
            out[c] = to_byte(sum[c]);
        }
    }
}

fn vertical(image: &Rgb, taps: &Taps, columns: Range<usize>) -> Rgb {
    let (width, height) = (columns.len(), taps.first.len());
    let stride = image.width * 3;
    let mut data = vec![0; width * height * 3];
    let mut sums = vec![0i32; width * 3];
    for ((first, weights), out) in taps.iter().zip(data.chunks_exact_mut(width * 3)) {
        vertical_row(&image.data[first * stride + columns.start * 3..], stride, weights, &mut sums, out);
    }
    Rgb { width, height, data }
}

#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn vertical_row(source: &[u8], stride: usize, weights: &[i32], sums: &mut [i32], out: &mut [u8]) {
    sums.fill(HALF);
    for (row, &w) in source.chunks(stride).zip(weights) {
        for (sum, &p) in sums.iter_mut().zip(row) {
            *sum += i32::from(p) * w;
        }
    }
    for (byte, &sum) in out.iter_mut().zip(sums.iter()) {
        *byte = to_byte(sum);
    }
}

/// The part `window` of a plane of 16-bit values (H, W), resized by Pillow's bicubic filter (Resample.c, `*_16bpc`): weights in
/// f64, each pass rounded to 16 bits, the horizontal one first.
pub(super) fn resize_deep(
    plane: &[u16],
    width_in: usize,
    height_in: usize,
    width: usize,
    height: usize,
    window: Window,
) -> Vec<u16> {
    let rows: Vec<Vec<u16>> =
        plane.chunks_exact(width_in).map(|row| deep_row(row, width, window.left..window.left + window.width)).collect();
    let mut out = vec![0; window.width * window.height];
    for x in 0..window.width {
        let column: Vec<u16> = rows[..height_in].iter().map(|row| row[x]).collect();
        let column = deep_row(&column, height, window.top..window.top + window.height);
        column.into_iter().enumerate().for_each(|(y, v)| out[y * window.width + x] = v);
    }
    out
}

/// The positions `wanted` of a row that is resized to `size` positions.
fn deep_row(row: &[u16], size: usize, wanted: Range<usize>) -> Vec<u16> {
    if row.len() == size {
        return row[wanted].to_vec();
    }
    let scale = row.len() as f64 / size as f64;
    let mut weights = vec![0.0; (Filter::Bicubic.support() * scale.max(1.0)).ceil() as usize * 2 + 1];
    let value = |out: usize| {
        let (first, count) = exact_taps(row.len(), scale, out, Filter::Bicubic, &mut weights);
        let sum: f64 = row[first..first + count].iter().zip(&weights).map(|(&v, w)| f64::from(v) * w).sum();
        let sum = (sum + if sum < 0.0 { -0.5 } else { 0.5 }) as i32;
        // Pillow clips low and high byte, each for itself.
        let byte = |v: i32| v.clamp(0, 255) as u16;
        byte(sum >> 8) << 8 | byte(sum % 256)
    };
    wanted.map(value).collect()
}
