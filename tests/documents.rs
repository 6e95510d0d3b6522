//! README.md and METHOD.md name files and functions. They must exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a Rust file, or one below a folder, declares `name`: a function, a type, a trait, a constant or a module.
fn declares(path: &Path, name: &str) -> bool {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().any(|entry| declares(&entry.unwrap().path(), name));
    }
    if path.extension().is_none_or(|ending| ending != "rs") {
        return false;
    }
    let text = fs::read_to_string(path).unwrap();
    let ends = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
    ["fn", "struct", "enum", "trait", "const", "mod"].iter().any(|kind| {
        let declaration = format!("{kind} {name}");
        text.match_indices(&declaration).any(|(at, _)| ends(&text[at + declaration.len()..]))
    })
}

/// The file or folder that a document names: below the repository or tools/, or near the file that was named before it.
fn find(word: &str, near: Option<&PathBuf>) -> Option<PathBuf> {
    let beside = near.into_iter().flat_map(|file| file.ancestors().take(3).map(|folder| folder.join(word)));
    [root().join(word), root().join("tools").join(word)].into_iter().chain(beside).find(|path| path.exists())
}

/// Checks the words between backticks: files must exist, and each name after a file must be declared there (in the file itself
/// where `exactly`, else anywhere in its folder). Returns how many names were found.
fn check(cells: &str, exactly: bool) -> usize {
    let (mut file, mut names) = (None, 0);
    for word in cells.split('`').skip(1).step_by(2) {
        let word = word.trim_start_matches("fn ").trim_start_matches("enum ").trim_start_matches("trait ");
        if word.contains(['/', '.']) {
            file = Some(find(word, file.as_ref()).unwrap_or_else(|| panic!("{word} does not exist: {cells}")));
        } else if let Some(file) = &file
            && word.chars().all(|c| c.is_alphanumeric() || c == '_')
        {
            let place = if exactly || file.is_dir() { file } else { file.parent().unwrap() };
            assert!(declares(place, word), "{} does not declare {word}: {cells}", place.display());
            names += 1;
        }
    }
    names
}

#[test]
fn the_functions_of_the_method_exist() {
    let text = fs::read_to_string(root().join("tools/METHOD.md")).unwrap();
    let (_, table) = text.split_once("| what | equation | where |").unwrap();
    let rows = table.lines().take_while(|line| !line.starts_with("## ")).filter_map(|row| row.rsplit(" | ").next());
    let names: usize = rows.map(|cell| check(cell, true)).sum();
    assert!(names > 30, "only {names} names");
}

#[test]
fn the_files_of_the_map_exist() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, map) = text.split_once("## The 60-second map").unwrap();
    let rows = map.lines().take_while(|line| !line.starts_with("## ")).filter_map(|row| row.strip_prefix("| "));
    let names: usize = rows.filter_map(|row| row.split_once(" | ")).map(|(_, cells)| check(cells, false)).sum();
    assert!(names > 20, "only {names} names");
}
