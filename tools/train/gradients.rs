//! The gradient of one optimiser step: micro-batches through reference and policy, one loss a pair, one sum over all.

use anyhow::Result;
use candle_core::{Device, Tensor};
use nets::{
    noise::Schedule,
    optim::{self, Grads},
    unet::UNet,
};
use rayon::prelude::*;

use crate::{
    loss::{Errors, PairLoss, dpo_loss},
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
    /// Adds micro-batches; on the CPU small networks take as many side by side as `abreast` says. `pairs` is the number
    /// of pairs in the whole step, over which the loss is a mean.
    pub fn add(
        &mut self,
        state: &State,
        batches: Vec<Batch>,
        schedule: &Schedule,
        beta: f64,
        pairs: usize,
    ) -> Result<()> {
        let one = |batch: Batch| gradients(state, &batch, schedule, beta, 1.0 / pairs as f64);
        for (some, more) in batches.into_par_iter().map(one).collect::<Result<Vec<_>>>()? {
            self.pairs.extend(some);
            optim::add(&mut self.grads, more)?;
        }
        Ok(())
    }
}

/// How many micro-batches go through the networks side by side. On the CPU a thread each keeps threads busier than sharing
/// every operation, and the sum is the same; but each needs activations and gradients of its own, so only small networks.
pub fn abreast(state: &State, device: &Device) -> usize {
    const SMALL: usize = 50_000_000; // parameters: 200 MB of gradients
    let size: usize = state.policy.params.values().map(|p| p.elem_count()).sum();
    if device.is_cpu() && size < SMALL { rayon::current_num_threads() } else { 1 }
}

/// One micro-batch: its pairs, and `scale` times the gradient of the sum of their losses.
fn gradients(state: &State, batch: &Batch, schedule: &Schedule, beta: f64, scale: f64) -> Result<(Vec<Pair>, Grads)> {
    let noisy = schedule.add_noise(&batch.latents, &batch.noise, &batch.timesteps)?; // (2B, C, h, w)
    let target = schedule.target(&batch.latents, &batch.noise, &batch.timesteps)?; // (2B, C, h, w)
    let context = Tensor::cat(&[&batch.states, &batch.states], 0)?; // (2B, T, D)
    let timesteps: Vec<f32> = batch.timesteps.iter().map(|&t| t as f32).collect();
    let predict = |unet: &UNet| unet.forward(&noisy, &timesteps, &context, None);

    // The same arithmetic for both, so that equal weights give equal errors to the last bit. The reference goes first: it
    // needs no memory any more when the policy's activations come.
    let reference = errors(&predict(&state.reference.unet)?, &target)?;
    let prediction = predict(&state.policy.unet)?;
    let policy = errors(&prediction.detach(), &target)?;
    let b = batch.labels.len();
    let pairs: Vec<Pair> = (0..b)
        .map(|i| {
            let e = Errors {
                policy_winner: policy[i],
                policy_loser: policy[b + i],
                reference_winner: reference[i],
                reference_loser: reference[b + i],
            };
            (e, dpo_loss(e, batch.labels[i], beta))
        })
        .collect();

    let seed = (seed(&prediction.detach(), &target, &pairs)? * scale)?;
    let store = (prediction * seed)?.sum_all()?.backward()?;
    Ok((pairs, optim::gradients(&state.policy.params, store)?))
}

/// e of every image: the mean over C, h, w of (prediction - target)^2.
fn errors(prediction: &Tensor, target: &Tensor) -> Result<Vec<f64>> {
    let means = (prediction - target)?.sqr()?.flatten_from(1)?.mean(1)?; // (2B)
    Ok(means.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

/// dL/d(prediction) = dL/de de/d(prediction), (2B, C, h, w): known before any backward pass begins.
fn seed(prediction: &Tensor, target: &Tensor, pairs: &[Pair]) -> Result<Tensor> {
    let n = prediction.elem_count() / (2 * pairs.len());
    let side = |k: usize| pairs.iter().map(move |(_, p)| (2.0 * p.gradient[k] / n as f64) as f32);
    let slopes: Vec<f32> = side(0).chain(side(1)).collect();
    let slopes = Tensor::from_vec(slopes, (2 * pairs.len(), 1, 1, 1), prediction.device())?;
    Ok((prediction - target)?.broadcast_mul(&slopes)?)
}
