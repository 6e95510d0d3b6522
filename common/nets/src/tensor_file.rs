//! A safetensors file: its header, and the checksum that files of this project carry.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::{fs::File, ops::Range};

use anyhow::{Context, Error, Result, ensure};
use pipe::hashes::{self, Version};
use pipe::id;
use safetensors::tensor::Metadata;

use crate::foreign::{self, Content};
use crate::{file, write};

/// SHA-256 of a weight file in hexadecimal. Each file is read once per process; one that has been replaced or changed since then is
/// read again. A file that does not have the checksum that it carries is refused. Hashes of large files without a checksum are
/// remembered between runs.
pub fn file_hash(path: &Path) -> Result<String> {
    static KNOWN: Mutex<BTreeMap<Version, String>> = Mutex::new(BTreeMap::new());
    let about = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    let version = hashes::version(&about);
    // The lock is held while the file is read, so that two threads do not read it both.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(hash) = known.get(&version) {
        return Ok(hash.clone());
    }
    let carries = || Checked::open(path).ok().filter(|file| file.carried.is_some());
    let hash = match foreign::content(path).is_ok_and(|content| content == Content::Safetensors).then(carries).flatten()
    {
        Some(checked) => checked.hash(path)?,
        None => hashes::remembered(&version, || id::file_hash(path))?,
    };
    known.insert(version, hash.clone());
    Ok(hash)
}

pub fn metadata(path: &Path) -> Result<HashMap<String, String>> {
    Ok(header(path)?.metadata.metadata().clone().unwrap_or_default())
}

/// Checks a safetensors file against the checksum that it carries. Returns whether it carries one.
pub fn check(path: &Path) -> Result<bool> {
    let mut file = Checked::open(path)?;
    let mut bytes = vec![0; 1 << 20]; // long enough for fast reading, and in the cache
    while file.read(&mut bytes).with_context(|| format!("cannot read {}", path.display()))? > 0 {}
    file.end(path)
}

/// A safetensors file whose checksum is computed while its bytes pass by.
struct Checked {
    file: File,
    /// The checksum that it carries, and the place of its digits, which count as zeros.
    carried: Option<(String, Range<u64>)>,
    at: u64,
    sum: u32,
}

impl Checked {
    fn open(path: &Path) -> Result<Self> {
        let Header { mut file, metadata, end } = header(path)?;
        let sum = metadata.metadata().as_ref().and_then(|all| all.get(write::CHECKSUM));
        let place = |sum: &String| {
            let mut bytes = vec![0; end as usize];
            file.read_exact_at(&mut bytes, 0)?;
            let at = write::digits(&bytes, sum).context("its checksum is not where it should be")? as u64;
            Ok::<_, Error>((sum.clone(), at..at + sum.len() as u64))
        };
        let carried = sum.map(place).transpose().with_context(|| damaged(path))?;
        file.rewind()?;
        Ok(Self { file, carried, at: 0, sum: 0 })
    }

    /// The file's SHA-256.
    fn hash(mut self, path: &Path) -> Result<String> {
        let hash = id::hash_of(&mut self).with_context(|| format!("cannot read {}", path.display()))?;
        self.end(path)?;
        Ok(hash)
    }

    /// Whether the file, which was read to its end, carries a checksum. That must be the right one.
    fn end(self, path: &Path) -> Result<bool> {
        let is_right = self.carried.as_ref().is_none_or(|(sum, _)| format!("{:08x}", self.sum) == *sum);
        ensure!(is_right, damaged(path));
        Ok(self.carried.is_some())
    }
}

impl Read for Checked {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(bytes)?;
        if let Some((_, digits)) = &self.carried {
            let within = |at: u64| (at.clamp(self.at, self.at + n as u64) - self.at) as usize;
            let (from, to) = (within(digits.start), within(digits.end));
            let zeros = vec![b'0'; to - from];
            let parts = [&bytes[..from], &zeros, &bytes[to..n]];
            self.sum = parts.into_iter().fold(self.sum, crc32c::crc32c_append);
        }
        self.at += n as u64;
        Ok(n)
    }
}

fn damaged(path: &Path) -> String {
    format!("{} is damaged: its numbers do not have the checksum that it carries", path.display())
}

/// A safetensors file of which the header has been read.
pub(crate) struct Header {
    pub file: File,
    pub metadata: Metadata,
    /// Where the tensors begin.
    pub end: u64,
}

pub(crate) fn header(path: &Path) -> Result<Header> {
    let damaged = || format!("{} is not a whole safetensors file", path.display());
    let mut file = file::open(path)?;
    let size = file.metadata()?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).with_context(damaged)?;
    let length = u64::from_le_bytes(length);
    // safetensors' own limit; a network of a thousand tensors has some 100 kB.
    ensure!(length <= size.saturating_sub(8).min(100_000_000), damaged());
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).with_context(damaged)?;
    let metadata: Metadata = serde_json::from_slice(&text).with_context(damaged)?;
    let end = 8 + length;
    ensure!(end + metadata.data_len() as u64 == size, damaged());
    Ok(Header { file, metadata, end })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let t = Tensor::arange(0f32, 40f32, &Device::Cpu).unwrap();
        write::tensors(&path, &BTreeMap::from([("a".to_string(), t)]), Default::default()).unwrap();
        assert!(check(&path).unwrap());
        let sound = std::fs::read(&path).unwrap();
        let sum = write::digits(&sound, &metadata(&path).unwrap()["crc32c"]).unwrap();
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            // Where the key of the checksum is changed, there is none.
            let key = (sum - 9..sum - 3).contains(&at);
            assert!(if key { !check(&path).unwrap() } else { check(&path).is_err() }, "byte {at}");
        }
    }

    #[test]
    fn a_file_is_hashed_once_and_again_after_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let zeros = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        write::tensors(&path, &BTreeMap::from([("a".to_string(), zeros)]), Default::default()).unwrap();
        let hash = || file_hash(&path).unwrap();
        let first = hash();
        assert_eq!(first, id::file_hash(&path).unwrap());
        // Other bytes behind the same size and time.
        let time = path.metadata().unwrap().modified().unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[1], path.metadata().unwrap().len() - 1).unwrap();
        file.set_modified(time).unwrap();
        let error = file_hash(&path).unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");
        let ones = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
        write::tensors(&path, &BTreeMap::from([("a".to_string(), ones)]), Default::default()).unwrap();
        assert_eq!(hash(), id::file_hash(&path).unwrap());
        assert_ne!(hash(), first);
    }
}
