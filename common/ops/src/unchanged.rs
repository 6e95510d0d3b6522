//! Weights that stay as they are for a while. Many small batches meet the same ones: the micro-batches of a training step and
//! the steps of a sampler, on several threads. What a kernel computes from weights alone is then computed once.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use candle_core::TensorId;

use super::winograd::Weights;

/// Numbers of the largest weight for which anything is kept: 256 channels to 128, three by three. Larger ones meet larger images,
/// where transforming them is a small part of the work and keeping them would cost memory.
const LARGEST: usize = 9 << 15;

#[derive(Default)]
struct Kept {
    /// Calls of [`unchanged`] that run.
    running: usize,
    /// Transformed weights, by the identity of the weight and whether they are for the gradient of the input.
    all: HashMap<(TensorId, bool), Arc<Weights>>,
}

fn kept() -> MutexGuard<'static, Kept> {
    static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body`, during which nobody changes a weight.
pub fn unchanged<R>(body: impl FnOnce() -> R) -> R {
    struct Running;
    impl Drop for Running {
        fn drop(&mut self) {
            let mut kept = kept();
            kept.running -= 1;
            if kept.running == 0 {
                kept.all.clear();
            }
        }
    }
    kept().running += 1;
    let _until_the_end = Running; // or until a panic
    body()
}

/// What `make` computes from the weight `weight` of `len` numbers: once, inside [`unchanged`]. Two threads may both compute it at
/// first; waiting for each other would cost as much.
pub(crate) fn once(weight: TensorId, transposed: bool, len: usize, make: impl FnOnce() -> Weights) -> Arc<Weights> {
    let key = (weight, transposed);
    let found = kept().all.get(&key).cloned();
    if let Some(found) = found {
        return found;
    }
    let made = Arc::new(make());
    let mut kept = kept();
    if kept.running > 0 && len <= LARGEST {
        kept.all.insert(key, made.clone());
    }
    made
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::tests::var;

    /// One test: what is kept is kept for all threads.
    #[test]
    fn a_weight_is_transformed_once_while_it_is_unchanged_and_gives_the_same_bits() {
        let (x, w, b) = (var(&[2, 5, 8, 6], 1), var(&[7, 5, 3, 3], 2), var(&[7], 3));
        let made = Cell::new(0);
        let count = |transposed| {
            let make = || {
                made.set(made.get() + 1);
                Weights::new(&[0.0; 36], 2, 2)
            };
            drop(once(x.id(), transposed, 36, make));
            made.get()
        };
        let bits = || {
            let y = crate::conv2d(&x, &w, &b, 1, 1).unwrap();
            let gx = y.sqr().unwrap().sum_all().unwrap().backward().unwrap().remove(&x).unwrap();
            [y, gx].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let alone = bits();
        assert_eq!([count(false), count(false)], [1, 2]);
        unchanged(|| {
            assert_eq!([count(false), count(false), count(true), count(true)], [3, 3, 4, 4]);
            assert_eq!([unchanged(|| count(false)), count(false)], [4, 4]);
            assert!(bits() == alone && bits() == alone);
        });
        assert_eq!([count(false), count(true)], [5, 6]);
    }
}
