//! Adafactor as transformers' with `scale_parameter=False, relative_step=False, beta1=None`: what Diffusion-DPO trains SDXL
//! with. Of the second moment of a matrix it keeps the means of rows and columns alone.

use anyhow::Result;
use candle_core::{CpuStorage, D, InplaceOp2, InplaceOp3, Layout, Result as Candle, Tensor, Var};
use ops::sum_of_squares;
use rayon::prelude::*;

use super::kernel::{CHUNK, operand, target};

/// The constant that Diffusion-DPO sets; the others are transformers' defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdafactorConfig {
    pub weight_decay: f64,
}

/// Added to every squared gradient (transformers' `eps[0]`).
const EPS: f32 = 1e-30;
/// Root mean square that an update may have (`clip_threshold`).
const CLIP_THRESHOLD: f64 = 1.0;
const DECAY_RATE: f64 = -0.8;

/// beta2 of step t: 1 - t^-0.8.
fn beta2(t: u64) -> f32 {
    (1.0 - (t as f64).powf(DECAY_RATE)) as f32
}

/// What is kept of a tensor of this shape: its last two dimensions are the matrix.
pub fn shapes(dims: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
    match dims {
        [rest @ .., rows, cols] => vec![("row", [rest, &[*rows]].concat()), ("col", [rest, &[*cols]].concat())],
        _ => vec![("v", dims.to_vec())],
    }
}

/// A vector's step: u = g / sqrt(v).
pub fn step(c: AdafactorConfig, p: &Var, v: &Var, g: &Tensor, t: u64, lr: f64) -> Result<()> {
    let beta2 = beta2(t) as f64;
    let squared = (g.sqr()? + EPS as f64)?;
    v.set(&((v.as_detached_tensor() * beta2)? + (squared * (1.0 - beta2))?)?)?;
    apply(c, p, &(g / v.as_detached_tensor().sqrt()?)?, lr)
}

/// A matrix's step, or that of many (..., R, C): u = g / sqrt(row col / mean(row)).
pub fn step_factored(c: AdafactorConfig, p: &Var, row: &Var, col: &Var, g: &Tensor, t: u64, lr: f64) -> Result<()> {
    let beta2 = beta2(t);
    let cols = g.dim(D::Minus1)?;
    let rows = g.dim(D::Minus2)?;
    let u = match g.device().is_cpu() {
        true => {
            row.inplace_op2(g, &Rows { beta2, cols })?;
            col.inplace_op2(g, &Columns { beta2, rows, cols })?;
            let u = g.copy()?;
            u.inplace_op3(row, col, &Scale { rows, cols })?;
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
        return Ok(p.inplace_op2(u, &Apply { decay: decay as f32, rate: rate as f32 })?);
    }
    Ok(p.set(&((p.as_detached_tensor() * decay)? - (u * rate)?)?)?)
}

/// row <- beta2 row + (1 - beta2) (mean over the columns of g^2 + eps)
struct Rows {
    beta2: f32,
    cols: usize,
}

impl InplaceOp2 for Rows {
    fn name(&self) -> &'static str {
        "adafactor_rows"
    }

    fn cpu_fwd(&self, row: &mut CpuStorage, _: &Layout, g: &CpuStorage, lg: &Layout) -> Candle<()> {
        let g = operand(g, lg)?;
        target(row)?.par_iter_mut().zip(g.par_chunks_exact(self.cols)).with_min_len(64).for_each(|(row, g)| {
            let mean = g.iter().map(|g| f64::from(g * g + EPS)).sum::<f64>() / self.cols as f64;
            *row = self.beta2 * *row + (1.0 - self.beta2) * mean as f32;
        });
        Ok(())
    }
}

/// col <- beta2 col + (1 - beta2) (mean over the rows of g^2 + eps)
struct Columns {
    beta2: f32,
    rows: usize,
    cols: usize,
}

impl InplaceOp2 for Columns {
    fn name(&self) -> &'static str {
        "adafactor_columns"
    }

    fn cpu_fwd(&self, col: &mut CpuStorage, _: &Layout, g: &CpuStorage, lg: &Layout) -> Candle<()> {
        const WIDTH: usize = 64; // columns that one task sums
        let g = operand(g, lg)?;
        let (beta2, rows, cols) = (self.beta2, self.rows, self.cols);
        let matrices = target(col)?.par_chunks_exact_mut(cols).zip(g.par_chunks_exact(rows * cols));
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
        Ok(())
    }
}

/// u <- u / sqrt(row col / mean(row))
struct Scale {
    rows: usize,
    cols: usize,
}

impl InplaceOp3 for Scale {
    fn name(&self) -> &'static str {
        "adafactor_scale"
    }

    fn cpu_fwd(
        &self,
        u: &mut CpuStorage,
        _: &Layout,
        row: &CpuStorage,
        lr: &Layout,
        col: &CpuStorage,
        lc: &Layout,
    ) -> Candle<()> {
        let (row, col, cols) = (operand(row, lr)?, operand(col, lc)?, self.cols);
        let matrices = target(u)?.par_chunks_exact_mut(self.rows * cols);
        let kept = row.par_chunks_exact(self.rows).zip(col.par_chunks_exact(cols));
        matrices.zip(kept).with_min_len((CHUNK / (self.rows * cols)).max(1)).for_each(|(u, (row, col))| {
            let mean = (row.iter().map(|&r| f64::from(r)).sum::<f64>() / self.rows as f64) as f32;
            u.par_chunks_exact_mut(cols).zip(row).with_min_len((CHUNK / cols).max(1)).for_each(|(u, row)| {
                let share = 1.0 / (row / mean).sqrt();
                u.iter_mut().zip(col).for_each(|(u, col)| *u *= share / col.sqrt());
            });
        });
        Ok(())
    }
}

/// p <- decay p - rate u
struct Apply {
    decay: f32,
    rate: f32,
}

impl InplaceOp2 for Apply {
    fn name(&self) -> &'static str {
        "adafactor"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, _: &Layout, u: &CpuStorage, lu: &Layout) -> Candle<()> {
        let u = operand(u, lu)?;
        target(p)?.par_chunks_mut(CHUNK).zip(u.par_chunks(CHUNK)).for_each(|(p, u)| {
            p.iter_mut().zip(u).for_each(|(p, u)| *p = self.decay * *p - self.rate * u);
        });
        Ok(())
    }
}
