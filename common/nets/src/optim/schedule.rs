//! diffusers' learning-rate schedules, by its names.

pipe::names! {
    /// How the learning rate changes over the steps.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum LrSchedule {
        Constant = "constant",
        ConstantWithWarmup = "constant_with_warmup",
        Linear = "linear",
        /// diffusers' cosine_with_restarts has one cycle by default: the same
        Cosine = "cosine" | "cosine_with_restarts",
    }
}

impl LrSchedule {
    /// The factor on the learning rate for the step after `done` finished ones, of `total` steps with `warmup` rising ones.
    pub fn factor(self, done: u64, warmup: u64, total: u64) -> f64 {
        let rising = done as f64 / warmup.max(1) as f64;
        let left = total.saturating_sub(done) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            LrSchedule::Constant => 1.0,
            _ if done < warmup => rising,
            LrSchedule::ConstantWithWarmup => 1.0,
            LrSchedule::Linear => left.max(0.0),
            LrSchedule::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left)).cos())).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_begin_and_end_where_diffusers_do() {
        let f = |s: LrSchedule, done| s.factor(done, 10, 110);
        assert_eq!((f(LrSchedule::ConstantWithWarmup, 0), f(LrSchedule::ConstantWithWarmup, 5)), (0.0, 0.5));
        assert_eq!((f(LrSchedule::Linear, 10), f(LrSchedule::Linear, 60), f(LrSchedule::Linear, 110)), (1.0, 0.5, 0.0));
        assert!((f(LrSchedule::Cosine, 60) - 0.5).abs() < 1e-12 && f(LrSchedule::Cosine, 110) < 1e-12);
    }
}
