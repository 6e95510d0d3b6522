//! The losses, on plain numbers: a pair's errors go in, the loss and its derivatives come out.
//!
//! e_m(k) is the mean over C, H, W of (prediction - target)^2 of model m on image k. The backward pass of the networks starts
//! from the derivatives dL/de, which are exact at every z: no logarithm is differentiated automatically.
//!
//! A new loss is a variant of `Form`, a function and two match arms, all in this file, and its slope in the kernels for GPUs.

use anyhow::{Result, ensure};
use ops::Slope;
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
    /// Multiply each pair's margin by X (2 target - 1), so that a pair whose target is near 1/2 hardly counts (SmPO; its code has
    /// 10). The target is that of `vote --rule soft`
    #[arg(long, value_name = "X", value_parser = number("a number above 0", |x| x > 0.0 && x.is_finite()))]
    scale_margin: Option<f64>,
}

impl LossFlags {
    /// Refuses a number outside its loss's range, and a flag that has no effect on the loss.
    pub fn objective(&self) -> Result<Objective> {
        let form = if self.sft { Form::Sft } else { self.loss };
        let (name, in_range, range) = match form {
            Form::Poly(a) => ("poly:A", a.is_finite() && a >= -1.0, "from -1 on"),
            Form::Linear(eta) => ("linear:ETA", (0.0..=0.5).contains(&eta), "between 0 and 0.5"),
            Form::Dmpo(alpha) => ("dmpo:ALPHA", alpha > 0.0 && alpha < 0.5, "above 0 and below 0.5"),
            _ => ("", true, ""),
        };
        ensure!(in_range, "--loss {form}: the number of `{name}` lies {range}");
        ensure!(
            self.scale_margin.is_none() || !matches!(form, Form::Sft | Form::Linear(_)),
            "--scale-margin multiplies the margin, which is not what --loss {form} minimises: leave one of them out"
        );
        Ok(Objective { form, beta: self.beta_dpo, smoothing: self.label_smoothing, scale_margin: self.scale_margin })
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

/// The errors and the label of one pair in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub errors: Errors,
    pub loss: PairLoss,
    /// |policy's prediction| / |reference's prediction|, the mean of both images.
    pub norm_ratio: f64,
    /// The tenth of the schedule that its timestep lies in, 0 to 9.
    pub tenth: usize,
}

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Form {
        /// Diffusion-DPO's logistic loss
        Dpo = "dpo",
        /// (z - 1/2)^2: a margin to reach and not to exceed
        Ipo = "ipo",
        /// The error on the preferred image alone: plain fine-tuning, without a reference
        Sft = "sft",
        /// Poly-DPO: the logistic loss and A (1 - p), where p is the probability that the policy gives to the label; A above 0 for
        /// labels that contradict each other, below 0 for pairs that are too easy
        Poly(f64) = "poly:A",
        /// Linear-DPO: the difference of the errors with a weight that falls from 1 - ETA to ETA as the margin grows
        Linear(f64) = "linear:ETA",
        /// DMPO: the divergence of p from 1 - ALPHA, so that winners are not preferred without limit
        Dmpo(f64) = "dmpo:ALPHA",
        /// Symmetric cross-entropy as in Semi-DPO: the same as poly:3
        Sce = "sce",
    }
}

/// The objective: a loss, its strength, and how far labels can be trusted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    pub form: Form,
    /// Strength of the tie to the reference, for mean errors and with the 1/2.
    pub beta: f64,
    /// Probability that a label is wrong, 0..0.5.
    pub smoothing: f64,
    /// The factor of a certain pair's margin; `None`: margins do not depend on the label.
    pub scale_margin: Option<f64>,
}

impl Objective {
    pub fn describe(&self, origin: Origin) -> Origin {
        let origin =
            origin.arg("loss", self.form.to_string()).arg("beta_dpo", self.beta).arg("label_smoothing", self.smoothing);
        match self.scale_margin {
            Some(scale) => origin.arg("scale_margin", scale),
            None => origin,
        }
    }

    /// The label and the beta that the loss is made from.
    pub fn adjusted(self, label: Label) -> (Label, f64) {
        let (label, beta) = match self.scale_margin {
            Some(scale) => scaled(label, self.beta, scale),
            None => (label, self.beta),
        };
        (smoothed(label, self.smoothing), beta)
    }

    /// What a GPU computes the gradient from: see `pair_loss` in the kernels.
    pub fn slope(self) -> Slope {
        match self.form {
            Form::Dpo => Slope::Poly(0.0),
            Form::Poly(a) => Slope::Poly(a),
            Form::Sce => Slope::Poly(SCE),
            Form::Ipo => Slope::Ipo,
            Form::Dmpo(alpha) => Slope::Dmpo(alpha),
            Form::Linear(eta) => Slope::Linear(eta),
            Form::Sft => Slope::Sft,
        }
    }

    pub fn pair(self, e: Errors, label: Label) -> PairLoss {
        let (label, beta) = self.adjusted(label);
        match self.form {
            Form::Dpo => dpo_loss(e, label, beta),
            Form::Ipo => ipo_loss(e, label, beta),
            Form::Sft => sft_loss(e, label, beta),
            Form::Poly(a) => poly_loss(e, label, beta, a),
            Form::Linear(eta) => linear_loss(e, label, beta, eta),
            Form::Dmpo(alpha) => dmpo_loss(e, label, beta, alpha),
            Form::Sce => poly_loss(e, label, beta, SCE),
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

/// A loss of the margin alone. `l`: its value and derivative at z for a pair whose winner is certain.
///
///   loss = weight [target l(z) + (1 - target) l(-z)]
fn loss_of_margin(e: Errors, label: Label, beta: f64, l: impl Fn(f64) -> [f64; 2]) -> PairLoss {
    let Label { target, weight } = label;
    let z = margin(e, beta);
    let ([right, d_right], [wrong, d_wrong]) = (l(z), l(-z));
    let dz = weight * (target * d_right - (1.0 - target) * d_wrong);
    let loss = weight * (target * right + (1.0 - target) * wrong);
    PairLoss { z, loss, gradient: [-0.5 * beta * dz, 0.5 * beta * dz] }
}

/// Poly-DPO (ViPO, arXiv 2604.24953), with p = sigma(z):
///
///   l = -ln p + a (1 - p),  dl/dz = -(1 - p)(1 + a p)
pub fn poly_loss(e: Errors, label: Label, beta: f64, a: f64) -> PairLoss {
    loss_of_margin(e, label, beta, |z| {
        let (p, q) = (sigmoid(z), sigmoid(-z));
        [a * q - log_sigmoid(z), -q * (1.0 + a * p)]
    })
}

/// Semi-DPO's symmetric cross-entropy, -ln p + 0.5 * 6 (1 - p), is Poly-DPO with this a.
const SCE: f64 = 3.0;

/// Linear-DPO (arXiv 2605.21123): the errors' difference with a weight that is held constant in the derivative,
///
///   w(z) = clamp(0.5 - 0.4 z, eta, 1 - eta)
///   loss = weight [target w(z) - (1 - target) w(-z)] (e_policy^w - e_policy^l)
pub fn linear_loss(e: Errors, label: Label, beta: f64, eta: f64) -> PairLoss {
    let Label { target, weight } = label;
    let z = margin(e, beta);
    let w = |z: f64| (0.5 - 0.4 * z).clamp(eta, 1.0 - eta);
    let factor = weight * (target * w(z) - (1.0 - target) * w(-z));
    PairLoss { z, loss: factor * (e.policy_winner - e.policy_loser), gradient: [factor, -factor] }
}

/// DMPO (arXiv 2507.07510), with p = sigma(z) and q = 1 - alpha:
///
///   l = p ln(p / q) + (1 - p) ln((1 - p) / (1 - q)),  dl/dz = p (1 - p)(z - logit q)
pub fn dmpo_loss(e: Errors, label: Label, beta: f64, alpha: f64) -> PairLoss {
    let (ln_q, ln_rest) = ((1.0 - alpha).ln(), alpha.ln());
    loss_of_margin(e, label, beta, |z| {
        let (p, rest) = (sigmoid(z), sigmoid(-z));
        [p * (log_sigmoid(z) - ln_q) + rest * (log_sigmoid(-z) - ln_rest), p * rest * (z - (ln_q - ln_rest))]
    })
}

/// SmPO's margin (arXiv 2506.02698): the pair counts as certain, and its z is multiplied by scale (2 target - 1), which is what a
/// beta multiplied by it gives. The label and its beta.
pub fn scaled(label: Label, beta: f64, scale: f64) -> (Label, f64) {
    (Label { target: 1.0, ..label }, beta * scale * (2.0 * label.target - 1.0))
}

/// Conservative DPO (Mitchell 2023): a label is wrong with probability `smoothing`,
///
///   target' = (1 - smoothing) target + smoothing (1 - target)
pub fn smoothed(label: Label, smoothing: f64) -> Label {
    Label { target: (1.0 - smoothing) * label.target + smoothing * (1.0 - label.target), ..label }
}

/// The anchor of "Rethinking DPO in Diffusion Models" (arXiv 2505.18736) holds the policy, and with it a reference that follows the
/// policy, near the base. d is the mean over C, H, W of (policy's prediction - base's prediction)^2:
///
///   loss = weight anchor (beta/2) (d^w + d^l)
///
/// The loss of a pair, and dL/dd, which is that of both images.
pub fn anchor_loss([winner, loser]: [f64; 2], label: Label, beta: f64, anchor: f64) -> (f64, f64) {
    let slope = 0.5 * label.weight * anchor * beta;
    (slope * (winner + loser), slope)
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

    type Loss = fn(Errors, Label, f64) -> PairLoss;

    /// All losses, those with a number at two of them.
    const ALL: [Loss; 9] = [
        dpo_loss,
        ipo_loss,
        sft_loss,
        |e, l, b| poly_loss(e, l, b, -0.7),
        |e, l, b| poly_loss(e, l, b, SCE),
        |e, l, b| linear_loss(e, l, b, 0.001),
        |e, l, b| linear_loss(e, l, b, 0.3),
        |e, l, b| dmpo_loss(e, l, b, 0.01),
        |e, l, b| dmpo_loss(e, l, b, 0.2),
    ];

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
        for loss in ALL {
            let pair = loss(errors(0.1, 0.9, 0.4, 0.2), Label { target: 0.5, weight: 0.0 }, 5000.0);
            assert_eq!(pair.loss.abs(), 0.0);
            assert!(pair.gradient.iter().all(|g| *g == 0.0));
        }
    }

    #[test]
    fn swapping_images_and_label_changes_nothing() {
        let e = errors(0.31, 0.33, 0.32, 0.325);
        let swapped = errors(e.policy_loser, e.policy_winner, e.reference_loser, e.reference_winner);
        for loss in ALL {
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
        let objective = Objective { form: Form::Dpo, beta: 300.0, smoothing: 0.1, scale_margin: None };
        assert_eq!(
            objective.pair(errors(0.4, 0.5, 0.5, 0.5), SURE),
            dpo_loss(errors(0.4, 0.5, 0.5, 0.5), label, 300.0)
        );
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let (e, label, h) = (errors(0.31, 0.33, 0.32, 0.325), Label { target: 0.8, weight: 0.7 }, 1e-7);
        for loss in ALL.into_iter().enumerate().filter(|(i, _)| ![5, 6].contains(i)).map(|(_, loss)| loss) {
            let at = |dw: f64, dl: f64| {
                loss(errors(e.policy_winner + dw, e.policy_loser + dl, 0.32, 0.325), label, 300.0).loss
            };
            let numeric = [(at(h, 0.0) - at(-h, 0.0)) / (2.0 * h), (at(0.0, h) - at(0.0, -h)) / (2.0 * h)];
            let exact = loss(e, label, 300.0).gradient;
            assert!(numeric.iter().zip(exact).all(|(n, g)| (n - g).abs() < 1e-4 * g.abs()), "{numeric:?} {exact:?}");
        }
    }

    #[test]
    fn the_anchor_pulls_in_proportion_to_the_distance() {
        let (d, label, h) = ([0.02, 0.05], Label { target: 0.8, weight: 0.7 }, 1e-6);
        let at = |dw: f64, dl: f64| anchor_loss([d[0] + dw, d[1] + dl], label, 300.0, 0.1).0;
        let (loss, slope) = anchor_loss(d, label, 300.0, 0.1);
        assert!((loss - 0.7 * 0.1 * 150.0 * 0.07).abs() < 1e-12);
        for numeric in [(at(h, 0.0) - at(-h, 0.0)) / (2.0 * h), (at(0.0, h) - at(0.0, -h)) / (2.0 * h)] {
            assert!((numeric - slope).abs() < 1e-6 * slope, "{numeric} {slope}");
        }
        assert_eq!(anchor_loss(d, Label { weight: 0.0, ..label }, 300.0, 0.1), (0.0, 0.0));
    }

    #[test]
    fn a_weight_of_linear_dpo_is_held_constant_and_clamped() {
        let at = |z: f64| linear_loss(errors(0.5 - 2.0 * z / 100.0, 0.5, 0.5, 0.5), SURE, 100.0, 0.001);
        for (z, w) in [(0.0, 0.5), (0.5, 0.3), (-1.0, 0.9), (5.0, 0.001), (-5.0, 0.999)] {
            let pair = at(z);
            assert!((pair.gradient[0] - w).abs() < 1e-9 && pair.gradient[1] == -pair.gradient[0], "{z}: {pair:?}");
            assert!((pair.loss + w * 2.0 * z / 100.0).abs() < 1e-9, "{z}: {pair:?}");
        }
    }

    #[test]
    fn dmpo_rests_where_p_is_1_minus_alpha() {
        let best = (0.99f64 / 0.01).ln();
        let at = |z: f64| dmpo_loss(errors(0.5 - 2.0 * z / 300.0, 0.5, 0.5, 0.5), SURE, 300.0, 0.01);
        assert!(at(best).loss.abs() < 1e-12 && at(best).gradient[0].abs() < 1e-9);
        assert!(at(best - 1.0).gradient[0] > 0.0 && at(best + 1.0).gradient[0] < 0.0);
        // At z = 0: ln(1/2) - (ln q + ln(1 - q)) / 2.
        let zero = 0.5f64.ln() - 0.5 * (0.99f64.ln() + 0.01f64.ln());
        assert!((at(0.0).loss - zero).abs() < 1e-12, "{}", at(0.0).loss);
    }

    #[test]
    fn poly_adds_its_share_of_the_probability_lost() {
        let e = errors(0.495, 0.5, 0.5, 0.5); // z = 0.75
        let (dpo, poly) = (dpo_loss(e, SURE, 300.0), poly_loss(e, SURE, 300.0, 2.0));
        assert!((poly.loss - dpo.loss - 2.0 * sigmoid(-0.75)).abs() < 1e-12);
        assert!((poly.gradient[0] - dpo.gradient[0] * (1.0 + 2.0 * sigmoid(0.75))).abs() < 1e-9);
        let objective = |form| Objective { form, beta: 300.0, smoothing: 0.0, scale_margin: None };
        assert_eq!(objective(Form::Sce).pair(e, SURE), objective(Form::Poly(3.0)).pair(e, SURE));
    }

    #[test]
    fn a_scaled_margin_is_zero_for_an_even_label_and_turns_round_with_it() {
        let e = errors(0.495, 0.5, 0.5, 0.5); // z = 0.75
        let objective = Objective { form: Form::Dpo, beta: 300.0, smoothing: 0.0, scale_margin: Some(10.0) };
        let at = |target: f64| objective.pair(e, Label { target, weight: 1.0 });
        assert!((at(0.6).z - 0.75 * 10.0 * 0.2).abs() < 1e-9);
        assert_eq!(at(0.5).gradient.map(f64::abs), [0.0, 0.0]);
        assert!((at(0.4).z + at(0.6).z).abs() < 1e-9 && at(0.4).gradient[0] < 0.0);
    }
}
