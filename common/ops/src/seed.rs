//! The start of a backward pass.

use std::sync::Mutex;

use candle_core::{CpuStorage, CudaStorage, Layout, Result, Shape, Tensor, backprop::GradStore};

use super::kernel::{Adapter, Op};

/// The backward pass that begins with `gy`, the gradient of `y`. candle begins with 1 at one number: here that number is not computed.
pub fn backward_from(y: &Tensor, gy: &Tensor) -> Result<GradStore> {
    y.apply_op1(Adapter(Seed(Mutex::new(gy.clone()))))?.backward()
}

struct Seed(Mutex<Tensor>);

impl Op<1> for Seed {
    const NAME: &'static str = "seed";

    fn cpu(&self, _: [(&CpuStorage, &Layout); 1]) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, [y]: [super::cuda::Operand; 1]) -> Result<(CudaStorage, Shape)> {
        let device = super::cuda::device(y);
        Ok((super::cuda::storage(super::cuda::room::<f32>(device, 1)?, device), Shape::from(())))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(&self, _: [(&CudaStorage, &Layout); 1]) -> Result<(CudaStorage, Shape)> {
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }

    fn backward(&self, _: [&Tensor; 1], _: &Tensor) -> Result<[Option<Tensor>; 1]> {
        Ok([self.0.lock().ok().map(|gy| gy.clone())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{close, var};

    #[test]
    fn a_backward_pass_begins_with_a_gradient() {
        let (x, gy) = (var(&[3, 4], 1), var(&[3, 4], 2).as_detached_tensor());
        let y = x.sqr().unwrap();
        let ours = backward_from(&y, &gy).unwrap().remove(&x).unwrap();
        let theirs = (y * gy).unwrap().sum_all().unwrap().backward().unwrap().remove(&x).unwrap();
        close(&ours, &theirs, "gradient");
    }
}
