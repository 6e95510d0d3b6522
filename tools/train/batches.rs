//! The batches of a run, prepared on other threads while the networks work on earlier ones.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use candle_core::Device;
use nets::process::Process;

use crate::{data::Batch, training_data::TrainingData, world::Share};

#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Runs")]
pub struct LoaderFlags {
    /// Threads that read and prepare the data ahead (0: none); results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 1)]
    dataloader_num_workers: usize,
}

/// The micro-batches of a run in order, from any step on.
pub struct Batches {
    maker: Maker,
    workers: usize,
    end: u64,
    progress: Progress,
}

#[derive(Clone)]
struct Maker {
    share: Share,
    process: Process,
    device: Device,
}

impl Maker {
    /// Micro-batch `i` after `skipped` steps whose pairs are not used. Samples are counted, not batches.
    fn make(&self, data: &mut TrainingData, i: u64, skipped: u64) -> Result<Batch> {
        let i = i + skipped * self.share.micro_batches() as u64;
        data.make_batch(i, self.share.samples(i), &self.process, &self.device)
    }
}

enum Progress {
    /// Each micro-batch is made when it is asked for.
    OnDemand { data: Box<TrainingData>, next: u64, skipped: u64 },
    /// A thread makes them ahead.
    Ahead { ready: Receiver<Result<Batch>>, worker: JoinHandle<TrainingData> },
    /// The data were lost with the thread that read them.
    Lost,
}

/// Micro-batches that wait at most. A few are enough to hide the work, and each may hold decoded images.
const WAITING: usize = 2;

impl Batches {
    /// The batches of a run of `steps` steps, of which this process takes its share.
    pub fn new(
        data: TrainingData,
        share: Share,
        steps: u64,
        process: &Process,
        device: &Device,
        flags: LoaderFlags,
    ) -> Self {
        let end = steps * share.micro_batches() as u64;
        let maker = Maker { share, process: process.clone(), device: device.clone() };
        let progress = Progress::OnDemand { data: Box::new(data), next: 0, skipped: 0 };
        Self { maker, workers: flags.dataloader_num_workers, end, progress }
    }

    /// Continues with the first batch after `step` finished steps, of a run that has skipped the pairs of `skipped` steps.
    pub fn go_to(&mut self, step: u64, skipped: u64) -> Result<()> {
        let mut data = match std::mem::replace(&mut self.progress, Progress::Lost) {
            Progress::OnDemand { data, .. } => *data,
            Progress::Ahead { ready, worker } => {
                drop(ready); // the worker ends when nobody receives
                worker.join().map_err(|_| anyhow!("the thread that reads the data has died"))?
            }
            Progress::Lost => return Err(lost()),
        };
        let mut next = step * self.per_step() as u64;
        if self.workers == 0 {
            self.progress = Progress::OnDemand { data: Box::new(data), next, skipped };
            return Ok(());
        }
        // Threads of their own: those of the networks are busy, or wait for these.
        let workers = rayon::ThreadPoolBuilder::new().num_threads(self.workers).build()?;
        let (send, ready) = sync_channel(WAITING);
        let (maker, end) = (self.maker.clone(), self.end);
        let work = move || {
            workers.install(|| {
                while next < end {
                    let batch = maker.make(&mut data, next, skipped);
                    let failed = batch.is_err();
                    if send.send(batch).is_err() || failed {
                        break;
                    }
                    next += 1;
                }
            });
            data
        };
        let worker = std::thread::Builder::new().name("data".into()).spawn(work).context("cannot start a thread")?;
        self.progress = Progress::Ahead { ready, worker };
        Ok(())
    }

    /// Micro-batches per step of this process.
    pub fn per_step(&self) -> usize {
        self.maker.share.micro_batches()
    }

    /// Pairs per micro-batch, at most.
    pub fn pairs_at_once(&self) -> usize {
        self.maker.share.pairs_at_once()
    }

    pub fn take(&mut self, n: usize) -> Result<Vec<Batch>> {
        (0..n).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> Result<Batch> {
        match &mut self.progress {
            Progress::OnDemand { data, next, skipped } => {
                *next += 1;
                self.maker.make(data, *next - 1, *skipped)
            }
            Progress::Ahead { ready, .. } => ready.recv().context("the thread that reads the data has ended")?,
            Progress::Lost => Err(lost()),
        }
    }
}

fn lost() -> anyhow::Error {
    anyhow!("the training data were lost with the thread that read them")
}
