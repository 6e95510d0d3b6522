//! y = x W + b with weights that never change: they lie transposed from the start, and there is no backward pass.

use candle_core::{Result, Tensor, bail};

use super::kernel::{Kernel, Operand, apply3};
use super::linear::{affine, composed_product};
use super::matrix::Mat;
use super::shape::swap_last_two;

/// Transposes a weight (out, in) to (in, out), as [`linear_frozen`] takes it.
pub fn freeze(weight: &Tensor) -> Result<Tensor> {
    swap_last_two(&weight.detach().unsqueeze(0)?)?.squeeze(0)
}

/// `x` (..., rows, in), `weight` (in, out), `bias` (out) -> (..., rows, out): what [`super::linear`] gives, to the bit. There is
/// no backward pass.
pub fn linear_frozen(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.dim(x.rank() - 1)? != weight.dim(0)? {
        bail!("linear_frozen: input {:?} does not fit the weight {:?}", x.shape(), weight.shape())
    }
    // Without a bias the third operand is empty.
    let none = Tensor::zeros(0, x.dtype(), x.device())?;
    apply3(LinearFrozen, [x, weight, bias.unwrap_or(&none)])
}

struct LinearFrozen;

impl Kernel<3> for LinearFrozen {
    const NAME: &'static str = "linear_frozen";

    fn shape(&self, [x, w, _]: [&[usize]; 3]) -> Vec<usize> {
        [&x[..x.len() - 1], &w[1..]].concat()
    }

    fn forward(&self, [x, w, b]: [Operand; 3]) -> Vec<f32> {
        affine(x.values, Mat::new(w.values, w.dims[1]), b.values, [w.dims[0], w.dims[1]])
    }

    fn composed(&self, [x, w, b]: [&Tensor; 3]) -> Result<Tensor> {
        composed_product(x, w, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear;
    use crate::tests::{close, var};

    #[test]
    fn the_same_bits_as_linear() {
        for (shape, out) in [(vec![3, 5, 7], 4), (vec![2, 300, 33], 70), (vec![4, 65, 96], 384), (vec![9, 6], 5)] {
            let (x, w, b) = (var(&shape, 1), var(&[out, *shape.last().unwrap()], 2), var(&[out], 3));
            for b in [None, Some(b.as_tensor())] {
                let ours = linear_frozen(&x, &freeze(&w).unwrap(), b).unwrap();
                let theirs = linear(&x, &w, b).unwrap();
                let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(bits(&ours), bits(&theirs));
                let none = var(&[0], 4);
                let composed = composed_product(&x, &w.t().unwrap(), b.unwrap_or(&none)).unwrap();
                close(&composed, &theirs, "the composition");
            }
        }
    }
}
