//! Files of models, which are files indeed: a named pipe would be waited for without end.

use std::{fs, io::Read, path::Path};

use anyhow::{Context, Result, ensure};

/// Opens a file of a model.
pub(crate) fn open(path: &Path) -> Result<fs::File> {
    let cannot = || format!("cannot read {}", path.display());
    let about = path.metadata().with_context(cannot)?;
    ensure!(about.is_file(), "{}: it is a folder, a named pipe or a device, and a model lies in files", cannot());
    fs::File::open(path).with_context(cannot)
}

/// The text of a file of a model.
pub(crate) fn text(path: &Path) -> Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}
