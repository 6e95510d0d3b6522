//! Euler ancestral: each of Euler's steps goes further down than to the next sigma, and noise brings it up to that again.

use anyhow::Result;
use candle_core::{Result as Candle, Tensor};

use super::{Noise, Sampler, euler::Euler};
use crate::process::{Ddpm, FinalSigma, mix};

pub struct EulerA(Euler);

impl EulerA {
    pub fn new(process: &Ddpm, steps: usize, karras: bool) -> Result<Self> {
        Ok(Self(Euler::ending_at(process, steps, karras, FinalSigma::Zero)?))
    }
}

impl Sampler for EulerA {
    fn timesteps(&self) -> &[f32] {
        self.0.timesteps()
    }

    fn initial_sigma(&self) -> f64 {
        self.0.initial_sigma()
    }

    fn adds_noise(&self) -> bool {
        true
    }

    fn input(&self, i: usize, x: &Tensor) -> Candle<Tensor> {
        self.0.input(i, x)
    }

    /// With up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2 and down^2 = sigma'^2 - up^2:
    ///
    ///   x' = x + dx/dsigma (down - sigma) + up noise
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, noise: &Noise) -> Candle<Tensor> {
        let (now, next) = (self.0.sigmas[i], self.0.sigmas[i + 1]);
        let up = (next.powi(2) * (now.powi(2) - next.powi(2)) / now.powi(2)).sqrt();
        let down = (next.powi(2) - up.powi(2)).sqrt();
        let x = mix(1.0, x, down - now, &self.0.slope(i, x, prediction)?)?;
        if up == 0.0 { Ok(x) } else { mix(1.0, &x, up, &noise.of_step(i, &x)?) }
    }
}
