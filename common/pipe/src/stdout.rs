//! Standard output, whose reader may leave early: `vote ... -o - | head` has then done what was asked of it.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Error, Result};
use arrow::error::ArrowError;

/// Standard output. When its reader has left, the error says so, so that it cannot be taken for that of another pipe or socket.
pub struct Stdout(io::Stdout);

/// The reader of our standard output closed it.
#[derive(Debug)]
struct ReaderLeft;

impl fmt::Display for ReaderLeft {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the reader of standard output left")
    }
}

impl std::error::Error for ReaderLeft {}

pub fn stdout() -> Stdout {
    Stdout(io::stdout())
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(mark)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(mark)
    }
}

fn mark(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::BrokenPipe => io::Error::new(ErrorKind::BrokenPipe, ReaderLeft),
        _ => error,
    }
}

pub fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut stdout = stdout();
    stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()).context("cannot write to standard output")
}

/// Whether this error is only that the reader of our standard output left.
pub fn reader_left(error: &Error) -> bool {
    error.chain().any(|cause| {
        let io = match cause.downcast_ref::<ArrowError>() {
            Some(ArrowError::IoError(_, io)) => Some(io),
            _ => cause.downcast_ref::<io::Error>(),
        };
        io.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<ReaderLeft>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_standard_output_ends_silently() {
        let broken = || io::Error::from(ErrorKind::BrokenPipe);
        assert!(reader_left(&Error::from(mark(broken())).context("cannot write")));
        assert!(reader_left(&Error::from(ArrowError::from(mark(broken())))));
        assert!(!reader_left(&Error::from(broken()).context("cannot fetch a model")));
        assert!(!reader_left(&Error::from(ArrowError::from(broken()))));
        assert!(!reader_left(&Error::from(mark(io::Error::other("no space")))));
    }
}
