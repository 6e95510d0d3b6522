//! An operation in all its forms, and the one adapter that hands it to candle.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, DType, Device, Error, Layout, Result, Shape, Tensor};

use super::accumulate::add_to_sum;
#[cfg(feature = "cuda")]
use super::accumulate::take_sums;
#[cfg(feature = "cuda")]
use super::cuda;
use super::values::{values, with_values};
use super::way::is_composed;

/// A differentiable operation on N tensors.
///
/// A public function checks the shapes and calls [`apply1`] or [`apply3`]. A kernel for GPUs stands beside the one for CPUs: its
/// types in `CUDA`, its launches in `forward_cuda` and `backward_cuda`, its code in `kernels.cu`.
pub(crate) trait Kernel<const N: usize>: Send + Sync + 'static {
    const NAME: &'static str;

    /// Types of the first operand that the CUDA passes take. The passes below for the CPU take f32.
    const CUDA: &'static [DType] = &[];

    /// Whether a GPU has confirmed the passes for f32. If not, `BDPO_GPU=composed` takes the composition.
    const CONFIRMED: bool = true;

    /// The shape of the result, from those of the operands: that of the first, unless an operation says otherwise.
    fn shape(&self, operands: [&[usize]; N]) -> Vec<usize> {
        operands[0].to_vec()
    }

    /// The result on the CPU, in row-major order like every operand.
    fn forward(&self, operands: [Operand; N]) -> Vec<f32>;

    /// The gradients of the operands on the CPU, from that of the result.
    fn backward(&self, _operands: [Operand; N], _gy: &[f32], _grads: [&mut Gradient; N]) -> Result<()> {
        Err(Error::BackwardNotSupported { op: Self::NAME })
    }

    /// The same operation made of candle's: for other devices and types, and what tests compare the kernels with.
    fn composed(&self, operands: [&Tensor; N]) -> Result<Tensor>;

    /// The result on a GPU, of contiguous operands.
    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, _operands: [cuda::Operand; N]) -> Result<CudaStorage> {
        Err(Error::Msg(format!("{} has no kernel for GPUs", Self::NAME)))
    }

    /// The gradients of the operands on a GPU, from that of the result.
    #[cfg(feature = "cuda")]
    fn backward_cuda(&self, _operands: [&Tensor; N], _gy: &Tensor) -> Result<[Option<Tensor>; N]> {
        Err(Error::BackwardNotSupported { op: Self::NAME })
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub values: &'a [f32],
    pub dims: &'a [usize],
}

/// Where the gradient of an operand goes. Nothing is computed for an operand that needs none.
pub(crate) struct Gradient<'a> {
    operand: &'a Tensor,
    values: Option<Vec<f32>>,
}

impl Gradient<'_> {
    /// The gradient is what `make` returns.
    pub fn set(&mut self, make: impl FnOnce() -> Vec<f32>) {
        self.values = self.operand.track_op().then(make);
    }

    /// The gradient is what `add` adds to a slice: to the sum of a parameter inside [`super::accumulate`], else to zeros.
    pub fn add(&mut self, add: impl FnOnce(&mut [f32])) -> Result<()> {
        if self.operand.track_op()
            && let Some(add) = add_to_sum(self.operand, add)?
        {
            let mut values = vec![0f32; self.operand.elem_count()];
            add(&mut values);
            self.values = Some(values);
        }
        Ok(())
    }
}

/// Applies `kernel` where it has passes for the device and type of `x`, else its composition.
pub(crate) fn apply1<K: Kernel<1>>(kernel: K, x: &Tensor) -> Result<Tensor> {
    if has_passes::<K, 1>(x) { x.contiguous()?.apply_op1(Adapter(kernel)) } else { kernel.composed([x]) }
}

/// Applies `kernel` where it has passes for the device and type of the first operand, else its composition.
pub(crate) fn apply3<K: Kernel<3>>(kernel: K, [a, b, c]: [&Tensor; 3]) -> Result<Tensor> {
    if has_passes::<K, 3>(a) {
        a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, Adapter(kernel))
    } else {
        kernel.composed([a, b, c])
    }
}

/// Whether a kernel takes a tensor as it is.
pub(crate) fn has_passes<K: Kernel<N>, const N: usize>(x: &Tensor) -> bool {
    match x.device() {
        Device::Cpu => x.dtype() == DType::F32,
        Device::Cuda(_) => {
            K::CUDA.contains(&x.dtype()) && ((K::CONFIRMED && x.dtype() == DType::F32) || !is_composed())
        }
        Device::Metal(_) => false,
    }
}

/// What candle asks of an operation, for any number of operands.
pub(crate) trait Op<const N: usize> {
    const NAME: &'static str;

    fn cpu(&self, operands: [(&CpuStorage, &Layout); N]) -> Result<(CpuStorage, Shape)>;

    fn cuda(&self, operands: [(&CudaStorage, &Layout); N]) -> Result<(CudaStorage, Shape)>;

    fn backward(&self, operands: [&Tensor; N], gy: &Tensor) -> Result<[Option<Tensor>; N]>;
}

impl<K: Kernel<N>, const N: usize> Op<N> for K {
    const NAME: &'static str = K::NAME;

    fn cpu(&self, operands: [(&CpuStorage, &Layout); N]) -> Result<(CpuStorage, Shape)> {
        let mut ready = [Operand { values: &[], dims: &[] }; N];
        for (ready, (storage, layout)) in ready.iter_mut().zip(operands) {
            *ready = Operand { values: values(storage, layout)?, dims: layout.dims() };
        }
        let shape = self.shape(ready.map(|operand| operand.dims));
        Ok((CpuStorage::F32(self.forward(ready)), shape.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, operands: [cuda::Operand; N]) -> Result<(CudaStorage, Shape)> {
        let shape = self.shape(operands.map(|(_, layout)| layout.dims()));
        Ok((self.forward_cuda(operands)?, shape.into()))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(&self, _: [(&CudaStorage, &Layout); N]) -> Result<(CudaStorage, Shape)> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    fn backward(&self, operands: [&Tensor; N], gy: &Tensor) -> Result<[Option<Tensor>; N]> {
        #[cfg(feature = "cuda")]
        if gy.device().is_cuda() {
            return take_sums(operands, self.backward_cuda(operands, gy)?);
        }
        gradients(operands, gy, |ready, gy, grads| Kernel::backward(self, ready, gy, grads))
    }
}

/// The gradients that `fill` makes of operands on the CPU, from that of the result.
pub(crate) fn gradients<const N: usize>(
    operands: [&Tensor; N],
    gy: &Tensor,
    fill: impl FnOnce([Operand; N], &[f32], [&mut Gradient; N]) -> Result<()>,
) -> Result<[Option<Tensor>; N]> {
    let mut grads = operands.map(|operand| Gradient { operand, values: None });
    with_values(operands, |slices| {
        let ready = std::array::from_fn(|i| Operand { values: slices[i], dims: operands[i].dims() });
        with_values([gy], |[gy]| fill(ready, gy, grads.each_mut()))
    })???;
    let mut tensors = [const { None }; N];
    for (tensor, Gradient { operand, values }) in tensors.iter_mut().zip(grads) {
        *tensor = values.map(|g| Tensor::from_vec(g, operand.shape(), operand.device())).transpose()?;
    }
    Ok(tensors)
}

/// An operation as candle takes it: one of its traits for each number of operands.
pub(crate) struct Adapter<O>(pub O);

impl<O: Op<1>> CustomOp1 for Adapter<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.cpu([(x, layout)])
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.cuda([(x, layout)])
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let [gx] = self.0.backward([x], gy)?;
        Ok(gx)
    }
}

impl<O: Op<3>> CustomOp3 for Adapter<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
        c: &CpuStorage,
        lc: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.cpu([(a, la), (b, lb), (c, lc)])
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        la: &Layout,
        b: &CudaStorage,
        lb: &Layout,
        c: &CudaStorage,
        lc: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.cuda([(a, la), (b, lb), (c, lc)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.0.backward([a, b, c], gy)?.into())
    }
}
