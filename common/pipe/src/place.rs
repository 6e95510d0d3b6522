//! Where an output goes: to a file, which appears whole, or into a pipe or a device, which take the bytes as they come. An
//! output is never one of the inputs.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{env, ffi::OsStr};

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

/// `dir/name` -> `dir/name.partial`, where an output lies until it is whole: in the same folder, so that the rename is atomic.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// Refuses to write the table `path` if its unfinished file is already there and is not ours: what a run that was killed
/// left of a table is empty, or begins as one.
pub(crate) fn refuse_partial_of_others(path: &Path) -> Result<()> {
    let partial = partial_path(path);
    let mut begin = vec![];
    if partial.is_file() {
        let cannot = || format!("cannot read {}", partial.display());
        File::open(&partial).with_context(cannot)?.take(4).read_to_end(&mut begin).with_context(cannot)?;
    }
    ensure!(
        begin.is_empty() || begin == b"PAR1",
        "cannot write {}: the unfinished table would be {}, which exists and is not a table; rename it",
        path.display(),
        partial.display()
    );
    Ok(())
}

/// Whether a path names an object rather than a file: `s3://`, `gs://`, `http://` or `https://`.
pub fn is_url(path: &Path) -> bool {
    let text = path.to_str().unwrap_or_default();
    ["s3://", "s3a://", "gs://", "http://", "https://"].iter().any(|scheme| text.starts_with(scheme))
}

/// Refuses an output in an object store, which would become a folder named `s3:`.
pub fn refuse_url(output: &Path) -> Result<()> {
    let name = output.display();
    ensure!(!is_url(output), "cannot write {name}: object stores are only read; write a file and copy it there");
    Ok(())
}

/// Refuses an `output` that is one of `inputs`, or a file in a folder among them: the result would replace its own input. The
/// same holds for the name under which it is written first.
pub fn refuse_inputs<P: AsRef<Path>>(output: &Path, inputs: impl IntoIterator<Item = P>) -> Result<()> {
    let is = |path: &Path, other: &Path| identity(path).is_some_and(|path| identity(other) == Some(path));
    let partial = partial_path(output);
    if output.as_os_str() == "-" || (identity(output).is_none() && identity(&partial).is_none()) {
        return Ok(());
    }
    for input in inputs {
        let input = match input.as_ref() {
            path if path.as_os_str() == "-" => Path::new("/dev/stdin"), // a file after the shell's `<`
            path => path,
        };
        let entries = output.is_file().then(|| fs::read_dir(input).ok()).flatten();
        let mut inside = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        let same = is(input, output) || inside.any(|path| is(&path, output));
        ensure!(!same, "{} is also an input; name another output", output.display());
        ensure!(
            !is(input, &partial),
            "{} is an input, and {} is first written under that name; name another output",
            partial.display(),
            output.display()
        );
    }
    Ok(())
}

/// Refuses outputs that are inputs, as `refuse_inputs`, and two outputs in one place.
pub fn refuse_overlaps<P: AsRef<Path>>(outputs: &[&Path], inputs: impl IntoIterator<Item = P> + Clone) -> Result<()> {
    for (i, output) in outputs.iter().enumerate() {
        refuse_inputs(output, inputs.clone())?;
        let twice = output.as_os_str() != "-" && outputs[..i].iter().any(|other| leads_to(other) == leads_to(output));
        ensure!(!twice, "{} is named for two outputs; name another one", output.display());
    }
    Ok(())
}

/// The folder that a path lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Bytes that the disk of `path` can still take; `path` need not exist. Some file systems of networks do not say, and have no end.
pub fn free(path: &Path) -> Result<u64> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let cannot = || format!("cannot ask how much the disk of {} can take", path.display());
    let about = rustix::fs::statvfs(there).with_context(cannot)?;
    Ok(if about.f_blocks == 0 { u64::MAX } else { about.f_bavail * about.f_frsize })
}

/// Where a path leads, also if nothing is there yet.
fn leads_to(path: &Path) -> PathBuf {
    let there = || Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(there).unwrap_or_else(|| path.to_owned())
}

/// Refuses names of other kinds of files for a table, which other programs would not open.
pub(crate) fn refuse_other_kind(table: &Path) -> Result<()> {
    const OTHERS: [&str; 20] = [
        "arrow", "arrows", "csv", "feather", "gif", "htm", "html", "ipc", "jpeg", "jpg", "json", "jsonl", "md",
        "ndjson", "png", "safetensors", "tsv", "txt", "webp", "xlsx",
    ];
    let ending = table.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    let other = ending.is_some_and(|ending| OTHERS.contains(&&ending[..]));
    ensure!(
        !other || is_stream(table),
        "a table is written as Parquet: name {} instead of {}",
        table.with_extension("parquet").display(),
        table.display()
    );
    Ok(())
}

/// Refuses to replace the folder that the program runs in: its shell would be left in a folder without a name.
pub(crate) fn refuse_current(folder: &Path) -> Result<()> {
    let current = env::current_dir().ok();
    let inside = folder.exists() && current.is_some_and(|current| current.starts_with(folder));
    ensure!(
        !inside,
        "cannot replace {}: it is the current folder; run the command from another folder",
        folder.display()
    );
    Ok(())
}

/// Device and inode of the file that a path leads to. `None` if there is no file, and for devices such as a terminal, which
/// can be read and written at once.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    (!file.file_type().is_char_device()).then(|| (file.dev(), file.ino()))
}
