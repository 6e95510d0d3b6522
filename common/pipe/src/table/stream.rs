//! Arrow IPC streams, which must close with their end mark.

use std::io::{BufReader, Read};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow::ipc::{convert::try_fb_to_schema, reader::StreamDecoder};
use arrow::{array::RecordBatch, buffer::Buffer, datatypes::SchemaRef};

use super::ipc;

/// A stream that must close with its end mark: what a producer wrote before it died is not a whole table.
pub(super) struct Stream {
    bytes: BufReader<Box<dyn Read + Send>>,
    schema: SchemaRef,
    decoder: StreamDecoder,
    /// The bytes that the decoder has not taken yet.
    message: Buffer,
    ended: bool,
}

const CUT_OFF: &str = "the stream is cut off or damaged: the program that wrote it stopped in the middle";

impl Stream {
    pub(super) fn open(inner: Box<dyn Read + Send>) -> Result<Self> {
        let mut bytes = BufReader::new(inner);
        let first = next_message(&mut bytes)?;
        ensure!(first != ipc::END, "the stream has no schema");
        let schema = ipc::message(&first)?.0.header_as_schema().context("the stream does not begin with its schema")?;
        let schema = Arc::new(try_fb_to_schema(schema)?);
        Ok(Self { bytes, schema, decoder: StreamDecoder::new(), message: first.into(), ended: false })
    }

    pub(super) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            // A message without a body is decoded with the one after it.
            if let Some(batch) = self.decoder.decode(&mut self.message).context(CUT_OFF)? {
                return Ok(Some(batch));
            }
            if self.ended {
                return Ok(None);
            }
            self.message = next_message(&mut self.bytes)?.into();
            if self.message[..] == *ipc::END {
                self.ended = true;
                let after = std::io::copy(&mut self.bytes, &mut std::io::sink())?;
                ensure!(after == 0, "{after} bytes follow the end mark of the stream: one pipe holds one table");
            }
        }
    }
}

impl Iterator for Stream {
    type Item = Result<RecordBatch>;
    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.next_batch();
        if batch.is_err() {
            (self.message, self.ended) = (Buffer::default(), true);
        }
        batch.transpose()
    }
}

/// The next message with its body, or the end mark.
fn next_message(bytes: &mut impl Read) -> Result<Vec<u8>> {
    let mut message = ipc::head(bytes).context(CUT_OFF)?;
    if message == ipc::END {
        return Ok(message);
    }
    let body = message.len();
    let length = ipc::message(&message).context(CUT_OFF)?.1;
    ipc::append(bytes, length, &mut message).context(CUT_OFF)?;
    ipc::check(ipc::message(&message)?.0, |offset| {
        let offset = usize::try_from(offset).ok().and_then(|offset| body.checked_add(offset));
        let length = offset.and_then(|offset| message.get(offset..)?.first_chunk());
        length.copied().context("a buffer lies outside its message")
    })?;
    Ok(message)
}
