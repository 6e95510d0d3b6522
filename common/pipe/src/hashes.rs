//! SHA-256 of large files, remembered between runs: four processes that open the same 4 GB read them once, not four times.
//!
//! They lie in `balanced-dpo/hashes` of the user's cache folder, a small file each, and may be removed at any time.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, thread};

use anyhow::Result;
use rustix::fs::OFlags;

use crate::cli::warn;
use crate::{id, stop};

/// Bytes of the smallest file whose hash is remembered: a smaller one is hashed within a tenth of a second.
const SMALLEST: u64 = 64 << 20;

/// Seconds for which a file has been left alone before its hash is remembered. A program that has mapped it into memory may
/// change it without moving its times, until the system writes its pages to the disk: within half a minute.
const SETTLED: u64 = 60;

/// How long to wait for another process that computes the same hash, and after how long to say so.
const PATIENCE: [Duration; 2] = [Duration::from_secs(120), Duration::from_secs(5)];

/// What tells one state of a file from another: device, inode, size, and the times of the last change of its content and of its
/// inode (s, ns). A write moves the last one, which no program can set back.
pub type Version = [u64; 7];

pub fn version(about: &Metadata) -> Version {
    let times = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()].map(i64::cast_unsigned);
    [about.dev(), about.ino(), about.size(), times[0], times[1], times[2], times[3]]
}

/// The hash of the file of this `version`, which `hash` computes unless an earlier run did. Where the cache cannot be written,
/// it is computed every time.
pub fn remembered(version: &Version, hash: impl FnOnce() -> Result<String>) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match folder().filter(|_| version[2] >= SMALLEST && version[5] + SETTLED <= now) {
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
    let Some(mut entry) = locked(&folder.join(name))? else { return hash() };
    // An entry that is torn or damaged does not have this end.
    let sealed = |hash: &str| format!("{hash} {}", id::hex(&id::sha256(format!("{version:?} {hash}").as_bytes())[..8]));
    let mut known = String::new();
    let read = (&mut entry).take(200).read_to_string(&mut known); // an entry has 81 bytes
    if let Some((hash, _)) = known.split_once(' ').filter(|(hash, _)| read.is_ok() && known == sealed(hash)) {
        return Ok(hash.to_owned());
    }
    let hash = hash()?;
    let _ = entry.set_len(0).and_then(|()| entry.rewind()).and_then(|()| entry.write_all(sealed(&hash).as_bytes()));
    Ok(hash)
}

/// The entry, once no other process holds it, which then has computed the hash. `None` if there can be none, or after a long wait.
fn locked(path: &Path) -> Result<Option<File>> {
    let Some(entry) = opened(path) else { return Ok(None) };
    let (began, mut said) = (Instant::now(), false);
    while began.elapsed() < PATIENCE[0] {
        match entry.try_lock() {
            Ok(()) => return Ok(Some(entry)),
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) => stop::check()?,
        }
        if !said && began.elapsed() > PATIENCE[1] {
            warn(format_args!("another process is hashing the same model; waiting for it ({})", path.display()));
            said = true;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(None)
}

/// Opens an entry, which is a file and no link: in a folder that is shared, a link could lead to anything.
fn opened(path: &Path) -> Option<File> {
    fs::create_dir_all(path.parent()?).ok()?;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let entry = OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path);
    entry.ok().filter(|entry| entry.metadata().is_ok_and(|about| about.is_file()))
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
        // Damaged entries are computed again, and links are not followed.
        let other = dir.path().join("thesis.txt");
        fs::write(&other, "mine").unwrap();
        for (i, entry) in fs::read_dir(&folder).unwrap().flatten().enumerate() {
            let mut bytes = fs::read(entry.path()).unwrap();
            bytes[3] ^= 1;
            fs::write(entry.path(), bytes).unwrap();
            if i == 0 {
                fs::remove_file(entry.path()).unwrap();
                std::os::unix::fs::symlink(&other, entry.path()).unwrap();
            }
        }
        [7, 8, 7, 8].into_iter().for_each(ask);
        assert_eq!(computed.load(Relaxed), 2 + 3);
        assert_eq!(fs::read(&other).unwrap(), b"mine");
    }

    #[test]
    fn without_a_folder_it_is_computed_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ask = || remembered_in(file.path(), &[0; 7], || Ok("x".into())).unwrap(); // a file, no folder
        assert_eq!((ask(), ask()), ("x".to_owned(), "x".to_owned()));
    }
}
