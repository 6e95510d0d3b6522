//! Images in a folder beside the page, from which a browser loads those that come into view: for thousands of prompts.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use pipe::{atomic, id, place};

/// Names of our files begin with this, then have 32 hexadecimal digits. Other files in the folder are not touched.
const PREFIX: &str = "shown-";

/// The folder `NAME-images` of the page `NAME.html`, `NAME.htm-images` of `NAME.htm`.
pub struct Beside {
    folder: PathBuf,
    /// The files of this page.
    names: Mutex<HashSet<String>>,
}

impl Beside {
    pub fn of(page: &Path) -> Result<Self> {
        let is_usual = page.extension().is_some_and(|ending| ending == "html");
        let name = if is_usual { page.file_stem() } else { page.file_name() };
        let mut name = name.with_context(|| format!("{} is not the name of a file", page.display()))?.to_owned();
        name.push("-images");
        let folder = place::folder_of(page).join(name);
        let free = folder.is_dir() || folder.symlink_metadata().is_err();
        ensure!(free, "{} is not a folder, and the page's images belong into one: rename it", folder.display());
        Ok(Self { folder, names: Mutex::default() })
    }

    pub fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Writes an image into a file that is called after its content, and returns the file's address as the page names it.
    pub fn put(&self, kind: &str, bytes: &[u8]) -> Result<String> {
        let name = format!("{PREFIX}{}.{kind}", id::image_uid(bytes));
        let new = self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        if new {
            atomic::write_unsynced(&self.folder.join(&name), bytes)?;
        }
        Ok(format!("{}/{name}", encoded(&self.name())))
    }

    /// Removes the images of an earlier page of this name that this page does not show.
    pub fn prune(self) -> Result<()> {
        let names = self.names.into_inner().unwrap_or_else(PoisonError::into_inner);
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                let is_old = entry.file_name().to_str().is_some_and(|name| is_ours(name) && !names.contains(name));
                if is_old {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        remove().with_context(|| format!("cannot remove old images from {}", self.folder.display()))
    }
}

fn is_ours(name: &str) -> bool {
    let parts = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.'));
    parts.is_some_and(|(digits, kind)| {
        let is_digits = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_digits && ["png", "jpeg", "webp"].contains(&kind)
    })
}

/// A part of an address, so that a browser reads every character of a file's name as itself.
fn encoded(name: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(one).collect()
}
