//! DDPM in the paper's letters: x_t = alpha_t x_0 + sigma_t eps at the timesteps 0, 1, ... of a schedule of betas.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Result as Candle, Tensor};
use pipe::seed::Draws;

use super::{ErrorOf, PredictionType, SchedulerConfig, Spacing, mix};

/// A noise schedule.
#[derive(Clone, Debug)]
pub struct Ddpm {
    pub config: SchedulerConfig,
    /// alpha-bar of every training timestep, f32 as torch computes it.
    pub alphas_cumprod: Vec<f32>,
    /// The timesteps that training draws from, all equally often.
    pub(super) trained: Vec<u32>,
}

impl Ddpm {
    /// `repaired`: as [`SchedulerConfig::repaired`].
    pub(super) fn open(file: &Path, repaired: bool) -> Result<Self> {
        let config = SchedulerConfig::read(file)?;
        Self::new(if repaired { config.repaired(file) } else { config })
            .with_context(|| format!("{} cannot be used", file.display()))
    }

    pub fn new(config: SchedulerConfig) -> Result<Self> {
        let n = config.num_train_timesteps;
        ensure!(n > 1, "num_train_timesteps is {n}");
        let betas: Vec<f32> = match (&config.trained_betas, config.beta_schedule.as_str()) {
            (Some(betas), _) => betas.clone(),
            (None, "linear") => linspace(config.beta_start as f32, config.beta_end as f32, n),
            (None, "scaled_linear") => {
                let roots = linspace(config.beta_start.sqrt() as f32, config.beta_end.sqrt() as f32, n);
                roots.into_iter().map(|b| b * b).collect()
            }
            (None, other) => bail!("beta_schedule '{other}' is not supported; expected linear or scaled_linear"),
        };
        ensure!(betas.len() == n, "trained_betas has {} entries for {n} timesteps", betas.len());
        let beta = betas.iter().find(|beta| !(0.0..=1.0).contains(*beta));
        ensure!(beta.is_none(), "a beta of its noise schedule is {}, not from 0 to 1", beta.unwrap_or(&0.0));
        let alphas_cumprod = cumulative(betas.iter().map(|beta| 1.0 - beta));
        let alphas_cumprod = match config.rescale_betas_zero_snr {
            true => zero_terminal_snr(&alphas_cumprod),
            false => alphas_cumprod,
        };
        Ok(Self { config, alphas_cumprod, trained: (0..n as u32).collect() })
    }

    pub(super) fn draw(&self, draws: &mut Draws) -> f32 {
        self.trained[draws.below(self.trained.len() as u64) as usize] as f32
    }

    pub(super) fn check_time(&self, t: f64) -> Result<f32> {
        let n = self.alphas_cumprod.len();
        ensure!(t.fract() == 0.0, "timestep {t} is not a whole number");
        ensure!((0.0..n as f64).contains(&t), "timestep {t} is out of range (the schedule has {n})");
        Ok(t as f32)
    }

    /// SDXL Turbo predicts eps and begins at pure noise, which its configuration calls "trailing". Other models may say the
    /// same and mean their sampling only.
    pub(super) fn looks_distilled(&self) -> bool {
        self.config.timestep_spacing == Some(Spacing::Trailing)
            && self.config.prediction_type == PredictionType::Epsilon
    }

    /// The schedule by which Diffusion-DPO trains SDXL Turbo: at timesteps 249, 499, 749 and 999, where the last one keeps
    /// nothing of the image.
    pub(super) fn distilled(self) -> Self {
        let n = self.config.num_train_timesteps as u32;
        let trained = (1..=4).filter_map(|i| (n * i / 4).checked_sub(1)).collect();
        Self { alphas_cumprod: zero_terminal_snr(&self.alphas_cumprod), trained, ..self }
    }

    /// x_t = alpha_t x_0 + sigma_t eps (Eq. 13)
    pub(super) fn add_noise(&self, x0: &Tensor, eps: &Tensor, t: &[f32]) -> Candle<Tensor> {
        let [alpha, sigma] = self.alpha_sigma(t);
        ops::mix(&alpha, x0, &sigma, eps)
    }

    /// eps, or v = alpha_t eps - sigma_t x_0
    pub(super) fn target(&self, x0: &Tensor, eps: &Tensor, t: &[f32]) -> Candle<Tensor> {
        match self.config.prediction_type {
            PredictionType::Epsilon => Ok(eps.clone()),
            PredictionType::VPrediction => {
                let [alpha, sigma] = self.alpha_sigma(t);
                ops::mix(&alpha, eps, &sigma.iter().map(|s| -s).collect::<Vec<_>>(), x0)
            }
        }
    }

    /// With v = alpha eps - sigma x_0 and x_t given, eps = alpha v + sigma x_t, so |eps error|^2 = alpha_t^2 |v error|^2.
    pub(super) fn weight(&self, error: ErrorOf, t: f32) -> f64 {
        match (error, self.config.prediction_type) {
            (ErrorOf::Epsilon, PredictionType::VPrediction) => f64::from(self.alphas_cumprod[t as usize]),
            _ => 1.0,
        }
    }

    /// x_0 and eps of x_t = alpha x_0 + sigma eps, both like `x`, from the denoiser's `prediction`.
    pub fn x0_and_eps(&self, x: &Tensor, prediction: &Tensor, alpha: f64, sigma: f64) -> Candle<(Tensor, Tensor)> {
        Ok(match self.config.prediction_type {
            PredictionType::Epsilon => (mix(1.0 / alpha, x, -sigma / alpha, prediction)?, prediction.clone()),
            PredictionType::VPrediction => (mix(alpha, x, -sigma, prediction)?, mix(sigma, x, alpha, prediction)?),
        })
    }

    /// alpha_t = sqrt(alpha-bar_t) and sigma_t = sqrt(1 - alpha-bar_t) of each time.
    fn alpha_sigma(&self, t: &[f32]) -> [Vec<f32>; 2] {
        let each = |f: fn(f32) -> f32| t.iter().map(|&t| f(self.alphas_cumprod[t as usize])).collect();
        [each(f32::sqrt), each(|a| (1.0 - a).sqrt())]
    }
}

/// alpha-bar as torch.cumprod computes it: products in f64, each rounded to f32.
fn cumulative(alphas: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1f64;
    let next = |alpha: f32| {
        product *= alpha as f64;
        product as f32
    };
    alphas.map(next).collect()
}

/// alpha-bar, shifted and scaled so that the last timestep keeps nothing of the image (arXiv 2305.08891, Algorithm 1).
fn zero_terminal_snr(alphas_cumprod: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod.iter().map(|a| a.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let shifted: Vec<f32> = roots.iter().map(|r| ((r - last) * scale).powi(2)).collect();
    // diffusers converts to betas and back, which rounds once more.
    let alpha = |i: usize| if i == 0 { shifted[0] } else { shifted[i] / shifted[i - 1] };
    cumulative((0..shifted.len()).map(|i| 1.0 - (1.0 - alpha(i))))
}

/// torch.linspace in f32, which counts from both ends.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n - 1) as f32;
    let at = |i: usize| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 };
    (0..n).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(json: &str) -> Ddpm {
        Ddpm::new(serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn turbo_is_trained_at_four_timesteps() {
        let sd = r#""beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear""#;
        let turbo = schedule(&format!(r#"{{{sd}, "timestep_spacing": "trailing"}}"#));
        let usual = turbo.alphas_cumprod.clone();
        assert!(turbo.looks_distilled());
        assert_eq!(turbo.trained, (0..1000).collect::<Vec<u32>>());
        assert_eq!(turbo.check_time(999.0).unwrap(), 999.0);
        for (bad, why) in [(1000.0, "out of range"), (-1.0, "out of range"), (12.5, "whole"), (f64::NAN, "whole")] {
            assert!(turbo.check_time(bad).unwrap_err().to_string().contains(why), "{bad}");
        }
        let turbo = turbo.distilled();
        assert_eq!(turbo.trained, [249, 499, 749, 999]);
        assert_eq!((turbo.alphas_cumprod[999], turbo.alphas_cumprod[0]), (0.0, usual[0]));
        assert!(turbo.alphas_cumprod[500] < usual[500]);
        for other in
            [r#""timestep_spacing": "leading""#, r#""timestep_spacing": "trailing", "prediction_type": "v_prediction""#]
        {
            assert!(!schedule(&format!("{{{sd}, {other}}}")).looks_distilled());
        }
    }
}
