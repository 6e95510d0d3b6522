//! Where an output goes: to a file, which appears whole, or into a pipe or a device, which take it as it comes and stay what
//! they are. It is never one of the inputs.

use std::{
    fs::{self, File, OpenOptions},
    iter,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

/// Whether `path` takes bytes as they come: `-`, a named pipe, a device such as /dev/null.
pub fn is_stream(path: &Path) -> bool {
    let kind = || fs::metadata(path).map(|m| m.file_type());
    path.as_os_str() == "-" || kind().is_ok_and(|kind| kind.is_fifo() || kind.is_char_device())
}

/// Opens a named pipe (and waits for its reader) or a device.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn open_stream(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).open(path).with_context(|| format!("cannot write {}", path.display()))
}

/// The file that `path` means, whether it is there or not: a symbolic link means what it points to.
///
/// # Errors
/// A folder or a socket stands there, or links lead in a circle.
pub(crate) fn file_behind(path: &Path) -> Result<PathBuf> {
    const LINKS: usize = 40; // as many as Linux follows
    let say = || format!("cannot write {}", path.display());
    if let Ok(there) = fs::metadata(path) {
        ensure!(!there.is_dir(), "{}: it is a folder", say());
        ensure!(there.is_file(), "{}: it is neither a file nor a pipe", say());
    }
    let mut file = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&file) {
            Ok(to) => file = file.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(file),
        }
    }
    bail!("{}: its symbolic links lead in a circle", say())
}

/// Refuses an `output` that is one of `inputs` or a file in a folder among them: it would take the place of what it is made of.
///
/// # Errors
/// It is.
pub fn refuse_inputs<P: AsRef<Path>>(output: &Path, inputs: impl IntoIterator<Item = P>) -> Result<()> {
    let Some(there) = identity(output).filter(|_| output.as_os_str() != "-") else { return Ok(()) };
    for input in inputs {
        let input = match input.as_ref() {
            path if path.as_os_str() == "-" => Path::new("/dev/stdin"), // a file, where the shell says so
            path => path,
        };
        let inside = fs::read_dir(input).into_iter().flatten().flatten().map(|entry| entry.path());
        let same = iter::once(input.to_owned()).chain(inside).any(|path| identity(&path) == Some(there));
        ensure!(!same, "{} is also an input; name another output", output.display());
    }
    Ok(())
}

/// Refuses a folder that is to be replaced as a whole while one of `inputs` lies in it.
///
/// # Errors
/// One does.
pub fn refuse_inputs_inside<P: AsRef<Path>>(folder: &Path, inputs: impl IntoIterator<Item = P>) -> Result<()> {
    let Ok(replaced) = fs::canonicalize(folder) else { return Ok(()) };
    for input in inputs {
        let input = input.as_ref();
        let lost = fs::canonicalize(input).is_ok_and(|path| path.starts_with(&replaced));
        ensure!(
            !lost,
            "{} lies in {}, which would be replaced with all that is in it; name another output",
            input.display(),
            folder.display()
        );
    }
    Ok(())
}

/// Device and inode of what a path leads to; none where there is nothing, nor of a device such as a terminal, which is read
/// and written without harm.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let there = fs::metadata(path).ok()?;
    (!there.file_type().is_char_device()).then(|| (there.dev(), there.ino()))
}
