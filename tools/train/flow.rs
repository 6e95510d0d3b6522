//! The flags of flow matching, under the names of diffusers' scripts where they have one.

use anyhow::{Result, bail, ensure};
use nets::denoiser::Guided;
use nets::process::{ErrorOf, Flow, FlowTraining, FlowWeight, Process, WeightingScheme};
use pipe::cli::{named, not_negative, number};
use pipe::origin::Origin;

#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Flow matching")]
pub struct FlowFlags {
    /// The weight of the velocity's error in each pair [default: constant]
    #[arg(long, value_parser = named::<FlowWeight>())]
    flow_weight: Option<FlowWeight>,
    /// The times to train at, and a weight for each [default: as diffusers' scripts, logit_normal for Stable Diffusion 3 and none
    /// for FLUX]
    #[arg(long, value_parser = named::<WeightingScheme>())]
    weighting_scheme: Option<WeightingScheme>,
    /// Mean of the normal draw of logit_normal [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = number("a number", f64::is_finite))]
    logit_mean: Option<f64>,
    /// Standard deviation of that draw [default: 1]
    #[arg(long, value_name = "X", value_parser = not_negative())]
    logit_std: Option<f64>,
    /// Scale of mode: above 0 more often in the middle, below 0 at the ends [default: 1.29]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = number("a number", f64::is_finite))]
    mode_scale: Option<f64>,
    /// Guidance that FLUX.1 [dev] gets as input in training [default: 3.5]
    #[arg(long, value_name = "X", value_parser = not_negative())]
    guidance_scale: Option<f64>,
}

impl FlowFlags {
    /// The process as these flags ask.
    /// Refuses a flag that has no meaning for this process.
    pub fn apply(&self, process: Process, error: ErrorOf) -> Result<Process> {
        let given = [
            ("--flow-weight", self.flow_weight.is_some()),
            ("--weighting-scheme", self.weighting_scheme.is_some()),
            ("--logit-mean", self.logit_mean.is_some()),
            ("--logit-std", self.logit_std.is_some()),
            ("--mode-scale", self.mode_scale.is_some()),
        ];
        let flow = match process {
            Process::Flow(flow) => flow,
            ddpm => match given.iter().find(|(_, given)| *given) {
                Some((flag, _)) => {
                    bail!("{flag} is for flow-matching models, and the base is a DDPM model: leave it out")
                }
                None => return Ok(ddpm),
            },
        };
        ensure!(
            error == ErrorOf::Prediction,
            "--error epsilon is for v-prediction; the error of the noise of a flow is --flow-weight one-minus-sigma-sq"
        );
        let usual = flow.training;
        let training = FlowTraining {
            scheme: self.weighting_scheme.unwrap_or(usual.scheme),
            logit_mean: self.logit_mean.unwrap_or(usual.logit_mean),
            logit_std: self.logit_std.unwrap_or(usual.logit_std),
            mode_scale: self.mode_scale.unwrap_or(usual.mode_scale),
            weight: self.flow_weight.unwrap_or(usual.weight),
        };
        for (flag, given, scheme) in [
            ("--logit-mean", self.logit_mean.is_some(), WeightingScheme::LogitNormal),
            ("--logit-std", self.logit_std.is_some(), WeightingScheme::LogitNormal),
            ("--mode-scale", self.mode_scale.is_some(), WeightingScheme::Mode),
        ] {
            let used = training.scheme;
            ensure!(
                !given || used == scheme,
                "{flag} belongs to --weighting-scheme {scheme}, and the scheme is {used}"
            );
        }
        Ok(Process::Flow(flow.with(training)))
    }

    /// The guidance that a denoiser gets as input in training; `None` if it takes none.
    pub fn guidance(&self, denoiser: Guided) -> Result<Option<f32>> {
        let takes = matches!(denoiser, Guided::AsInput(_));
        ensure!(
            takes || self.guidance_scale.is_none(),
            "--guidance-scale is for FLUX.1 [dev], which takes guidance as an input: leave it out"
        );
        let Guided::AsInput(usual) = denoiser else { return Ok(None) };
        Ok(Some(self.guidance_scale.unwrap_or(usual) as f32))
    }
}

/// Adds the flow settings that affect the weights.
pub fn describe(flow: &Flow, origin: Origin) -> Origin {
    let FlowTraining { scheme, logit_mean, logit_std, mode_scale, weight } = flow.training;
    let origin = origin.arg("flow_weight", weight.to_string()).arg("weighting_scheme", scheme.to_string());
    match scheme {
        WeightingScheme::LogitNormal => origin.arg("logit_mean", logit_mean).arg("logit_std", logit_std),
        WeightingScheme::Mode => origin.arg("mode_scale", mode_scale),
        _ => origin,
    }
}
