//! A UNet's backward pass piece by piece (gradient checkpointing). The forward pass keeps only the input of each piece, and
//! the backward pass computes the piece once more: the activations of one piece are in memory at a time, for the price of
//! one more forward pass.

use anyhow::{Context, Result};
use candle_core::{Tensor, Var};
use ops::accumulate_store;

use super::UNet;
use super::by_hand::Kept;
use super::piece::{self, Input, Push, Shared};
use crate::conditioning::Conditioning;
use crate::pass::{Activations, Network, Pass, backward_from, gradient};

impl Network for UNet {
    fn predict(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        self.forward(x, t, conditioning)
    }

    fn forward_by_hand<'a>(
        &'a self,
        activations: Activations,
        x: &'a Tensor,
        t: &'a [f32],
        conditioning: &'a Conditioning,
    ) -> Option<Result<Pass<'a>>> {
        Some(self.pass_by_hand(activations, x, t, conditioning))
    }

    fn forward_in_pieces<'a>(
        &'a self,
        x: &'a Tensor,
        t: &'a [f32],
        conditioning: &'a Conditioning,
    ) -> Result<Pass<'a>> {
        let temb = self.embedding.forward(&self.config, x, t, conditioning)?.detach();
        let shared = Shared { temb: &temb, context: &conditioning.states };
        let mut inputs = Vec::with_capacity(self.pieces.len());
        let prediction = piece::run(&self.specs, x, |i, input| {
            inputs.push(input.clone());
            Ok(self.pieces[i].forward(input, &shared)?.detach())
        })?;
        Ok(self.pass(prediction, Trace { inputs, kept: None, temb, x, t, conditioning }))
    }
}

/// The inputs of a UNet and of each of its pieces, without history.
struct Trace<'a> {
    inputs: Vec<Input>,
    /// What each piece has kept besides, if the pass is one by hand.
    kept: Option<Vec<Option<Kept>>>,
    temb: Tensor,
    x: &'a Tensor,
    t: &'a [f32],
    conditioning: &'a Conditioning,
}

impl UNet {
    fn pass<'a>(&'a self, prediction: Tensor, trace: Trace<'a>) -> Pass<'a> {
        Pass::new(prediction, move |gy: &Tensor| {
            let Trace { x, t, conditioning, .. } = trace;
            let by_temb = self.backward_in_pieces(trace, gy)?;
            let temb = self.embedding.forward(&self.config, x, t, conditioning)?;
            match by_temb {
                Some(g) if temb.track_op() => Ok(accumulate_store(backward_from(&temb, &g)?)?),
                _ => Ok(()),
            }
        })
    }

    /// A pass by hand of the pieces that have one. Activations may be kept.
    fn pass_by_hand<'a>(
        &'a self,
        activations: Activations,
        x: &'a Tensor,
        t: &'a [f32],
        conditioning: &'a Conditioning,
    ) -> Result<Pass<'a>> {
        let temb = self.embedding.forward(&self.config, x, t, conditioning)?.detach();
        let shared = Shared { temb: &temb, context: &conditioning.states };
        let (mut inputs, mut all) = (Vec::with_capacity(self.pieces.len()), vec![]);
        let y = piece::run(&self.specs, x, |i, input| {
            inputs.push(input.clone());
            let piece = &self.pieces[i];
            ops::with_copies(&self.weights[i], x.dtype(), || {
                if !piece.is_plain() {
                    all.push(None);
                    return Ok(piece.forward(input, &shared)?.detach());
                }
                let kept = piece.kept(input, &shared)?;
                let y = piece.finish(input, &kept)?;
                all.push(Some(kept).filter(|_| activations == Activations::Kept));
                Ok(y)
            })?
        })?;
        Ok(self.pass(y, Trace { inputs, kept: Some(all), temb, x, t, conditioning }))
    }

    /// Carries `gy` (B, C, H, W) back to the parameters of the pieces. Returns the gradient by the embedding.
    fn backward_in_pieces(&self, trace: Trace, gy: &Tensor) -> Result<Option<Tensor>> {
        let Trace { inputs, kept: mut all, temb, x, conditioning, .. } = trace;
        let temb = Var::from_tensor(&temb)?;
        let shared = Shared { temb: temb.as_tensor(), context: &conditioning.states };
        let mut by_temb: Option<Tensor> = None;
        let mut stack: Vec<Tensor> = vec![]; // gradients by the tensors that waited for a later piece
        let mut g = gy.detach().to_dtype(x.dtype())?;
        for (i, input) in inputs.into_iter().enumerate().rev() {
            let spec = &self.specs[i];
            let mut popped = || stack.pop().context("the UNet ran out of gradients of its skip connections");
            if spec.push == Push::Output {
                g = (g + popped()?)?;
            }
            let kept = all.as_mut().and_then(Vec::pop).flatten();
            if all.is_some() && self.pieces[i].is_plain() {
                let grads = ops::with_copies(&self.weights[i], g.dtype(), || {
                    let piece = &self.pieces[i];
                    let kept = kept.map_or_else(|| piece.kept(&input, &shared), Ok)?;
                    piece.grad(&input, kept, &shared, &g, i > 0, by_temb.take())
                })??;
                by_temb = grads.temb;
                if let Some(x) = grads.x {
                    g = x;
                }
                if spec.push == Push::Input {
                    g = (g + popped()?)?;
                }
                stack.extend(grads.popped);
                continue;
            }
            // The gradient by the noisy latents is not needed.
            let by_x = if i == 0 { None } else { Some(Var::from_tensor(&input.x)?) };
            let by_popped = input.popped.as_ref().map(Var::from_tensor).transpose()?;
            let tracked = |var: &Option<Var>| var.as_ref().map(|v| v.as_tensor().clone());
            let again = Input { x: tracked(&by_x).unwrap_or(input.x), popped: tracked(&by_popped), size: input.size };
            let mut store = ops::with_copies(&self.weights[i], g.dtype(), || {
                let y = self.pieces[i].forward(&again, &shared)?;
                backward_from(&y, &g)
            })??;
            drop(again);
            if let Some(x) = &by_x {
                g = gradient(&mut store, x)?;
            }
            if spec.push == Push::Input {
                g = (g + popped()?)?;
            }
            if let Some(x) = &by_popped {
                stack.push(gradient(&mut store, x)?);
            }
            if spec.is_timed() {
                let more = gradient(&mut store, &temb)?;
                by_temb = Some(by_temb.map_or(Ok(more.clone()), |sum| sum + more)?);
            }
            accumulate_store(store)?;
        }
        Ok(by_temb)
    }
}
