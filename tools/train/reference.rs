//! How the reference follows the policy (Algorithm 1, line 14), and how far both have come.

use std::str::FromStr;

use anyhow::Result;
use nets::checkpoint::Params;

/// When and how far the reference moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Never: plain Diffusion-DPO.
    Frozen,
    /// It becomes the policy after every K-th optimiser step.
    Hard(u64),
    /// After every step it moves towards the policy by this share of the distance.
    Ema(f64),
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let number = |what: &str| format!("{what}, in '{s}'");
        match s.split_once(':') {
            None if s == "frozen" => Ok(Mode::Frozen),
            Some(("hard", k)) => match k.parse() {
                Ok(0) | Err(_) => Err(number("hard:K takes a number of steps above 0")),
                Ok(k) => Ok(Mode::Hard(k)),
            },
            Some(("ema", rate)) => match rate.parse() {
                Ok(rate) if rate > 0.0 && rate <= 1.0 => Ok(Mode::Ema(rate)),
                _ => Err(number("ema:RATE takes a share above 0 and up to 1")),
            },
            _ => Err("expected frozen, hard:K or ema:RATE".into()),
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Mode::Frozen => write!(f, "frozen"),
            Mode::Hard(k) => write!(f, "hard:{k}"),
            Mode::Ema(rate) => write!(f, "ema:{rate}"),
        }
    }
}

impl Mode {
    /// The share of the way to the policy that the reference goes after `step` finished steps.
    pub fn rate_after(self, step: u64) -> Option<f64> {
        match self {
            Mode::Frozen => None,
            Mode::Hard(k) => step.is_multiple_of(k).then_some(1.0),
            Mode::Ema(rate) => Some(rate),
        }
    }
}

/// theta_reference <- theta_reference + rate (theta - theta_reference), in place; at rate 1 exactly theta. The arithmetic of
/// `refresh-ref`.
pub fn follow(reference: &Params, policy: &Params, rate: f64) -> Result<()> {
    for (name, reference) in reference {
        let theta = policy[name].as_detached_tensor();
        if rate == 1.0 {
            reference.set(&theta)?;
        } else {
            let before = reference.as_detached_tensor();
            reference.set(&(&before + ((theta - &before)? * rate)?)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_it_is_written_and_read() {
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
