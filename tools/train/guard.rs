//! Diffusion-SDPO's safeguard (arXiv 2511.03317): pushing the loser away must not raise the winner's error.

pipe::names! {
    /// Whether the loser's gradient is scaled down.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Guard {
        /// Both gradients stay as they are
        None = "none",
        /// The winner's error falls by at least the share MU of what it would fall by without the loser; 0 if it is not given
        Sdpo(f64 = 0.0) = "sdpo[:MU]" where |mu| (0.0..=1.0).contains(mu) => "MU lies between 0 and 1",
    }
}

impl Guard {
    /// MU, if there is a guard.
    pub fn share(self) -> Option<f64> {
        match self {
            Guard::None => None,
            Guard::Sdpo(mu) => Some(mu),
        }
    }

    /// The factor on the loser's gradient that keeps the winner's error from rising, to first order.
    ///
    /// A step along -(g_w - lambda g_l) changes the winner's error by -(<g_w, g_w> - lambda <g_w, g_l>), which must not exceed
    /// -mu <g_w, g_w>:
    ///
    ///   lambda = min(1, (1 - mu) <g_w, g_w> / <g_w, g_l>) where <g_w, g_l> > 0, else 1
    ///
    /// As in its authors' code, g is the gradient of the error by the prediction, which is the residual (prediction - target) up
    /// to a common factor. The gradient by the weights would cost another backward pass. `ww` is <g_w, g_w>, `wl` is
    /// <g_w, g_l>.
    pub fn factor(self, ww: f64, wl: f64) -> f64 {
        match self {
            Guard::Sdpo(mu) if wl > 0.0 => ((1.0 - mu) * ww / wl).min(1.0),
            _ => 1.0,
        }
    }

    /// dL/de of a pair with the loser's part scaled down. Where the loss does not lower the winner's error in the first place
    /// (z beyond the best z of a smoothed label), there is nothing to guard.
    pub fn apply(self, gradient: [f64; 2], ww: f64, wl: f64) -> [f64; 2] {
        let [winner, loser] = gradient;
        if winner > 0.0 && loser < 0.0 { [winner, loser * self.factor(ww, wl)] } else { gradient }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small step on a linear model shared by both images: to first order, the winner's error rises without the guard and
    /// does not with it.
    #[test]
    fn the_winners_error_does_not_rise() {
        // prediction = theta for both images; the winner's target is near, the loser's far off on the same side.
        let (theta, winner, loser) = ([0.0f64, 0.0], [1.0, 0.2], [5.0, 1.0]);
        let residual = |target: [f64; 2]| [theta[0] - target[0], theta[1] - target[1]];
        let dot = |a: [f64; 2], b: [f64; 2]| a[0] * b[0] + a[1] * b[1];
        let (rw, rl) = (residual(winner), residual(loser));
        let change = |guard: Guard| {
            let [cw, cl] = guard.apply([1.0, -1.0], dot(rw, rw), dot(rw, rl));
            let direction = [-(cw * rw[0] + cl * rl[0]), -(cw * rw[1] + cl * rl[1])];
            dot(rw, direction) // d e_w / d step
        };
        assert!(change(Guard::None) > 0.0);
        assert!(change(Guard::Sdpo(0.0)).abs() < 1e-12);
        let alone = -dot(rw, rw);
        assert!((change(Guard::Sdpo(0.9)) - 0.9 * alone).abs() < 1e-12);
    }

    #[test]
    fn the_factor_never_exceeds_1() {
        let guard = Guard::Sdpo(0.0);
        assert_eq!((guard.factor(1.0, -2.0), guard.factor(3.0, 2.0), guard.factor(1.0, 2.0)), (1.0, 1.0, 0.5));
        assert_eq!(guard.apply([-1.0, 1.0], 1.0, 2.0), [-1.0, 1.0]);
        assert_eq!(guard.apply([1.0, 0.0], 1.0, 2.0), [1.0, 0.0]);
    }

    #[test]
    fn guards_are_parsed() {
        assert_eq!("sdpo:0.9".parse(), Ok(Guard::Sdpo(0.9)));
        assert_eq!(("none".parse(), "sdpo".parse()), (Ok(Guard::None), Ok(Guard::Sdpo(0.0))));
        assert!("sdpo:2".parse::<Guard>().is_err() && "sdp".parse::<Guard>().is_err());
    }
}
