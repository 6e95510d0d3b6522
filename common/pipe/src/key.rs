//! Short keys for what a program remembers of many texts and images.

use crate::id::sha256_of;

/// The first half of a SHA-256: two of a million different contents share one with probability 1e-27.
pub type Key = [u8; 16];

/// The key of several strings of bytes, which do not run into each other.
pub fn key(parts: &[&[u8]]) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&sha256_of(parts)[..16]);
    key
}
