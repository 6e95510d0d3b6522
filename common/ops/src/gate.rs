//! x + gate y, where each image has a gate for every channel: how a block of a diffusion transformer adds to its input.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Operand, apply3};

/// `x` + `gate` * `y`, with `x` and `y` (B, N, C) and `gate` (B, C).
pub fn add_gated(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (b, _, c) = x.dims3()?;
    if y.dims() != x.dims() || gate.dims() != [b, c] {
        bail!("add_gated: x {:?}, gate {:?} and y {:?} do not fit", x.shape(), gate.shape(), y.shape())
    }
    apply3(AddGated, [x, gate, y])
}

struct AddGated;

/// Rows that form one partial sum of the gate's gradient.
const ROWS: usize = 64;

impl AddGated {
    /// C, and the numbers of an image.
    fn sizes(dims: &[usize]) -> (usize, usize) {
        (dims[2].max(1), (dims[1] * dims[2]).max(1))
    }
}

impl Kernel<3> for AddGated {
    const NAME: &'static str = "add_gated";

    fn forward(&self, [x, gate, y]: [Operand; 3]) -> Vec<f32> {
        let (c, size) = Self::sizes(x.dims);
        let mut out = vec![0f32; x.values.len()];
        let operands = x.values.par_chunks(c).zip(y.values.par_chunks(c));
        out.par_chunks_mut(c).zip(operands).enumerate().with_min_len(16).for_each(|(row, (out, (x, y)))| {
            let gate = &gate.values[row * c / size * c..][..c];
            out.iter_mut().zip(x).zip(gate.iter().zip(y)).for_each(|((out, x), (gate, y))| *out = x + gate * y);
        });
        out
    }

    fn backward(&self, [x, gate, y]: [Operand; 3], go: &[f32], [gx, gg, gy]: [&mut Gradient; 3]) -> Result<()> {
        let (c, size) = Self::sizes(x.dims);
        gx.set(|| go.to_vec());
        gy.set(|| {
            let mut gy = vec![0f32; go.len()];
            gy.par_chunks_mut(c).zip(go.par_chunks(c)).enumerate().with_min_len(16).for_each(|(row, (gy, go))| {
                let gate = &gate.values[row * c / size * c..][..c];
                gy.iter_mut().zip(gate.iter().zip(go)).for_each(|(gy, (gate, go))| *gy = gate * go);
            });
            gy
        });
        gg.add(|gg| {
            let images = y.values.par_chunks(size).zip(go.par_chunks(size));
            gg.par_chunks_mut(c).zip(images).for_each(|(gg, (y, go))| {
                for (y, go) in y.chunks(ROWS * c).zip(go.chunks(ROWS * c)) {
                    let mut part = vec![0f32; c];
                    for (y, go) in y.chunks_exact(c).zip(go.chunks_exact(c)) {
                        part.iter_mut().zip(y.iter().zip(go)).for_each(|(sum, (y, go))| *sum += y * go);
                    }
                    gg.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
                }
            });
        })
    }

    fn composed(&self, [x, gate, y]: [&Tensor; 3]) -> Result<Tensor> {
        x + y.broadcast_mul(&gate.unsqueeze(1)?)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    #[test]
    fn a_gated_sum_equals_its_composition() {
        for (b, n, c) in [(3, 5, 7), (1, 130, 16), (2, 64, 3)] {
            let (x, gate, y) = (var(&[b, n, c], 1), var(&[b, c], 2), var(&[b, n, c], 3));
            let ours = add_gated(&x, &gate, &y).unwrap();
            same(&[&x, &gate, &y], &ours, &AddGated.composed([&x, &gate, &y]).unwrap());
        }
        assert!(add_gated(&var(&[1, 2, 3], 1), &var(&[1, 2], 2), &var(&[1, 2, 3], 3)).is_err());
    }
}
