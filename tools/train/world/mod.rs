//! Several processes on one training run, one per device: which one this is, which pairs it works on, and the one place where
//! gradients are summed. In a run of one process, none of this does anything.
//!
//!   mpirun -n 4 train latents --labels labels.parquet --base sd15 -o policy       (a build with --features mpi)

mod launch;
#[cfg(feature = "mpi")]
mod ranks;
mod share;

pub use share::{BatchFlags, Share};

use std::{env, process, thread, time::Duration};

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use launch::Launch;
use nets::params::Grads;
use pipe::cli::{self, Answer};
use pipe::stop::{self, Stopped};
use pipe::{device, id};

use crate::loss::{Errors, Pair, PairLoss};

/// Bytes of gradients that are sent and received at once: the memory that a process needs beyond that of a run of its own.
const BUCKET: usize = 25_000_000;

/// The processes of one job, and the messages between them.
trait Ranks {
    fn rank(&self) -> usize;

    fn size(&self) -> usize;

    fn attach(&mut self, device: &Device) -> Result<()>;

    fn wait_for_all(&self);

    /// The numbers of all processes, equally many from each, in the order of the ranks.
    fn gather(&self, mine: &[f64]) -> Vec<f64>;

    fn largest(&self, mine: u64) -> u64;

    /// Replaces `x` (f32, contiguous) by its sum over all processes.
    fn sum(&self, x: &Tensor) -> Result<()>;

    /// Ends all processes, wherever they are, with this exit code.
    fn abort(&self, code: u8) -> !;
}

pub struct World {
    ranks: Option<Box<dyn Ranks>>,
    launch: Option<Launch>,
}

impl World {
    /// Joins the processes that mpirun or srun started together with this one.
    pub fn join() -> Result<Self> {
        let launch = Launch::read(|name| env::var(name).ok());
        let Some(started) = launch else { return Ok(Self { ranks: None, launch }) };
        let ranks: Option<Box<dyn Ranks>> = match started.joined {
            #[cfg(feature = "mpi")]
            true => Some(Box::new(ranks::Mpi::join()?)),
            _ => None,
        };
        let size = ranks.as_ref().map_or(1, |ranks| ranks.size());
        if started.size > 1 && size == 1 {
            if started.rank > 0 {
                // All processes come here, and one of them reports it.
                thread::sleep(Duration::from_secs(1));
                process::exit(2);
            }
            bail!(started.separation_error());
        }
        Ok(Self { ranks, launch })
    }

    pub fn rank(&self) -> usize {
        self.ranks.as_ref().map_or(0, |ranks| ranks.rank())
    }

    pub fn size(&self) -> usize {
        self.ranks.as_ref().map_or(1, |ranks| ranks.size())
    }

    /// Whether this is the process that writes files and messages.
    pub fn first(&self) -> bool {
        self.rank() == 0
    }

    /// The GPU that `--device cuda` means in this process: each process has one. A process that sees a single GPU calls it 0.
    pub fn device(&self, asked: device::Device) -> device::Device {
        match (asked, self.launch) {
            (device::Device::Cuda(_), Some(launch)) if self.size() > 1 => {
                device::Device::Cuda(launch.local % ops::visible_gpus().max(1))
            }
            _ => asked,
        }
    }

    /// Prepares the sums of gradients on this device.
    pub fn attach(&mut self, device: &Device) -> Result<()> {
        let alone = self.size() == 1;
        self.ranks.as_mut().filter(|_| !alone).map_or(Ok(()), |ranks| ranks.attach(device))
    }

    pub fn note(&self, share: &Share) -> Option<String> {
        let size = self.size();
        (size > 1).then(|| format!("{size} processes, each with {} pairs per step", share.pairs()))
    }

    /// Does `work` in the first process, then in the others, so that files are put in order by one process alone.
    pub fn first_then_others<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let wait = || self.ranks.iter().for_each(|ranks| ranks.wait_for_all());
        if !self.first() {
            wait();
        }
        let done = work()?;
        if self.first() {
            wait();
        }
        Ok(done)
    }

    /// Makes sure that all processes begin the same run. `things`: what must be the same, by name and content.
    pub fn agree(&self, things: &[(&str, String)]) -> Result<()> {
        // 48 bits of a hash are a whole number in f64.
        let hash = |(_, text): &(&str, String)| {
            id::sha256(text.as_bytes())[..6].iter().fold(0.0, |n, byte| n * 256.0 + f64::from(*byte))
        };
        let all = self.gather(&things.iter().map(hash).collect::<Vec<_>>());
        for (rank, theirs) in all.chunks(things.len()).enumerate() {
            if let Some(i) = (0..things.len()).find(|&i| theirs[i] != all[i]) {
                bail!(
                    "process {rank} differs from process 0 in its {}; all must be the same, on every host",
                    things[i].0
                );
            }
        }
        Ok(())
    }

    /// The pairs of all processes in the order of the step.
    pub fn gather_pairs(&self, mine: Vec<Pair>) -> Vec<Pair> {
        if self.size() == 1 {
            return mine;
        }
        let numbers = |Pair { errors: e, loss, norm_ratio, tenth }: &Pair| {
            let errors = [e.policy_winner, e.policy_loser, e.reference_winner, e.reference_loser];
            errors.into_iter().chain([loss.z, loss.loss]).chain(loss.gradient).chain([*norm_ratio, *tenth as f64])
        };
        let all = self.gather(&mine.iter().flat_map(numbers).collect::<Vec<_>>());
        let pair = |n: &[f64]| {
            let errors =
                Errors { policy_winner: n[0], policy_loser: n[1], reference_winner: n[2], reference_loser: n[3] };
            Pair {
                errors,
                loss: PairLoss { z: n[4], loss: n[5], gradient: [n[6], n[7]] },
                norm_ratio: n[8],
                tenth: n[9] as usize,
            }
        };
        all.chunks_exact(10).map(pair).collect()
    }

    fn gather(&self, mine: &[f64]) -> Vec<f64> {
        self.ranks.as_ref().map_or_else(|| mine.to_vec(), |ranks| ranks.gather(mine))
    }

    /// The signal that has reached any of the processes, so that all stop at the same step.
    pub fn stop_requested(&self) -> Option<Stopped> {
        let mine = stop::requested().map_or(0, |stopped| stopped.0);
        let any = self.ranks.as_ref().map_or(mine, |ranks| ranks.largest(u64::from(mine)) as u8);
        (any > 0).then_some(Stopped(any, ""))
    }

    /// Replaces gradients by their sums over all processes, bucket by bucket, in the order of their names.
    pub fn sum(&self, grads: &mut Grads) -> Result<()> {
        let Some(ranks) = self.ranks.as_deref().filter(|_| self.size() > 1) else { return Ok(()) };
        let room = BUCKET / size_of::<f32>() / 3; // three buffers: gathered, sent, received
        let (mut bucket, mut filled) = (vec![], 0);
        for grad in grads.values_mut() {
            *grad = grad.contiguous()?;
            let (flat, n, mut from) = (grad.flatten_all()?, grad.elem_count(), 0);
            while from < n {
                let take = (n - from).min(room - filled);
                bucket.push(flat.narrow(0, from, take)?);
                (from, filled) = (from + take, filled + take);
                if filled == room {
                    sum_bucket(ranks, &std::mem::take(&mut bucket))?;
                    filled = 0;
                }
            }
        }
        sum_bucket(ranks, &bucket)
    }

    /// Ends this process's part. An error in one process ends all, because the others would wait for it forever.
    pub fn leave(self, answer: Result<Answer>) -> Result<Answer> {
        let rank = self.rank();
        let Some(ranks) = self.ranks else { return answer };
        match answer {
            Err(error) if !error.is::<Stopped>() => {
                // Where all have the same error, the first reports it and ends the others before they report it too.
                thread::sleep(Duration::from_millis(200) * rank.min(10) as u32);
                cli::complain("train", &error);
                ranks.abort(2)
            }
            answer => {
                drop(ranks); // which ends MPI
                match answer {
                    Err(error) if rank > 0 => process::exit(cli::exit_code(&error).into()),
                    answer => answer,
                }
            }
        }
    }
}

/// Sums many small tensors, (n) each, in one message.
fn sum_bucket(ranks: &dyn Ranks, parts: &[Tensor]) -> Result<()> {
    match parts {
        [] => Ok(()),
        [one] => ranks.sum(one),
        many => {
            let all = Tensor::cat(many, 0)?;
            ranks.sum(&all)?;
            let mut from = 0;
            for part in many {
                let n = part.elem_count();
                part.slice_set(&all.narrow(0, from, n)?, 0, 0)?;
                from += n;
            }
            Ok(())
        }
    }
}
