//! Where an output goes: to a file, which appears whole, or into a pipe or a device, which take the bytes as they come. An
//! output is never one of the inputs.

use std::fs::{self, File, OpenOptions};
use std::iter;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Whether `path` takes bytes as they come: `-`, a named pipe, a device such as /dev/null.
pub fn is_stream(path: &Path) -> bool {
    let kind = || fs::metadata(path).map(|m| m.file_type());
    path.as_os_str() == "-" || kind().is_ok_and(|kind| kind.is_fifo() || kind.is_char_device())
}

/// Opens a named pipe (and waits for its reader) or a device.
pub(crate) fn open_stream(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).open(path).with_context(|| format!("cannot write {}", path.display()))
}

/// The file that `path` leads to through symbolic links, whether it exists or not.
pub(crate) fn file_behind(path: &Path) -> Result<PathBuf> {
    const LINKS: usize = 40; // as many as Linux follows
    let cannot = || format!("cannot write {}", path.display());
    if let Ok(existing) = fs::metadata(path) {
        ensure!(!existing.is_dir(), "{}: it is a folder", cannot());
        ensure!(existing.is_file(), "{}: it is neither a file nor a pipe", cannot());
    }
    let mut file = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&file) {
            Ok(to) => file = file.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(file),
        }
    }
    bail!("{}: its symbolic links lead in a circle", cannot())
}

/// Refuses an `output` that is one of `inputs`, or a file in a folder among them: the result would replace its own input.
pub fn refuse_inputs<P: AsRef<Path>>(output: &Path, inputs: impl IntoIterator<Item = P>) -> Result<()> {
    let Some(ours) = identity(output).filter(|_| output.as_os_str() != "-") else { return Ok(()) };
    for input in inputs {
        let input = match input.as_ref() {
            path if path.as_os_str() == "-" => Path::new("/dev/stdin"), // a file after the shell's `<`
            path => path,
        };
        let inside = fs::read_dir(input).into_iter().flatten().flatten().map(|entry| entry.path());
        let same = iter::once(input.to_owned()).chain(inside).any(|path| identity(&path) == Some(ours));
        ensure!(!same, "{} is also an input; name another output", output.display());
    }
    Ok(())
}

/// Device and inode of the file that a path leads to. `None` where there is no file, and for devices such as a terminal, which
/// can be read and written at once.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    (!file.file_type().is_char_device()).then(|| (file.dev(), file.ino()))
}
