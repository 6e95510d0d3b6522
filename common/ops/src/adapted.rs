//! A frozen linear layer and the low-rank adapter beside it (LoRA) as one operation: of five, each would take passes over the
//! output, forward and backward.

use candle_core::{CpuStorage, CudaStorage, DType, Error, Layout, Result, Shape, Tensor};

use super::kernel::{Adapter, Op, gradients};
use super::linear::{add_weight_gradient, affine, linear, product};
use super::matrix::Mat;
use super::values::{values, with_values};

/// x W^T + bias + scale (x A^T) B^T. `x` (..., rows, in), `weight` (out, in), `bias` (out), `a` (rank, in), `b` (out, rank); the
/// matrices may have two more dimensions of 1, as a 1x1 convolution stores them -> (..., rows, out).
pub fn linear_adapted(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    [a, b]: [&Tensor; 2],
    scale: f64,
) -> Result<Tensor> {
    let frozen = !weight.track_op() && bias.is_none_or(|bias| !bias.track_op());
    if !(frozen && x.device().is_cpu() && x.dtype() == DType::F32) {
        return linear(x, weight, bias)? + (linear(&linear(x, a, None)?, b, None)? * scale)?;
    }
    let (inner, out, rank) = (x.dim(x.rank() - 1)?, weight.dim(0)?, a.dim(0)?);
    let sizes = [weight.elem_count(), a.elem_count(), b.elem_count()];
    if sizes != [out * inner, rank * inner, out * rank] || b.dim(0)? != out {
        let (x, w, a, b) = (x.shape(), weight.shape(), a.shape(), b.shape());
        candle_core::bail!("linear_adapted: input {x:?}, weight {w:?}, A {a:?} and B {b:?} do not fit")
    }
    let bias = bias.map_or_else(|| Tensor::zeros(0, DType::F32, x.device()), Tensor::contiguous)?;
    let op = Adapted { weight: weight.contiguous()?, bias, scale: scale as f32, inner, out, rank };
    x.contiguous()?.apply_op3(&a.contiguous()?, &b.contiguous()?, Adapter(op))
}

struct Adapted {
    weight: Tensor,
    bias: Tensor,
    scale: f32,
    inner: usize,
    out: usize,
    rank: usize,
}

impl Op<3> for Adapted {
    const NAME: &'static str = "linear_adapted";

    fn cpu(&self, [(x, lx), (a, la), (b, lb)]: [(&CpuStorage, &Layout); 3]) -> Result<(CpuStorage, Shape)> {
        let Self { inner, out, rank, scale, .. } = *self;
        let (x, a, b) = (values(x, lx)?, values(a, la)?, values(b, lb)?);
        let y = with_values([&self.weight, &self.bias], |[w, bias]| {
            let mut y = affine(x, Mat::new(w, inner).t(), bias, [inner, out]);
            // A new adapter adds nothing and takes no time: the reference's are new until it first moves.
            if b.iter().any(|v| *v != 0.0) {
                let h = affine(x, Mat::new(a, inner).t(), &[], [inner, rank]);
                product(&mut y, true, scale, &h, Mat::new(b, rank).t(), [rank, out]);
            }
            y
        })?;
        let shape = [&lx.dims()[..lx.dims().len() - 1], &[out]].concat();
        Ok((CpuStorage::F32(y), shape.into()))
    }

    fn cuda(&self, _: [(&CudaStorage, &Layout); 3]) -> Result<(CudaStorage, Shape)> {
        Err(Error::Msg("linear_adapted has no kernel for GPUs".into()))
    }

    fn backward(&self, operands: [&Tensor; 3], gy: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let Self { inner, out, rank, scale, .. } = *self;
        gradients(operands, gy, |[x, a, b], gy, [gx, ga, gb]| {
            let mut gh = vec![0f32; gy.len() / out * rank];
            product(&mut gh, false, scale, gy, Mat::new(b.values, rank), [out, rank]);
            with_values([&self.weight], |[w]| {
                gx.set(|| {
                    let mut gx = affine(gy, Mat::new(w, inner), &[], [out, inner]);
                    product(&mut gx, true, 1.0, &gh, Mat::new(a.values, inner), [rank, inner]);
                    gx
                });
            })?;
            ga.add(|ga| add_weight_gradient(ga, 1.0, &gh, x.values, [inner, rank]))?;
            gb.add(|gb| {
                let h = affine(x.values, Mat::new(a.values, inner).t(), &[], [inner, rank]);
                add_weight_gradient(gb, scale, gy, &h, [rank, out]);
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    #[test]
    fn an_adapted_layer_equals_the_sum_of_its_parts() {
        for (shape, out, rank) in [(vec![3, 5, 7], 4, 2), (vec![2, 300, 33], 270, 16), (vec![9, 6], 5, 1)] {
            let inner = shape[shape.len() - 1];
            let (x, w, bias) = (var(&shape, 1), var(&[out, inner], 2), var(&[out], 3));
            let (w, bias) = (w.as_detached_tensor(), bias.as_detached_tensor());
            let (a, b) = (var(&[rank, inner], 4), var(&[out, rank], 5));
            for bias in [None, Some(&bias)] {
                let ours = linear_adapted(&x, &w, bias, [&a, &b], 0.7).unwrap();
                let low = linear(&linear(&x, &a, None).unwrap(), &b, None).unwrap();
                let theirs = (linear(&x, &w, bias).unwrap() + (low * 0.7).unwrap()).unwrap();
                same(&[&x, &a, &b], &ours, &theirs);
            }
            let (new, plain) = (var(&[out, rank], 6).zeros_like().unwrap(), linear(&x, &w, None).unwrap());
            same(&[&x], &linear_adapted(&x, &w, None, [&a, &new], 0.7).unwrap(), &plain);
            assert!(linear_adapted(&x, &w, None, [&b, &a], 1.0).is_err());
        }
    }
}
