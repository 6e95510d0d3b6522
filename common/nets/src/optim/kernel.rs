//! What the optimisers' kernels share: slices of CPU storage, and moments in f32 or bf16.

use candle_core::{CpuStorage, Layout, Result as Candle};
use half::bf16;
use rayon::prelude::*;

/// Numbers that one task works on: many enough to pay for the task, few enough to stay in the cache.
pub const CHUNK: usize = 1 << 14;

pub fn operand<'a>(storage: &'a CpuStorage, layout: &Layout) -> Candle<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => candle_core::bail!("the optimiser met a tensor that is not contiguous"),
    }
}

pub fn target(storage: &mut CpuStorage) -> Candle<&mut [f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        _ => candle_core::bail!("the optimiser works on f32"),
    }
}

/// moment <- f(moment, g), element by element.
///
/// bf16 has 8 binary digits, and a second moment changes by a thousandth a step: rounded to the nearest it would never
/// shrink. So it is rounded up or down at random, in proportion to the distance: a function of `seed` and the place.
pub fn blend(moment: &mut CpuStorage, g: &[f32], seed: u32, f: impl Fn(f32, f32) -> f32 + Sync) -> Candle<()> {
    match moment {
        CpuStorage::F32(values) => values.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(m, g)| {
            m.iter_mut().zip(g).for_each(|(m, g)| *m = f(*m, *g));
        }),
        CpuStorage::BF16(values) => {
            values.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).enumerate().for_each(|(chunk, (m, g))| {
                for (i, (m, g)) in m.iter_mut().zip(g).enumerate() {
                    *m = round(f(m.to_f32(), *g), hash(seed.wrapping_add((chunk * CHUNK + i) as u32)));
                }
            })
        }
        _ => candle_core::bail!("moments are f32 or bf16"),
    }
    Ok(())
}

/// A moment's values as f32, chunk by chunk.
pub enum Moment<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Moment<'a> {
    pub fn of(storage: &'a CpuStorage) -> Candle<Self> {
        match storage {
            CpuStorage::F32(values) => Ok(Moment::F32(values)),
            CpuStorage::BF16(values) => Ok(Moment::Bf16(values)),
            _ => candle_core::bail!("moments are f32 or bf16"),
        }
    }

    /// Chunk `i`; `room` is used where values have to be widened.
    pub fn chunk<'r>(&'r self, i: usize, room: &'r mut Vec<f32>) -> &'r [f32] {
        let piece = |n: usize| i * CHUNK..((i + 1) * CHUNK).min(n);
        match self {
            Moment::F32(values) => &values[piece(values.len())],
            Moment::Bf16(values) => {
                room.clear();
                room.extend(values[piece(values.len())].iter().map(|v| v.to_f32()));
                room
            }
        }
    }
}

/// Where the rounding of step `t` of a tensor begins.
pub fn seed(name: &str, t: u64) -> u32 {
    name.bytes().fold(hash(t as u32), |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193)) // FNV-1a
}

/// A well-mixed function of an integer ("lowbias32").
fn hash(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

fn round(x: f32, random: u32) -> bf16 {
    match x.is_finite() {
        true => bf16::from_bits((x.to_bits().wrapping_add(random & 0xffff) >> 16) as u16),
        false => bf16::from_f32(x),
    }
}
