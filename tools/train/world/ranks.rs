//! The processes of one MPI job, and what they say to each other.

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result as Candle, Tensor, bail};
use mpi::{
    Threading,
    collective::SystemOperation,
    environment::Universe,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives},
};

#[cfg(feature = "nccl")]
use super::nccl::Nccl;

pub struct Ranks {
    world: SimpleCommunicator,
    #[cfg(feature = "nccl")]
    nccl: Option<Nccl>,
    /// Dropped last: it ends MPI.
    _universe: Universe,
}

impl Ranks {
    /// Joins the others that the launcher started.
    ///
    /// # Errors
    /// MPI cannot start.
    pub fn join() -> Result<Self> {
        // Only the thread that does all the talking.
        let (universe, _) =
            mpi::initialize_with_threading(Threading::Funneled).context("MPI does not start in this process")?;
        Ok(Self {
            world: universe.world(),
            #[cfg(feature = "nccl")]
            nccl: None,
            _universe: universe,
        })
    }

    pub fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    pub fn size(&self) -> usize {
        self.world.size() as usize
    }

    /// From here on tensors of this device are summed.
    pub fn attach(&mut self, device: &Device) -> Result<()> {
        #[cfg(feature = "nccl")]
        if let Device::Cuda(device) = device {
            self.nccl = Some(Nccl::new(device, &self.world)?);
            return Ok(());
        }
        ensure!(device.is_cpu(), "several processes sum gradients on GPUs by NCCL; build it with --features nccl");
        Ok(())
    }

    pub fn wait_for_all(&self) {
        self.world.barrier();
    }

    /// What every process brings, all of one length, in the order of the ranks.
    pub fn gather(&self, mine: &[f64]) -> Vec<f64> {
        let mut all = vec![0.0; mine.len() * self.size()];
        self.world.all_gather_into(mine, &mut all[..]);
        all
    }

    pub fn largest(&self, mine: u64) -> u64 {
        let mut all = 0;
        self.world.all_reduce_into(&mine, &mut all, SystemOperation::max());
        all
    }

    /// `x` (f32, contiguous) becomes its sum over all processes, in place.
    pub fn sum(&self, x: &Tensor) -> Result<()> {
        Ok(x.inplace_op1(&Sum(self))?)
    }

    /// Ends all processes, wherever they are, with this exit code.
    pub fn abort(&self, code: u8) -> ! {
        self.world.abort(i32::from(code))
    }

    /// Leaves MPI together with the others.
    pub fn leave(self) {
        drop(self);
    }
}

impl Drop for Ranks {
    /// To leave in peace is to wait for the others: not out of a panic, of which they know nothing.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort(101);
        }
    }
}

struct Sum<'a>(&'a Ranks);

impl InplaceOp1 for Sum<'_> {
    fn name(&self) -> &'static str {
        "sum over processes"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Candle<()> {
        let (CpuStorage::F32(values), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            bail!("gradients are summed as contiguous f32")
        };
        let values = &mut values[from..to];
        let mine = values.to_vec(); // the crate has no MPI_IN_PLACE
        self.0.world.all_reduce_into(&mine[..], values, SystemOperation::sum());
        Ok(())
    }

    #[cfg(feature = "nccl")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Candle<()> {
        match (&self.0.nccl, layout.contiguous_offsets()) {
            (Some(nccl), Some((from, to))) => nccl.sum(storage, from..to),
            _ => bail!("gradients are summed as contiguous f32, on the device of this process"),
        }
    }
}
