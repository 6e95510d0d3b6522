//! The gradient of one optimiser step: micro-batches through reference and policy, one loss a pair, one sum over all.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use nets::{
    optim::{self, Grads},
    prompt::Conditioning,
    unet::UNet,
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
    /// Of the mean loss over these pairs, summed over micro-batches in their order.
    pub grads: Grads,
}

impl Sum {
    /// Of the next step, or this process's share of it: all its micro-batches, on the CPU as many side by side as `abreast` says.
    pub fn of(state: &State, batches: &mut Batches, args: &Args, method: &Method, device: &Device) -> Result<Self> {
        let (mut sum, abreast) = (Sum::default(), abreast(state, device));
        let micro_batches = batches.a_step();
        for first in (0..micro_batches).step_by(abreast) {
            let these = batches.take(abreast.min(micro_batches - first))?;
            sum.add(state, these, method, args.effective_batch())?;
        }
        Ok(sum)
    }

    /// Adds micro-batches; on the CPU small networks take as many side by side as `abreast` says. `pairs` is the number
    /// of pairs in the whole step, over which the loss is a mean.
    fn add(&mut self, state: &State, batches: Vec<Batch>, method: &Method, pairs: usize) -> Result<()> {
        let one = |batch: Batch| gradients(state, &batch, method, 1.0 / pairs as f64);
        for (some, more) in batches.into_par_iter().map(one).collect::<Result<Vec<_>>>()? {
            self.pairs.extend(some);
            optim::add(&mut self.grads, more)?;
        }
        Ok(())
    }
}

/// How many micro-batches go through the networks side by side. On the CPU a thread each keeps threads busier than sharing
/// every operation, and the sum is the same; but each needs activations and gradients of its own, so only small networks.
fn abreast(state: &State, device: &Device) -> usize {
    const SMALL: usize = 50_000_000; // parameters: 200 MB of gradients
    let size: usize = state.policy.params.values().map(|p| p.elem_count()).sum();
    if device.is_cpu() && size < SMALL && state.counters.lora.is_none() { rayon::current_num_threads() } else { 1 }
}

/// One micro-batch: its pairs, and `scale` times the gradient of the sum of their losses.
fn gradients(state: &State, batch: &Batch, method: &Method, scale: f64) -> Result<(Vec<Pair>, Grads)> {
    let schedule = &method.schedule;
    let noisy = schedule.add_noise(&batch.latents, &batch.noise, &batch.timesteps)?; // (2B, C, h, w)
    let target = schedule.target(&batch.latents, &batch.noise, &batch.timesteps)?; // (2B, C, h, w)
    let told = Conditioning::cat(&[&batch.told, &batch.told])?; // 2B
    let added = told.added(&batch.sizes)?; // SDXL's
    let timesteps: Vec<f32> = batch.timesteps.iter().map(|&t| t as f32).collect();
    let predict = |unet: &UNet| unet.forward(&noisy, &timesteps, &told.states, added.as_ref());

    // The same arithmetic for both, so that equal weights give equal errors to the last bit. The reference goes first: it
    // needs no memory any more when the policy's activations come.
    let weights = method.weights(&batch.timesteps); // 2B
    let reference = errors(&(predict(&state.reference.unet)? - &target)?, &weights)?;
    let prediction = predict(&state.policy.unet)?;
    let residual = (prediction.detach() - &target)?; // (2B, C, h, w)
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
    let store = (prediction * seed)?.sum_all()?.backward()?;
    Ok((pairs, optim::gradients(&state.policy.params, store)?))
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
