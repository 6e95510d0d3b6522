//! Panics: faults of this program, or of a crate that reads a damaged file. Each becomes an error like any other, so that none
//! is taken for the end of the work and every output is left as after an error.

use std::panic::{AssertUnwindSafe, Location, PanicHookInfo, catch_unwind, set_hook};
use std::{any::Any, fmt, path::Path, sync::Mutex};

use anyhow::{Error, Result};

/// Where the last panic happened. It may have been on another thread than the one that catches it, as rayon's are.
static PLACE: Mutex<Option<String>> = Mutex::new(None);

/// The program broke down: what the panic said, and where.
#[derive(Debug)]
struct Broken {
    said: String,
    place: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { said, place } = self;
        write!(
            f,
            "the program broke down{place}: {said}; this is a fault in it: please report this line and the command"
        )
    }
}

impl std::error::Error for Broken {}

/// From here on a panic prints nothing: the caller that catches it says what happened.
pub fn silence() {
    set_hook(Box::new(|info: &PanicHookInfo| {
        if let Ok(mut place) = PLACE.lock() {
            *place = info.location().map(name);
        }
    }));
}

/// `arrow-ipc-60.1.0/src/reader.rs:85`, without the folder that crates lie in.
fn name(location: &Location) -> String {
    let parts: Vec<_> = Path::new(location.file()).iter().map(|part| part.to_string_lossy()).collect();
    format!("{}:{}", parts[parts.len().saturating_sub(3)..].join("/"), location.line())
}

/// Does `work`; a panic in it is an error.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(broken)
}

/// The error that a panic becomes.
pub fn broken(panic: Box<dyn Any + Send>) -> Error {
    let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let place = PLACE.lock().ok().and_then(|mut place| place.take());
    Error::new(Broken {
        said: said.and_then(|text| text.lines().next()).unwrap_or("without a message").to_owned(),
        place: place.map_or_else(String::new, |place| format!(" at {place}")),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_is_an_error_that_asks_for_a_report() {
        assert_eq!(super::caught(|| 7).unwrap(), 7);
        let error = super::caught(|| -> usize { panic!("broke at row {}", 3) }).unwrap_err().to_string();
        assert!(error.contains("broke at row 3") && error.contains("report"), "{error}");
    }
}
