//! Adafactor, as transformers' with `scale_parameter=False, relative_step=False, beta1=None`, which Diffusion-DPO uses for SDXL.
//! For a matrix it keeps the means of the second moment over rows and over columns only.

use anyhow::Result;
use candle_core::{D, Tensor, Var};
use ops::{sum_of_squares, with_values, write};
use rayon::prelude::*;

/// The constant that Diffusion-DPO sets; the others are transformers' defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdafactorConfig {
    pub weight_decay: f64,
}

/// Added to every squared gradient (transformers' `eps[0]`).
const EPS: f32 = 1e-30;
/// Largest root mean square of an update (`clip_threshold`).
const CLIP_THRESHOLD: f64 = 1.0;
const DECAY_RATE: f64 = -0.8;

/// beta2 of step t: 1 - t^-0.8.
fn beta2(t: u64) -> f32 {
    (1.0 - (t as f64).powf(DECAY_RATE)) as f32
}

/// Prefixes and shapes of the moments of a tensor of shape `dims`, whose last two dimensions are the matrix.
pub fn shapes(dims: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
    match dims {
        [rest @ .., rows, cols] => vec![("row", [rest, &[*rows]].concat()), ("col", [rest, &[*cols]].concat())],
        _ => vec![("v", dims.to_vec())],
    }
}

/// The step of a vector: u = g / sqrt(v).
pub fn step(c: AdafactorConfig, p: &Var, v: &Var, g: &Tensor, t: u64, lr: f64) -> Result<()> {
    let beta2 = beta2(t) as f64;
    let squared = (g.sqr()? + EPS as f64)?;
    v.set(&((v.as_detached_tensor() * beta2)? + (squared * (1.0 - beta2))?)?)?;
    apply(c, p, &(g / v.as_detached_tensor().sqrt()?)?, lr)
}

/// The step of one matrix or of many, (..., R, C): u = g / sqrt(row col / mean(row)).
pub fn step_factored(c: AdafactorConfig, p: &Var, row: &Var, col: &Var, g: &Tensor, t: u64, lr: f64) -> Result<()> {
    let beta2 = beta2(t);
    let cols = g.dim(D::Minus1)?;
    let rows = g.dim(D::Minus2)?;
    let u = match g.device().is_cpu() {
        true => {
            with_values([g], |[g]| {
                write(row, |row| update_rows(row, g, beta2, cols))?;
                write(col, |col| update_columns(col, g, beta2, rows, cols))
            })??;
            let u = g.copy()?;
            with_values([row, col], |[row, col]| write(&u, |u| scale(u, row, col, rows, cols)))??;
            u
        }
        false => {
            let beta2 = beta2 as f64;
            let squared = (g.sqr()? + EPS as f64)?;
            for (kept, mean) in [(row, squared.mean(D::Minus1)?), (col, squared.mean(D::Minus2)?)] {
                kept.set(&((kept.as_detached_tensor() * beta2)? + (mean * (1.0 - beta2))?)?)?;
            }
            let row = row.as_detached_tensor();
            let share = row.broadcast_div(&row.mean_keepdim(D::Minus1)?)?.unsqueeze(D::Minus1)?; // (..., R, 1)
            let root = col.as_detached_tensor().unsqueeze(D::Minus2)?.sqrt()?; // (..., 1, C)
            g.broadcast_div(&share.sqrt()?)?.broadcast_div(&root)?
        }
    };
    apply(c, p, &u, lr)
}

/// p <- p - lr decay p - lr u / max(1, rms(u))
fn apply(c: AdafactorConfig, p: &Var, u: &Tensor, lr: f64) -> Result<()> {
    let rms = (sum_of_squares(u)? / u.elem_count() as f64).sqrt();
    let (decay, rate) = (1.0 - lr * c.weight_decay, lr / (rms / CLIP_THRESHOLD).max(1.0));
    if p.device().is_cpu() {
        let (decay, rate) = (decay as f32, rate as f32);
        return Ok(with_values([u], |[u]| {
            write(p, |p| {
                p.par_chunks_mut(CHUNK).zip(u.par_chunks(CHUNK)).for_each(|(p, u)| {
                    p.iter_mut().zip(u).for_each(|(p, u)| *p = decay * *p - rate * u);
                });
            })
        })??);
    }
    Ok(p.set(&((p.as_detached_tensor() * decay)? - (u * rate)?)?)?)
}

/// Numbers that one task works on: enough to pay for the task, few enough to stay in the cache.
const CHUNK: usize = 1 << 14;

/// row <- beta2 row + (1 - beta2) (mean of g^2 + eps over the columns); `g` holds rows of length `cols`.
fn update_rows(row: &mut [f32], g: &[f32], beta2: f32, cols: usize) {
    row.par_iter_mut().zip(g.par_chunks_exact(cols)).with_min_len(64).for_each(|(row, g)| {
        let mean = g.iter().map(|g| f64::from(g * g + EPS)).sum::<f64>() / cols as f64;
        *row = beta2 * *row + (1.0 - beta2) * mean as f32;
    });
}

/// col <- beta2 col + (1 - beta2) (mean of g^2 + eps over the rows); `g` holds matrices (rows, cols).
fn update_columns(col: &mut [f32], g: &[f32], beta2: f32, rows: usize, cols: usize) {
    const WIDTH: usize = 64; // columns that one task sums
    let matrices = col.par_chunks_exact_mut(cols).zip(g.par_chunks_exact(rows * cols));
    matrices.with_min_len((CHUNK / (rows * cols)).max(1)).for_each(|(col, g)| {
        col.par_chunks_mut(WIDTH).enumerate().for_each(|(k, col)| {
            let mut sums = [0f64; WIDTH];
            for row in g.chunks_exact(cols) {
                let row = &row[k * WIDTH..k * WIDTH + col.len()];
                sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += f64::from(g * g + EPS));
            }
            for (col, sum) in col.iter_mut().zip(sums) {
                *col = beta2 * *col + (1.0 - beta2) * (sum / rows as f64) as f32;
            }
        });
    });
}

/// u <- u / sqrt(row col / mean(row)); `u` holds matrices (rows, cols).
fn scale(u: &mut [f32], row: &[f32], col: &[f32], rows: usize, cols: usize) {
    let kept = row.par_chunks_exact(rows).zip(col.par_chunks_exact(cols));
    let matrices = u.par_chunks_exact_mut(rows * cols).zip(kept);
    matrices.with_min_len((CHUNK / (rows * cols)).max(1)).for_each(|(u, (row, col))| {
        let mean = (row.iter().map(|&r| f64::from(r)).sum::<f64>() / rows as f64) as f32;
        u.par_chunks_exact_mut(cols).zip(row).with_min_len((CHUNK / cols).max(1)).for_each(|(u, row)| {
            let share = 1.0 / (row / mean).sqrt();
            u.iter_mut().zip(col).for_each(|(u, col)| *u *= share / col.sqrt());
        });
    });
}
