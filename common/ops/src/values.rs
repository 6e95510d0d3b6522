//! The numbers of CPU tensors as slices: read by kernels, and changed in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use half::bf16;

/// The values of a contiguous f32 tensor.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&all[from..to]),
        None => bail!("an operand of a kernel is not contiguous"),
    }
}

/// Runs `f` over the values of f32 CPU tensors.
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

pub enum Values<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

/// Runs `f` over the values of contiguous CPU tensors, f32 or bf16, which it may change. The tensors must not share memory.
pub fn with_values_mut<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([Values; N]) -> R) -> Result<R> {
    let (mut f, mut result) = (Some(f), None);
    lock(&tensors, Vec::with_capacity(N), &mut |values| {
        if let (Some(f), Ok(values)) = (f.take(), values.try_into()) {
            result = Some(f(values));
        }
    })?;
    match result {
        Some(result) => Ok(result),
        None => bail!("a kernel that changes tensors in place got too few of them"),
    }
}

/// Collects the values of `tensors` behind `held`, tensor by tensor, and calls `f` while all of them are held: candle lends the
/// memory of a tensor to an in-place operation only.
fn lock(tensors: &[&Tensor], held: Vec<Values>, f: &mut dyn FnMut(Vec<Values>)) -> Result<()> {
    struct Lend<F>(RefCell<Option<F>>);
    impl<F: FnOnce(Values) -> Result<()>> InplaceOp1 for Lend<F> {
        fn name(&self) -> &'static str {
            "with_values_mut"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let Some((from, to)) = layout.contiguous_offsets() else {
                bail!("a tensor that is changed in place is not contiguous")
            };
            let values = match storage {
                CpuStorage::F32(values) => Values::F32(&mut values[from..to]),
                CpuStorage::BF16(values) => Values::Bf16(&mut values[from..to]),
                _ => bail!("a tensor that is changed in place is neither f32 nor bf16"),
            };
            self.0.take().map_or(Ok(()), |f| f(values))
        }
    }
    let Some((first, rest)) = tensors.split_first() else {
        f(held);
        return Ok(());
    };
    first.inplace_op1(&Lend(RefCell::new(Some(|values: Values| {
        let mut held = held;
        held.push(values);
        lock(rest, held, f)
    }))))
}

/// Lets `f` change the values of a contiguous f32 CPU tensor.
pub fn write<R>(x: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    with_values_mut([x], |[x]| match x {
        Values::F32(x) => Ok(f(x)),
        Values::Bf16(_) => bail!("a tensor that is changed in place is not f32"),
    })?
}
