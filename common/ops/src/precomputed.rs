//! A precomputed result as an operation with a backward pass of its own. For devices without kernels of ours, where candle's
//! own graph would need too much memory or time.

use std::sync::Mutex;

use candle_core::{CpuStorage, CudaStorage, Layout, Result, Shape, Storage, Tensor, backend::BackendStorage, bail};

use super::accumulate::take_sums;
use super::kernel::{Adapter, Op};

/// Gives `y`, which was computed from `operands` without history, the backward pass `backward`. That takes the operands, the
/// gradient of `y` (all without history), and which gradients are wanted; what it returns beyond those is dropped.
pub(crate) fn with_backward(
    y: impl Into<Computed>,
    operands: [&Tensor; 3],
    backward: impl Fn([&Tensor; 3], &Tensor, [bool; 3]) -> Result<[Option<Tensor>; 3]> + Send + Sync + 'static,
) -> Result<Tensor> {
    let y = y.into();
    if operands.iter().all(|t| !t.track_op()) {
        return Ok(y.tensor());
    }
    operands[0].apply_op3(operands[1], operands[2], Adapter(Precomputed { y: Mutex::new(Some(y)), backward }))
}

/// A result.
pub(crate) enum Computed {
    Tensor(Tensor),
    /// All of a tensor's content: candle would copy it out of a tensor.
    #[cfg(feature = "cuda")]
    Cuda(CudaStorage, Shape),
}

impl From<Tensor> for Computed {
    fn from(y: Tensor) -> Self {
        Computed::Tensor(y)
    }
}

impl Computed {
    pub(crate) fn tensor(self) -> Tensor {
        match self {
            Computed::Tensor(y) => y,
            #[cfg(feature = "cuda")]
            Computed::Cuda(y, shape) => {
                Tensor::from_storage(Storage::Cuda(y), shape, candle_core::op::BackpropOp::none(), false)
            }
        }
    }
}

struct Precomputed<B> {
    /// Handed over in the forward pass, which runs once.
    y: Mutex<Option<Computed>>,
    backward: B,
}

impl<B> Precomputed<B> {
    fn take(&self) -> Result<Computed> {
        match self.y.lock().map(|mut y| y.take()) {
            Ok(Some(y)) => Ok(y),
            _ => bail!("a precomputed result was asked for twice"),
        }
    }
}

/// candle takes the storage alone, in which the result must begin at the first number.
fn storage<S: BackendStorage>(y: Tensor, of: impl Fn(&Storage) -> Option<&S>) -> Result<(S, Shape)> {
    let starts = y.layout().contiguous_offsets().is_some_and(|(from, _)| from == 0);
    let y = if starts { y } else { y.force_contiguous()? };
    let (storage, layout) = y.storage_and_layout();
    match of(&storage) {
        Some(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
        None => bail!("a precomputed result lies on another device than its operands"),
    }
}

impl<B> Op<3> for Precomputed<B>
where
    B: Fn([&Tensor; 3], &Tensor, [bool; 3]) -> Result<[Option<Tensor>; 3]> + Send + Sync,
{
    const NAME: &'static str = "precomputed";

    fn cpu(&self, _: [(&CpuStorage, &Layout); 3]) -> Result<(CpuStorage, Shape)> {
        storage(self.take()?.tensor(), |storage| if let Storage::Cpu(storage) = storage { Some(storage) } else { None })
    }

    fn cuda(&self, _: [(&CudaStorage, &Layout); 3]) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            #[cfg(feature = "cuda")]
            Computed::Cuda(y, shape) => Ok((y, shape)),
            Computed::Tensor(y) => {
                storage(y, |storage| if let Storage::Cuda(storage) = storage { Some(storage) } else { None })
            }
        }
    }

    fn backward(&self, operands: [&Tensor; 3], gy: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let wanted = operands.map(Tensor::track_op);
        let [a, b, c] = operands.map(Tensor::detach);
        let [ga, gb, gc] = (self.backward)([&a, &b, &c], &gy.detach(), wanted)?;
        // candle adds up whatever it is given, wanted or not.
        take_sums(operands, [ga.filter(|_| wanted[0]), gb.filter(|_| wanted[1]), gc.filter(|_| wanted[2])])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    #[test]
    fn a_result_may_be_part_of_a_tensor() {
        let x = var(&[4, 3], 1);
        let middle = |x: &Tensor| x.narrow(0, 1, 2).unwrap();
        let ours = with_backward(middle(&x.as_detached_tensor()), [x.as_tensor(); 3], |_, gy, _| {
            Ok([Some(gy.pad_with_zeros(0, 1, 1)?), None, None])
        });
        same(&[&x], &ours.unwrap(), &middle(&x));
    }
}
