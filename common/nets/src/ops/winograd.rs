//! 3x3 convolutions of stride 1 and padding 1 by Winograd's F(2x2, 3x3): 16 products instead of 36 for four outputs, and
//! four copies of the input instead of the nine that columns take. Lavin and Gray, "Fast algorithms for convolutional
//! neural networks", Eq. 8: Y = A^T [(G g G^T) * (B^T d B)] A; its constants are 0, 1 and 1/2, so it rounds little more
//! than the direct sum.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{Mat, Shared, gemm};

/// Tiles of 2x2 outputs that a task transforms and multiplies at a time.
const TILES: usize = 128;

/// Transformed weights, 16 matrices (O, C).
pub struct Weights {
    data: Vec<f32>,
    o: usize,
    c: usize,
}

impl Weights {
    /// `w` (O, C, 3, 3): U = G g G^T of every kernel.
    pub fn new(w: &[f32], o: usize, c: usize) -> Self {
        Self::build(w, o, c, |o_i, c_i| o_i * c + c_i, |k| k)
    }

    /// Of the convolution that carries gradients back, (C, O): channels exchanged, kernels turned by half a turn.
    pub fn transposed(w: &[f32], o: usize, c: usize) -> Self {
        Self::build(w, c, o, |c_i, o_i| o_i * c + c_i, |k| 8 - k)
    }

    fn build(
        w: &[f32],
        o: usize,
        c: usize,
        at: impl Fn(usize, usize) -> usize + Sync,
        tap: impl Fn(usize) -> usize + Sync,
    ) -> Self {
        let mut data = vec![0f32; 16 * o * c];
        let shared = Shared::new(&mut data);
        (0..o).into_par_iter().for_each(|o_i| {
            for c_i in 0..c {
                let g = &w[at(o_i, c_i) * 9..at(o_i, c_i) * 9 + 9];
                // rows: G g
                let mut rows = [[0f32; 3]; 4];
                for x in 0..3 {
                    let (a, b, d) = (g[tap(x)], g[tap(3 + x)], g[tap(6 + x)]);
                    rows[0][x] = a;
                    rows[1][x] = 0.5 * (a + b + d);
                    rows[2][x] = 0.5 * (a - b + d);
                    rows[3][x] = d;
                }
                for (y, [a, b, d]) in rows.into_iter().enumerate() {
                    let columns = [a, 0.5 * (a + b + d), 0.5 * (a - b + d), d];
                    for (x, value) in columns.into_iter().enumerate() {
                        // SAFETY: a task writes the entries of its own output channel.
                        let entry = unsafe { shared.slice(((y * 4 + x) * o + o_i) * c + c_i, 1) };
                        entry[0] = value;
                    }
                }
            }
        });
        Self { data, o, c }
    }
}

/// Scratch space of a task.
#[derive(Default)]
struct Scratch {
    padded: Vec<f32>,
    v: Vec<f32>,
    m: Vec<f32>,
}

/// `x` (B, C, H, W) -> (B, O, H, W); `bias` (O), or empty for none.
pub fn convolve(x: &[f32], weights: &Weights, bias: &[f32], h: usize, w: usize) -> Vec<f32> {
    let Weights { data: u, o, c } = weights;
    let (o, c) = (*o, *c);
    let batch = x.len() / (c * h * w).max(1);
    let (th, tw) = (h.div_ceil(2), w.div_ceil(2));
    let mut y = vec![0f32; batch * o * h * w];
    let shared = Shared::new(&mut y);
    // A task takes whole rows of tiles, of one image or of several.
    let lines = (TILES / tw).max(1);
    let all = batch * th;
    (0..all.div_ceil(lines)).into_par_iter().for_each_init(Scratch::default, |s, task| {
        let range = task * lines..((task + 1) * lines).min(all);
        let tiles = range.len() * tw;
        s.padded.resize(4 * (2 * tw + 2), 0.0);
        s.v.resize(16 * c * tiles, 0.0);
        s.m.resize(16 * o * tiles, 0.0);
        for (i, line) in range.clone().enumerate() {
            let (image, ty) = (line / th, line % th);
            for c_i in 0..c {
                let plane = &x[(image * c + c_i) * h * w..(image * c + c_i + 1) * h * w];
                pad(&mut s.padded, plane, h, w, 2 * ty, 2 * tw + 2);
                transform_input(&mut s.v[c_i * tiles + i * tw..], c * tiles, &s.padded, tw);
            }
        }
        for k in 0..16 {
            let (u, v) = (Mat::new(&u[k * o * c..], c), Mat::new(&s.v[k * c * tiles..], tiles));
            gemm(o, tiles, c, &mut s.m[k * o * tiles..(k + 1) * o * tiles], tiles, false, 1.0, u, v);
        }
        for (i, line) in range.enumerate() {
            let (image, ty) = (line / th, line % th);
            let rows = (h - 2 * ty).min(2);
            for o_i in 0..o {
                // SAFETY: a task writes its own rows of tiles.
                let y = unsafe { shared.slice((image * o + o_i) * h * w + 2 * ty * w, rows * w) };
                let (first, second) = y.split_at_mut(w);
                let b = bias.get(o_i).copied().unwrap_or(0.0);
                transform_output(first, second, &s.m[o_i * tiles + i * tw..], o * tiles, tw, b);
            }
        }
    });
    y
}

/// Rows `from - 1 .. from + 3` of a plane with a column of zeros before it, zeros outside; each `width` long.
fn pad(out: &mut [f32], plane: &[f32], h: usize, w: usize, from: usize, width: usize) {
    for (i, row) in out.chunks_exact_mut(width).enumerate() {
        match (from + i).checked_sub(1).filter(|&y| y < h) {
            Some(y) => {
                row[0] = 0.0;
                row[1..=w].copy_from_slice(&plane[y * w..(y + 1) * w]);
                row[w + 1..].fill(0.0);
            }
            None => row.fill(0.0),
        }
    }
}

/// B^T d B of each tile of one row of tiles; component k of tile t goes to `v[k * stride + t]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn transform_input(v: &mut [f32], stride: usize, padded: &[f32], tw: usize) {
    let width = 2 * tw + 2;
    let rows: [&[f32]; 4] = std::array::from_fn(|i| &padded[i * width..(i + 1) * width]);
    // B^T d: combinations of rows
    let combine: [(usize, usize, f32); 4] = [(0, 2, -1.0), (1, 2, 1.0), (2, 1, -1.0), (1, 3, -1.0)];
    for (y, (a, b, sign)) in combine.into_iter().enumerate() {
        let (a, b) = (rows[a], rows[b]);
        let (left, right) = v[y * 4 * stride..].split_at_mut(2 * stride);
        let (v0, v1) = left.split_at_mut(stride);
        let (v2, v3) = right.split_at_mut(stride);
        let (v0, v1, v2, v3) = (&mut v0[..tw], &mut v1[..tw], &mut v2[..tw], &mut v3[..tw]);
        for t in 0..tw {
            let at = |x: usize| a[2 * t + x] + sign * b[2 * t + x];
            let (d0, d1, d2, d3) = (at(0), at(1), at(2), at(3));
            v0[t] = d0 - d2;
            v1[t] = d1 + d2;
            v2[t] = d2 - d1;
            v3[t] = d1 - d3;
        }
    }
}

/// A^T m A plus bias of each tile of one row of tiles; `second` is empty under the last row of an odd height.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn transform_output(first: &mut [f32], second: &mut [f32], m: &[f32], stride: usize, tw: usize, bias: f32) {
    let m: [&[f32]; 16] = std::array::from_fn(|k| &m[k * stride..k * stride + tw]);
    let w = first.len();
    for t in 0..tw {
        let column = |x: usize| {
            let (a, b, c, d) = (m[x][t], m[4 + x][t], m[8 + x][t], m[12 + x][t]);
            (a + b + c, b - c - d)
        };
        let (c0, c1, c2, c3) = (column(0), column(1), column(2), column(3));
        first[2 * t] = c0.0 + c1.0 + c2.0 + bias;
        if 2 * t + 1 < w {
            first[2 * t + 1] = c1.0 - c2.0 - c3.0 + bias;
        }
        if !second.is_empty() {
            second[2 * t] = c0.1 + c1.1 + c2.1 + bias;
            if 2 * t + 1 < w {
                second[2 * t + 1] = c1.1 - c2.1 - c3.1 + bias;
            }
        }
    }
}
