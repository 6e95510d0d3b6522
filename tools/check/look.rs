//! Looking at a file or a folder: which kind of thing it is says who looks closer.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nets::hub;
use pipe::table;

use crate::finding::{Finding, How};
use crate::{folders, pictures, tables, texts, weights};

pub fn of(path: &Path, how: How) -> Result<Finding> {
    let (asked, path) = (path, &*hub::resolve(path, false)?);
    let cannot = || format!("cannot read {}", path.display());
    let about = path.metadata().with_context(cannot)?;
    ensure!(about.is_dir() || about.is_file(), "{} is neither a file nor a folder", path.display());
    let look = if about.is_dir() { look_into } else { look_at };
    if about.is_dir() {
        path.read_dir().with_context(cannot)?;
    } else {
        std::fs::File::open(path).with_context(cannot)?;
    }
    let mut finding = look(path, how).unwrap_or_else(|error| Finding::not_whole("", &error));
    finding.path = asked.to_owned();
    Ok(finding)
}

fn look_at(path: &Path, how: How) -> Result<Finding> {
    if weights::is_weights(path) {
        return weights::file(path, how);
    }
    if let Some(finding) = pictures::look_at(path)? {
        return Ok(finding);
    }
    match texts::look_at(path, how)? {
        Some(finding) => Ok(finding),
        None if tables::is_table(path)? => tables::look_at(path, how),
        None => Ok(Finding::unknown("", "these tools do not use this kind of file")),
    }
}

fn look_into(path: &Path, how: How) -> Result<Finding> {
    match folders::look_into(path, how)? {
        Some(finding) => Ok(finding),
        None if table::has_parts(path) => tables::look_at(path, how),
        None => folders::several(path, |inner| of(inner, how)),
    }
}
