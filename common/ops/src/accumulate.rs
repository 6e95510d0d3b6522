//! Gradients of parameters, added to their sums where these lie.
//!
//! candle's backward pass makes zeros for every operand and then a sum beside them: for the weights of a large network, these
//! are three passes over memory more than the gradient itself. While [`accumulate`] runs, the kernels of this crate add the
//! gradients of its parameters straight to their sums, and candle never sees them.

use std::{cell::RefCell, collections::HashMap};

use candle_core::{DType, Result, Tensor, TensorId, Var, backprop::GradStore};

use super::{arithmetic::add_in_place, values::write};

/// The gradients so far, by the identity of the parameter: f32, contiguous, without history.
pub type Sums = HashMap<TensorId, Tensor>;

/// The parameters whose gradients are wanted, each with its sum once a gradient has reached it.
type Wanted = HashMap<TensorId, (Var, Option<Tensor>)>;

thread_local! {
    static WANTED: RefCell<Option<Wanted>> = const { RefCell::new(None) };
}

/// Runs `body`. Backward passes on this thread add the gradients of `params` to the sums that come with them, and the sums
/// that exist afterwards are returned. Gradients that no kernel here has taken stay in candle's store, for
/// [`accumulate_store`].
pub fn accumulate<R>(params: impl Iterator<Item = (Var, Option<Tensor>)>, body: impl FnOnce() -> R) -> (R, Sums) {
    let wanted = params.map(|(var, sum)| (var.id(), (var, sum))).collect();
    // A thread that waits may begin another micro-batch in between, which must put back what it found.
    let before = WANTED.replace(Some(wanted));
    let result = body();
    let wanted = WANTED.replace(before).unwrap_or_default();
    (result, wanted.into_iter().filter_map(|(id, (_, sum))| Some((id, sum?))).collect())
}

/// Adds the gradients that a backward pass left in its store, and drops the rest of the store.
pub fn accumulate_store(mut store: GradStore) -> Result<()> {
    let here: Vec<Var> = WANTED.with_borrow(|wanted| {
        let vars = wanted.iter().flat_map(|all| all.values().map(|(var, _)| var));
        vars.filter(|var| store.get_id(var.id()).is_some()).cloned().collect()
    });
    for var in here {
        // Detached, because candle's gradients hold on to the whole graph.
        let Some(g) = store.remove(&var).map(|g| g.detach()) else { continue };
        if !g.device().is_cpu() {
            add_beside(&var, g)?;
        } else if let Some(sum) = sum_of(&var)? {
            add_in_place(&sum, &g)?;
        }
    }
    Ok(())
}

/// Lets `add` add to the sum of the parameter `w`. Returns `add` where no gradient of `w` is being accumulated.
pub(crate) fn add_to_sum<F: FnOnce(&mut [f32])>(w: &Tensor, add: F) -> Result<Option<F>> {
    match sum_of(w)? {
        Some(sum) => write(&sum, add).map(|()| None),
        None => Ok(Some(add)),
    }
}

/// The sum of a wanted parameter; zeros where this is its first gradient.
pub(crate) fn sum_of(var: &Tensor) -> Result<Option<Tensor>> {
    WANTED.with_borrow_mut(|wanted| {
        let Some((_, sum)) = wanted.as_mut().and_then(|all| all.get_mut(&var.id())) else { return Ok(None) };
        if sum.is_none() {
            *sum = Some(Tensor::zeros(var.shape(), DType::F32, var.device())?);
        }
        Ok(sum.clone())
    })
}

/// Adds the gradients that parameters among the operands of an operation get to their sums, and returns the others: candle would make
/// zeros for each and add to them. Not on the CPU, where kernels add in place.
pub(crate) fn take_sums<const N: usize>(
    operands: [&Tensor; N],
    mut grads: [Option<Tensor>; N],
) -> Result<[Option<Tensor>; N]> {
    for (operand, grad) in operands.into_iter().zip(&mut grads) {
        if !operand.device().is_cpu()
            && let Some(g) = grad.take()
        {
            *grad = add_beside(operand, g)?;
        }
    }
    Ok(grads)
}

/// On a GPU in place too; on the composed way the first gradient is the sum itself. Returns the gradient of a tensor whose gradient
/// nobody asked for.
fn add_beside(var: &Tensor, g: Tensor) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    if super::cuda::fused(&g) {
        let Some(sum) = sum_of(var)? else { return Ok(Some(g)) };
        return super::arithmetic::add_on_gpu(&sum, &g).map(|()| None);
    }
    WANTED.with_borrow_mut(|wanted| {
        let Some((_, sum)) = wanted.as_mut().and_then(|all| all.get_mut(&var.id())) else { return Ok(Some(g)) };
        *sum = Some(match sum.take() {
            Some(before) => (before + g)?,
            None => g.contiguous()?,
        });
        Ok(None)
    })
}
