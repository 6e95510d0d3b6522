//! Sums on GPUs: NCCL on the stream that candle computes on, so that nothing has to wait for anything.

use std::ops::Range;

use anyhow::{Result, anyhow};
use candle_core::{
    CudaDevice, CudaStorage, Error, Result as Candle,
    cuda_backend::cudarc::nccl::safe::{Comm, Id, ReduceOp},
};
use mpi::{topology::SimpleCommunicator, traits::*};

pub struct Nccl(Comm);

impl Nccl {
    /// Rank 0 makes the name under which all meet; MPI passes it on.
    pub fn new(device: &CudaDevice, world: &SimpleCommunicator) -> Result<Self> {
        let failed = |error| anyhow!("NCCL does not start: {error:?}");
        let mut name = [0; 128];
        if world.rank() == 0 {
            name = *Id::new().map_err(failed)?.internal();
        }
        world.process_at_rank(0).broadcast_into(&mut name[..]);
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Ok(Self(Comm::from_rank(device.cuda_stream(), rank, size, Id::uninit(name)).map_err(failed)?))
    }

    /// Elements `range` become their sum over all processes.
    pub fn sum(&self, storage: &mut CudaStorage, range: Range<usize>) -> Candle<()> {
        let mut values = storage.as_cuda_slice_mut::<f32>()?.slice_mut(range);
        match self.0.all_reduce_in_place(&mut values, &ReduceOp::Sum) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Msg(format!("NCCL cannot sum: {error:?}"))),
        }
    }
}
