//! Images: PNG, JPEG and WebP.

use std::{fs, path::Path};

use anyhow::Result;
use nets::image;

use crate::finding::Finding;

/// The first bytes of the files.
const BEGIN: [&[u8]; 3] = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"];
/// The last chunk of a PNG; a picture without it is read, and is not whole.
const END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";

/// `None` if the file is not an image.
pub fn look_at(path: &Path) -> Result<Option<Finding>> {
    let mut begin = [0; 8];
    let read = std::os::unix::fs::FileExt::read_at(&fs::File::open(path)?, &mut begin, 0).unwrap_or(0);
    if !BEGIN.iter().any(|known| begin[..read].starts_with(known)) {
        return Ok(None);
    }
    let bytes = fs::read(path)?;
    let cut_off = bytes.starts_with(BEGIN[0]) && !bytes.ends_with(END);
    Ok(Some(match image::decode(&bytes) {
        Ok(image) => {
            let mut finding = Finding::new("image").holds(format!("{} by {} pixels", image.width, image.height));
            if cut_off {
                finding.problem("its end is missing");
            }
            finding
        }
        Err(error) => Finding::not_whole("image", &error),
    }))
}
