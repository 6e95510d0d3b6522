//! Folders that last as long as the program.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tempfile::TempDir;

static MADE: Mutex<Vec<TempDir>> = Mutex::new(vec![]);

/// A new, empty folder, which [`clear`] removes.
pub fn folder() -> Result<PathBuf> {
    let made = tempfile::Builder::new().prefix("balanced-dpo-").tempdir();
    let made = made.with_context(|| format!("cannot make a folder in {}", std::env::temp_dir().display()))?;
    let path = made.path().to_owned();
    MADE.lock().unwrap_or_else(PoisonError::into_inner).push(made);
    Ok(path)
}

/// Removes all that were made. To be called at the end of the program.
pub fn clear() {
    MADE.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
