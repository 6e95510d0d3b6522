//! What exists is complete: files and folders are written beside their target, synced, then renamed.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// `dir/name` -> `dir/name.partial`, in the same folder so that the rename is atomic.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// Creates the folders above `path`.
pub fn create_parent(path: &Path) -> Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => {
            fs::create_dir_all(parent).with_context(|| format!("cannot create the folder {}", parent.display()))
        }
        None => Ok(()),
    }
}

/// A file that appears under its name only when `commit` is called; dropped before that, it leaves nothing.
pub struct AtomicFile {
    target: PathBuf,
    partial: PathBuf,
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    pub fn create(target: &Path) -> Result<Self> {
        ensure!(!target.is_dir(), "cannot write {}: it is a folder", target.display());
        create_parent(target)?;
        let partial = partial_path(target);
        let file = File::create(&partial).with_context(|| format!("cannot write {}", target.display()))?;
        Ok(Self { target: target.to_owned(), partial, file: Some(BufWriter::new(file)) })
    }

    /// Flushes to the disk and renames into place.
    pub fn commit(mut self) -> Result<()> {
        let say = || format!("cannot write {}", self.target.display());
        if let Some(writer) = self.file.take() {
            let file = writer.into_inner().map_err(|e| e.into_error()).with_context(say)?;
            file.sync_all().with_context(say)?;
            rename(&self.partial, &self.target).inspect_err(|_| drop(fs::remove_file(&self.partial)))?;
        }
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
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Renames and syncs the folder, so that the new name survives a power cut.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(parent) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Finds out, before any work is done, whether `folder` can be made and written in. Leaves nothing.
pub fn probe(folder: &Path) -> Result<()> {
    let there = folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let say = || format!("cannot write in {}", folder.display());
    ensure!(there.is_dir(), "{}: {} is not a folder", say(), there.display());
    let file = partial_path(&there.join(".probe"));
    File::create(&file).with_context(say)?;
    fs::remove_file(&file).with_context(say)
}

/// Writes `bytes` to `path`, whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))?;
    file.commit()
}
