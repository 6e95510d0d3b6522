//! Names that follow from content: prompt ids, pair ids, file hashes. All are SHA-256 or the beginning of it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Hexadecimal digits, two per byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of several byte strings, each preceded by its length, so that different lists have different hashes.
pub fn sha256_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The first half of a SHA-256, for what a program remembers of many texts and images: two of a million different contents share
/// one with probability 1e-27.
pub type Key = [u8; 16];

/// The key of several strings of bytes, which do not run into each other.
pub fn key(parts: &[&[u8]]) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&sha256_of(parts)[..16]);
    key
}

/// `prompt_id`: the first 16 hexadecimal digits of the SHA-256 of the text, as `sha256sum` prints it.
pub fn prompt_id(prompt: &str) -> String {
    hex(&sha256(prompt.as_bytes())[..8])
}

/// `pair_id`: 32 hexadecimal digits from caption, both uids and ranking_id (empty if the table has none).
pub fn pair_id(caption: &str, image_0_uid: &str, image_1_uid: &str, ranking_id: &str) -> String {
    let parts = [caption.as_bytes(), image_0_uid.as_bytes(), image_1_uid.as_bytes(), ranking_id.as_bytes()];
    hex(&sha256_of(&parts)[..16])
}

/// The uid of an image that its table does not name: the first 32 hexadecimal digits of the SHA-256 of its bytes.
pub fn image_uid(bytes: &[u8]) -> String {
    hex(&sha256(bytes)[..16])
}

/// SHA-256 of a file's bytes, in hexadecimal: what `sha256sum` prints.
pub fn file_hash(path: &Path) -> Result<String> {
    File::open(path).and_then(hash_of).with_context(|| format!("cannot read {}", path.display()))
}

/// The same of what is read.
pub fn hash_of(mut file: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn prompt_id_is_what_sha256sum_prints() {
        // printf 'a photo of a cat' | sha256sum | cut -c1-16
        assert_eq!(super::prompt_id("a photo of a cat").len(), 16);
        assert_eq!(super::prompt_id(""), "e3b0c44298fc1c14");
    }

    #[test]
    fn pair_id_does_not_confuse_neighbouring_fields() {
        assert_ne!(super::pair_id("ab", "c", "d", ""), super::pair_id("a", "bc", "d", ""));
    }
}
