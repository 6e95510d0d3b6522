//! Sums over the GPUs of several processes by NCCL, on the stream that candle computes on: so nothing has to wait for anything.

use std::ffi::c_char;

use candle_core::cuda_backend::cudarc::nccl::safe::{Comm, Id, ReduceOp};
use candle_core::{CpuStorage, CudaStorage, Device, Error, InplaceOp1, Layout, Result, Tensor, bail};

/// One process's place among those that sum together.
pub struct Communicator(Comm);

/// The identity of a group of processes: rank 0 makes it with [`identity`] and passes it on to the others.
pub type Identity = [c_char; 128];

pub fn identity() -> Result<Identity> {
    Ok(*Id::new().map_err(|e| Error::Msg(format!("NCCL does not start: {e:?}")))?.internal())
}

impl Communicator {
    /// Joins the group as `rank` of `size` processes, and waits for the others.
    pub fn join(device: &Device, rank: usize, size: usize, identity: Identity) -> Result<Self> {
        let stream = device.as_cuda_device()?.cuda_stream();
        match Comm::from_rank(stream, rank, size, Id::uninit(identity)) {
            Ok(comm) => Ok(Self(comm)),
            Err(e) => bail!("NCCL does not start: {e:?}"),
        }
    }

    /// `x` (f32, contiguous, on the GPU of this process) becomes its sum over all processes, in place.
    pub fn sum(&self, x: &Tensor) -> Result<()> {
        x.inplace_op1(self)
    }
}

impl InplaceOp1 for Communicator {
    fn name(&self) -> &'static str {
        "sum over processes"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("NCCL sums tensors on GPUs only")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let Some((from, to)) = layout.contiguous_offsets() else { bail!("NCCL sums contiguous tensors only") };
        let mut values = storage.as_cuda_slice_mut::<f32>()?.slice_mut(from..to);
        match self.0.all_reduce_in_place(&mut values, &ReduceOp::Sum) {
            Ok(_) => Ok(()),
            Err(e) => bail!("NCCL cannot sum: {e:?}"),
        }
    }
}
