//! A folder of tables that is replaced as a whole: its old tables stay until the new ones take their place, at once where the
//! system can exchange two folders.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::atomic;

/// The folder, and where its next content and its last one lie.
pub(crate) struct Replaced {
    out: PathBuf,
    /// The new tables; after an exchange the old folder.
    pub(crate) new: PathBuf,
    /// The old folder, where the system exchanges nothing.
    old: PathBuf,
    /// The tables, by their file names.
    tables: Vec<String>,
}

impl Replaced {
    /// The folder `out`, whose `tables` are made ready in `beside`.
    pub(crate) fn of(out: &Path, beside: &Path, tables: impl Iterator<Item = String>) -> Self {
        let (new, old) = (beside.join("new"), beside.join("old"));
        Self { out: out.to_owned(), new, old, tables: tables.collect() }
    }

    /// Puts the new tables into place, together with what else is in the folder.
    pub(crate) fn replace(&self) -> Result<()> {
        let cannot = || format!("cannot replace {}", self.out.display());
        if !self.out.exists() {
            atomic::create_parent(&self.out)?;
        } else {
            fs::metadata(&self.out)
                .and_then(|out| fs::set_permissions(&self.new, out.permissions()))
                .with_context(cannot)?;
            if renameat_with(CWD, &self.new, CWD, &self.out, RenameFlags::EXCHANGE).is_ok() {
                atomic::sync_parent(&self.out);
                return self.settle();
            }
            atomic::rename(&self.out, &self.old)?;
        }
        atomic::rename(&self.new, &self.out)?;
        self.settle()
    }

    /// Brings back what is not a table: the files of others that were in the old folder, or, after a death between two
    /// renames, the old folder itself.
    pub(crate) fn settle(&self) -> Result<()> {
        if !self.out.exists() && self.old.exists() {
            return atomic::rename(&self.old, &self.out);
        }
        for folder in [&self.new, &self.old] {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let name = entry.with_context(|| format!("cannot read {}", folder.display()))?.file_name();
                let is_table = self.tables.iter().any(|table| name.to_string_lossy().starts_with(table.as_str()));
                if !is_table && !self.out.join(&name).exists() {
                    atomic::rename(&folder.join(&name), &self.out.join(&name))?;
                }
            }
        }
        Ok(())
    }

    /// Removes the old tables.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for folder in [&self.new, &self.old].into_iter().filter(|folder| folder.exists()) {
            for table in &self.tables {
                for name in [table.clone(), format!("{table}.partial")] {
                    fs::remove_file(folder.join(name)).or_else(missing)?;
                }
            }
            fs::remove_dir(folder)?;
        }
        Ok(())
    }
}

fn missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
