//! The batches of a run, prepared on other threads while the networks work on earlier ones.

use anyhow::{Context, Result};
use candle_core::Device;
use nets::process::Process;
use pipe::ahead::{Ahead, OnSignal};
use rayon::{ThreadPool, ThreadPoolBuilder};

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
    share: Share,
    /// Micro-batches that are made before they are asked for.
    ready: usize,
    /// `None` if the data were lost with the thread that read them.
    batches: Option<Ahead<Maker>>,
}

/// Makes one micro-batch after the other.
struct Maker {
    data: TrainingData,
    share: Share,
    process: Process,
    device: Device,
    /// Threads of its own: those of the networks are busy, or wait for these.
    threads: Option<ThreadPool>,
    next: u64,
    end: u64,
    /// Earlier steps whose pairs are not used.
    skipped: u64,
}

impl Iterator for Maker {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        if self.next == self.end {
            return None;
        }
        // Samples are counted, not batches.
        let i = self.next + self.skipped * self.share.micro_batches() as u64;
        self.next += 1;
        let make = |data: &mut TrainingData| data.make_batch(i, self.share.samples(i), &self.process, &self.device);
        Some(match &self.threads {
            Some(threads) => threads.install(|| make(&mut self.data)),
            None => make(&mut self.data),
        })
    }
}

/// Micro-batches that are made ahead. A few are enough to hide the work, and each may hold decoded images.
const READY: usize = 3;

impl Batches {
    /// The batches of a run of `steps` steps, of which this process takes its share.
    pub fn new(
        data: TrainingData,
        share: Share,
        steps: u64,
        process: &Process,
        device: &Device,
        flags: LoaderFlags,
    ) -> Result<Self> {
        let workers = flags.dataloader_num_workers;
        let pool = || ThreadPoolBuilder::new().num_threads(workers).build();
        let threads = (workers > 0).then(pool).transpose()?;
        let end = steps * share.micro_batches() as u64;
        let (process, device) = (process.clone(), device.clone());
        let maker = Maker { data, share: share.clone(), process, device, threads, next: 0, end, skipped: 0 };
        let ready = if workers > 0 { READY } else { 0 };
        Ok(Self { share, ready, batches: Some(Ahead::new(maker, 0)?) })
    }

    /// Continues with the first batch after `step` finished steps, of a run that has skipped the pairs of `skipped` steps.
    pub fn go_to(&mut self, step: u64, skipped: u64) -> Result<()> {
        let mut maker = self.batches.take().context(LOST)?.into_inner()?;
        (maker.next, maker.skipped) = (step * self.per_step() as u64, skipped);
        // A signal does not end the waiting: the step at hand is finished and saved.
        self.batches = Some(Ahead::new(maker, self.ready)?.on_signal(OnSignal::Wait));
        Ok(())
    }

    /// Micro-batches per step of this process.
    pub fn per_step(&self) -> usize {
        self.share.micro_batches()
    }

    /// Pairs per micro-batch, at most.
    pub fn pairs_at_once(&self) -> usize {
        self.share.pairs_at_once()
    }

    pub fn take(&mut self, n: usize) -> Result<Vec<Batch>> {
        let batches = self.batches.as_mut().context(LOST)?;
        (0..n).map(|_| batches.next().context("the run has no further batch")?).collect()
    }
}

const LOST: &str = "the training data were lost with the thread that read them";
