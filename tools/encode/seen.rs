//! Which images and captions have been encoded already: each is encoded once.

use std::collections::HashSet;

use anyhow::Result;
use pipe::id::{Key, key};
use pipe::schema::{images, labels, pairs};
use pipe::{column::Rows, pairs::PairKeys};

#[derive(Default)]
pub struct Seen {
    images: HashSet<Key>,
    captions: HashSet<Key>,
}

impl Seen {
    pub fn is_new_image(&mut self, uid: &str) -> bool {
        self.images.insert(key(&[uid.as_bytes()]))
    }

    pub fn is_new_caption(&mut self, caption: &str) -> bool {
        self.captions.insert(key(&[caption.as_bytes()]))
    }

    /// Takes note of what is in a part that an earlier run finished, and answers whether it was made of these `rows`.
    pub fn add_part(&mut self, part: &[Rows], rows: Option<&Rows>) -> Result<bool> {
        let ([pair_list, captions, latents], Some(rows)) = (part, rows) else { return Ok(false) };
        if pair_list.text(labels::PAIR_ID)? != PairKeys::of(rows, rows.text(pairs::CAPTION)?)?.ids {
            return Ok(false);
        }
        for uid in latents.text(images::IMAGE_UID)?.iter().flatten() {
            self.is_new_image(uid);
        }
        for caption in captions.text(pairs::CAPTION)?.iter().flatten() {
            self.is_new_caption(caption);
        }
        Ok(true)
    }
}
