//! AdamW, as torch's.

use ops::AdamWStep;

/// AdamW's constants (torch's names).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

impl AdamWConfig {
    /// The `t`-th step (from 1) at learning rate `lr`.
    pub fn at(&self, t: u64, lr: f64) -> AdamWStep {
        let (correction1, correction2) = (1.0 - self.beta1.powf(t as f64), 1.0 - self.beta2.powf(t as f64));
        AdamWStep {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            decay: (1.0 - lr * self.weight_decay) as f32,
            rate: (lr / correction1) as f32,
            root2: correction2.sqrt() as f32,
            eps: self.eps as f32,
        }
    }
}
