//! The processes of one MPI job.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use mpi::traits::{Communicator, CommunicatorCollectives};
use mpi::{Threading, collective::SystemOperation, environment::Universe, topology::SimpleCommunicator};

#[cfg(feature = "nccl")]
use {mpi::traits::Root, ops::nccl};

use super::Ranks;

pub struct Mpi {
    world: SimpleCommunicator,
    #[cfg(feature = "nccl")]
    nccl: Option<nccl::Communicator>,
    /// Dropped last: it ends MPI.
    _universe: Universe,
}

impl Mpi {
    pub fn join() -> Result<Self> {
        // Only one thread sends and receives.
        let (universe, _) =
            mpi::initialize_with_threading(Threading::Funneled).context("MPI does not start in this process")?;
        Ok(Self {
            world: universe.world(),
            #[cfg(feature = "nccl")]
            nccl: None,
            _universe: universe,
        })
    }

    /// Each process adds up its part of all vectors, pair by pair, and sends the result to the others, which costs the traffic of
    /// a ring. MPI's own sum is not used: its order, and with it the last bit, depends on the network, the length and the number
    /// of processes.
    fn sum_values(&self, values: &mut [f32]) {
        let n = self.size();
        let each = values.len().div_ceil(n);
        let mut whole = values.to_vec();
        whole.resize(n * each, 0.0);
        let mut part = vec![0f32; n * each]; // (n, each)
        self.world.all_to_all_into(&whole[..], &mut part[..]);
        for step in (0..).map(|k| 1 << k).take_while(|step| *step < n) {
            for left in (0..n - step).step_by(2 * step) {
                let (sums, others) = part.split_at_mut((left + step) * each);
                sums[left * each..][..each].iter_mut().zip(&others[..each]).for_each(|(sum, x)| *sum += x);
            }
        }
        self.world.all_gather_into(&part[..each], &mut whole[..]);
        values.copy_from_slice(&whole[..values.len()]);
    }
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn attach(&mut self, device: &Device) -> Result<()> {
        #[cfg(feature = "nccl")]
        if device.is_cuda() {
            let mut identity = if self.rank() == 0 { nccl::identity()? } else { [0; 128] };
            self.world.process_at_rank(0).broadcast_into(&mut identity[..]);
            self.nccl = Some(nccl::Communicator::join(device, self.rank(), self.size(), identity)?);
            return Ok(());
        }
        ensure!(device.is_cpu(), "several processes need NCCL to sum gradients on GPUs; build with --features nccl");
        Ok(())
    }

    fn wait_for_all(&self) {
        self.world.barrier();
    }

    fn gather(&self, mine: &[f64]) -> Vec<f64> {
        let mut all = vec![0.0; mine.len() * self.size()];
        self.world.all_gather_into(mine, &mut all[..]);
        all
    }

    fn largest(&self, mine: u64) -> u64 {
        let mut all = 0;
        self.world.all_reduce_into(&mine, &mut all, SystemOperation::max());
        all
    }

    fn sum(&self, x: &Tensor) -> Result<()> {
        #[cfg(feature = "nccl")]
        if let Some(nccl) = &self.nccl {
            return Ok(nccl.sum(x)?);
        }
        Ok(ops::write(x, |values| self.sum_values(values))?)
    }

    fn abort(&self, code: u8) -> ! {
        self.world.abort(i32::from(code))
    }
}

impl Drop for Mpi {
    /// Leaving MPI waits for the other processes, which a panic here would keep waiting: it ends them instead.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort(101);
        }
    }
}
