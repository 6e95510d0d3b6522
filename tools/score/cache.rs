//! Vectors that are kept in case their image or caption comes again, in one block of memory.

use std::collections::HashMap;

use crate::engine::Key;

/// Of one image or caption: one vector a scorer.
pub type Vectors = Vec<Vec<f32>>;

/// MiB of vectors in a cache; the oldest go first.
const KEPT: usize = 4;

#[derive(Default)]
pub struct Cache {
    /// Where in `keys`.
    places: HashMap<Key, usize>,
    /// Slot by slot.
    keys: Vec<Key>,
    values: Vec<f32>,
    /// The lengths of the vectors, the same for all.
    lengths: Vec<usize>,
    /// The slot that is written next.
    next: usize,
}

impl Cache {
    pub fn get(&self, key: &Key) -> Option<Vectors> {
        let width: usize = self.lengths.iter().sum();
        let mut rest = &self.values[self.places.get(key)? * width..];
        let mut take = |n: &usize| {
            let (vector, after) = rest.split_at(*n);
            rest = after;
            vector.to_vec()
        };
        Some(self.lengths.iter().map(&mut take).collect())
    }

    pub fn put(&mut self, key: Key, vectors: &Vectors) {
        if self.keys.is_empty() {
            self.lengths = vectors.iter().map(Vec::len).collect();
        }
        let width: usize = self.lengths.iter().sum();
        let slots = (KEPT << 18) / width.max(64); // a MiB holds 2^18 numbers
        if self.keys.len() < slots {
            self.values.reserve_exact((slots - self.keys.len()) * width);
            self.values.extend(vectors.iter().flatten());
            self.keys.push(key);
        } else if let Some(slot) = self.keys.get_mut(self.next) {
            self.places.remove(slot);
            *slot = key;
            let values = self.values[self.next * width..][..width].iter_mut();
            values.zip(vectors.iter().flatten()).for_each(|(kept, new)| *kept = *new);
        }
        self.places.insert(key, self.next);
        self.next = (self.next + 1) % slots.max(1);
    }
}
