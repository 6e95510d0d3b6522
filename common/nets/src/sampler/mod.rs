//! From noise to latents: the field's samplers, each set up by the model's own `scheduler_config.json` as diffusers' class of
//! the same name sets itself up. x_t, alpha, sigma, eps and x_0 as in [`crate::process`].
//!
//! A new sampler is a file of its own and a line in each of the three lists below.

mod ddim;
mod dpmpp;
mod euler;
mod flow;
mod noise;
mod pndm;
mod sigmas;
mod spacing;
mod walk;

use anyhow::{Result, bail, ensure};
use candle_core::{Result as Candle, Tensor};

pub use noise::{GivenNoise, Noise};
pub use walk::{Guidance, walk};

use crate::process::{Ddpm, Process, SchedulerConfig, Spacing};

pipe::names! {
    /// How the noise is removed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Scheduler {
        /// Deterministic DDIM (eta 0)
        Ddim = "ddim",
        /// Pseudo linear multistep: Stable Diffusion 1.5's own
        Pndm = "pndm",
        /// DPM-Solver++, second order, multistep (DPM++ 2M)
        Dpmpp = "dpmpp",
        /// Euler's method: SDXL's own
        Euler = "euler",
        /// Euler's method with noise added after each step (Euler ancestral)
        EulerA = "euler-a" | "euler_a",
        /// Euler's method along the flow: Stable Diffusion 3's and FLUX's own
        Flow = "flow",
        /// Heun's method along the flow: two predictions per step, except the last
        FlowHeun = "flow-heun" | "flow_heun",
    }
}

/// A sampler's set-up.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// `None`: [`Sampling::usual`].
    pub scheduler: Option<Scheduler>,
    pub steps: usize,
    /// Use Karras' sigmas. Without it the model's configuration decides.
    pub karras: bool,
    /// `None`: as the model's configuration says.
    pub spacing: Option<Spacing>,
}

/// One way from noise to latents, for a batch of B images.
pub trait Sampler {
    /// The times that the denoiser is called with, in order. Step i is the i-th of them.
    fn timesteps(&self) -> &[f32];

    /// Standard deviation of the noise at the start.
    fn initial_sigma(&self) -> f64 {
        1.0
    }

    fn adds_noise(&self) -> bool {
        false
    }

    /// The denoiser's input for `x` (B, C, h, w) at step i.
    fn input(&self, _i: usize, x: &Tensor) -> Candle<Tensor> {
        Ok(x.clone())
    }

    /// From `x` (B, C, h, w) and the denoiser's prediction at step i to the next `x`.
    fn step(&mut self, i: usize, x: &Tensor, prediction: &Tensor, noise: &Noise) -> Candle<Tensor>;
}

impl Sampling {
    /// The sampler of a model whose user names none.
    pub fn usual(process: &Process) -> Scheduler {
        match process {
            Process::Ddpm(_) => Scheduler::Ddim,
            Process::Flow(flow) if flow.asks_for_heun() => Scheduler::FlowHeun,
            Process::Flow(_) => Scheduler::Flow,
        }
    }

    pub fn scheduler(&self, process: &Process) -> Scheduler {
        self.scheduler.unwrap_or_else(|| Self::usual(process))
    }

    /// The sampler for latents of height and width `size`.
    /// Refuses no steps, more than the process has timesteps, and a setting that this sampler does not have.
    pub fn sampler(&self, process: &Process, size: [usize; 2]) -> Result<Box<dyn Sampler>> {
        let (steps, name) = (self.steps, self.scheduler(process));
        let n = match process {
            Process::Ddpm(ddpm) => ddpm.config.num_train_timesteps,
            Process::Flow(flow) => flow.config.num_train_timesteps,
        };
        ensure!(steps > 0 && steps <= n, "{steps} sampling steps do not fit {n} training timesteps");
        let ddpm = match process {
            Process::Ddpm(ddpm) => ddpm,
            Process::Flow(flow) => {
                let takes = matches!(name, Scheduler::Flow | Scheduler::FlowHeun);
                ensure!(takes, "{name} is for DDPM models; this is a flow-matching model: choose flow or flow-heun");
                let spaced = self.karras || self.spacing.is_some();
                ensure!(!spaced, "{name} takes the sigmas of the model: it has no Karras sigmas and no spacing");
                return Ok(Box::new(flow::FlowSampler::new(flow, steps, size, name == Scheduler::FlowHeun)));
            }
        };
        let mut process = ddpm.clone();
        process.config.timestep_spacing = self.spacing.or(process.config.timestep_spacing);
        let karras = self.uses_karras(name, &process.config);
        let has = !matches!(name, Scheduler::Ddim | Scheduler::Pndm);
        ensure!(has || !karras, "{name} has no Karras sigmas; choose dpmpp, euler or euler-a");
        Ok(match name {
            Scheduler::Ddim => Box::new(ddim::Ddim::new(&process, steps)?),
            Scheduler::Pndm => Box::new(pndm::Pndm::new(&process, steps)?),
            Scheduler::Dpmpp => Box::new(dpmpp::Dpmpp::new(&process, steps, karras)?),
            Scheduler::Euler => Box::new(euler::Euler::new(&process, steps, karras)?),
            Scheduler::EulerA => Box::new(euler::Euler::ancestral(&process, steps, karras)?),
            Scheduler::Flow | Scheduler::FlowHeun => {
                bail!("{name} is for models that follow a flow, and this one is of DDPM; choose ddim, dpmpp or euler")
            }
        })
    }

    pub fn label(&self, process: &Process) -> String {
        let scheduler = self.scheduler(process);
        let name = match scheduler {
            Scheduler::Ddim => "DDIM",
            Scheduler::Pndm => "PLMS",
            Scheduler::Dpmpp => "DPM++ 2M",
            Scheduler::Euler | Scheduler::Flow => "Euler",
            Scheduler::EulerA => "Euler a",
            Scheduler::FlowHeun => "Heun",
        };
        let karras = matches!(process, Process::Ddpm(ddpm) if self.uses_karras(scheduler, &ddpm.config));
        format!("{name}{}", if karras { " Karras" } else { "" })
    }

    /// Euler ancestral does not read the configuration's key, as in diffusers.
    fn uses_karras(&self, scheduler: Scheduler, config: &SchedulerConfig) -> bool {
        let reads = matches!(scheduler, Scheduler::Dpmpp | Scheduler::Euler);
        self.karras || (reads && config.use_karras_sigmas == Some(true))
    }
}

/// alpha-bar after the last timestep.
fn final_alpha(process: &Ddpm, one_by_default: bool) -> f32 {
    if process.config.set_alpha_to_one.unwrap_or(one_by_default) { 1.0 } else { process.alphas_cumprod[0] }
}

#[cfg(test)]
mod tests;
