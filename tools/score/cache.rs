//! Vectors that are kept in case their image or caption comes again: in a file without a name, gone with the program.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result};

use crate::engine::Key;

/// Of one image or caption: one vector a scorer.
pub type Vectors = Vec<Vec<f32>>;

/// Bytes of a cache on disk. In memory it costs 25 bytes a vector.
pub const KEPT: usize = 1 << 30;

pub struct Cache {
    file: File,
    /// Bytes that the file may grow to; then the oldest vectors make room.
    kept: usize,
    /// Slots of the file by key.
    places: HashMap<Key, u32>,
    /// The lengths of the vectors, the same for all; none before the first.
    lengths: Vec<usize>,
    /// The slot that is written next.
    next: u32,
}

/// In a slot of the file the key stands before the numbers.
const KEY: usize = size_of::<Key>();

impl Cache {
    /// `room`: vectors for whose places there is memory from the start.
    ///
    /// # Errors
    /// `folder` takes no files.
    pub fn in_folder(folder: &Path, kept: usize, room: usize) -> Result<Self> {
        let file = tempfile::tempfile_in(folder)
            .with_context(|| format!("cannot write a temporary file in {}", folder.display()))?;
        Ok(Self { file, kept, places: HashMap::with_capacity(room), lengths: vec![], next: 0 })
    }

    /// Bytes of a slot.
    fn slot(&self) -> usize {
        KEY + 4 * self.lengths.iter().sum::<usize>()
    }

    fn at(&self, slot: u32) -> u64 {
        u64::from(slot) * self.slot() as u64
    }

    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, key: &Key) -> Result<Option<Vectors>> {
        let Some(&place) = self.places.get(key) else { return Ok(None) };
        let mut bytes = vec![0; self.slot() - KEY];
        self.file.read_exact_at(&mut bytes, self.at(place) + KEY as u64).context("cannot read a temporary file")?;
        let mut numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(Some(self.lengths.iter().map(|&n| numbers.by_ref().take(n).collect()).collect()))
    }

    /// # Errors
    /// The file cannot be written: the disk is full.
    pub fn put(&mut self, key: Key, vectors: &Vectors) -> Result<()> {
        let say = "cannot write a temporary file beside the output";
        if self.lengths.is_empty() {
            self.lengths = vectors.iter().map(Vec::len).collect();
        }
        let slots = (self.kept / self.slot()).max(1);
        if self.places.len() == slots {
            let mut oldest = Key::default();
            self.file.read_exact_at(&mut oldest, self.at(self.next)).context(say)?;
            self.places.remove(&oldest);
        }
        let numbers = vectors.iter().flatten().flat_map(|v| v.to_le_bytes());
        let bytes: Vec<u8> = key.into_iter().chain(numbers).collect();
        self.file.write_all_at(&bytes, self.at(self.next)).context(say)?;
        self.places.insert(key, self.next);
        self.next = (self.next + 1) % u32::try_from(slots).unwrap_or(u32::MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_vectors_make_room() {
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
