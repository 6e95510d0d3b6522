//! Parameters and gradients by name, and their arithmetic.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};

/// The trainable tensors of a network, by the names under which a checkpoint stores them.
pub type Params = BTreeMap<String, Var>;

/// Gradients by the names of their parameters: f32, without history.
pub type Grads = BTreeMap<String, Tensor>;

/// Runs `body`. Backward passes on this thread add the gradients of `params` to `grads`, which may be empty at first; see
/// [`ops::accumulate`].
pub fn accumulate<R>(params: &Params, grads: &mut Grads, body: impl FnOnce() -> R) -> R {
    let before = params.iter().map(|(name, var)| (var.clone(), grads.remove(name)));
    let (result, mut sums) = ops::accumulate(before, body);
    let after = params.iter().filter_map(|(name, var)| Some((name.clone(), sums.remove(&var.id())?)));
    grads.extend(after);
    result
}

pub fn count(params: &Params) -> usize {
    params.values().map(|p| p.elem_count()).sum()
}

/// Adds zeros for the parameters that no gradient reached.
pub fn fill_missing(params: &Params, grads: &mut Grads) -> Result<()> {
    for (name, var) in params {
        if !grads.contains_key(name) {
            grads.insert(name.clone(), var.zeros_like()?.detach());
        }
    }
    Ok(())
}

/// Adds `more` to `sum`, which may be empty.
pub fn add(sum: &mut Grads, more: Grads) -> Result<()> {
    for (name, gradient) in more {
        match sum.get_mut(&name) {
            Some(before) => ops::add_to(before, &gradient)?,
            None => drop(sum.insert(name, gradient)),
        }
    }
    Ok(())
}

/// Sets gradients to zero in the memory that they have: on a CPU, fresh memory costs more than writing it again.
pub fn zero(grads: &Grads) -> Result<()> {
    ops::clear(grads.values())
}

/// The Euclidean norm over all gradients, added up in f64 in the order of their names.
pub fn global_norm(grads: &Grads) -> Result<f64> {
    Ok(ops::sums_of_squares(&grads.values().collect::<Vec<_>>())?.iter().sum::<f64>().sqrt())
}

/// The norm over all gradients on a GPU and the factor that makes it at most `max_norm`, for [`crate::optim::Optimizer::step_to`].
/// Nobody waits for them.
pub fn clip_on_gpu(grads: &Grads, max_norm: f64) -> Result<ops::Clip> {
    ops::clip(&grads.values().collect::<Vec<_>>(), max_norm)
}

/// Scales gradients, the norm of which is `norm`, to a norm of at most `max_norm`; as torch's `clip_grad_norm_`.
pub fn clip(grads: &mut Grads, norm: f64, max_norm: f64) -> Result<()> {
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        ops::scale(grads.values(), factor)?;
    }
    Ok(())
}
