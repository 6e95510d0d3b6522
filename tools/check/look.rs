//! Looking at a file or a folder: which kind of thing it is says who looks closer.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pipe::table;

use crate::finding::Finding;
use crate::{folders, pictures, tables, texts, weights};

pub fn of(path: &Path, quick: bool) -> Result<Finding> {
    let cannot = || format!("cannot read {}", path.display());
    let about = path.metadata().with_context(cannot)?;
    ensure!(about.is_dir() || about.is_file(), "{} is neither a file nor a folder", path.display());
    let look = if about.is_dir() { look_into } else { look_at };
    if about.is_dir() {
        path.read_dir().with_context(cannot)?;
    } else {
        std::fs::File::open(path).with_context(cannot)?;
    }
    let mut finding = look(path, quick).unwrap_or_else(|error| Finding::not_whole("", &error));
    finding.path = path.to_owned();
    Ok(finding)
}

fn look_at(path: &Path, quick: bool) -> Result<Finding> {
    if weights::is_weights(path) {
        return weights::file(path, quick);
    }
    if let Some(finding) = pictures::look_at(path)? {
        return Ok(finding);
    }
    match texts::look_at(path)? {
        Some(finding) => Ok(finding),
        None if tables::is_table(path)? => tables::look_at(path, quick),
        None => Ok(Finding::unknown("", "it is nothing that is read or written here")),
    }
}

fn look_into(path: &Path, quick: bool) -> Result<Finding> {
    match folders::look_into(path, quick)? {
        Some(finding) => Ok(finding),
        None if table::has_parts(path) => tables::look_at(path, quick),
        None => folders::several(path, quick),
    }
}
