//! PNDM: Stable Diffusion 1.5's own sampler. It combines the last four answers (linear multistep), and warms up either by
//! calling the UNet twice at the second timestep (`skip_prk_steps`, as Stable Diffusion asks) or by three Runge-Kutta
//! steps of four calls each.

use anyhow::{Result, ensure};
use candle_core::{Result as Candle, Tensor};

use super::{Sampler, final_alpha, mix, spread::spread_whole};
use crate::noise::{PredictionType, Schedule, Spacing};

pub struct Pndm {
    timesteps: Vec<f32>,
    /// How many of them are Runge-Kutta's: 12 or none.
    runge_kutta: usize,
    schedule: Schedule,
    final_alpha: f32,
    stride: usize,
    /// The UNet's last answers, the newest last, at most four.
    answers: Vec<Tensor>,
    /// Where the step under way began.
    start: Option<Tensor>,
    /// Runge-Kutta's sum so far.
    sum: Option<Tensor>,
}

impl Pndm {
    pub fn new(schedule: &Schedule, steps: usize) -> Result<Self> {
        let c = &schedule.config;
        ensure!(
            !c.rescale_betas_zero_snr,
            "rescale_betas_zero_snr: pndm does not go with a zero terminal SNR; choose ddim, euler or dpmpp"
        );
        let mut whole = spread_whole(c, c.timestep_spacing.unwrap_or(Spacing::Leading), steps)?;
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
            final_alpha: final_alpha(schedule, false),
            stride,
            schedule: schedule.clone(),
            answers: vec![],
            start: None,
            sum: None,
        })
    }

    /// One of the four calls of a Runge-Kutta step: at its beginning, twice in its middle, at its end.
    fn runge_kutta(&mut self, i: usize, x: &Tensor, answer: &Tensor) -> Candle<Tensor> {
        let (t, began) = (self.timesteps[i] as i64, self.timesteps[i / 4 * 4] as i64);
        let to = if i.is_multiple_of(2) { t - (self.stride / 2) as i64 } else { t };
        let weight = if matches!(i % 4, 0 | 3) { 1.0 / 6.0 } else { 1.0 / 3.0 };
        if i.is_multiple_of(4) {
            self.answers.push(answer.clone());
            self.start = Some(x.clone());
        }
        let part = (answer * weight)?;
        let sum = match self.sum.take() {
            Some(sum) => (sum + part)?,
            None => part,
        };
        let start = self.start.clone().unwrap_or_else(|| x.clone());
        if i % 4 == 3 {
            return self.transfer(&start, &sum, began, to);
        }
        self.sum = Some(sum);
        self.transfer(&start, answer, began, to)
    }

    fn multistep(&mut self, i: usize, x: &Tensor, answer: &Tensor) -> Candle<Tensor> {
        let (t, stride) = (self.timesteps[i] as i64, self.stride as i64);
        if let (1, 0, Some(start)) = (i, self.runge_kutta, self.start.take()) {
            // The warm-up: again over the first step, now with the mean of its two ends.
            let mean = mix(0.5, answer, 0.5, &self.answers[0])?;
            return self.transfer(&start, &mean, t + stride, t);
        }
        if self.answers.len() == 4 {
            self.answers.remove(0);
        }
        self.answers.push(answer.clone());
        let e = &self.answers;
        // Adams-Bashforth's weights of the last one, two, three and four answers (PNDM Eq. 12)
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
    fn transfer(&self, x: &Tensor, answer: &Tensor, from: i64, to: i64) -> Candle<Tensor> {
        let all = &self.schedule.alphas_cumprod;
        let at = |t: i64| usize::try_from(t).map_or(self.final_alpha, |t| all[t]) as f64;
        let (now, next) = (at(from), at(to));
        let eps = match self.schedule.config.prediction_type {
            PredictionType::Epsilon => answer.clone(),
            PredictionType::VPrediction => mix(now.sqrt(), answer, (1.0 - now).sqrt(), x)?,
        };
        let denominator = now * (1.0 - next).sqrt() + (now * (1.0 - now) * next).sqrt();
        mix((next / now).sqrt(), x, -(next - now) / denominator, &eps)
    }
}

impl Sampler for Pndm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn step(&mut self, i: usize, x: &Tensor, answer: &Tensor) -> Candle<Tensor> {
        match i < self.runge_kutta {
            true => self.runge_kutta(i, x, answer),
            false => self.multistep(i, x, answer),
        }
    }
}
