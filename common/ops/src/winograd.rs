//! 3x3 convolutions with stride 1 and padding 1 by Winograd's F(2x2, 3x3): 16 products instead of 36 for four outputs, and
//! four copies of the input instead of the nine that columns take. Lavin and Gray, "Fast algorithms for convolutional
//! neural networks", Eq. 8: Y = A^T [(G g G^T) * (B^T d B)] A. Its constants are 0, 1 and 1/2, so it rounds little more
//! than the direct sum.
//!
//! Inside a task the channels come last, so that every transform is a loop over channels, whatever the size of the image.

use std::cell::RefCell;

use multiversion::multiversion;
use rayon::prelude::*;

use super::matrix::{Mat, Shared, gemm};

/// Tiles of 2x2 outputs that one task transforms and multiplies.
const TILES: usize = 128;

/// Transformed weights: 16 matrices (C, O).
pub struct Weights {
    data: Vec<f32>,
    o: usize,
    c: usize,
}

impl Weights {
    /// U = G g G^T for every kernel g of `w` (O, C, 3, 3).
    pub fn new(w: &[f32], o: usize, c: usize) -> Self {
        Self::build(o, c, |taps, c_i| {
            for (o_i, kernel) in w.chunks_exact(9 * c).map(|w| &w[9 * c_i..9 * c_i + 9]).enumerate() {
                (0..9).for_each(|k| taps[k * o + o_i] = kernel[k]);
            }
        })
    }

    /// The weights of the convolution that computes the gradient of the input, from O channels to C: each kernel turned by half a
    /// turn.
    pub fn transposed(w: &[f32], o: usize, c: usize) -> Self {
        Self::build(c, o, |taps, o_i| {
            for (c_i, kernel) in w[9 * c * o_i..9 * c * (o_i + 1)].chunks_exact(9).enumerate() {
                (0..9).for_each(|k| taps[k * c + c_i] = kernel[8 - k]);
            }
        })
    }

    /// `gather` lays out the taps of one input channel as (9, out).
    fn build(out: usize, inner: usize, gather: impl Fn(&mut [f32], usize) + Sync) -> Self {
        let mut data = vec![0f32; 16 * out * inner];
        let shared = Shared::new(&mut data);
        (0..inner).into_par_iter().with_min_len(8).for_each_init(
            || (vec![0f32; 9 * out], vec![0f32; 16 * out]),
            |(taps, u), i| {
                gather(taps, i);
                transform_weights(u, taps, out);
                for k in 0..16 {
                    // SAFETY: a task writes the rows of its own input channel.
                    let row = unsafe { shared.slice((k * inner + i) * out, out) };
                    row.copy_from_slice(&u[k * out..(k + 1) * out]);
                }
            },
        );
        Self { data, o: out, c: inner }
    }
}

/// G g G^T for `n` kernels side by side: `taps` (9, n) -> `u` (16, n).
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn transform_weights(u: &mut [f32], taps: &[f32], n: usize) {
    let tap: [&[f32]; 9] = std::array::from_fn(|k| &taps[k * n..(k + 1) * n]);
    // G: (a, b, d) -> (a, (a + b + d) / 2, (a - b + d) / 2, d)
    let spread = |a: f32, b: f32, d: f32| [a, 0.5 * (a + b + d), 0.5 * (a - b + d), d];
    for i in 0..n {
        let column = |x: usize| spread(tap[x][i], tap[3 + x][i], tap[6 + x][i]);
        let (c0, c1, c2) = (column(0), column(1), column(2));
        for y in 0..4 {
            let row = spread(c0[y], c1[y], c2[y]);
            (0..4).for_each(|x| u[(4 * y + x) * n + i] = row[x]);
        }
    }
}

/// Scratch space of a thread, which its tasks overwrite; every part is channels last.
#[derive(Default)]
struct Scratch {
    /// Input rows with a border of zeros, (rows, 2 tw + 2, C).
    input: Vec<f32>,
    /// B^T d of one row of tiles, (4, 2 tw + 2, C).
    rows: Vec<f32>,
    /// B^T d B, (16, tiles, C).
    v: Vec<f32>,
    /// Products, (16, tiles, O).
    m: Vec<f32>,
    /// Output rows, (rows, 2 tw, O).
    output: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The first `n` numbers of `space`, which hold whatever was written last.
fn room(space: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if space.len() < n {
        space.resize(n, 0.0);
    }
    &mut space[..n]
}

/// `x` (B, C, H, W) -> (B, O, H, W); `bias` (O), empty for none.
pub fn convolve(x: &[f32], weights: &Weights, bias: &[f32], h: usize, w: usize) -> Vec<f32> {
    let Weights { data: u, o, c } = weights;
    let (o, c) = (*o, *c);
    let batch = x.len() / (c * h * w).max(1);
    let (th, tw) = (h.div_ceil(2), w.div_ceil(2));
    let mut y = vec![0f32; batch * o * h * w];
    let shared = Shared::new(&mut y);
    // A task takes whole rows of tiles, from one image or several.
    let lines = (TILES / tw).max(1);
    let all = batch * th;
    let task = |s: &mut Scratch, task: usize| {
        let range = task * lines..((task + 1) * lines).min(all);
        let tiles = range.len() * tw;
        let (v, m) = (room(&mut s.v, 16 * c * tiles), room(&mut s.m, 16 * o * tiles));
        // The parts of the range that lie in one image: (image, first row of tiles, rows of tiles, first tile).
        let parts = || {
            (range.start / th..=(range.end - 1) / th).map(|image| {
                let from = range.start.max(image * th);
                (image, from - image * th, range.end.min((image + 1) * th) - from, (from - range.start) * tw)
            })
        };
        for (image, ty, n, tile) in parts() {
            let image = &x[image * c * h * w..(image + 1) * c * h * w];
            let width = 2 * tw + 2;
            let input = room(&mut s.input, (2 * n + 2) * width * c);
            let rows = room(&mut s.rows, 4 * width * c);
            channels_last(input, image, c, h, w, 2 * ty, width);
            for line in 0..n {
                let d = &input[2 * line * width * c..(2 * line + 4) * width * c];
                combine_rows(rows, d, width * c);
                for t in 0..tw {
                    let v = &mut v[(tile + line * tw + t) * c..];
                    transform_input(v, c * tiles, &rows[2 * t * c..], width * c, c);
                }
            }
        }
        for k in 0..16 {
            let (v, u) = (Mat::new(&v[k * c * tiles..], c), Mat::new(&u[k * o * c..], o));
            gemm(tiles, o, c, &mut m[k * o * tiles..(k + 1) * o * tiles], o, false, 1.0, v, u);
        }
        for (image, ty, n, tile) in parts() {
            let output = room(&mut s.output, 2 * n * 2 * tw * o);
            for line in 0..n {
                let (first, second) = output[4 * line * tw * o..4 * (line + 1) * tw * o].split_at_mut(2 * tw * o);
                for t in 0..tw {
                    let at = 2 * t * o..2 * (t + 1) * o;
                    let m = &m[(tile + line * tw + t) * o..];
                    transform_output(&mut first[at.clone()], &mut second[at], m, o * tiles, o, bias);
                }
            }
            let rows = (2 * n).min(h - 2 * ty);
            for o_i in 0..o {
                // SAFETY: a task writes its own rows of tiles.
                let y = unsafe { shared.slice((image * o + o_i) * h * w + 2 * ty * w, rows * w) };
                for (y, out) in y.chunks_exact_mut(w).zip(output.chunks_exact(2 * tw * o)) {
                    y.iter_mut().zip(out[o_i..].iter().step_by(o)).for_each(|(y, v)| *y = *v);
                }
            }
        }
    };
    // A task starts no others, so that its thread's scratch space is its own until it ends.
    (0..all.div_ceil(lines)).into_par_iter().for_each(|i| SCRATCH.with_borrow_mut(|s| task(s, i)));
    y
}

/// Adds the gradient of the weight (O, C, 3, 3) of the same convolution to `gw`, from `x` (B, C, H, W) and `gy` (B, O, H, W): a direct
/// sum, tap by tap. With channels last and a border of zeros, the pixels that a tap meets are the image itself, from another start.
pub fn grad_weight(gw: &mut [f32], x: &[f32], gy: &[f32], o: usize, c: usize, h: usize, w: usize) {
    let batch = x.len() / (c * h * w).max(1);
    let width = w + 2;
    // Two more pixels than the border needs: the last taps of the last row reach past it, to where gy is zero.
    let (image, grad) = (((h + 2) * width + 2) * c, h * width);
    let mut padded = vec![0f32; batch * image];
    padded.par_chunks_mut(image).zip(x.par_chunks(c * h * w)).for_each(|(out, x)| {
        channels_last(&mut out[..(h + 2) * width * c], x, c, h, w, 0, width);
    });
    let mut spread = vec![0f32; batch * o * grad];
    spread.par_chunks_mut(grad).zip(gy.par_chunks(h * w)).for_each(|(out, gy)| {
        out.chunks_exact_mut(width).zip(gy.chunks_exact(w)).for_each(|(out, gy)| out[..w].copy_from_slice(gy));
    });
    let mut taps = vec![0f32; 9 * o * c];
    // A task is one tap and a block of output channels.
    const BLOCK: usize = 320;
    let blocks = o.div_ceil(BLOCK);
    let shared = Shared::new(&mut taps);
    (0..9 * blocks).into_par_iter().for_each(|task| {
        let (tap, first) = (task / blocks, task % blocks * BLOCK);
        let n = BLOCK.min(o - first);
        let start = (tap / 3 * width + tap % 3) * c;
        // SAFETY: a task writes its own rows of its own tap.
        let sum = unsafe { shared.slice((tap * o + first) * c, n * c) };
        for (x, gy) in padded.chunks_exact(image).zip(spread.chunks_exact(o * grad)) {
            gemm(n, c, grad, sum, c, true, 1.0, Mat::new(&gy[first * grad..], grad), Mat::new(&x[start..], c));
        }
    });
    gw.par_chunks_mut(9 * c).enumerate().for_each(|(o_i, gw)| {
        for (i, kernel) in gw.chunks_exact_mut(9).enumerate() {
            kernel.iter_mut().enumerate().for_each(|(tap, g)| *g += taps[(tap * o + o_i) * c + i]);
        }
    });
}

/// Rows `from - 1 ..` of an image (C, H, W) as (rows, width, C), shifted by one column, with zeros outside.
fn channels_last(out: &mut [f32], image: &[f32], c: usize, h: usize, w: usize, from: usize, width: usize) {
    for (i, row) in out.chunks_exact_mut(width * c).enumerate() {
        let Some(y) = (from + i).checked_sub(1).filter(|&y| y < h) else {
            row.fill(0.0);
            continue;
        };
        row[..c].fill(0.0);
        row[(w + 1) * c..].fill(0.0);
        let pixels = &mut row[c..(w + 1) * c];
        for c_i in 0..c {
            let source = &image[(c_i * h + y) * w..(c_i * h + y + 1) * w];
            pixels[c_i..].iter_mut().step_by(c).zip(source).for_each(|(p, s)| *p = *s);
        }
    }
}

/// B^T d: four combinations of four rows of length `n`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn combine_rows(out: &mut [f32], d: &[f32], n: usize) {
    let d: [&[f32]; 4] = std::array::from_fn(|i| &d[i * n..(i + 1) * n]);
    let (o01, o23) = out[..4 * n].split_at_mut(2 * n);
    let ((o0, o1), (o2, o3)) = (o01.split_at_mut(n), o23.split_at_mut(n));
    for i in 0..n {
        let (a, b, c, e) = (d[0][i], d[1][i], d[2][i], d[3][i]);
        o0[i] = a - c;
        o1[i] = b + c;
        o2[i] = c - b;
        o3[i] = b - e;
    }
}

/// (B^T d) B of one tile, for `c` channels. `rows` holds four columns of `c` in each of four rows, which are `pitch` apart;
/// component k goes to `v[k * stride..]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn transform_input(v: &mut [f32], stride: usize, rows: &[f32], pitch: usize, c: usize) {
    for y in 0..4 {
        let row = &rows[y * pitch..y * pitch + 4 * c];
        let d: [&[f32]; 4] = std::array::from_fn(|i| &row[i * c..(i + 1) * c]);
        let minus = |out: &mut [f32], a: &[f32], b: &[f32]| {
            out.iter_mut().zip(a.iter().zip(b)).for_each(|(v, (a, b))| *v = a - b);
        };
        let at = |k: usize| (4 * y + k) * stride..(4 * y + k) * stride + c;
        minus(&mut v[at(0)], d[0], d[2]);
        v[at(1)].iter_mut().zip(d[1].iter().zip(d[2])).for_each(|(v, (a, b))| *v = a + b);
        minus(&mut v[at(2)], d[2], d[1]);
        minus(&mut v[at(3)], d[1], d[3]);
    }
}

/// A^T m A plus the bias of one tile, for `o` channels: component k is at `m[k * stride..]`; two pixels go to each row.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn transform_output(first: &mut [f32], second: &mut [f32], m: &[f32], stride: usize, o: usize, bias: &[f32]) {
    let m: [&[f32]; 16] = std::array::from_fn(|k| &m[k * stride..k * stride + o]);
    let ((y00, y01), (y10, y11)) = (first[..2 * o].split_at_mut(o), second[..2 * o].split_at_mut(o));
    for i in 0..o {
        let b = if bias.is_empty() { 0.0 } else { bias[i] };
        let column = |x: usize| {
            let (a, b, c, d) = (m[x][i], m[4 + x][i], m[8 + x][i], m[12 + x][i]);
            (a + b + c, b - c - d)
        };
        let (c0, c1, c2, c3) = (column(0), column(1), column(2), column(3));
        y00[i] = c0.0 + c1.0 + c2.0 + b;
        y01[i] = c1.0 - c2.0 - c3.0 + b;
        y10[i] = c0.1 + c1.1 + c2.1 + b;
        y11[i] = c1.1 - c2.1 - c3.1 + b;
    }
}
