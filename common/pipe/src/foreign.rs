//! Files that are not what is asked for, named by their first bytes, with what to do about it.

/// First bytes, and the end of the sentence "FILE is ...".
type Kind = (&'static [u8], &'static str);

const TEXTS: [Kind; 4] = [
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`"),
    (b"<!DOCTYPE", WEB_PAGE),
    (b"<!doctype", WEB_PAGE),
    (b"<html", WEB_PAGE),
];

const BINARIES: [Kind; 23] = [
    (b"PARE", "an encrypted Parquet file, which is not read: decrypt it first"),
    (b"ORC", "an ORC file: convert it to Parquet"),
    (b"Obj\x01", "an Avro file: convert it to Parquet"),
    (b"FEA1", "a Feather file of version 1: write it again with pandas' `to_feather`, which writes version 2"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: convert it to Parquet"),
    (b"\x93NUMPY", "an array of NumPy: make a Parquet table of it"),
    (b"SQLite format 3\0", "an SQLite database: export the table as Parquet"),
    (b"\x1f\x8b", "compressed with gzip: unpack it with `gunzip`"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it with `unzstd`"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it with `unxz`"),
    (b"BZh", "compressed with bzip2: unpack it with `bunzip2`"),
    (b"PK\x03\x04", "a zip archive (npz, xlsx and torch files are ones too): unpack or export it"),
    (b"Rar!", "a rar archive: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"\x89PNG\r\n\x1a\n", IMAGE),
    (b"\xff\xd8\xff", IMAGE),
    (b"GIF8", IMAGE),
    (b"RIFF", IMAGE),
    (b"%PDF-", "a PDF document"),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
];

const IMAGE: &str =
    "an image: images are read from a table, which `pairs --images FOLDER` makes of image files and their texts";
const PICKLE: &str = "a pickle of Python: write a Parquet table instead";
const WEB_PAGE: &str = "a web page, as a failed download leaves it: download the file again";

/// The kind of a file that begins like this, as the end of a sentence; `None` if it is none of these.
pub fn named(begin: &[u8]) -> Option<&'static str> {
    named_text(begin).or_else(|| find(&BINARIES, begin))
}

/// As `named`, for what may be a text of any words, which may begin as some other file does.
pub fn named_text(begin: &[u8]) -> Option<&'static str> {
    find(&TEXTS, begin)
}

fn find(kinds: &[Kind], begin: &[u8]) -> Option<&'static str> {
    kinds.iter().find(|(magic, _)| begin.starts_with(magic)).map(|(_, what)| *what)
}

/// As many first bytes as these functions look at.
pub const LOOK: u64 = 32;
