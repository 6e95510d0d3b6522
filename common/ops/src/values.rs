//! The numbers of CPU tensors as slices: read by backward passes, and changed in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// The values of a contiguous f32 tensor.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&all[from..to]),
        None => bail!("an operand of a kernel is not contiguous"),
    }
}

/// Runs `f` over the values of f32 CPU tensors.
///
/// # Errors
/// A tensor has another type or lies on another device.
pub fn with_values<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let mut held = Vec::with_capacity(N);
    for tensor in tensors {
        held.push(tensor.contiguous()?);
    }
    let guards: Vec<_> = held.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *slice = match &**storage {
            Storage::Cpu(cpu) => values(cpu, layout)?,
            _ => bail!("a CPU kernel met a tensor of another device"),
        };
    }
    Ok(f(slices))
}

/// Lets `f` change the values of a contiguous f32 CPU tensor.
///
/// # Errors
/// The tensor has another type, is not contiguous, or lies on another device.
pub fn write(x: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    struct Write<F>(RefCell<Option<F>>);
    impl<F: FnOnce(&mut [f32])> InplaceOp1 for Write<F> {
        fn name(&self) -> &'static str {
            "write"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            match (storage, layout.contiguous_offsets(), self.0.take()) {
                (CpuStorage::F32(values), Some((from, to)), Some(f)) => f(&mut values[from..to]),
                _ => bail!("a tensor that is changed in place is not f32 and contiguous"),
            }
            Ok(())
        }
    }
    x.inplace_op1(&Write(RefCell::new(Some(f))))
}
