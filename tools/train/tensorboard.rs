//! TensorBoard's event files: TFRecord frames around protocol buffers of which only five fields are needed.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs::File, io::Write};

use anyhow::{Context, Result};

pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file for a run that begins after `step` finished steps; TensorBoard forgets what older files say of later ones.
    pub fn create(out: &Path, step: u64) -> Result<Self> {
        let folder = out.join("tensorboard");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
        let path = folder.join(format!("events.out.tfevents.{:010}.train.{step}", seconds() as u64));
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = Self { path, file };
        events.write(&event(0, |e| e.bytes(3, b"brain.Event:2")))?;
        // SessionLog { status: START }
        events.write(&event(step + 1, |e| e.message(7, |log| log.integer(1, 1))))?;
        Ok(events)
    }

    pub fn add(&mut self, step: u64, numbers: &[(String, f64)]) -> Result<()> {
        let event = event(step, |e| {
            e.message(5, |summary| {
                for (name, number) in numbers {
                    summary.message(1, |value| {
                        value.bytes(1, name.as_bytes());
                        value.float(2, *number as f32);
                    });
                }
            })
        });
        self.write(&event)
    }

    pub fn add_picture(&mut self, step: u64, name: &str, [height, width]: [usize; 2], png: &[u8]) -> Result<()> {
        let event = event(step, |e| {
            e.message(5, |summary| {
                summary.message(1, |value| {
                    value.bytes(1, name.as_bytes());
                    value.message(4, |image| {
                        image.integer(1, height as u64);
                        image.integer(2, width as u64);
                        image.integer(3, 3); // RGB
                        image.bytes(4, png);
                    });
                });
            })
        });
        self.write(&event)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&frame(event)).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Event { wall_time = 1, step = 2, ... }
fn event(step: u64, what: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, seconds());
    event.integer(2, step);
    what(&mut event);
    event.0
}

/// TFRecord: length, its checksum, the data, theirs.
fn frame(data: &[u8]) -> Vec<u8> {
    let masked = |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, kind: u64) {
        self.varint(field << 3 | kind);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn message(&mut self, field: u64, what: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        what(&mut inner);
        self.bytes(field, &inner.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Summary { value: [{ tag: "loss", simple_value: 0.5 }] } by hand, and CRC-32C's published check value.
    #[test]
    fn bytes_are_those_of_the_formats() {
        let mut summary = Message::default();
        summary.message(1, |value| {
            value.bytes(1, b"loss");
            value.float(2, 0.5);
        });
        assert_eq!(summary.0, b"\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f");
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let mut big = Message::default();
        big.integer(2, 300);
        assert_eq!(big.0, [0x10, 0xac, 0x02]);
        let framed = frame(b"ab");
        assert_eq!((framed.len(), &framed[..8], &framed[12..14]), (18, &2u64.to_le_bytes()[..], &b"ab"[..]));
    }
}
