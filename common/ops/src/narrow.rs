//! Copies of weights in the type that a network computes in, all of a piece of the network in one launch.

use std::{cell::RefCell, collections::HashMap};

use candle_core::{DType, Result, Tensor, TensorId};

#[cfg(feature = "cuda")]
use super::cuda::{self, Table, launch};

thread_local! {
    static COPIES: RefCell<HashMap<TensorId, Tensor>> = RefCell::default();
}

/// `weight` in the type `dtype`, without history: one of the copies of [`with_copies`], or a new one.
pub(crate) fn narrow(weight: &Tensor, dtype: DType) -> Result<Tensor> {
    if weight.dtype() == dtype {
        return Ok(weight.detach());
    }
    match COPIES.with_borrow(|copies| copies.get(&weight.id()).filter(|copy| copy.dtype() == dtype).cloned()) {
        Some(copy) => Ok(copy),
        None => weight.detach().to_dtype(dtype),
    }
}

/// Runs `body`, while the layers of this crate find copies of `weights` for the type `dtype`: on a GPU, in bf16.
pub fn with_copies<R>(weights: &[Tensor], dtype: DType, body: impl FnOnce() -> R) -> Result<R> {
    let copies = copies(weights, dtype)?;
    // A piece may run another one inside.
    let before = COPIES.replace(copies);
    let result = body();
    COPIES.replace(before);
    Ok(result)
}

#[cfg(feature = "cuda")]
fn copies(weights: &[Tensor], dtype: DType) -> Result<HashMap<TensorId, Tensor>> {
    /// Copies begin at multiples of 256 bytes, as memory of their own would.
    const ALIGNED: usize = 128;
    let wide = |w: &&Tensor| w.dtype() == DType::F32 && cuda::fused(w) && w.is_contiguous();
    let wide: Vec<&Tensor> = weights.iter().filter(wide).collect();
    if dtype != DType::BF16 || wide.is_empty() {
        return Ok(HashMap::new());
    }
    let (mut starts, mut end) = (vec![], 0);
    for w in &wide {
        starts.push(end);
        end += w.elem_count().next_multiple_of(ALIGNED);
    }
    let device = wide[0].device().as_cuda_device()?;
    let all = cuda::room::<half::bf16>(device, end)?;
    let table = Table::with_numbers(device, &wide.iter().map(|w| [*w]).collect::<Vec<_>>(), &starts)?;
    let (rows, places) = table.views();
    launch!(device, "narrow", table.grid(), rows, places, all.as_view())?;
    let all = cuda::tensor(all, device, end);
    let copy =
        |(w, start): (&&Tensor, &usize)| Ok((w.id(), all.narrow(0, *start, w.elem_count())?.reshape(w.shape())?));
    wide.iter().zip(&starts).map(copy).collect()
}

#[cfg(not(feature = "cuda"))]
fn copies(_: &[Tensor], _: DType) -> Result<HashMap<TensorId, Tensor>> {
    Ok(HashMap::new())
}
