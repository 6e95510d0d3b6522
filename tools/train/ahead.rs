//! Batches are made on other threads while the networks work on those before.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread::JoinHandle,
};

use anyhow::{Context, Result, anyhow};
use candle_core::Device;
use nets::noise::Schedule;

use crate::{
    args::Args,
    source::{Batch, Source},
    state::Counters,
    world::Share,
};

/// The batches of a run in order, from any step on.
pub struct Batches {
    share: Share,
    args: Args,
    schedule: Schedule,
    device: Device,
    from: From,
}

enum From {
    /// Each is made when it is asked for.
    Here {
        source: Box<Source>,
        next: u64,
        skipped: u64,
    },
    Ahead {
        ready: Receiver<Result<Batch>>,
        worker: JoinHandle<Source>,
    },
    /// Between two of the others.
    Nowhere,
}

/// Micro-batches that wait at most: one is enough to hide the work, and each may hold decoded images.
const WAITING: usize = 2;

impl Batches {
    pub fn new(source: Source, share: Share, args: &Args, schedule: &Schedule, device: &Device) -> Self {
        let here = From::Here { source: Box::new(source), next: 0, skipped: 0 };
        Self { share, args: args.clone(), schedule: schedule.clone(), device: device.clone(), from: here }
    }

    /// What comes next is the first batch after `counters.step` finished steps. Making batches ahead changes none of them.
    pub fn go_to(&mut self, counters: &Counters) -> Result<()> {
        let mut source = match std::mem::replace(&mut self.from, From::Nowhere) {
            From::Here { source, .. } => *source,
            From::Ahead { ready, worker } => {
                drop(ready); // the worker ends when nobody listens
                worker.join().map_err(|_| anyhow!("the thread that reads the data has died"))?
            }
            From::Nowhere => return Err(anyhow!("the data are gone")),
        };
        let micro_batches = self.share.micro_batches() as u64;
        let (mut next, skipped) = (counters.step * micro_batches, counters.skipped);
        if self.args.dataloader_num_workers == 0 {
            self.from = From::Here { source: Box::new(source), next, skipped };
            return Ok(());
        }
        let workers = rayon::ThreadPoolBuilder::new().num_threads(self.args.dataloader_num_workers).build()?;
        let (share, schedule, device) = (self.share.clone(), self.schedule.clone(), self.device.clone());
        let (send, ready) = sync_channel(WAITING);
        let end = self.args.max_train_steps * micro_batches;
        let work = move || {
            // Threads of their own: those of the networks are busy, or wait for these.
            workers.install(|| {
                while next < end {
                    let batch = source.batch(&share, next + skipped * micro_batches, &schedule, &device);
                    let failed = batch.is_err();
                    if send.send(batch).is_err() || failed {
                        break;
                    }
                    next += 1;
                }
            });
            source
        };
        let worker = std::thread::Builder::new().name("data".into()).spawn(work).context("cannot start a thread")?;
        self.from = From::Ahead { ready, worker };
        Ok(())
    }

    /// Micro-batches of one step.
    pub fn a_step(&self) -> usize {
        self.share.micro_batches()
    }

    /// The next `n` micro-batches.
    pub fn take(&mut self, n: usize) -> Result<Vec<Batch>> {
        let micro_batches = self.share.micro_batches() as u64;
        (0..n)
            .map(|_| match &mut self.from {
                From::Here { source, next, skipped } => {
                    *next += 1;
                    source.batch(&self.share, *next - 1 + *skipped * micro_batches, &self.schedule, &self.device)
                }
                From::Ahead { ready, .. } => ready.recv().context("the thread that reads the data has ended")?,
                From::Nowhere => Err(anyhow!("the data are gone")),
            })
            .collect()
    }
}
