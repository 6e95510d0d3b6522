//! Arrow IPC streams, which must close with their end mark.

use std::io::{BufReader, Read};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use arrow::{array::RecordBatch, datatypes::SchemaRef, ipc::reader::StreamReader};

/// A stream that must close with its end mark: what a producer wrote before it died is not a whole table.
pub(super) struct Stream {
    reader: StreamReader<BufReader<Tail>>,
    tail: Arc<Mutex<Vec<u8>>>,
    done: bool,
}

/// Remembers the last eight bytes that passed.
struct Tail {
    inner: Box<dyn Read + Send>,
    last: Arc<Mutex<Vec<u8>>>,
}

impl Read for Tail {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Ok(mut last) = self.last.lock() {
            last.extend_from_slice(&buf[n.saturating_sub(8)..n]);
            let cut = last.len().saturating_sub(8);
            last.drain(..cut);
        }
        Ok(n)
    }
}

/// The IPC format's end mark: a continuation and a length of zero.
const END_MARK: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

const CUT_OFF: &str = "the stream is cut off or damaged: the program that wrote it stopped in the middle";

impl Stream {
    pub(super) fn open(inner: Box<dyn Read + Send>) -> Result<Self> {
        let tail = Arc::new(Mutex::new(vec![]));
        let reader = StreamReader::try_new(BufReader::new(Tail { inner, last: tail.clone() }), None);
        let reader = reader.context(CUT_OFF)?;
        Ok(Self { reader, tail, done: false })
    }

    pub(super) fn schema(&self) -> SchemaRef {
        self.reader.schema()
    }

    fn check_end(&mut self) -> Result<()> {
        std::io::copy(self.reader.get_mut(), &mut std::io::sink())?;
        let complete = self.tail.lock().is_ok_and(|tail| tail[..] == END_MARK);
        ensure!(complete, "the stream ends without its end mark: the program that wrote it stopped in the middle");
        Ok(())
    }
}

impl Iterator for Stream {
    type Item = Result<RecordBatch>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.reader.next() {
            Some(Ok(batch)) => Some(Ok(batch)),
            Some(Err(error)) => {
                self.done = true;
                Some(Err(error).context(CUT_OFF))
            }
            None => {
                self.done = true;
                self.check_end().err().map(Err)
            }
        }
    }
}
