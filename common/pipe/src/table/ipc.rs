//! Arrow's messages, as they lie in a file or a stream. arrow's readers reserve what a message promises: it is checked here first.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, anyhow, ensure};
use arrow::ipc::reader::read_footer_length;
use arrow::ipc::{Message, MessageHeader, root_as_footer, root_as_message};

pub(super) const FILE: &[u8] = b"ARROW1";
/// How each message begins, and so a stream.
pub(super) const CONTINUATION: &[u8] = &[0xff, 0xff, 0xff, 0xff];

/// The most bytes that the compressed buffers of one small message may hold. A batch of a million rows of scores holds
/// a tenth of it. Large messages may hold four times their size: images hardly shrink.
const UNPACKED: i64 = 1 << 29;

/// The end mark: a message of no length.
pub(super) const END: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// The next message up to its body: eight bytes, and the metadata.
pub(super) fn head(bytes: &mut impl Read) -> Result<Vec<u8>> {
    let mut head = vec![];
    append(bytes, 8, &mut head)?;
    ensure!(head.starts_with(CONTINUATION), "a message does not begin as Arrow's messages do");
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    append(bytes, length.into(), &mut head)?;
    Ok(head)
}

/// Reads this many bytes. They are not reserved before they are there.
pub(super) fn append(bytes: &mut impl Read, length: u64, to: &mut Vec<u8>) -> Result<()> {
    let read = bytes.take(length).read_to_end(to)?;
    ensure!(read as u64 == length, "it ends in the middle of a message");
    Ok(())
}

/// The content of a head, and the length of the body after it.
pub(super) fn message(head: &[u8]) -> Result<(Message<'_>, u64)> {
    let message = root_as_message(&head[8..]).map_err(|error| anyhow!("{error}"))?;
    Ok((message, u64::try_from(message.bodyLength()).context("a length is negative")?))
}

/// Refuses a message that unpacks to far more than it holds. `at` gives the bytes at an offset in its body.
pub(super) fn check(message: Message, mut at: impl FnMut(u64) -> Result<[u8; 8]>) -> Result<()> {
    let dictionary = || message.header_as_dictionary_batch()?.data();
    let batch = message.header_as_record_batch().or_else(dictionary);
    let Some(batch) = batch.filter(|batch| batch.compression().is_some()) else { return Ok(()) };
    let mut unpacked = 0i64;
    for buffer in batch.buffers().into_iter().flatten().filter(|buffer| buffer.length() > 0) {
        let length = i64::from_le_bytes(at(u64::try_from(buffer.offset())?)?); // -1: it lies there as it is
        unpacked = unpacked.saturating_add(length.max(0));
    }
    let limit = UNPACKED.max(message.bodyLength().saturating_mul(4));
    ensure!(unpacked <= limit, "its compressed columns promise {unpacked} bytes, more than any table of its size");
    Ok(())
}

/// Refuses an Arrow file whose footer promises what the file does not hold, or does not list all that it holds.
pub(super) fn check_file(file: &mut File) -> Result<()> {
    let size = file.metadata()?.len();
    let mut end = [0; 10];
    file.seek(SeekFrom::End(-10))?;
    file.read_exact(&mut end)?;
    let length = read_footer_length(end)?;
    ensure!(length as u64 + 10 <= size, "its footer is longer than the file");
    file.seek(SeekFrom::End(-10 - length as i64))?;
    let mut bytes = vec![];
    append(file, length as u64, &mut bytes)?;
    let footer = root_as_footer(&bytes).map_err(|error| anyhow!("{error}"))?;
    for block in [footer.dictionaries(), footer.recordBatches()].into_iter().flatten().flatten() {
        let lengths = [block.offset(), block.metaDataLength().into(), block.bodyLength()];
        let end = lengths.iter().try_fold(0u64, |end, &length| end.checked_add(u64::try_from(length).ok()?));
        ensure!(end.is_some_and(|end| end <= size), "its footer lists batches that lie outside the file");
        file.seek(SeekFrom::Start(block.offset() as u64))?;
        check_block(file)?;
    }
    let (listed, there) = (footer.recordBatches().map_or(0, |blocks| blocks.len()), batches_in(file)?);
    ensure!(there <= listed, "its footer lists {listed} batches, and it holds {there}");
    Ok(())
}

/// As `check`, for the message that begins here.
fn check_block(file: &mut File) -> Result<()> {
    let Some(head) = file_head(file)? else { return Ok(()) };
    let body = file.stream_position()?;
    check(message(&head)?.0, |offset| {
        file.seek(SeekFrom::Start(body.checked_add(offset).context("an offset is too large")?))?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        Ok(length)
    })
}

/// How many batches lie in a file, whether its footer lists them or not.
fn batches_in(file: &mut File) -> Result<usize> {
    let (mut batches, mut at) = (0, FILE.len().next_multiple_of(8) as u64);
    loop {
        file.seek(SeekFrom::Start(at))?;
        let Some(head) = file_head(file)? else { return Ok(batches) };
        let (message, body) = message(&head)?;
        batches += usize::from(message.header_type() == MessageHeader::RecordBatch);
        at = (at + head.len() as u64).checked_add(body).context("a length is too large")?;
    }
}

/// `None` at the end mark, and in a file of before Arrow 0.15, which has no compression.
fn file_head(file: &mut File) -> Result<Option<Vec<u8>>> {
    let mut begin = [0; 8];
    file.read_exact(&mut begin)?;
    if !begin.starts_with(CONTINUATION) || begin == END {
        return Ok(None);
    }
    file.seek_relative(-8)?;
    head(file).map(Some)
}
