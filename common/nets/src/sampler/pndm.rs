//! PNDM: Stable Diffusion 1.5's own sampler. It combines the last four predictions (linear multistep). It warms up either by
//! calling the denoiser twice at the second timestep (`skip_prk_steps`, as Stable Diffusion asks) or by three Runge-Kutta
//! steps of four calls each.

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};

use super::{Noise, Sampler, final_alpha, spacing::spaced_whole};
use crate::process::{Ddpm, PredictionType, Spacing, mix};

pub struct Pndm {
    timesteps: Vec<f32>,
    /// Number of timesteps that belong to Runge-Kutta steps: 12 or 0.
    runge_kutta: usize,
    process: Ddpm,
    final_alpha: f32,
    stride: usize,
    /// The last predictions, the newest last, at most four.
    predictions: Vec<Tensor>,
    /// x at the beginning of the present step.
    start: Option<Tensor>,
    /// The weighted sum of a Runge-Kutta step's predictions so far.
    sum: Option<Tensor>,
}

impl Pndm {
    pub fn new(process: &Ddpm, steps: usize) -> Result<Self> {
        let c = &process.config;
        ensure!(
            !c.rescale_betas_zero_snr,
            "rescale_betas_zero_snr: pndm does not go with a zero terminal SNR; choose ddim, euler or dpmpp"
        );
        let mut whole = spaced_whole(c, c.timestep_spacing.unwrap_or(Spacing::Leading), steps)?;
        let stride = c.num_train_timesteps / steps;
        let runge_kutta = if c.skip_prk_steps { 0 } else { 12 };
        let timesteps = if c.skip_prk_steps {
            if let Some(&second) = whole.get(1) {
                whole.insert(1, second);
            }
            whole
        } else {
            ensure!(
                steps >= 4,
                "pndm begins with Runge-Kutta's steps here (skip_prk_steps is false) and needs 4 steps, not {steps}"
            );
            let (first, half) = (&whole[..4], (stride / 2) as f64);
            let from = |i: usize| [first[i], first[i + 1] + half, first[i + 1] + half, first[i + 1]];
            let begin = (0..3).flat_map(from);
            begin.chain(whole[3..].iter().copied()).collect()
        };
        Ok(Self {
            timesteps: timesteps.iter().map(|&t| t as f32).collect(),
            runge_kutta,
            final_alpha: final_alpha(process, false),
            stride,
            process: process.clone(),
            predictions: vec![],
            start: None,
            sum: None,
        })
    }

    /// One of the four calls of a Runge-Kutta step: at its beginning, twice in its middle, at its end.
    fn runge_kutta(&mut self, i: usize, x: &Tensor, prediction: &Tensor) -> Candle<Tensor> {
        let (t, began) = (self.timesteps[i] as i64, self.timesteps[i / 4 * 4] as i64);
        let to = if i.is_multiple_of(2) { t - (self.stride / 2) as i64 } else { t };
        let weight = if matches!(i % 4, 0 | 3) { 1.0 / 6.0 } else { 1.0 / 3.0 };
        if i.is_multiple_of(4) {
            self.predictions.push(prediction.clone());
            self.start = Some(x.clone());
        }
        let part = (prediction * weight)?;
        let sum = match self.sum.take() {
            Some(sum) => (sum + part)?,
            None => part,
        };
        let start = self.start.clone().unwrap_or_else(|| x.clone());
        if i % 4 == 3 {
            return self.transfer(&start, &sum, began, to);
        }
        self.sum = Some(sum);
        self.transfer(&start, prediction, began, to)
    }

    fn multistep(&mut self, i: usize, x: &Tensor, prediction: &Tensor) -> Candle<Tensor> {
        let (t, stride) = (self.timesteps[i] as i64, self.stride as i64);
        if let (1, 0, Some(start)) = (i, self.runge_kutta, self.start.take()) {
            // The warm-up: the first step once more, with the mean of the predictions at its two ends.
            let mean = mix(0.5, prediction, 0.5, &self.predictions[0])?;
            return self.transfer(&start, &mean, t + stride, t);
        }
        if self.predictions.len() == 4 {
            self.predictions.remove(0);
        }
        self.predictions.push(prediction.clone());
        let e = &self.predictions;
        // Adams-Bashforth's weights of the last one, two, three and four predictions (PNDM Eq. 12)
        let combined = match e.len() {
            1 => {
                self.start = Some(x.clone());
                e[0].clone()
            }
            2 => mix(3.0 / 2.0, &e[1], -1.0 / 2.0, &e[0])?,
            3 => (mix(23.0 / 12.0, &e[2], -16.0 / 12.0, &e[1])? + (&e[0] * (5.0 / 12.0))?)?,
            _ => (mix(55.0 / 24.0, &e[3], -59.0 / 24.0, &e[2])? + mix(37.0 / 24.0, &e[1], -9.0 / 24.0, &e[0])?)?,
        };
        self.transfer(x, &combined, t, t - stride)
    }

    /// x_t to x_{t'} along eps (PNDM Eq. 9 and 11), alpha and beta = 1 - alpha of the products.
    fn transfer(&self, x: &Tensor, prediction: &Tensor, from: i64, to: i64) -> Candle<Tensor> {
        let all = &self.process.alphas_cumprod;
        let at = |t: i64| usize::try_from(t).map_or(self.final_alpha, |t| all[t]) as f64;
        let (now, next) = (at(from), at(to));
        let eps = match self.process.config.prediction_type {
            PredictionType::Epsilon => prediction.clone(),
            PredictionType::VPrediction => mix(now.sqrt(), prediction, (1.0 - now).sqrt(), x)?,
        };
        let denominator = now * (1.0 - next).sqrt() + (now * (1.0 - now) * next).sqrt();
        mix((next / now).sqrt(), x, -(next - now) / denominator, &eps)
    }
}

impl Sampler for Pndm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, _: &Noise) -> Candle<Tensor> {
        if i < self.runge_kutta { self.runge_kutta(i, x, prediction) } else { self.multistep(i, x, prediction) }
    }
}
