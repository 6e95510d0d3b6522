//! The losses, on plain numbers: a pair's errors go in, the loss and its derivatives come out.
//!
//! e_m(k) is the mean over C, H, W of (prediction - target)^2 of model m on image k. The backward pass of the networks starts
//! from the derivatives dL/de, which are exact at every z: no logarithm is differentiated automatically.
//!
//! A new loss is a variant of `Form`, a function and a match arm, all in this file.

use pipe::cli::{named, number};
use pipe::origin::Origin;

#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Method")]
pub struct LossFlags {
    /// The loss to minimise
    #[arg(long, default_value_t = Form::Dpo, value_parser = named::<Form>())]
    loss: Form,
    /// The same as --loss sft
    #[arg(long, conflicts_with = "loss")]
    sft: bool,
    /// Strength of the tie to the reference, as Diffusion-DPO's code counts it: errors are means over a latent, and the
    /// loss has the factor 1/2. 5000 is that code's default
    #[arg(long, visible_alias = "beta", value_name = "X", default_value_t = 5000.0)]
    #[arg(value_parser = number("a number above 0", |x| x > 0.0 && x.is_finite()))]
    beta_dpo: f64,
    /// Probability that a label is wrong (conservative DPO); above 0, the policy gains nothing by preferring winners without limit
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    #[arg(value_parser = number("a probability below 0.5", |x| (0.0..0.5).contains(&x)))]
    label_smoothing: f64,
}

impl LossFlags {
    pub fn objective(&self) -> Objective {
        let form = if self.sft { Form::Sft } else { self.loss };
        Objective { form, beta: self.beta_dpo, smoothing: self.label_smoothing }
    }
}

/// The four errors of one pair: of policy and reference, on the image that the label prefers and on the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Errors {
    pub policy_winner: f64,
    pub policy_loser: f64,
    pub reference_winner: f64,
    pub reference_loser: f64,
}

/// The label of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Label {
    /// Probability that the image called winner is preferred, 0..1.
    pub target: f64,
    /// 0: the pair abstains.
    pub weight: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    pub z: f64,
    pub loss: f64,
    /// dL/de of the policy on winner and loser.
    pub gradient: [f64; 2],
}

/// A pair's errors and the loss that they give.
pub type Pair = (Errors, PairLoss);

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Form {
        /// Diffusion-DPO's logistic loss
        Dpo = "dpo",
        /// (z - 1/2)^2: a margin to reach and not to exceed
        Ipo = "ipo",
        /// The error on the preferred image alone: plain fine-tuning, without a reference
        Sft = "sft",
    }
}

/// What is minimised: a loss, its strength, and how far labels can be trusted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    pub form: Form,
    /// Strength of the tie to the reference, for mean errors and with the 1/2.
    pub beta: f64,
    /// Probability that a label is wrong, 0..0.5.
    pub smoothing: f64,
}

impl Objective {
    pub fn describe(&self, origin: Origin) -> Origin {
        origin.arg("loss", format!("{:?}", self.form)).arg("beta_dpo", self.beta).arg("label_smoothing", self.smoothing)
    }

    pub fn pair(self, e: Errors, label: Label) -> PairLoss {
        let label = smoothed(label, self.smoothing);
        match self.form {
            Form::Dpo => dpo_loss(e, label, self.beta),
            Form::Ipo => ipo_loss(e, label, self.beta),
            Form::Sft => sft_loss(e, label, self.beta),
        }
    }
}

/// z is above 0 when the policy favours the winner more than the reference does (Diffusion-DPO Eq. 14 as its code has it, with
/// T and w(lambda) inside beta):
///
///   z = -(beta/2) [(e_policy^w - e_policy^l) - (e_reference^w - e_reference^l)]
pub fn margin(e: Errors, beta: f64) -> f64 {
    -0.5 * beta * ((e.policy_winner - e.policy_loser) - (e.reference_winner - e.reference_loser))
}

/// Diffusion-DPO Eq. 14; BalancedDPO Eq. 8 when the label is a vote:
///
///   loss = -weight [target log sigma(z) + (1 - target) log sigma(-z)]
pub fn dpo_loss(e: Errors, label: Label, beta: f64) -> PairLoss {
    let Label { target, weight } = label;
    let z = margin(e, beta);
    let loss = -weight * (target * log_sigmoid(z) + (1.0 - target) * log_sigmoid(-z));
    let dz = weight * (sigmoid(z) - target); // Eq. 9
    PairLoss { z, loss, gradient: [-0.5 * beta * dz, 0.5 * beta * dz] }
}

/// IPO (Azar et al. 2023, Eq. 17: (h - 1/(2 tau))^2 with tau h = z), times tau^2, so that its scale does not depend on beta:
///
///   loss = weight [target (z - 1/2)^2 + (1 - target) (z + 1/2)^2]
pub fn ipo_loss(e: Errors, label: Label, beta: f64) -> PairLoss {
    let Label { target, weight } = label;
    let z = margin(e, beta);
    let loss = weight * (target * (z - 0.5).powi(2) + (1.0 - target) * (z + 0.5).powi(2));
    let dz = weight * (2.0 * z + 1.0 - 2.0 * target);
    PairLoss { z, loss, gradient: [-0.5 * beta * dz, 0.5 * beta * dz] }
}

/// Fine-tuning on the preferred image (Eq. 13, as Diffusion-DPO's --sft):
///
///   loss = weight [target e_policy^w + (1 - target) e_policy^l]
///
/// `beta` only enters z, which is logged.
pub fn sft_loss(e: Errors, label: Label, beta: f64) -> PairLoss {
    let Label { target, weight } = label;
    let loss = weight * (target * e.policy_winner + (1.0 - target) * e.policy_loser);
    PairLoss { z: margin(e, beta), loss, gradient: [weight * target, weight * (1.0 - target)] }
}

/// Conservative DPO (Mitchell 2023): a label is wrong with probability `smoothing`,
///
///   target' = (1 - smoothing) target + smoothing (1 - target)
pub fn smoothed(label: Label, smoothing: f64) -> Label {
    Label { target: (1.0 - smoothing) * label.target + smoothing * (1.0 - label.target), ..label }
}

/// log sigma(z), without overflow at either end.
fn log_sigmoid(z: f64) -> f64 {
    z.min(0.0) - (-z.abs()).exp().ln_1p()
}

fn sigmoid(z: f64) -> f64 {
    let e = (-z.abs()).exp();
    if z >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SURE: Label = Label { target: 1.0, weight: 1.0 };

    fn errors(a: f64, b: f64, c: f64, d: f64) -> Errors {
        Errors { policy_winner: a, policy_loser: b, reference_winner: c, reference_loser: d }
    }

    #[test]
    fn equal_models_give_ln_2() {
        let pair = dpo_loss(errors(0.3, 0.7, 0.3, 0.7), SURE, 5000.0);
        assert_eq!((pair.z, pair.loss), (0.0, std::f64::consts::LN_2));
        assert_eq!(pair.gradient, [1250.0, -1250.0]); // -(beta/2) (sigma(0) - 1)
    }

    #[test]
    fn an_abstaining_pair_has_no_gradient_at_all() {
        for loss in [dpo_loss, ipo_loss, sft_loss] {
            let pair = loss(errors(0.1, 0.9, 0.4, 0.2), Label { target: 0.5, weight: 0.0 }, 5000.0);
            assert_eq!(pair.loss.abs(), 0.0);
            assert!(pair.gradient.iter().all(|g| *g == 0.0));
        }
    }

    #[test]
    fn swapping_images_and_label_changes_nothing() {
        let e = errors(0.31, 0.33, 0.32, 0.325);
        let swapped = errors(e.policy_loser, e.policy_winner, e.reference_loser, e.reference_winner);
        for loss in [dpo_loss, ipo_loss, sft_loss] {
            for target in [1.0, 0.75, 0.0] {
                let a = loss(e, Label { target, weight: 1.0 }, 2000.0);
                let b = loss(swapped, Label { target: 1.0 - target, weight: 1.0 }, 2000.0);
                assert!((a.loss - b.loss).abs() < 1e-9);
                assert!((a.gradient[0] - b.gradient[1]).abs() < 1e-9 && (a.gradient[1] - b.gradient[0]).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn far_from_zero_it_is_linear_and_finite() {
        let lost = dpo_loss(errors(1.0, 0.0, 0.0, 0.0), SURE, 2000.0);
        assert_eq!((lost.z, lost.loss), (-1000.0, 1000.0));
        let won = dpo_loss(errors(0.0, 1.0, 0.0, 0.0), SURE, 2000.0);
        assert_eq!((won.z, won.loss), (1000.0, 0.0));
        assert!(won.gradient.iter().all(|g| *g == 0.0));
    }

    #[test]
    fn ipo_rests_at_its_margin() {
        let at = |z: f64| ipo_loss(errors(0.5 - 2.0 * z / 300.0, 0.5, 0.5, 0.5), SURE, 300.0);
        assert!((at(0.5).z - 0.5).abs() < 1e-9 && at(0.5).loss < 1e-18 && at(0.5).gradient[0].abs() < 1e-9);
        assert!(at(0.2).gradient[0] > 0.0 && at(0.8).gradient[0] < 0.0);
        assert!((at(0.0).loss - 0.25).abs() < 1e-12);
    }

    #[test]
    fn a_smoothed_label_has_a_finite_best_z() {
        let label = smoothed(SURE, 0.1);
        assert_eq!((label.target, smoothed(Label { target: 0.5, weight: 1.0 }, 0.3).target), (0.9, 0.5));
        let best = (0.9f64 / 0.1).ln(); // z = logit(target)
        let pair = dpo_loss(errors(0.5 - 2.0 * best / 300.0, 0.5, 0.5, 0.5), label, 300.0);
        assert!((pair.z - best).abs() < 1e-9 && pair.gradient[0].abs() < 1e-9);
        let objective = Objective { form: Form::Dpo, beta: 300.0, smoothing: 0.1 };
        assert_eq!(
            objective.pair(errors(0.4, 0.5, 0.5, 0.5), SURE),
            dpo_loss(errors(0.4, 0.5, 0.5, 0.5), label, 300.0)
        );
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let (e, label, h) = (errors(0.31, 0.33, 0.32, 0.325), Label { target: 0.8, weight: 0.7 }, 1e-7);
        for loss in [dpo_loss, ipo_loss, sft_loss] {
            let at = |dw: f64, dl: f64| {
                loss(errors(e.policy_winner + dw, e.policy_loser + dl, 0.32, 0.325), label, 300.0).loss
            };
            let numeric = [(at(h, 0.0) - at(-h, 0.0)) / (2.0 * h), (at(0.0, h) - at(0.0, -h)) / (2.0 * h)];
            let exact = loss(e, label, 300.0).gradient;
            assert!(numeric.iter().zip(exact).all(|(n, g)| (n - g).abs() < 1e-4 * g.abs()), "{numeric:?} {exact:?}");
        }
    }
}
