//! Atomic writes: a file is written beside its target, synced and renamed, so that whatever exists is complete.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
#[cfg(target_os = "linux")]
use rustix::fs::{Mode, OFlags};

use crate::place::partial_path;
use crate::{lock, place};

/// Creates the folder that `path` lies in, and those above it.
pub fn create_parent(path: &Path) -> Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => {
            fs::create_dir_all(parent).with_context(|| format!("cannot create the folder {}", parent.display()))
        }
        None => Ok(()),
    }
}

/// A file that gets its name when `commit` is called; dropped before that, it leaves nothing. It is locked until then: one run
/// at a time writes it. A named pipe or a device takes the bytes as they come and is not replaced.
pub struct AtomicFile {
    name: PathBuf,
    /// The path that is written and the path it will get; `None` for a pipe or a device.
    renamed: Option<(PathBuf, PathBuf)>,
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    pub fn create(target: &Path) -> Result<Self> {
        place::refuse_url(target)?;
        let name = target.to_owned();
        if place::is_stream(target) {
            return Ok(Self { name, renamed: None, file: Some(BufWriter::new(place::open_stream(target)?)) });
        }
        let target = place::file_behind(target)?;
        create_parent(&target)?;
        let partial = partial_path(&target);
        ensure!(
            !partial.is_dir(),
            "cannot write {}: {} holds the unfinished parts of another run; finish that work first, or remove the folder",
            name.display(),
            partial.display()
        );
        ensure!(
            !partial.is_symlink(),
            "cannot write {}: the unfinished file would be {}, which is a symbolic link; remove it",
            name.display(),
            partial.display()
        );
        let file = lock::file(&partial, &name)?;
        file.set_len(0).with_context(|| format!("cannot write {}", name.display()))?; // what a killed run left
        Ok(Self { name, renamed: Some((partial, target)), file: Some(BufWriter::new(file)) })
    }

    /// Replaces bytes that were written before, in a file.
    pub fn replace(&mut self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.flush()?;
        self.file.as_ref().map_or(Ok(()), |file| file.get_ref().write_all_at(bytes, at))
    }

    /// Waits until the bytes are on the disk, then renames the file.
    pub fn commit(self) -> Result<()> {
        self.end(true)
    }

    /// Renames the file without waiting for the disk: after a power cut it may exist and be damaged.
    pub fn commit_unsynced(self) -> Result<()> {
        self.end(false)
    }

    fn end(mut self, sync: bool) -> Result<()> {
        let cannot = || format!("cannot write {}", self.name.display());
        let Some(writer) = &mut self.file else { return Ok(()) };
        writer.flush().with_context(cannot)?;
        if let Some((partial, target)) = &self.renamed {
            // Until it has its name, the file stays open and so locked.
            match sync {
                true => writer.get_ref().sync_all().with_context(cannot).and_then(|()| rename(partial, target))?,
                false => fs::rename(partial, target).with_context(cannot)?,
            }
        }
        self.file = None;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(buf),
            None => Err(std::io::Error::other("the file was already committed")),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |f| f.flush())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let (Some(_), Some((partial, _))) = (self.file.take(), &self.renamed) {
            let _ = fs::remove_file(partial);
        }
    }
}

/// Renames, and syncs the folder so that the new name survives a power cut.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
    sync_parent(to);
    Ok(())
}

/// Waits until the names in the folder that `path` lies in are on the disk.
pub(crate) fn sync_parent(path: &Path) {
    if let Ok(folder) = File::open(place::folder_of(path)) {
        let _ = folder.sync_all();
    }
}

/// Renames a file or folder that must not be lost, so that its name is free: `path.1`, or the first number that is free.
pub fn set_aside(path: &Path) -> Result<PathBuf> {
    let numbered = |n: u64| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    let free = (1..).map(numbered).find(|name| name.symlink_metadata().is_err()).unwrap_or_default();
    rename(path, &free)?;
    Ok(free)
}

/// Checks, before any work is done, that `folder` can be made and written in. Leaves nothing behind.
pub fn probe(folder: &Path) -> Result<()> {
    let existing = folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let cannot = || format!("cannot write in {}", folder.display());
    ensure!(existing.is_dir(), "{}: {} is not a folder", cannot(), existing.display());
    // A file without a name, which a death in between does not leave behind.
    #[cfg(target_os = "linux")]
    if rustix::fs::open(existing, OFlags::TMPFILE | OFlags::WRONLY, Mode::RUSR | Mode::WUSR).is_ok() {
        return Ok(());
    }
    let file = partial_path(&existing.join(".probe"));
    File::create(&file).with_context(cannot)?;
    fs::remove_file(&file).with_context(cannot)
}

/// Writes `bytes` to `path`, all or nothing.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    filled(path, bytes)?.commit()
}

/// As `write`, but does not wait for the disk.
pub fn write_unsynced(path: &Path, bytes: &[u8]) -> Result<()> {
    filled(path, bytes)?.commit_unsynced()
}

fn filled(path: &Path, bytes: &[u8]) -> Result<AtomicFile> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_folder_is_made_where_an_object_is_named() {
        let Err(error) = AtomicFile::create(Path::new("s3://bucket/x")) else { panic!("it is written") };
        assert!(error.to_string().contains("only read") && !Path::new("s3:").exists(), "{error}");
    }
}
