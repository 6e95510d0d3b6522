//! Euler's and Heun's methods along a flow, from noise at sigma 1 to the image at 0: dx/dsigma is the velocity that the denoiser
//! predicts.

use candle_core::{Result as Candle, Tensor};

use super::{Noise, Sampler};
use crate::process::{Flow, mix};

/// Side of the squares of latents that the shift of the sigmas counts.
const SQUARE: usize = 2;

pub struct FlowSampler {
    /// The sigma of each prediction.
    sigmas: Vec<f64>,
    /// The times of the predictions.
    times: Vec<f32>,
    /// Where each step ends.
    ends: Vec<f64>,
    heun: bool,
    /// The velocity at the beginning of a step of Heun, and where that was.
    before: Option<(Tensor, Tensor)>,
}

impl FlowSampler {
    /// For latents of height and width `size`.
    pub fn new(flow: &Flow, steps: usize, [h, w]: [usize; 2], heun: bool) -> Self {
        let starts = flow.sigmas(steps, (h / SQUARE) * (w / SQUARE));
        let ends: Vec<f64> = starts[1..].iter().copied().chain([0.0]).collect();
        // Heun predicts at the end of each step once more, except at sigma 0.
        let sigmas = match heun {
            true => starts.iter().zip(&ends).flat_map(|(start, end)| [*start, *end]).take(2 * steps - 1).collect(),
            false => starts,
        };
        let time = |sigma: &f64| *sigma as f32 * flow.config.num_train_timesteps as f32;
        Self { times: sigmas.iter().map(time).collect(), sigmas, ends, heun, before: None }
    }
}

impl Sampler for FlowSampler {
    fn timesteps(&self) -> &[f32] {
        &self.times
    }

    /// x' = x + (sigma' - sigma) v; Heun repeats the step with the mean of the velocities at its two ends.
    fn step(&mut self, i: usize, x: &Tensor, velocity: &Tensor, _: &Noise) -> Candle<Tensor> {
        if let Some((first, start)) = self.before.take() {
            let step = self.sigmas[i] - self.sigmas[i - 1];
            return mix(1.0, &start, step, &mix(0.5, &first, 0.5, velocity)?);
        }
        let end = self.ends[if self.heun { i / 2 } else { i }];
        if self.heun && end > 0.0 {
            self.before = Some((velocity.clone(), x.clone()));
        }
        mix(1.0, x, end - self.sigmas[i], velocity)
    }
}
