//! The reference: where its weights are kept, and how it follows the policy (Algorithm 1, line 14).

use std::time::{SystemTime, UNIX_EPOCH};
use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use nets::denoiser::{Denoiser, Streamed, Trainable};
use nets::params::{self, Params};
use nets::{conditioning::Conditioning, weights::Weights, write};
use pipe::cli::named;

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Method")]
pub struct ReferenceFlags {
    /// How the reference follows the policy
    #[arg(long, value_name = "MODE", default_value_t = Mode::Frozen, value_parser = named::<Mode>())]
    reference_mode: Mode,
    /// The same as --reference-mode hard:K (0: frozen)
    #[arg(long, value_name = "K", conflicts_with = "reference_mode")]
    refresh_every: Option<u64>,
    /// Where the reference's weights are kept; the results are the same to the last bit
    #[arg(long, value_name = "WHERE", default_value_t = Place::Auto, help_heading = "Optimisation", value_parser = named::<Place>())]
    pub reference_weights: Place,
}

impl ReferenceFlags {
    pub fn mode(&self) -> Mode {
        match self.refresh_every {
            None => self.reference_mode,
            Some(0) => Mode::Frozen,
            Some(k) => Mode::Hard(k),
        }
    }

    /// Whether the reference changes in a run of `steps` steps.
    pub fn moves_within(&self, steps: u64) -> bool {
        match self.mode() {
            Mode::Frozen => false,
            Mode::Hard(k) => k <= steps,
            Mode::Ema(_) => true,
        }
    }

    /// A warning if a run of `steps` steps ends before the reference has changed for one of them.
    pub fn never_note(&self, steps: u64) -> Option<String> {
        let Mode::Hard(k) = self.mode() else { return None };
        (k >= steps).then(|| {
            format!(
                "warning: the reference becomes the policy after every {k} steps, but the run ends after {steps}: the reference \
                 stays as it is. A smaller number would change that"
            )
        })
    }
}

pipe::names! {
    /// When and how far the reference moves.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Mode {
        /// Never: plain Diffusion-DPO
        Frozen = "frozen",
        /// It becomes the policy after every K-th optimiser step
        Hard(u64) = "hard:K" where |k| *k > 0 => "K is a number of steps above 0",
        /// After every step it moves this share of the way to the policy
        Ema(f64) = "ema:RATE" where |rate| *rate > 0.0 && *rate <= 1.0 => "RATE is a share above 0 and up to 1",
    }
}

impl Mode {
    /// The share of the way to the policy that the reference moves after `step` finished steps.
    pub fn rate_after(self, step: u64) -> Option<f64> {
        match self {
            Mode::Frozen => None,
            Mode::Hard(k) => step.is_multiple_of(k).then_some(1.0),
            Mode::Ema(rate) => Some(rate),
        }
    }
}

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Place {
        /// `file` on the CPU for networks of 50 million weights or more, and on a GPU that computes in bf16 `narrow`, unless the
        /// reference is a moving average; otherwise `memory`
        Auto = "auto",
        /// In memory
        Memory = "memory",
        /// In memory in the type that the networks compute in, half of f32's for bf16
        Narrow = "narrow",
        /// In their file, which is read again at every step
        File = "file",
    }
}

/// The network that the policy is measured against. All kinds do the same arithmetic, to the last bit.
pub enum Reference {
    Held(Trainable),
    /// In a file. A large reference would take a fifth of the memory of a run, and reading it takes a small part of a step.
    Streamed(Streamed),
    /// In a file too, and in memory in the type that the networks compute in.
    Narrow {
        file: Streamed,
        network: Box<Denoiser>,
        compute: DType,
    },
}

impl Reference {
    /// Opens the denoiser in `folder` as the reference of a policy with these parameters.
    pub fn open(
        folder: &Path,
        policy: &Trainable,
        flags: &ReferenceFlags,
        compute: DType,
        device: &Device,
    ) -> Result<Self> {
        const LARGE: usize = 50_000_000; // parameters: 200 MB
        let large = params::count(&policy.params) >= LARGE;
        let (place, moves) = (flags.reference_weights, matches!(flags.mode(), Mode::Ema(_)));
        ensure!(
            matches!(place, Place::Auto | Place::Memory) || !moves,
            "--reference-weights {place} cannot be used with a moving average, which changes every weight at every step"
        );
        let place = match place {
            Place::Auto if moves => Place::Memory,
            Place::Auto if device.is_cpu() && large => Place::File,
            Place::Auto if compute != DType::F32 && ops::has_kernels(device) => Place::Narrow,
            Place::Auto => Place::Memory,
            named => named,
        };
        let reference = match place {
            Place::File => Reference::Streamed(Streamed::open(folder, device)?),
            Place::Narrow => Self::narrow(folder, compute, device)?,
            _ => Reference::Held(Trainable::open_detached(folder, device)?),
        };
        let theirs: BTreeMap<String, Vec<usize>> = match &reference {
            Reference::Held(held) => held.params.iter().map(|(n, v)| (n.clone(), v.dims().to_vec())).collect(),
            Reference::Streamed(file) | Reference::Narrow { file, .. } => file.shapes().into_iter().collect(),
        };
        // A convolution of 1x1 is the same as a matrix.
        let shape = |dims: &[usize]| (dims.iter().product::<usize>(), dims.iter().copied().take(2).collect::<Vec<_>>());
        for (name, var) in &policy.params {
            let same = theirs.get(name).is_some_and(|dims| shape(dims) == shape(var.dims()));
            ensure!(
                same,
                "policy and reference differ in architecture: tensor '{name}' has no counterpart of its shape"
            );
        }
        let extra =
            theirs.keys().find(|name| !policy.params.contains_key(*name) && !policy.constants.contains_key(*name));
        ensure!(
            extra.is_none(),
            "policy and reference differ in architecture: the policy has no tensor '{}'",
            extra.map_or("", |n| n)
        );
        Ok(reference)
    }

    /// The denoiser in `folder`, which never moves; on the CPU it stays in its file.
    pub fn fixed(folder: &Path, compute: DType, device: &Device) -> Result<Self> {
        match device.is_cpu() {
            true => Ok(Reference::Streamed(Streamed::open(folder, device)?)),
            false => Self::narrow(folder, compute, device),
        }
    }

    fn narrow(folder: &Path, compute: DType, device: &Device) -> Result<Self> {
        let file = Streamed::open(folder, device)?;
        Ok(Reference::Narrow { network: Box::new(file.narrowed(compute)?), file, compute })
    }

    /// Goes on with the weights of another file, where they are called `prefix.NAME`.
    fn read_from(&mut self, weights: Weights, prefix: &'static str) -> Result<()> {
        match self {
            Reference::Held(_) => bail!("a reference in memory is no file"),
            Reference::Streamed(file) => file.read_from(weights, prefix),
            Reference::Narrow { file, network, compute } => {
                file.read_from(weights, prefix);
                **network = file.narrowed(*compute)?;
            }
        }
        Ok(())
    }

    /// As [`nets::denoiser::Denoiser::predict`].
    pub fn predict(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        match self {
            Reference::Held(held) => held.denoiser.predict(x, t, conditioning),
            Reference::Streamed(streamed) => streamed.predict(x, t, conditioning),
            Reference::Narrow { network, .. } => network.predict(x, t, conditioning),
        }
    }

    /// Bytes of its weights in memory.
    pub fn in_memory(&self) -> usize {
        match self {
            Reference::Held(held) => 4 * params::count(&held.params),
            Reference::Streamed(_) => 0,
            Reference::Narrow { file, compute, .. } => {
                file.shapes().iter().map(|(_, dims)| dims.iter().product::<usize>() * compute.size_in_bytes()).sum()
            }
        }
    }

    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self {
            Reference::Held(held) => {
                let var = held.params.get(name).with_context(|| format!("the reference has no tensor '{name}'"))?;
                Ok(var.as_detached_tensor())
            }
            Reference::Streamed(file) | Reference::Narrow { file, .. } => file.get(name, shape),
        }
    }

    /// theta_reference <- theta_reference + rate (theta - theta_reference); exactly theta at rate 1. The arithmetic is that of
    /// `refresh-ref`. A streamed reference is written to a new, nameless file in `scratch`.
    pub fn follow(&mut self, policy: &Trainable, rate: f64, scratch: &Path) -> Result<()> {
        match self {
            Reference::Held(held) => {
                for (name, reference) in &held.params {
                    let theta = policy.params[name].as_detached_tensor();
                    if rate == 1.0 {
                        reference.set(&theta)?;
                    } else {
                        let before = reference.as_detached_tensor();
                        reference.set(&(&before + ((theta - &before)? * rate)?)?)?;
                    }
                }
            }
            Reference::Streamed(_) | Reference::Narrow { .. } => {
                ensure!(rate == 1.0, "a reference in a file can only become the policy, not move by a share of {rate}");
                // Several processes, on several hosts, may share the folder.
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
                let file = scratch.join(format!("reference-{}-{now}.safetensors", std::process::id()));
                let theta = whole(policy);
                write::tensors(&file, &theta, Default::default())?;
                self.read_from(Weights::open(&file)?, "")?;
                // The file stays open. Without a name it is gone when the run ends, however it ends.
                fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
            }
        }
        Ok(())
    }

    /// Takes the tensors `reference.*` from a checkpoint's state.
    pub fn restore(&mut self, state: &Path) -> Result<()> {
        let kept = Weights::open(state)?;
        match self {
            Reference::Held(held) => {
                for (name, var) in &held.params {
                    var.set(&kept.get(&format!("reference.{name}"), var.dims())?.to_device(var.device())?)?;
                }
            }
            Reference::Streamed(_) | Reference::Narrow { .. } => self.read_from(kept, "reference")?,
        }
        Ok(())
    }
}

/// Everything that the weight file of a whole denoiser holds, without history.
pub fn whole(policy: &Trainable) -> BTreeMap<String, Tensor> {
    detached(&policy.params).chain(policy.constants.clone()).collect()
}

/// Tensors without history, by name.
pub fn detached(params: &Params) -> impl Iterator<Item = (String, Tensor)> + '_ {
    params.iter().map(|(n, v)| (n.clone(), v.as_detached_tensor()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_parsed_and_printed_alike() {
        for text in ["frozen", "hard:125", "ema:0.01"] {
            assert_eq!(text.parse::<Mode>().unwrap().to_string(), text);
        }
        for text in ["hard:0", "hard", "ema:0", "ema:1.5", "soft"] {
            assert!(text.parse::<Mode>().is_err(), "{text}");
        }
        let after = |mode: Mode| (1..=4).map(|s| mode.rate_after(s)).collect::<Vec<_>>();
        assert_eq!(after(Mode::Hard(2)), [None, Some(1.0), None, Some(1.0)]);
        assert_eq!(after(Mode::Ema(0.5)), [Some(0.5); 4]);
        assert_eq!(after(Mode::Frozen), [None; 4]);
    }
}
