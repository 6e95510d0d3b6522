//! The gradient of one optimiser step: micro-batches go through reference and policy, each pair gives a loss, and the gradients
//! are summed. A GPU computes the losses itself, so that nobody waits for it before the step has ended.

use std::path::PathBuf;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use nets::conditioning::Conditioning;
use nets::params::{self, Grads};
use nets::pass::Activations;
use ops::{PairLosses, PairNumbers, PairSums};
use pipe::cli::named;
use rayon::prelude::*;

use crate::loss::{Errors, Label, Pair, anchor_loss};
use crate::timestep_weights::tenth;
use crate::{batches::Batches, data::Batch, guard::Guard, method::Method, state::State};

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Optimisation")]
pub struct GradientFlags {
    /// Compute activations twice instead of keeping them
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_value_t = Checkpointing::Auto,
          default_missing_value = "on", require_equals = true, value_parser = named::<Checkpointing>())]
    gradient_checkpointing: Checkpointing,
    /// Write the gradient of every tensor in the first step of this call, before clipping, to a safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Runs")]
    pub dump_gradients: Option<PathBuf>,
}

pipe::names! {
    /// How much of a forward pass is kept for the backward pass.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Checkpointing {
        /// `on` for networks of 50 million weights or more, otherwise `off`
        Auto = "auto",
        /// Only the input of each block, and compute the block twice: a fraction of the memory, a quarter more time
        On = "on",
        /// All activations
        Off = "off",
    }
}

/// How micro-batches go through the networks. This depends on the networks alone, so that the number of threads changes no result.
#[derive(Clone, Copy, Debug)]
pub struct Execution {
    /// On the CPU, small networks take one micro-batch per thread: that keeps threads busier than sharing every operation, but
    /// each needs activations and gradients of its own.
    in_parallel: bool,
    /// Gradients keep their memory from step to step: large ones on the CPU, and all on a GPU.
    keeps_memory: bool,
    /// A GPU computes the losses, and they are read when the step has ended.
    pub queues: bool,
    activations: Activations,
    /// The type that the networks compute in; weights, gradients and losses are f32.
    compute: DType,
}

impl Execution {
    pub fn of(state: &State, flags: &GradientFlags, compute: DType, device: &Device) -> Self {
        const SMALL: usize = 50_000_000; // parameters: 200 MB of gradients
        // Adapters are small, but the network that they belong to may not be.
        let small = params::count(&state.policy.params) < SMALL && state.counters.lora.is_none();
        let activations = match flags.gradient_checkpointing {
            Checkpointing::Auto if small => Activations::Kept,
            Checkpointing::Auto | Checkpointing::On => Activations::Recomputed,
            Checkpointing::Off => Activations::Kept,
        };
        let (in_parallel, queues) = (small && device.is_cpu(), ops::has_kernels(device));
        let keeps_memory = queues || (!small && device.is_cpu());
        Self { in_parallel, keeps_memory, queues, activations, compute }
    }

    /// The most pairs that a micro-batch may have. Small networks are as fast with few as with many, and with few the sums are the
    /// same however the pairs of a step are divided into batches and among processes.
    pub fn most_pairs(&self) -> Option<usize> {
        self.in_parallel.then_some(4)
    }
}

#[derive(Default)]
pub struct Gradients {
    /// The losses, in the order of the micro-batches.
    pub pairs: Vec<Pair>,
    /// Those that a GPU is still computing.
    queued: Vec<Queued>,
    /// The gradient of the mean of these losses.
    pub grads: Grads,
}

impl Gradients {
    /// Computes the gradient of the next step of `pairs_per_step` pairs, or this process's share of it, over all its micro-batches.
    pub fn compute(
        &mut self,
        execution: Execution,
        state: &State,
        batches: &mut Batches,
        method: &Method,
        pairs_per_step: usize,
    ) -> Result<()> {
        self.pairs.clear();
        self.queued.clear();
        match execution.keeps_memory {
            true => params::zero(&self.grads)?,
            false => self.grads.clear(),
        }
        let scale = 1.0 / pairs_per_step as f64; // the loss is a mean over the pairs of the whole step
        let one = |batch: &Batch, grads: &mut Grads| accumulate(execution, state, batch, method, scale, grads);
        if execution.queues {
            for _ in 0..batches.per_step() {
                for batch in batches.take(1)? {
                    self.queued.push(queue(execution, state, &batch, method, scale, &mut self.grads)?);
                }
            }
        } else if execution.in_parallel {
            let sum = ops::unchanged(|| self.side_by_side(batches, one))?;
            params::add(&mut self.grads, sum)?;
        } else {
            for _ in 0..batches.per_step() {
                for batch in batches.take(1)? {
                    self.pairs.extend(one(&batch, &mut self.grads)?);
                }
            }
        }
        Ok(params::fill_missing(&state.policy.params, &mut self.grads)?)
    }

    /// Takes one micro-batch per thread at a time. Returns the sum of all gradients.
    fn side_by_side(
        &mut self,
        batches: &mut Batches,
        one: impl Fn(&Batch, &mut Grads) -> Result<Vec<Pair>> + Sync,
    ) -> Result<Grads> {
        let (mut left, mut sums) = (batches.per_step(), Pairwise::default());
        while left > 0 {
            let these = batches.take(left.min(rayon::current_num_threads()))?;
            left -= these.len();
            let done = these.par_iter().map(|batch| {
                let mut grads = Grads::new();
                Ok((one(batch, &mut grads)?, grads))
            });
            for (some, grads) in done.collect::<Result<Vec<_>>>()? {
                self.pairs.extend(some);
                sums.add(grads)?;
            }
        }
        sums.total()
    }

    /// Waits for a GPU, reads the losses of the step and returns the number in `norm` (1).
    pub fn read(&mut self, norm: &Tensor, method: &Method) -> Result<f64> {
        let sums: Vec<&Tensor> = self.queued.iter().map(|queued| &queued.sums).chain([norm]).collect();
        let numbers = ops::read_all(&sums)?;
        let mut rest = &numbers[..];
        for queued in self.queued.drain(..) {
            let (mine, others) = rest.split_at(queued.labels.len() * PairSums::LENGTH);
            self.pairs.extend(queued.pairs(mine, method)?);
            rest = others;
        }
        Ok(rest[0])
    }
}

/// Sums of 1, 2, 4, 8 ... neighbours; two sums of the same size are added into one. Processes add up their gradients in the same
/// tree. So the result does not depend, not even in the last bit, on the number of processes that share the micro-batches of a
/// step, as long as both numbers are powers of two.
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

/// What the networks get of a micro-batch, and what they should predict of it.
struct Inputs {
    noisy: Tensor,  // (2B, C, h, w)
    target: Tensor, // (2B, C, h, w), f32
    conditioning: Conditioning,
    weights: Vec<f64>, // of the errors, 2B
    labels: Vec<Label>,
}

impl Inputs {
    fn of(batch: &Batch, execution: Execution, state: &State, method: &Method) -> Result<Self> {
        let (process, times) = (&method.process, &batch.times);
        Ok(Self {
            noisy: process.add_noise(&batch.latents, &batch.noise, times)?.to_dtype(execution.compute)?,
            target: process.target(&batch.latents, &batch.noise, times)?,
            conditioning: method.complete(batch.conditioning.to_dtype(execution.compute)?)?,
            weights: method.weights(times),
            labels: match method.timestep_weights {
                true => state.counters.weighted(&batch.labels, times, process),
                false => batch.labels.clone(),
            },
        })
    }
}

/// The losses of a micro-batch of B pairs that a GPU has yet to compute.
struct Queued {
    sums: Tensor, // (B, PairSums::LENGTH), f64
    weights: Vec<f64>,
    labels: Vec<Label>,
    times: Vec<f32>,
    /// Numbers of an image.
    n: usize,
}

/// As [`accumulate`], on a GPU, without waiting for it.
fn queue(
    execution: Execution,
    state: &State,
    batch: &Batch,
    method: &Method,
    scale: f64,
    grads: &mut Grads,
) -> Result<Queued> {
    let Inputs { noisy, target, conditioning, weights, labels } = Inputs::of(batch, execution, state, method)?;
    let times = &batch.times;
    let reference = state.reference.predict(&noisy, times, &conditioning)?;
    let base = method.anchor.as_ref().map(|anchor| anchor.base.predict(&noisy, times, &conditioning)).transpose()?;
    let pass = state.policy.denoiser.forward_for(execution.activations, &noisy, times, &conditioning)?;
    let numbers = |(i, label): (usize, &Label)| {
        let (Label { target, weight }, beta) = method.objective.adjusted(*label);
        PairNumbers { target, weight, beta, of_errors: [weights[i], weights[labels.len() + i]] }
    };
    let losses = PairLosses {
        slope: method.objective.slope(),
        guard: method.guard.share(),
        anchor: method.anchor.as_ref().map_or(0.0, |anchor| 0.5 * anchor.weight * method.objective.beta),
        scale,
    };
    let pairs: Vec<PairNumbers> = labels.iter().enumerate().map(numbers).collect();
    let (seed, sums) = losses.gradient([&pass.prediction(), &reference], base.as_ref(), &target, &pairs)?;
    drop((reference, base));
    params::accumulate(&state.policy.params, grads, || pass.backward(&seed))?;
    Ok(Queued { sums, weights, labels, times: times.clone(), n: target.elem_count() / times.len() })
}

impl Queued {
    /// The losses, from the numbers in `sums`.
    fn pairs(&self, sums: &[f64], method: &Method) -> Result<Vec<Pair>> {
        let sums = sums.chunks_exact(PairSums::LENGTH).map(PairSums::read).collect::<candle_core::Result<Vec<_>>>()?;
        // Of 2B images, the winners first.
        let images = |of: fn(&PairSums) -> [f64; 2]| {
            let side = |k: usize| sums.iter().map(move |s| of(s)[k]);
            side(0).chain(side(1)).collect::<Vec<f64>>()
        };
        let errors =
            |of| images(of).iter().zip(&self.weights).map(|(sum, w)| sum / self.n as f64 * w).collect::<Vec<_>>();
        let sizes = images(|s| s.policy_size).into_iter().zip(images(|s| s.reference_size));
        let ratios: Vec<f64> = sizes.map(|(policy, reference)| (policy / reference).sqrt()).collect();
        let [policy, reference] = [errors(|s| s.policy), errors(|s| s.reference)];
        let mut pairs = losses(&policy, &reference, &ratios, &self.labels, &self.times, method);
        guard(method.guard, sums.iter().map(|s| (s.policy[0], s.product)), &mut pairs);
        if let Some(anchor) = &method.anchor {
            add_anchor(anchor.weight, method, &errors(|s| s.apart), &self.labels, &mut pairs);
        }
        Ok(pairs)
    }
}

/// Adds `scale` times the gradient of the sum of a micro-batch's losses to `grads`, and returns the losses.
fn accumulate(
    execution: Execution,
    state: &State,
    batch: &Batch,
    method: &Method,
    scale: f64,
    grads: &mut Grads,
) -> Result<Vec<Pair>> {
    let Inputs { noisy, target, conditioning, weights, labels } = Inputs::of(batch, execution, state, method)?;
    let times = &batch.times;

    // The same arithmetic for both, so that equal weights give equal errors to the last bit. The reference goes first, so that
    // its memory is free again when the policy's activations need it.
    let reference = state.reference.predict(&noisy, times, &conditioning)?.to_dtype(DType::F32)?;
    let (reference_size, reference) = (sums(&reference.sqr()?)?, errors(&(reference - &target)?, &weights)?);
    let pass = state.policy.denoiser.forward_for(execution.activations, &noisy, times, &conditioning)?;
    let prediction = pass.prediction().to_dtype(DType::F32)?; // (2B, C, h, w)
    let sizes = sums(&prediction.sqr()?)?.into_iter().zip(reference_size);
    let ratios: Vec<f64> = sizes.map(|(policy, reference)| (policy / reference).sqrt()).collect();
    let residual = (&prediction - &target)?;
    let policy = errors(&residual, &weights)?;
    let mut pairs = losses(&policy, &reference, &ratios, &labels, times, method);
    if method.guard != Guard::None {
        guard(method.guard, products(&residual)?, &mut pairs);
    }

    let side = |k: usize| pairs.iter().map(move |p| p.loss.gradient[k]);
    let mut seed = seed(&residual, side(0).chain(side(1)), &weights)?;
    if let Some(anchor) = &method.anchor {
        let base = anchor.base.predict(&noisy, times, &conditioning)?.to_dtype(DType::F32)?;
        let apart = (prediction - base)?; // (2B, C, h, w)
        let slopes = add_anchor(anchor.weight, method, &errors(&apart, &weights)?, &labels, &mut pairs);
        seed = (seed + self::seed(&apart, slopes.iter().chain(&slopes).copied(), &weights)?)?;
    }
    let seed = (seed * scale)?;
    params::accumulate(&state.policy.params, grads, || pass.backward(&seed))?;
    Ok(pairs)
}

/// The losses of B pairs, from the errors of 2B images, the winners first. `ratios`: |policy's prediction| / |reference's|.
fn losses(
    policy: &[f64],
    reference: &[f64],
    ratios: &[f64],
    labels: &[Label],
    times: &[f32],
    method: &Method,
) -> Vec<Pair> {
    let b = labels.len();
    let pair = |(i, label): (usize, &Label)| {
        let errors = Errors {
            policy_winner: policy[i],
            policy_loser: policy[b + i],
            reference_winner: reference[i],
            reference_loser: reference[b + i],
        };
        let (norm_ratio, tenth) = ((ratios[i] + ratios[b + i]) / 2.0, tenth(times[i], &method.process));
        Pair { errors, loss: method.objective.pair(errors, *label), norm_ratio, tenth }
    };
    labels.iter().enumerate().map(pair).collect()
}

/// The products of the winner's residual with itself and with the loser's. `residual`: (2B, C, h, w), the winners first.
fn products(residual: &Tensor) -> Result<impl Iterator<Item = (f64, f64)> + use<>> {
    let b = residual.dim(0)? / 2;
    let (winner, loser) = (residual.narrow(0, 0, b)?, residual.narrow(0, b, b)?);
    Ok(sums(&(&winner * &winner)?)?.into_iter().zip(sums(&(winner * loser)?)?))
}

/// Scales the losers' gradients down where the guard says so, from these products of B pairs.
fn guard(guard: Guard, products: impl Iterator<Item = (f64, f64)>, pairs: &mut [Pair]) {
    for (pair, (ww, wl)) in pairs.iter_mut().zip(products) {
        pair.loss.gradient = guard.apply(pair.loss.gradient, ww, wl);
    }
}

/// e of every image: the mean over C, h, w of (prediction - target)^2, times w(lambda_t).
fn errors(residual: &Tensor, weights: &[f64]) -> Result<Vec<f64>> {
    // In f64, because z is beta/2 times a difference of these, which makes a rounding in the seventh digit visible.
    let means = residual.sqr()?.flatten_from(1)?.to_dtype(DType::F64)?.mean(1)?; // (2B)
    Ok(means.to_vec1::<f64>()?.into_iter().zip(weights).map(|(e, w)| e * w).collect())
}

fn sums(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.flatten_from(1)?.sum(1)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

/// Adds the anchor to the losses of B pairs. `apart`: d of 2B images, the winners first. Returns dL/dd of each pair.
fn add_anchor(anchor: f64, method: &Method, apart: &[f64], labels: &[Label], pairs: &mut [Pair]) -> Vec<f64> {
    let (winners, losers) = apart.split_at(labels.len());
    let all = pairs.iter_mut().zip(labels).zip(winners.iter().zip(losers));
    all.map(|((pair, label), (&winner, &loser))| {
        let (loss, slope) = anchor_loss([winner, loser], *label, method.objective.beta, anchor);
        pair.loss.loss += loss;
        slope
    })
    .collect()
}

/// dL/d(prediction) = dL/de de/d(prediction), (2B, C, h, w): known before any backward pass begins. e is the mean square of `residual`,
/// `slopes` are dL/de.
fn seed(residual: &Tensor, slopes: impl Iterator<Item = f64>, weights: &[f64]) -> Result<Tensor> {
    let n = residual.elem_count() / weights.len();
    let slopes = slopes.zip(weights).map(|(slope, w)| (2.0 * slope * w / n as f64) as f32);
    let slopes = Tensor::from_vec(slopes.collect::<Vec<_>>(), (weights.len(), 1, 1, 1), residual.device())?;
    Ok(residual.broadcast_mul(&slopes)?)
}
