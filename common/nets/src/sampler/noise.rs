//! The noise that sampling starts from and that ancestral samplers add. The noise of an image is a pure function of its seed
//! and the step, so batches, threads and shards do not change it.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, Result as Candle, Tensor};
use pipe::seed;

use crate::weights::Weights;

/// The noise of a batch of B images.
pub struct Noise {
    seeds: Vec<u64>,
    given: Option<GivenNoise>,
}

/// Noise from a file, in place of the seeds'.
#[derive(Clone)]
pub struct GivenNoise {
    /// The start of sampling, standard normal, (N, C, h, w).
    pub latents: Tensor,
    /// The noise that ancestral samplers add, standard normal, (steps, N, C, h, w).
    pub steps: Option<Tensor>,
}

impl GivenNoise {
    /// Reads `latents` and, where it is there, `step_noise` from a safetensors file.
    pub fn open(file: &Path) -> Result<Self> {
        let name = file.display();
        let all = Weights::open(file)?;
        let read = |tensor: &str| -> Result<Tensor> {
            let values = all.raw(tensor)?.to_dtype(DType::F32)?;
            if let Some((at, value)) = first_bad(&values)? {
                bail!("{name}: value {at} of '{tensor}' is {value}; expected a finite number");
            }
            Ok(values)
        };
        let latents = read("latents")?;
        let dims = latents.dims();
        ensure!(dims.len() == 4, "{name}: 'latents' has shape {dims:?}, expected (N, C, h, w)");
        let steps = all.has("step_noise").then(|| read("step_noise")).transpose()?;
        if let Some(steps) = &steps {
            let fits = steps.rank() == 5 && steps.dims()[1..] == *dims;
            ensure!(
                fits,
                "{name}: 'step_noise' has shape {:?}, expected (steps, N, C, h, w) with {dims:?}",
                steps.dims()
            );
        }
        Ok(Self { latents, steps })
    }

    /// Refuses noise for other steps than these `steps`.
    pub fn check_steps(&self, steps: usize) -> Result<()> {
        let given = self.steps.as_ref().map_or(steps, |given| given.dims()[0]);
        ensure!(given == steps, "'step_noise' holds the noise of {given} steps, and the sampler takes {steps}");
        Ok(())
    }
}

/// The first value that is infinite or no number, with its place.
fn first_bad(tensor: &Tensor) -> Result<Option<(usize, f32)>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().enumerate().find(|(_, value)| !value.is_finite()))
}

impl Noise {
    /// `seeds` of the images `rows` of a run; `given`: noise of all its images.
    pub fn new(seeds: Vec<u64>, rows: std::ops::Range<usize>, given: Option<&GivenNoise>) -> Candle<Self> {
        let given = given.map(|given| given.rows(rows)).transpose()?;
        Ok(Self { seeds, given })
    }

    pub fn rows(&self, rows: std::ops::Range<usize>) -> Candle<Self> {
        Self::new(self.seeds[rows.clone()].to_vec(), rows, self.given.as_ref())
    }

    /// The start of sampling, standard normal, (B, C, h, w), on the CPU.
    pub fn initial(&self, latent: [usize; 3]) -> Candle<Tensor> {
        match &self.given {
            Some(given) => Ok(given.latents.clone()),
            None => self.drawn("latents", 0, latent),
        }
    }

    /// The noise that step `i` adds to `x` (B, C, h, w): standard normal, of the same shape and on the same device.
    pub fn of_step(&self, i: usize, x: &Tensor) -> Candle<Tensor> {
        let (_, c, h, w) = x.dims4()?;
        match self.given.as_ref().and_then(|given| given.steps.as_ref()) {
            Some(steps) => steps.get(i),
            None => self.drawn("step noise", i, [c, h, w]),
        }?
        .to_device(x.device())
    }

    fn drawn(&self, stream: &str, step: usize, [c, h, w]: [usize; 3]) -> Candle<Tensor> {
        let normals = |&seed: &u64| seed::draws(seed, stream, "", step as u64).normals(c * h * w);
        let all: Vec<f32> = self.seeds.iter().flat_map(normals).collect();
        Tensor::from_vec(all, (self.seeds.len(), c, h, w), &Device::Cpu)
    }
}

impl GivenNoise {
    fn rows(&self, rows: std::ops::Range<usize>) -> Candle<Self> {
        let steps =
            self.steps.as_ref().map(|steps| steps.narrow(1, rows.start, rows.len())?.contiguous()).transpose()?;
        Ok(Self { latents: self.latents.narrow(0, rows.start, rows.len())?, steps })
    }
}
