//! A forward pass and the backward pass that follows it, whatever the network.

use anyhow::{Context, Result};
use candle_core::{Tensor, Var, backprop::GradStore};

use crate::conditioning::Conditioning;

/// A network that is trained. [`crate::denoiser::Denoiser`] says what the methods do.
pub(crate) trait Network: Send + Sync {
    fn predict(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor>;

    /// [`Network::predict`] by passes that are written by hand, without candle's history; `None` where there are none.
    fn forward_by_hand<'a>(
        &'a self,
        _activations: Activations,
        _x: &'a Tensor,
        _t: &'a [f32],
        _conditioning: &'a Conditioning,
    ) -> Option<Result<Pass<'a>>> {
        None
    }

    /// [`Network::predict`] without history. The backward pass computes each piece once more.
    fn forward_in_pieces<'a>(&'a self, x: &'a Tensor, t: &'a [f32], conditioning: &'a Conditioning)
    -> Result<Pass<'a>>;
}

/// What is kept of the activations for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    Kept,
    /// Only the input of each piece of the network is kept, and the backward pass computes the piece once more (gradient
    /// checkpointing).
    Recomputed,
}

/// From the gradient by the prediction back to the parameters.
type Backward<'a> = Box<dyn FnOnce(&Tensor) -> Result<()> + 'a>;

/// A forward pass that a backward pass can follow.
pub struct Pass<'a> {
    prediction: Tensor,
    backward: Backward<'a>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(prediction: Tensor, backward: impl FnOnce(&Tensor) -> Result<()> + 'a) -> Self {
        Self { prediction, backward: Box::new(backward) }
    }

    /// The prediction (B, C, h, w), without history.
    pub fn prediction(&self) -> Tensor {
        self.prediction.detach()
    }

    /// Carries `gy` (B, C, h, w), the gradient by the prediction, back to the parameters: inside
    /// [`crate::params::accumulate`], which knows the parameters and adds up their gradients.
    pub fn backward(self, gy: &Tensor) -> Result<()> {
        (self.backward)(gy)
    }
}

/// The backward pass from `y`, whose gradient is `gy`.
pub(crate) fn backward_from(y: &Tensor, gy: &Tensor) -> Result<GradStore> {
    Ok(ops::backward_from(y, &gy.to_dtype(y.dtype())?)?)
}

pub(crate) fn gradient(store: &mut GradStore, var: &Var) -> Result<Tensor> {
    Ok(store.remove(var).context("a piece of the network passes no gradient on")?.detach())
}
