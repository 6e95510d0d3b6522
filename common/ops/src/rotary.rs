//! Rotary positions (arXiv 2104.09864): neighbouring channels of a head are turned by an angle that depends on the token's place.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Operand, apply3};

/// Turns each pair of channels (2k, 2k + 1) of each head. `x` (B, N, heads * d); `cos` and `sin` (N, d / 2), which get no gradient.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (_, n, width) = x.dims3()?;
    let (tokens, pairs) = cos.dims2()?;
    if tokens != n || pairs == 0 || width % (2 * pairs) != 0 || sin.dims() != cos.dims() {
        bail!("rotate: input {:?} does not fit angles of {:?}", x.shape(), cos.shape())
    }
    apply3(Rotate, [x, cos, sin])
}

struct Rotate;

/// y = x turned by the angles, or turned back with `sign` = -1.
fn turned([x, cos, sin]: [Operand; 3], values: &[f32], sign: f32) -> Vec<f32> {
    let (n, width, pairs) = (x.dims[1], x.dims[2], cos.dims[1]);
    let mut out = vec![0f32; values.len()];
    let rows = out.par_chunks_mut(width).zip(values.par_chunks(width)).enumerate();
    rows.with_min_len(16).for_each(|(row, (out, x))| {
        let angles = row % n * pairs..(row % n + 1) * pairs;
        let (cos, sin) = (&cos.values[angles.clone()], &sin.values[angles]);
        for (out, x) in out.chunks_exact_mut(2 * pairs).zip(x.chunks_exact(2 * pairs)) {
            let pairs = out.chunks_exact_mut(2).zip(x.chunks_exact(2)).zip(cos.iter().zip(sin));
            for ((out, x), (cos, sin)) in pairs {
                let sin = sign * sin;
                (out[0], out[1]) = (x[0] * cos - x[1] * sin, x[1] * cos + x[0] * sin);
            }
        }
    });
    out
}

impl Kernel<3> for Rotate {
    const NAME: &'static str = "rotate";

    fn forward(&self, operands: [Operand; 3]) -> Vec<f32> {
        turned(operands, operands[0].values, 1.0)
    }

    fn backward(&self, operands: [Operand; 3], gy: &[f32], [gx, ..]: [&mut Gradient; 3]) -> Result<()> {
        gx.set(|| turned(operands, gy, -1.0));
        Ok(())
    }

    fn composed(&self, [x, cos, sin]: [&Tensor; 3]) -> Result<Tensor> {
        let (b, n, width) = x.dims3()?;
        let pairs = cos.dim(1)?;
        let split = x.reshape(&[b, n, width / (2 * pairs), pairs, 2])?;
        let angles = |t: &Tensor| t.to_dtype(x.dtype())?.reshape((n, 1, pairs, 1));
        let (cos, sin) = (angles(cos)?, angles(sin)?);
        let (one, two) = (split.narrow(4, 0, 1)?, split.narrow(4, 1, 1)?);
        let first = (one.broadcast_mul(&cos)? - two.broadcast_mul(&sin)?)?;
        let second = (two.broadcast_mul(&cos)? + one.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], 4)?.reshape((b, n, width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    #[test]
    fn a_rotation_equals_its_composition() {
        let (x, angles) = (var(&[2, 5, 24], 1), var(&[5, 4], 2).as_detached_tensor());
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        same(&[&x], &rotate(&x, &cos, &sin).unwrap(), &Rotate.composed([&x, &cos, &sin]).unwrap());
        assert!(rotate(&x, &cos.narrow(0, 0, 4).unwrap(), &sin).is_err());
    }
}
