//! Vectors that are kept in case their image or caption comes again: in a file without a name, gone with the program.

use std::collections::{HashMap, HashSet};
use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result};
use pipe::id::Key;

/// The vectors of one image or caption, one per scorer.
pub type Vectors = Vec<Vec<f32>>;

/// Bytes of a cache on disk. In memory it costs 25 bytes per image or caption.
pub const BYTES: usize = 1 << 30;

/// Bytes of the images' cache where a joint scorer is used, whose features of one image are up to a megabyte.
pub const BYTES_JOINT: usize = 4 << 30;

pub struct Cache {
    file: File,
    /// The largest size of the file; when it is reached, new vectors replace the oldest.
    bytes: usize,
    /// Slots of the file by key.
    slots: HashMap<Key, u32>,
    /// The lengths of the vectors, equal for all keys; empty until the first are put.
    lengths: Vec<usize>,
    /// The slot that is written next.
    next: u32,
}

/// What a cache answers.
pub struct Found {
    pub vectors: HashMap<Key, Vectors>,
    /// The keys that it lacks, each once, with the first place that asked for it.
    pub missing: Vec<(Key, usize)>,
}

/// In a slot of the file the key stands before the numbers.
const KEY: usize = size_of::<Key>();

impl Cache {
    /// An empty cache. `room`: the keys for which memory is reserved at the start.
    pub fn in_folder(folder: &Path, bytes: usize, room: usize) -> Result<Self> {
        let file = tempfile::tempfile_in(folder)
            .with_context(|| format!("cannot write a temporary file in {}", folder.display()))?;
        Ok(Self { file, bytes, slots: HashMap::with_capacity(room), lengths: vec![], next: 0 })
    }

    fn slot(&self) -> usize {
        KEY + 4 * self.lengths.iter().sum::<usize>()
    }

    fn at(&self, slot: u32) -> u64 {
        u64::from(slot) * self.slot() as u64
    }

    pub fn look_up(&self, wanted: impl Iterator<Item = (Key, usize)>) -> Result<Found> {
        let (mut vectors, mut missing, mut seen) = (HashMap::new(), vec![], HashSet::new());
        for (key, place) in wanted {
            if seen.insert(key) {
                match self.get(&key)? {
                    Some(of_key) => drop(vectors.insert(key, of_key)),
                    None => missing.push((key, place)),
                }
            }
        }
        Ok(Found { vectors, missing })
    }

    fn get(&self, key: &Key) -> Result<Option<Vectors>> {
        let Some(&slot) = self.slots.get(key) else { return Ok(None) };
        let mut bytes = vec![0; self.slot() - KEY];
        self.file.read_exact_at(&mut bytes, self.at(slot) + KEY as u64).context("cannot read a temporary file")?;
        let mut numbers = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
        Ok(Some(self.lengths.iter().map(|&n| numbers.by_ref().take(n).collect()).collect()))
    }

    /// Keeps the vectors that were missing and have been found since. Returns how many there are.
    pub fn keep(&mut self, found: &Found) -> Result<usize> {
        let mut kept = 0;
        for (key, _) in &found.missing {
            if let Some(vectors) = found.vectors.get(key) {
                self.put(*key, vectors)?;
                kept += 1;
            }
        }
        Ok(kept)
    }

    /// Keeps the vectors of a key that is not here.
    fn put(&mut self, key: Key, vectors: &Vectors) -> Result<()> {
        const CANNOT: &str = "cannot write a temporary file beside the output";
        if self.lengths.is_empty() {
            self.lengths = vectors.iter().map(Vec::len).collect();
        }
        let slots = (self.bytes / self.slot()).max(1);
        if self.slots.len() == slots {
            let mut oldest = Key::default();
            self.file.read_exact_at(&mut oldest, self.at(self.next)).context(CANNOT)?;
            self.slots.remove(&oldest);
        }
        let numbers = vectors.iter().flatten().flat_map(|v| v.to_le_bytes());
        let bytes: Vec<u8> = key.into_iter().chain(numbers).collect();
        self.file.write_all_at(&bytes, self.at(self.next)).context(CANNOT)?;
        self.slots.insert(key, self.next);
        self.next = (self.next + 1) % u32::try_from(slots).unwrap_or(u32::MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_vectors_replace_the_oldest() {
        let key = |i: u8| Key::from([i; 16]);
        let vectors = |i: u8| vec![vec![f32::from(i); 3], vec![], vec![-f32::from(i)]];
        let four = 4 * (16 + 4 * 4);
        let mut cache = Cache::in_folder(&std::env::temp_dir(), four + 7, 0).unwrap();
        assert_eq!(cache.get(&key(0)).unwrap(), None);
        for i in 0..11 {
            cache.put(key(i), &vectors(i)).unwrap();
            for j in 0..=i {
                assert_eq!(cache.get(&key(j)).unwrap(), (j + 4 > i).then(|| vectors(j)), "{j} after {i}");
            }
        }
        assert_eq!(cache.file.metadata().unwrap().len(), four as u64);
    }
}
