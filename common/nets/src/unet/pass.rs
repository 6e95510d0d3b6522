//! A UNet's backward pass, from all activations or piece by piece.
//!
//! Piece by piece, the forward pass keeps only what enters each, and the backward pass computes it once more: the activations
//! of one piece live at a time, for the price of one more forward pass.

use anyhow::{Context, Result};
use candle_core::{Tensor, Var, backprop::GradStore};
use ops::accumulate_store;

use super::{
    Added, UNet,
    piece::{self, Conditions, Input, Push},
};

/// A forward pass that a backward pass can follow.
pub enum Pass<'a> {
    /// The prediction with its whole history.
    Whole(Tensor),
    /// The prediction without, and what is needed to go back.
    Pieces(Tensor, Trace<'a>),
}

/// What entered a UNet, and each of its pieces, without history.
pub struct Trace<'a> {
    inputs: Vec<Input>,
    temb: Tensor,
    x: &'a Tensor,
    timesteps: &'a [f32],
    context: &'a Tensor,
    added: Option<&'a Added>,
}

impl Pass<'_> {
    /// (B, C, H, W), without history.
    pub fn prediction(&self) -> Tensor {
        let (Pass::Whole(prediction) | Pass::Pieces(prediction, _)) = self;
        prediction.detach()
    }
}

impl UNet {
    /// [`UNet::forward`], with what [`UNet::backward`] needs: all activations or, with `checkpointing`, the pieces' inputs.
    pub fn forward_for<'a>(
        &self,
        checkpointing: bool,
        x: &'a Tensor,
        timesteps: &'a [f32],
        context: &'a Tensor,
        added: Option<&'a Added>,
    ) -> Result<Pass<'a>> {
        if !checkpointing {
            return Ok(Pass::Whole(self.forward(x, timesteps, context, added)?));
        }
        let temb = self.embedding.forward(&self.config, x, timesteps, added)?.detach();
        let conditions = Conditions { temb: &temb, context };
        let mut inputs = Vec::with_capacity(self.pieces.len());
        let y = piece::run(&self.plans, x, |i, input| {
            inputs.push(input.clone());
            Ok(self.pieces[i].forward(input, &conditions)?.detach())
        })?;
        Ok(Pass::Pieces(y, Trace { inputs, temb, x, timesteps, context, added }))
    }

    /// Carries `gy`, the gradient of a number by the prediction, back to the parameters: inside [`crate::params::accumulate`],
    /// which says what they are and where their gradients go.
    pub fn backward(&self, pass: Pass, gy: &Tensor) -> Result<()> {
        match pass {
            Pass::Whole(prediction) => Ok(accumulate_store(seeded(&prediction, gy)?)?),
            Pass::Pieces(_, trace) => self.backward_by_pieces(trace, gy),
        }
    }

    fn backward_by_pieces(&self, trace: Trace, gy: &Tensor) -> Result<()> {
        let Trace { inputs, temb, x, timesteps, context, added } = trace;
        let temb = Var::from_tensor(&temb)?;
        let conditions = Conditions { temb: temb.as_tensor(), context };
        let mut by_temb: Option<Tensor> = None;
        let mut stack: Vec<Tensor> = vec![]; // gradients by what waited for a later piece
        let mut g = gy.detach();
        for (i, input) in inputs.into_iter().enumerate().rev() {
            let plan = &self.plans[i];
            let mut popped = || stack.pop().context("the UNet ran out of gradients of its skip connections");
            if plan.push == Push::Output {
                g = (g + popped()?)?;
            }
            // Nobody asks for the gradient by the noisy latents.
            let by_x = if i == 0 { None } else { Some(Var::from_tensor(&input.x)?) };
            let by_popped = input.popped.as_ref().map(Var::from_tensor).transpose()?;
            let tracked = |var: &Option<Var>| var.as_ref().map(|v| v.as_tensor().clone());
            let again = Input { x: tracked(&by_x).unwrap_or(input.x), popped: tracked(&by_popped), size: input.size };
            let y = self.pieces[i].forward(&again, &conditions)?;
            let mut store = seeded(&y, &g)?;
            drop((y, again));
            if let Some(x) = &by_x {
                g = gradient(&mut store, x)?;
            }
            if plan.push == Push::Input {
                g = (g + popped()?)?;
            }
            if let Some(x) = &by_popped {
                stack.push(gradient(&mut store, x)?);
            }
            if plan.is_timed() {
                let more = gradient(&mut store, &temb)?;
                by_temb = Some(by_temb.map_or(Ok(more.clone()), |sum| sum + more)?);
            }
            accumulate_store(store)?;
        }
        let temb = self.embedding.forward(&self.config, x, timesteps, added)?;
        match by_temb {
            Some(g) if temb.track_op() => Ok(accumulate_store(seeded(&temb, &g)?)?),
            _ => Ok(()),
        }
    }
}

/// The backward pass from `y` with the gradient `g`.
fn seeded(y: &Tensor, g: &Tensor) -> Result<GradStore> {
    Ok((y * g.to_dtype(y.dtype())?)?.sum_all()?.backward()?)
}

fn gradient(store: &mut GradStore, var: &Var) -> Result<Tensor> {
    Ok(store.remove(var).context("a piece of the UNet passes no gradient on")?.detach())
}
