//! Random weights. Each layer keeps the size of its input about as it is, so that activations stay finite in half precision too.

use std::io::Write;

use anyhow::Result;
use candle_core::DType;
use half::f16;
use pipe::seed;
use rayon::prelude::*;

/// Numbers that are drawn together: those of a tensor in pieces of this size, on all threads.
const PIECE: usize = 1 << 20;

/// Writes the numbers of the tensor `name`, f32 or f16. No more than some pieces are in memory.
pub fn write(name: &str, shape: &[usize], dtype: DType, seed: u64, file: &mut dyn Write) -> Result<()> {
    let count: usize = shape.iter().product();
    let pieces = count.div_ceil(PIECE);
    let values = Values::of(name, shape);
    let together = rayon::current_num_threads() * 2;
    for first in (0..pieces).step_by(together) {
        let drawn: Vec<Vec<u8>> = (first..pieces.min(first + together))
            .into_par_iter()
            .map(|piece| {
                let numbers = values.draw(PIECE.min(count - piece * PIECE), seed, name, piece as u64);
                match dtype {
                    DType::F16 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                    _ => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
                }
            })
            .collect();
        drawn.iter().try_for_each(|bytes| file.write_all(bytes))?;
    }
    Ok(())
}

enum Values {
    /// Norms change nothing, and nothing is shifted.
    Same(f32),
    /// The classifier of prompts calls everything safe, so that all prompts are drawn.
    Safe,
    /// Uniform between -x and x.
    Within(f32),
}

impl Values {
    fn of(name: &str, shape: &[usize]) -> Self {
        match shape {
            [] => Self::Same(100f32.ln()), // the logit scale of a trained CLIP
            _ if name == "classifier.bias" => Self::Safe,
            _ if name.ends_with("bias") => Self::Same(0.0),
            [_] if name.ends_with("weight") => Self::Same(1.0),
            [width] => Self::Within((3.0 / *width as f32).sqrt()),
            // A variance of one per input.
            [_, inner @ ..] => Self::Within((3.0 / inner.iter().product::<usize>() as f32).sqrt()),
        }
    }

    fn draw(&self, count: usize, seed: u64, name: &str, piece: u64) -> Vec<f32> {
        match self {
            Self::Same(value) => vec![*value; count],
            Self::Safe => (0..count).map(|class| if class == 0 { 4.0 } else { -4.0 }).collect(),
            Self::Within(most) => {
                let mut draws = seed::draws(seed, "weights", name, piece);
                // 24 bits, as many as an f32 holds.
                let number = |bits: u32| ((bits >> 8) as f32 * (2.0 / (1 << 24) as f32) - 1.0) * most;
                let mut numbers = Vec::with_capacity(count + 1);
                while numbers.len() < count {
                    let bits = draws.next_u64();
                    numbers.extend([number(bits as u32), number((bits >> 32) as u32)]);
                }
                numbers.truncate(count);
                numbers
            }
        }
    }
}
