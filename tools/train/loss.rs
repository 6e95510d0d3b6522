//! The Diffusion-DPO loss with the vote inside, on plain numbers: errors in, loss and its derivatives out.
//!
//! e_m(k) is the mean over C, H, W of (prediction - target)^2 of model m on image k. The networks only have to carry the
//! derivatives dL/de through: exact at every z, with no automatic differentiation of a logarithm.

/// The four errors of one pair: policy and reference, on the image the label prefers and on the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Errors {
    pub policy_winner: f64,
    pub policy_loser: f64,
    pub reference_winner: f64,
    pub reference_loser: f64,
}

/// What the label says of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Label {
    /// Probability that the image called winner is preferred, 0..1.
    pub target: f64,
    /// 0: the pair abstains.
    pub weight: f64,
}

/// One pair's part in the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    pub z: f64,
    pub loss: f64,
    /// dL/de of the policy on winner and loser.
    pub gradient: [f64; 2],
}

/// Diffusion-DPO Eq. 14 in the form of its code, T and w(lambda) inside beta; BalancedDPO Eq. 8 when the label is a vote:
///
///   z    = -(beta/2) [(e_policy^w - e_policy^l) - (e_reference^w - e_reference^l)]
///   loss = -weight [target log sigma(z) + (1 - target) log sigma(-z)]
pub fn dpo_loss(e: Errors, label: Label, beta: f64) -> PairLoss {
    let Label { target, weight } = label;
    // z > 0 when the policy favours the winner more than the reference does
    let z = -0.5 * beta * ((e.policy_winner - e.policy_loser) - (e.reference_winner - e.reference_loser));
    let loss = -weight * (target * log_sigmoid(z) + (1.0 - target) * log_sigmoid(-z));
    let dz = weight * (sigmoid(z) - target); // Eq. 9
    PairLoss { z, loss, gradient: [-0.5 * beta * dz, 0.5 * beta * dz] }
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
        let pair = dpo_loss(errors(0.1, 0.9, 0.4, 0.2), Label { target: 0.5, weight: 0.0 }, 5000.0);
        assert_eq!(pair.loss.abs(), 0.0);
        assert!(pair.gradient.iter().all(|g| *g == 0.0));
    }

    #[test]
    fn swapping_images_and_label_changes_nothing() {
        let e = errors(0.31, 0.33, 0.32, 0.325);
        let swapped = errors(e.policy_loser, e.policy_winner, e.reference_loser, e.reference_winner);
        for target in [1.0, 0.75, 0.0] {
            let a = dpo_loss(e, Label { target, weight: 1.0 }, 2000.0);
            let b = dpo_loss(swapped, Label { target: 1.0 - target, weight: 1.0 }, 2000.0);
            assert!((a.loss - b.loss).abs() < 1e-12);
            assert!((a.gradient[0] - b.gradient[1]).abs() < 1e-9 && (a.gradient[1] - b.gradient[0]).abs() < 1e-9);
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
    fn the_gradient_is_that_of_the_loss() {
        let (e, label, h) = (errors(0.31, 0.33, 0.32, 0.325), Label { target: 0.8, weight: 0.7 }, 1e-7);
        let at = |dw: f64, dl: f64| {
            dpo_loss(errors(e.policy_winner + dw, e.policy_loser + dl, 0.32, 0.325), label, 300.0).loss
        };
        let numeric = [(at(h, 0.0) - at(-h, 0.0)) / (2.0 * h), (at(0.0, h) - at(0.0, -h)) / (2.0 * h)];
        let exact = dpo_loss(e, label, 300.0).gradient;
        assert!(numeric.iter().zip(exact).all(|(n, g)| (n - g).abs() < 1e-4 * g.abs()));
    }
}
