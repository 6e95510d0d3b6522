//! Gradients of parameters, summed where they lie.
//!
//! candle's backward pass makes zeros for every operand and then a sum beside them: for the weights of a large network that
//! is three passes over memory more than the gradient itself. While `summing` runs, the kernels here write the gradients of
//! its parameters straight into their sums instead, and candle never sees them.

use std::{cell::RefCell, collections::HashMap};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor, TensorId, Var, backprop::GradStore};
use rayon::prelude::*;

use super::with_values;
use crate::{checkpoint::Params, optim::Grads};

/// The parameters whose gradients are wanted, and the sums so far.
struct Sums {
    wanted: HashMap<TensorId, (String, Var)>,
    sums: Grads,
}

thread_local! {
    static SUMS: RefCell<Option<Sums>> = const { RefCell::new(None) };
}

/// Runs `body`, in which backward passes on this thread add the gradients of `params` to `grads`. What kernels do not take is
/// left in candle's store, for [`add_store`].
pub fn summing<R>(params: &Params, grads: &mut Grads, body: impl FnOnce() -> R) -> R {
    let wanted = params.iter().map(|(n, v)| (v.id(), (n.clone(), v.clone()))).collect();
    let mine = Sums { wanted, sums: std::mem::take(grads) };
    // A waiting thread may take up another micro-batch in between: that one puts back what it found.
    let before = SUMS.replace(Some(mine));
    let result = body();
    let mine = SUMS.replace(before);
    *grads = mine.map(|m| m.sums).unwrap_or_default();
    result
}

/// Adds what a backward pass left in its store, and forgets the rest of it.
pub fn add_store(mut store: GradStore) -> Result<()> {
    let here: Vec<Var> = SUMS.with_borrow(|sums| {
        let wanted = sums.iter().flat_map(|s| s.wanted.iter());
        wanted.filter(|(id, _)| store.get_id(**id).is_some()).map(|(_, (_, var))| var.clone()).collect()
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

const CHUNK: usize = 1 << 14;

/// Changes every number of a contiguous f32 CPU tensor where it lies.
pub fn change(x: &Tensor, f: impl Fn(&mut f32) + Sync) -> Result<()> {
    write(x, |x| x.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(&f)))
}

/// sum += g, element by element.
pub fn add_in_place(sum: &Tensor, g: &Tensor) -> Result<()> {
    with_values([g], |[g]| {
        write(sum, |sum| {
            sum.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(sum, g)| {
                sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
            });
        })
    })?
}

/// Zeros for the parameters that no gradient reached.
pub fn fill(params: &Params, grads: &mut Grads) -> Result<()> {
    for (name, var) in params {
        if !grads.contains_key(name) {
            grads.insert(name.clone(), var.zeros_like()?.detach());
        }
    }
    Ok(())
}

/// The gradient of an operand: `add` adds it to what it is given, which is the parameter's sum where there is one (then
/// candle gets nothing), else zeros.
pub(super) fn gradient(w: &Tensor, add: impl FnOnce(&mut [f32])) -> Result<Option<Tensor>> {
    if !w.track_op() {
        return Ok(None);
    }
    if let Some(sum) = sum_of(w)? {
        write(&sum, add)?;
        return Ok(None);
    }
    let mut g = vec![0f32; w.elem_count()];
    add(&mut g);
    Tensor::from_vec(g, w.shape(), &Device::Cpu).map(Some)
}

/// The sum of a wanted parameter, as zeros where this is its first gradient.
fn sum_of(var: &Tensor) -> Result<Option<Tensor>> {
    SUMS.with_borrow_mut(|sums| {
        let Some(sums) = sums else { return Ok(None) };
        let Some((name, _)) = sums.wanted.get(&var.id()) else { return Ok(None) };
        if let Some(sum) = sums.sums.get(name) {
            return Ok(Some(sum.clone()));
        }
        let sum = Tensor::zeros(var.shape(), DType::F32, var.device())?;
        sums.sums.insert(name.clone(), sum.clone());
        Ok(Some(sum))
    })
}

/// On a GPU: the first gradient is the sum itself, which saves making zeros and adding to them.
fn add_beside(var: &Tensor, g: Tensor) -> Result<()> {
    SUMS.with_borrow_mut(|sums| {
        let Some(sums) = sums else { return Ok(()) };
        let Some((name, _)) = sums.wanted.get(&var.id()) else { return Ok(()) };
        let sum = match sums.sums.remove(name) {
            Some(before) => (before + g)?,
            None => g.contiguous()?,
        };
        sums.sums.insert(name.clone(), sum);
        Ok(())
    })
}

/// Lets `f` change the values of a contiguous f32 CPU tensor.
pub(crate) fn write(x: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    struct Write<F>(RefCell<Option<F>>);
    impl<F: FnOnce(&mut [f32])> InplaceOp1 for Write<F> {
        fn name(&self) -> &'static str {
            "write"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            match (storage, layout.contiguous_offsets(), self.0.take()) {
                (CpuStorage::F32(values), Some((from, to)), Some(f)) => f(&mut values[from..to]),
                _ => candle_core::bail!("a sum of gradients is not a plain f32 tensor"),
            }
            Ok(())
        }
    }
    x.inplace_op1(&Write(RefCell::new(Some(f))))
}
