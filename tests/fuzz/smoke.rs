//! Some seconds of what `cargo fuzz` does for hours, on a stable toolchain: every file of tests/fuzz/corpus, then seeded damage of
//! these files, through the same functions, which are those of the tools.
//!
//! FUZZ_SEED chooses other damage, FUZZ_SECONDS a run of that time, FUZZ_TARGET one kind of file. Inputs that fail stay in files that
//! the message names.

mod damage;
mod targets;

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use targets::{MEMORY, TARGETS, TIME, memory};

#[global_allocator]
static COUNTED: memory::Counted = memory::Counted;

/// What the last panic said, and where.
static SAID: Mutex<String> = Mutex::new(String::new());

fn setting<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is '{text}', expected a number")),
        Err(_) => default,
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = targets::repository().join("tests/fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Runs one input in a thread of its own, which has the stack of a main thread. What is wrong, if something is.
fn fault(target: &'static str, folder: &Path, bytes: Vec<u8>) -> Option<String> {
    let (done, end) = mpsc::channel();
    let folder = folder.to_owned();
    let run = move || {
        let run = AssertUnwindSafe(|| targets::run(target, &folder, &bytes));
        let _ = done.send(panic::catch_unwind(run).is_ok());
    };
    memory::refuse_above(MEMORY);
    thread::Builder::new().name("target".into()).stack_size(8 << 20).spawn(run).unwrap();
    match end.recv_timeout(TIME) {
        Ok(true) => None,
        Ok(false) => Some(SAID.lock().unwrap().clone()),
        Err(_) => Some(format!("takes more than {TIME:?}")),
    }
}

/// Damaged files of each target, where no time is given: the same ones at every run.
const DAMAGED: usize = 400;

/// All files of the corpus, then damaged ones: [`DAMAGED`], or until `share` is over. Returns the faults.
fn attack(target: &'static str, seed: u64, share: Option<Duration>) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let files = corpus(target);
    let (began, mut faults, mut number) = (Instant::now(), vec![], 0);
    let damaged = (0..).map(|number| damage::of(&files, seed, number));
    for (i, bytes) in files.iter().cloned().chain(damaged).enumerate() {
        let over = share.map_or(i >= files.len() + DAMAGED, |share| i >= files.len() && began.elapsed() > share);
        if over || faults.len() == 5 {
            break;
        }
        // Written first, because a refused allocation aborts.
        let input = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}-{}", faults.len()));
        fs::write(&input, &bytes).unwrap();
        faults
            .extend(fault(target, folder.path(), bytes).map(|what| format!("{target}: {what}\n  {}", input.display())));
        number = i + 1;
    }
    println!("{target}: {number} inputs, {} of them as they are", files.len());
    faults
}

#[test]
fn damaged_files_are_read_or_refused() {
    let (seed, seconds) = (setting("FUZZ_SEED", 1u64), setting("FUZZ_SECONDS", 0u64));
    let only: String = setting("FUZZ_TARGET", String::new());
    let chosen: Vec<_> =
        TARGETS.iter().map(|(name, _)| *name).filter(|name| only.is_empty() || only == *name).collect();
    println!("FUZZ_SEED={seed}; inputs that fail are left in {}", env!("CARGO_TARGET_TMPDIR"));
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| match thread::current().name() {
        Some("target") => *SAID.lock().unwrap() = panic.to_string(),
        _ => usual(panic),
    }));
    let share = (seconds > 0).then(|| Duration::from_secs(seconds) / chosen.len() as u32);
    let faults: Vec<_> = chosen.iter().flat_map(|target| attack(target, seed, share)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
