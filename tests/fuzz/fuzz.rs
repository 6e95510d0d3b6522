//! The program of every target: what the input is taken for follows from the program's name.
#![no_main]

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::LazyLock,
};

use libfuzzer_sys::fuzz_target;

#[global_allocator]
static COUNTED: targets::memory::Counted = targets::memory::Counted;

/// A folder of this process alone: the first that no other holds.
static FOLDER: LazyLock<(PathBuf, File)> = LazyLock::new(|| {
    let all = std::env::temp_dir().join("balanced-dpo-fuzz");
    let free = |i: usize| {
        let folder = all.join(format!("{}-{i}", env!("CARGO_BIN_NAME")));
        fs::create_dir_all(&folder).ok()?;
        let lock = File::create(folder.join("lock")).ok()?;
        lock.try_lock().ok().map(|()| (folder, lock))
    };
    (0..1000).find_map(free).expect("a folder for files")
});

fuzz_target!(init: {
    targets::memory::refuse_above(targets::MEMORY);
    // libFuzzer's own hook ends the program at every panic. Only one that leaves the target is a fault: a decoder may report a
    // damaged file by a panic that is caught.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
}, |bytes: &[u8]| targets::run(env!("CARGO_BIN_NAME"), &FOLDER.0, bytes));
