//! Files that lie where weights should and are something else, named by their first bytes, with what to do about it.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use pipe::foreign::named_text;

use crate::file;

/// How a file begins, and the end of the sentence "FILE is ...".
const KINDS: [(&[u8], &str); 13] = [
    (b"/annex/objects/", "a pointer of git-annex, not the file itself: fetch that with `git annex get`"),
    (b"# xet version", "a pointer of git-xet, not the file itself: fetch that with `git xet pull`"),
    (
        b"GGUF",
        "a GGUF file, whose weights are quantised for llama.cpp; name the model as diffusers or transformers store it",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it; name the model's safetensors or torch file"),
    (b"\x93NUMPY", "an array of NumPy; name the model's safetensors or torch file"),
    (b"\x1f\x8b", "compressed with gzip: unpack it with `gunzip`"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it with `unzstd`"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it with `unxz`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!", "a rar archive: unpack it"),
    (b"Salted__", "encrypted with OpenSSL: decrypt it first"),
    (b"age-encryption.org", "encrypted with age: decrypt it first"),
    (b"-----BEGIN PGP", "encrypted with PGP: decrypt it first"),
];

/// The kind of a file of weights, by its content; names are not reliable (`.bin`, `.pt` and `.ckpt` are all in use).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Safetensors,
    Pickle,
}

/// The kind of the file `path`. The error for a file of another program says what it is.
pub fn content(path: &Path) -> Result<Content> {
    let cannot = || format!("cannot read {}", path.display());
    let mut begin = vec![];
    file::open(path)?.take(1024).read_to_end(&mut begin).with_context(cannot)?;
    let name = path.display();
    ensure!(!begin.is_empty(), "{name} is empty");
    // A safetensors file begins with the length of its header, which is JSON. That length may begin as a pickle does.
    let length = begin.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let size = path.metadata().with_context(cannot)?.len();
    if begin.get(8) == Some(&b'{') && length.is_some_and(|length| length < size) {
        return Ok(Content::Safetensors);
    }
    if begin.starts_with(b"PK") || begin.starts_with(b"\x80") {
        return Ok(Content::Pickle);
    }
    let known = KINDS.iter().find(|(magic, _)| begin.starts_with(magic)).map(|(_, what)| *what);
    if let Some(what) = known.or_else(|| named_text(begin.trim_ascii_start())) {
        bail!("{name} is {what}");
    }
    let text = String::from_utf8_lossy(&begin).to_lowercase();
    ensure!(
        !text.contains("annex/objects/"),
        "{name} is a link of git-annex, not the file itself: run `git annex get`"
    );
    let named = |end: &str| path.extension().is_some_and(|e| e == end);
    ensure!(
        !(named("onnx") || text.contains("onnx") || begin.get(4..8) == Some(b"TFL3")),
        "{name} is a network for ONNX or TensorFlow Lite; name the model's safetensors or torch file"
    );
    let printable = begin.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    ensure!(
        !(printable && begin.len() < 1024),
        "{name} is a text, as a failed download leaves it ({:?}): download the file again",
        text.chars().take(80).collect::<String>()
    );
    Ok(if named("safetensors") { Content::Safetensors } else { Content::Pickle })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_decides_not_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.bin");
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            content(&path).map_err(|error| error.to_string())
        };
        assert_eq!(of(b"\x02\0\0\0\0\0\0\0{}"), Ok(Content::Safetensors));
        assert_eq!(of(b"PK\x03\x04"), Ok(Content::Pickle));
        // The length of a header may begin as a pickle or a zip archive does.
        for (first, second) in [(0x80, 0), (0x80, 2), (0x50, 0x4b)] {
            let mut bytes = vec![b' '; 8 + first + 256 * second];
            bytes[..9].copy_from_slice(&[first as u8, second as u8, 0, 0, 0, 0, 0, 0, b'{']);
            assert_eq!(of(&bytes), Ok(Content::Safetensors));
        }
        assert_eq!(of(b"\x80\x02}q\x01(X\x01{"), Ok(Content::Pickle));
        for (bytes, what) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"[..], "git lfs pull"),
            (b"/annex/objects/SHA256E-s1--0.bin\n", "git annex get"),
            (b"\n<!DOCTYPE html><html>", "web page"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"\x08\x07\x12\x04onnx", "ONNX"),
            (b"Entry not found", "entry not found"),
            (b"Salted__\0\0", "OpenSSL"),
            (b"", "is empty"),
        ] {
            let error = of(bytes).unwrap_err();
            assert!(error.contains(what) && error.contains("model.bin"), "{error}");
        }
    }
}
