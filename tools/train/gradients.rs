//! The gradient of one optimiser step: micro-batches through reference and policy, one loss a pair, one sum over all.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use nets::{
    params::{self, Grads},
    prompt::Conditioning,
};
use rayon::prelude::*;

use crate::{
    ahead::Batches,
    args::Args,
    guard::Guard,
    loss::{Errors, PairLoss},
    method::Method,
    source::Batch,
    state::State,
};

/// What a pair says: its four errors and its part in the loss.
pub type Pair = (Errors, PairLoss);

/// Everything that one optimiser step learns from its batches.
#[derive(Default)]
pub struct Sum {
    /// In the order of the micro-batches.
    pub pairs: Vec<Pair>,
    /// Of the mean loss over these pairs.
    pub grads: Grads,
}

pipe::names! {
    /// What is kept of a forward pass for the backward pass.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Checkpointing {
        /// `on` for networks of 50 million weights and more, else `off`
        Auto = "auto",
        /// What enters each block, which is then computed twice: a fraction of the memory for a quarter more time
        On = "on",
        /// All activations
        Off = "off",
    }
}

/// How micro-batches go through the networks. It depends on the networks alone, so that the number of threads changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// On the CPU, small networks take one micro-batch a thread: that keeps threads busier than sharing every operation, but
    /// each needs activations and gradients of its own.
    side_by_side: bool,
    /// On the CPU, large gradients keep their memory from step to step.
    keeps_sums: bool,
    checkpointing: bool,
    /// What the networks compute in; weights, gradients and losses are f32.
    compute: DType,
}

impl Plan {
    pub fn of(state: &State, checkpointing: Checkpointing, compute: DType, device: &Device) -> Self {
        const SMALL: usize = 50_000_000; // parameters: 200 MB of gradients
        let trained: usize = state.policy.params.values().map(|p| p.elem_count()).sum();
        // Adapters are small, whatever they are beside.
        let small = trained < SMALL && state.counters.lora.is_none();
        let checkpointing = match checkpointing {
            Checkpointing::Auto => !small,
            Checkpointing::On => true,
            Checkpointing::Off => false,
        };
        Self { side_by_side: small && device.is_cpu(), keeps_sums: !small && device.is_cpu(), checkpointing, compute }
    }

    /// Micro-batches that `Sum::take` has in hand at a time.
    pub fn abreast(&self) -> usize {
        if self.side_by_side { rayon::current_num_threads() } else { 1 }
    }

    /// Pairs of a micro-batch at most. Small networks are as fast with few as with many, and so their sums are the same however
    /// the pairs of a step are split into batches and dealt out to processes.
    pub fn pairs_at_once(&self, train_batch_size: usize) -> usize {
        if self.side_by_side { train_batch_size.min(4) } else { train_batch_size }
    }
}

impl Sum {
    /// Learns the next step, or this process's share of it, from all its micro-batches.
    pub fn take(
        &mut self,
        plan: Plan,
        state: &State,
        batches: &mut Batches,
        args: &Args,
        method: &Method,
    ) -> Result<()> {
        self.pairs.clear();
        match plan.keeps_sums {
            true => params::zero(&self.grads)?,
            false => self.grads.clear(),
        }
        let scale = 1.0 / args.effective_batch() as f64; // the loss is a mean over the pairs of the whole step
        let one = |batch: &Batch, grads: &mut Grads| gradients(plan, state, batch, method, scale, grads);
        let micro_batches = batches.a_step();
        let mut sums = Pairwise::default();
        for first in (0..micro_batches).step_by(plan.abreast()) {
            let these = batches.take(plan.abreast().min(micro_batches - first))?;
            if !plan.side_by_side {
                for batch in &these {
                    self.pairs.extend(one(batch, &mut self.grads)?);
                }
                continue;
            }
            let done = these.par_iter().map(|batch| {
                let mut grads = Grads::new();
                Ok((one(batch, &mut grads)?, grads))
            });
            for (some, grads) in done.collect::<Result<Vec<_>>>()? {
                self.pairs.extend(some);
                sums.add(grads)?;
            }
        }
        params::add(&mut self.grads, sums.total()?)?;
        Ok(params::fill_missing(&state.policy.params, &mut self.grads)?)
    }
}

/// Sums of 1, 2, 4, 8 ... neighbours, of which two of a size become one: the tree in which processes add up theirs. So it makes
/// no difference, not in the last bit, how many processes the micro-batches of a step are dealt out to, where both numbers are
/// powers of two.
#[derive(Default)]
struct Pairwise(Vec<(usize, Grads)>);

impl Pairwise {
    fn add(&mut self, mut grads: Grads) -> Result<()> {
        let mut n = 1;
        while let Some((_, mut before)) = self.0.pop_if(|(size, _)| *size == n) {
            params::add(&mut before, grads)?;
            (grads, n) = (before, 2 * n);
        }
        self.0.push((n, grads));
        Ok(())
    }

    fn total(mut self) -> Result<Grads> {
        let mut total = self.0.pop().map(|(_, last)| last).unwrap_or_default();
        while let Some((_, mut before)) = self.0.pop() {
            params::add(&mut before, total)?;
            total = before;
        }
        Ok(total)
    }
}

/// One micro-batch: its pairs, and `scale` times the gradient of the sum of their losses added to `grads`.
fn gradients(
    plan: Plan,
    state: &State,
    batch: &Batch,
    method: &Method,
    scale: f64,
    grads: &mut Grads,
) -> Result<Vec<Pair>> {
    let schedule = &method.schedule;
    let noisy = schedule.add_noise(&batch.latents, &batch.noise, &batch.timesteps)?; // (2B, C, h, w)
    let target = schedule.target(&batch.latents, &batch.noise, &batch.timesteps)?; // (2B, C, h, w)
    let noisy = noisy.to_dtype(plan.compute)?;
    let told = Conditioning::cat(&[&batch.told, &batch.told])?.to_dtype(plan.compute)?; // 2B
    let added = told.added(&batch.sizes)?; // SDXL's
    let timesteps: Vec<f32> = batch.timesteps.iter().map(|&t| t as f32).collect();

    // The same arithmetic for both, so that equal weights give equal errors to the last bit. The reference goes first: it
    // needs no memory any more when the policy's activations come.
    let weights = method.weights(&batch.timesteps); // 2B
    let reference = state.reference.predict(&noisy, &timesteps, &told.states, added.as_ref())?;
    let reference = errors(&(reference.to_dtype(DType::F32)? - &target)?, &weights)?;
    let unet = &state.policy.unet;
    let pass = unet.forward_for(plan.checkpointing, &noisy, &timesteps, &told.states, added.as_ref())?;
    let residual = (pass.prediction().to_dtype(DType::F32)? - &target)?; // (2B, C, h, w)
    let policy = errors(&residual, &weights)?;
    let b = batch.labels.len();
    let mut pairs: Vec<Pair> = (0..b)
        .map(|i| {
            let e = Errors {
                policy_winner: policy[i],
                policy_loser: policy[b + i],
                reference_winner: reference[i],
                reference_loser: reference[b + i],
            };
            (e, method.objective.pair(e, batch.labels[i]))
        })
        .collect();
    if method.guard != Guard::None {
        let (winner, loser) = (residual.narrow(0, 0, b)?, residual.narrow(0, b, b)?);
        let products = sums(&(&winner * &winner)?)?.into_iter().zip(sums(&(winner * loser)?)?);
        for ((_, pair), (ww, wl)) in pairs.iter_mut().zip(products) {
            pair.gradient = method.guard.hold(pair.gradient, ww, wl);
        }
    }

    let seed = (seed(&residual, &pairs, &weights)? * scale)?;
    params::accumulate(&state.policy.params, grads, || unet.backward(pass, &seed))?;
    Ok(pairs)
}

/// e of every image: the mean over C, h, w of (prediction - target)^2, times w(lambda_t).
fn errors(residual: &Tensor, weights: &[f64]) -> Result<Vec<f64>> {
    // In f64: z is beta/2 times a difference of these, and would make a rounding in the seventh digit visible.
    let means = residual.sqr()?.flatten_from(1)?.to_dtype(DType::F64)?.mean(1)?; // (2B)
    Ok(means.to_vec1::<f64>()?.into_iter().zip(weights).map(|(e, w)| e * w).collect())
}

/// The sum over C, h, w of every image.
fn sums(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.flatten_from(1)?.sum(1)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

/// dL/d(prediction) = dL/de de/d(prediction), (2B, C, h, w): known before any backward pass begins.
fn seed(residual: &Tensor, pairs: &[Pair], weights: &[f64]) -> Result<Tensor> {
    let n = residual.elem_count() / weights.len();
    let side = |k: usize| pairs.iter().map(move |(_, p)| p.gradient[k]);
    let slopes = side(0).chain(side(1)).zip(weights).map(|(slope, w)| (2.0 * slope * w / n as f64) as f32);
    let slopes = Tensor::from_vec(slopes.collect::<Vec<_>>(), (weights.len(), 1, 1, 1), residual.device())?;
    Ok(residual.broadcast_mul(&slopes)?)
}
