//! y = x W + b with weights that never change: they lie transposed from the start, and there is no backward pass.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{
    linear::{composed_product, product},
    shape::swap,
    values, with_values,
};

/// A weight (out, in) as [`linear_frozen`] takes it, (in, out).
///
/// # Errors
/// It is no matrix.
pub fn freeze(weight: &Tensor) -> Result<Tensor> {
    let (out, inner) = weight.dims2()?;
    if !super::has_kernel(weight) {
        return weight.t()?.contiguous();
    }
    let swapped = with_values([weight], |[w]| swap(w, out, inner))?;
    Tensor::from_vec(swapped, (inner, out), weight.device())
}

/// `x` (..., rows, in), `weight` (in, out), `bias` (out) -> (..., rows, out): what [`super::linear`] gives, to the bit.
///
/// # Errors
/// The last dimension of `x` is not `in`.
pub fn linear_frozen(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.dim(x.rank() - 1)? != weight.dim(0)? {
        bail!("linear_frozen: input {:?} does not fit the weight {:?}", x.shape(), weight.shape())
    }
    // Without a bias the third operand is empty.
    let none = Tensor::zeros(0, x.dtype(), x.device())?;
    let bias = bias.unwrap_or(&none);
    if !super::has_kernel(x) {
        return composed_product(x, weight, bias);
    }
    x.contiguous()?.apply_op3_no_bwd(weight, bias, &LinearFrozen)
}

struct LinearFrozen;

impl CustomOp3 for LinearFrozen {
    fn name(&self) -> &'static str {
        "linear_frozen"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (y, shape) = product(values(x, lx)?, lx.dims(), values(w, lw)?, lw.dims()[1], values(b, lb)?);
        Ok((CpuStorage::F32(y), shape))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        check::{close, var},
        linear,
    };
    use super::*;

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
