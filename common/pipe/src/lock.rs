//! One run at a time writes an output. The locks are the system's own on open files (`flock`): a lock ends with the process
//! that holds it, however that dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, Result, bail};

use crate::cli::warn;

/// The file in a folder that its lock is on.
pub(crate) const NAME: &str = ".lock";

/// Opens the file `path`, which is made if it is missing, and locks it for this process until it is closed. `output` is what
/// is written under this lock.
pub(crate) fn file(path: &Path, output: &Path) -> Result<File> {
    let cannot = || format!("cannot write {}", output.display());
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another run is writing {}; wait until it has ended, or look for it with `fuser {}`",
                output.display(),
                path.display()
            ),
            Err(TryLockError::Error(error)) => without_locks(output, &error),
        }
        // While we waited for the disk, the run before may have renamed or removed the file.
        let same = fs::metadata(path).is_ok_and(|there| is_same(&there, &file));
        if same {
            return Ok(file);
        }
    }
}

fn is_same(there: &fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
}

/// Some network file systems have no locks.
fn without_locks(output: &Path, error: &std::io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let output = output.display();
        warn(format_args!("{output} cannot be locked here ({error}): take care that no other run writes it"));
    });
}

/// A folder that only this process writes in.
pub struct Folder {
    lock: PathBuf,
    /// Locked until it is closed.
    file: File,
    /// The folder, where it was missing: work that fails at once leaves none.
    made: Option<PathBuf>,
}

impl Folder {
    /// Makes the folder where it is missing, and locks it until this is dropped.
    pub fn lock(folder: &Path, output: &Path) -> Result<Self> {
        const TRIES: usize = 100; // the run before may remove the folder between two of our steps
        let cannot = || format!("cannot write {}", output.display());
        let lock = folder.join(NAME);
        let made = (!folder.exists()).then(|| folder.to_owned());
        for _ in 0..TRIES {
            fs::create_dir_all(folder).with_context(cannot)?;
            match file(&lock, output) {
                Ok(file) => return Ok(Self { lock, file, made }),
                Err(_) if !folder.exists() => {}
                Err(error) => return Err(error),
            }
        }
        bail!("{}: {} is removed again and again", cannot(), folder.display())
    }

    /// Whether the folder is still the one that was locked: it was not removed or replaced meanwhile.
    pub fn is_there(&self) -> bool {
        fs::metadata(&self.lock).is_ok_and(|there| is_same(&there, &self.file))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.lock);
        let _ = self.made.as_ref().map(fs::remove_dir); // which keeps a folder with something in it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_never_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (path, folder) = (dir.path().join("file"), dir.path().join("a/b"));
        let held = file(&path, Path::new("out")).unwrap();
        let error = file(&path, Path::new("out")).unwrap_err().to_string();
        assert!(error.contains("another run is writing out") && error.contains("file"), "{error}");
        fs::rename(&path, dir.path().join("done")).unwrap();
        drop(file(&path, Path::new("out")).unwrap()); // it has its name: the next run begins again
        drop(held);
        let held = Folder::lock(&folder, &folder).unwrap();
        assert!(Folder::lock(&folder, &folder).is_err() && held.is_there());
        fs::rename(&folder, dir.path().join("moved")).unwrap();
        assert!(!held.is_there());
        fs::rename(dir.path().join("moved"), &folder).unwrap();
        drop(held);
        assert!(!folder.exists());
        drop(Folder::lock(&folder, &folder).unwrap());
    }
}
