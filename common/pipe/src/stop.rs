//! SIGTERM and SIGINT: long work saves what is finished, then exits with 143 or 130, as a shell expects.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::{io::Write, thread, time::Duration};

use anyhow::{Context, Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::scratch;

/// The signal that arrived while signals were watched, or 0.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Default::default);
/// Whether the next signal kills.
static KILLS: LazyLock<Arc<AtomicBool>> = LazyLock::new(Default::default);

/// The error that ends a tool: the signal that stopped it, and the flags that the same command needs to continue (mostly none).
#[derive(Debug)]
pub struct Stopped(pub u8, pub &'static str);

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self(signal, add) = self;
        let with = if add.is_empty() { "" } else { " with " };
        write!(
            f,
            "stopped by signal {signal}; what was finished is kept, and the same command{with}{add} continues from there"
        )
    }
}

impl std::error::Error for Stopped {}

/// From here on a file that grows beyond `ulimit -f` is an error where it is written; the signal alone would kill.
pub fn ignore_file_size_limit() -> Result<()> {
    flag::register(SIGXFSZ, Arc::default()).map(|_| ()).context("cannot watch for signals")
}

/// From here on a signal is noted and does not kill. The caller calls [`check`] often, and [`unwatch`] after its last check.
pub fn watch() -> Result<()> {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    KILLS.store(false, Ordering::SeqCst);
    if REGISTERED.set(()).is_err() {
        return Ok(());
    }
    for signal in [SIGINT, SIGTERM] {
        // A second signal kills at once, for a user who cannot wait.
        flag::register_conditional_default(signal, KILLS.clone())
            .and_then(|_| flag::register_usize(signal, SIGNAL.clone(), signal as usize))
            .and_then(|_| flag::register(signal, KILLS.clone()))
            .context("cannot watch for signals")?;
    }
    Ok(())
}

/// As [`watch`], for work that keeps what it finishes: a signal that was not answered after [`PATIENCE`], because a picture
/// takes minutes, ends the program.
pub fn watch_and_leave(tool: &'static str) -> Result<()> {
    watch()?;
    static STARTED: OnceLock<()> = OnceLock::new();
    if STARTED.set(()).is_err() {
        return Ok(());
    }
    let leave = move || {
        let stopped = loop {
            match requested() {
                Some(stopped) => break stopped,
                None => thread::sleep(PATIENCE / 10),
            }
        };
        thread::sleep(PATIENCE);
        let code = 128 + i32::from(stopped.0);
        let _ = writeln!(std::io::stderr(), "{tool}: {stopped}");
        scratch::clear();
        signal_hook::low_level::exit(code) // at once: other threads are in the middle of their work
    };
    thread::Builder::new().name("signals".into()).spawn(leave).map(|_| ()).context("cannot start a thread")
}

/// With what comes before and after, a signal is answered within two seconds.
const PATIENCE: Duration = Duration::from_millis(1500);

/// From here on a signal kills again, as before [`watch`]. For the end of the work, when signals are not checked any more: a signal must
/// not get lost there.
/// Fails if one arrived while signals were watched.
pub fn unwatch() -> Result<()> {
    // In this order: a signal before the first line is noted, one after it kills.
    KILLS.store(true, Ordering::SeqCst);
    check()
}

pub fn requested() -> Option<Stopped> {
    match SIGNAL.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(Stopped(signal as u8, "")),
    }
}

/// Fails with [`Stopped`] once a signal has arrived.
pub fn check() -> Result<()> {
    requested().map_or(Ok(()), |stopped| Err(Error::from(stopped)))
}
