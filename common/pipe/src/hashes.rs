//! SHA-256 of large files, remembered between runs: four processes that open the same 4 GB read them once, not four times.
//!
//! They lie in `balanced-dpo/hashes` of the user's cache folder, a file of 64 digits each, and may be removed at any time.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, thread, time::Duration};

use anyhow::Result;

use crate::{id, stop};

/// Bytes of the smallest file whose hash is remembered: a smaller one is hashed within a tenth of a second.
const SMALLEST: u64 = 64 << 20;

/// What tells one state of a file from another: device, inode, size, and the times of the last change of its content and of its
/// inode (s, ns). Every write moves the last one, and no program can set it back.
pub type Version = [u64; 7];

pub fn version(about: &Metadata) -> Version {
    let times = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()].map(i64::cast_unsigned);
    [about.dev(), about.ino(), about.size(), times[0], times[1], times[2], times[3]]
}

/// The hash of the file of this `version`, which `hash` computes unless an earlier run did. Where the cache cannot be written,
/// it is computed every time.
pub fn remembered(version: &Version, hash: impl FnOnce() -> Result<String>) -> Result<String> {
    match folder().filter(|_| version[2] >= SMALLEST) {
        Some(folder) => remembered_in(&folder, version, hash),
        None => hash(),
    }
}

/// `XDG_CACHE_HOME`, or `.cache` in the home folder.
fn folder() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("balanced-dpo/hashes"))
}

fn remembered_in(folder: &Path, version: &Version, hash: impl FnOnce() -> Result<String>) -> Result<String> {
    let name = id::hex(&id::sha256(format!("{version:?}").as_bytes())[..16]);
    let Some(mut entry) = locked(folder, &name)? else { return hash() };
    let mut known = String::new();
    // A torn or damaged entry has no 64 digits.
    if entry.read_to_string(&mut known).is_ok() && known.len() == 64 && known.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Ok(known);
    }
    let hash = hash()?;
    let _ = entry.set_len(0).and_then(|()| entry.rewind()).and_then(|()| entry.write_all(hash.as_bytes()));
    Ok(hash)
}

/// The entry, once no other process holds it: that one computes the hash. `None` where there is no such folder and none can be made.
fn locked(folder: &Path, name: &str) -> Result<Option<File>> {
    let open = || {
        fs::create_dir_all(folder)?;
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(name))
    };
    let Ok(entry) = open() else { return Ok(None) };
    loop {
        match entry.try_lock() {
            Ok(()) => return Ok(Some(entry)),
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) => {
                stop::check()?;
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_hash_is_computed_once_by_whoever_comes_first_and_again_after_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, computed) = (dir.path().join("hashes"), AtomicUsize::new(0));
        let digits = "0123456789abcdef".repeat(4);
        let ask = |size: u64| {
            let slow = || {
                computed.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_millis(50));
                Ok(digits.clone())
            };
            assert_eq!(remembered_in(&folder, &[1, 2, size, 3, 4, 5, 6], slow).unwrap(), digits);
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| ask(7)))));
        assert_eq!(computed.load(Relaxed), 1);
        ask(8);
        assert_eq!(computed.load(Relaxed), 2);
        // Damaged entries are computed again.
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            fs::write(entry.path(), &digits[1..]).unwrap();
        }
        ask(7);
        ask(8);
        ask(8);
        assert_eq!(computed.load(Relaxed), 4);
    }

    #[test]
    fn without_a_folder_it_is_computed_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ask = || remembered_in(file.path(), &[0; 7], || Ok("x".into())).unwrap();
        assert_eq!((ask(), ask()), ("x".to_owned(), "x".to_owned()));
    }
}
