//! What is kept in case it comes again.

use std::collections::{HashMap, VecDeque};

use crate::engine::Key;

/// Of one image or caption: one vector a scorer.
pub type Vectors = Vec<Vec<f32>>;

/// MiB of vectors that are kept of images, and again of captions.
const KEPT: usize = 4;

/// Values by key up to `KEPT` MiB, the oldest forgotten first.
pub struct Cache<T> {
    values: HashMap<Key, T>,
    order: VecDeque<(Key, usize)>,
    bytes: usize,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { values: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }
}

impl<T: Size> Cache<T> {
    pub fn has(&self, key: &Key) -> bool {
        self.values.contains_key(key)
    }

    pub fn get(&self, key: &Key) -> Option<&T> {
        self.values.get(key)
    }

    /// All of these can be read until the next `trim`.
    pub fn put(&mut self, values: impl Iterator<Item = (Key, T)>) {
        for (key, value) in values {
            let size = value.size();
            self.bytes += size;
            self.order.push_back((key, size));
            self.values.insert(key, value);
        }
    }

    pub fn trim(&mut self) {
        while self.bytes > KEPT << 20 {
            let Some((key, size)) = self.order.pop_front() else { break };
            self.bytes -= size;
            self.values.remove(&key);
        }
    }
}

/// About how many bytes a value takes.
pub trait Size {
    fn size(&self) -> usize;
}

impl Size for Vectors {
    fn size(&self) -> usize {
        128 + self.iter().map(|v| 32 + 4 * v.len()).sum::<usize>()
    }
}

impl Size for Option<Vectors> {
    fn size(&self) -> usize {
        self.as_ref().map_or(128, Size::size)
    }
}
