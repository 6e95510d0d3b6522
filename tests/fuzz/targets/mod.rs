//! What the fuzzers and the smoke test call: for each kind of file a function that reads it as the tools do, and looks at
//! everything in it. A refusal is an answer; a panic, an abort, more memory than [`MEMORY`] or more time than [`TIME`] is a fault.

pub mod memory;
mod models;
mod tables;
mod texts;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The most memory that an input of up to 1 MB may take.
pub const MEMORY: usize = 1 << 30;
/// The most time that an input may take.
pub const TIME: Duration = Duration::from_secs(10);

/// Reads bytes; in the folder it may lay down files.
type Target = fn(&Path, &[u8]);

/// The kinds of files, each with the function that reads it.
pub const TARGETS: &[(&str, Target)] = &[
    ("table", tables::table),
    ("prompts", tables::prompts),
    ("caption", texts::caption),
    ("tokenizer", texts::tokenizer),
    ("weights", models::weights),
    ("pickle", models::pickle),
    ("picture", models::picture),
    ("config", models::config),
];

/// Reads `bytes` as the target of this name does. `folder` belongs to the caller's process and this target alone.
pub fn run(name: &str, folder: &Path, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(n, _)| *n == name).expect("the name of a target");
    target(folder, bytes);
}

/// Writes a file for a target.
fn put(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap_or(folder)).expect("a folder for files");
    fs::write(&path, bytes).expect("room for a file");
    path
}

/// The repository. Both packages that use this file lie in it.
pub fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().find(|folder| folder.join("tests/fixtures").is_dir()).expect("the repository")
}

/// A file or folder of the repository's tests.
fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}
