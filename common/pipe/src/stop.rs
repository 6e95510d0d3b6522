//! SIGTERM and SIGINT: long work saves what is finished, then leaves with 143 or 130, as a shell expects.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};

static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// The error that ends a tool: the signal that stopped it, and the flags that the same command needs to go on (mostly none).
#[derive(Debug)]
pub struct Stopped(pub u8, pub &'static str);

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self(signal, add) = self;
        let with = if add.is_empty() { "" } else { " with " };
        write!(
            f,
            "stopped by signal {signal}; what was finished is kept, the same command{with}{add} goes on from there"
        )
    }
}

impl std::error::Error for Stopped {}

/// From here on a signal is noted instead of killing; the caller promises to look at `requested` often.
pub fn watch() -> Result<()> {
    let seen = SIGNAL.get_or_init(Default::default);
    for signal in [SIGINT, SIGTERM] {
        // A second signal kills at once, for whoever cannot wait.
        signal_hook::flag::register_conditional_default(signal, second())
            .and_then(|_| signal_hook::flag::register_usize(signal, seen.clone(), signal as usize))
            .and_then(|_| signal_hook::flag::register(signal, second()))
            .context("cannot watch for signals")?;
    }
    Ok(())
}

fn second() -> Arc<std::sync::atomic::AtomicBool> {
    static SECOND: OnceLock<Arc<std::sync::atomic::AtomicBool>> = OnceLock::new();
    SECOND.get_or_init(Default::default).clone()
}

/// The signal that arrived, if one did.
pub fn requested() -> Option<Stopped> {
    match SIGNAL.get().map_or(0, |s| s.load(Ordering::Relaxed)) {
        0 => None,
        signal => Some(Stopped(signal as u8, "")),
    }
}

/// An error once a signal has arrived.
pub fn check() -> Result<()> {
    requested().map_or(Ok(()), |stopped| Err(stopped.into()))
}
