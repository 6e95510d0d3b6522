//! A result that is there already, as a function of its operands with a backward pass of its own: for devices without kernels
//! of ours, where the history of candle's operations would take too much memory or a slow way back.

use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor, backend::BackendStorage, bail,
};

/// Gradients of the three operands; `None` where nobody asks for it.
pub type Three = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// `y`, computed from `operands` without history, with the backward pass `back`: of the operands and the gradient by y, all
/// without history, and of which gradients are asked for.
pub fn given(
    y: Tensor,
    operands: [&Tensor; 3],
    back: impl Fn([&Tensor; 3], &Tensor, [bool; 3]) -> Result<Three> + Send + Sync + 'static,
) -> Result<Tensor> {
    if operands.iter().all(|t| !t.track_op()) {
        return Ok(y);
    }
    let y = Mutex::new(Some(y.contiguous()?));
    operands[0].apply_op3(operands[1], operands[2], Given { y, back })
}

struct Given<B> {
    /// Handed over in the forward pass, which comes once.
    y: Mutex<Option<Tensor>>,
    back: B,
}

impl<B> Given<B> {
    fn take(&self) -> Result<Tensor> {
        match self.y.lock().map(|mut y| y.take()) {
            Ok(Some(y)) => Ok(y),
            _ => bail!("a result that was given is gone"),
        }
    }
}

impl<B: Fn([&Tensor; 3], &Tensor, [bool; 3]) -> Result<Three> + Send + Sync> CustomOp3 for Given<B> {
    fn name(&self) -> &'static str {
        "given"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.take()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("a result lies on another device than its operands"),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let y = self.take()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("a result lies on another device than its operands"),
        }
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, c: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Three> {
        let asked = [a, b, c].map(Tensor::track_op);
        let [a, b, c] = [a, b, c].map(Tensor::detach);
        let (ga, gb, gc) = (self.back)([&a, &b, &c], &gy.detach(), asked)?;
        // candle adds up whatever it is given, asked for or not.
        Ok((ga.filter(|_| asked[0]), gb.filter(|_| asked[1]), gc.filter(|_| asked[2])))
    }
}
