//! T5's tokenizer: SentencePiece's Unigram model, from `tokenizer.json`.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::{ModelWrapper, Tokenizer as Hf};

use super::from_json;

pub struct Unigram {
    hf: Hf,
    eos: u32,
    pad: u32,
}

impl Unigram {
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let file = folder.join("tokenizer.json");
        ensure!(
            file.is_file(),
            "{} is missing; transformers makes one of spiece.model: T5TokenizerFast.from_pretrained(FOLDER).save_pretrained(FOLDER)",
            file.display()
        );
        Self::new(from_json(&file)?).with_context(|| format!("{} is not T5's tokenizer", file.display()))
    }

    fn new(mut hf: Hf) -> Result<Self> {
        let ModelWrapper::Unigram(_) = hf.get_model() else { bail!("its model is not Unigram") };
        // The length is the caller's.
        hf.with_padding(None).with_truncation(None).map_err(|e| anyhow!("{e}"))?;
        let id = |token: &str| hf.token_to_id(token).with_context(|| format!("its vocabulary lacks '{token}'"));
        Ok(Self { eos: id("</s>")?, pad: id("<pad>")?, hf })
    }

    /// The ids of the text, cut to `length - 1` tokens, then EOS, then padding: exactly `length` ids.
    pub fn encode(&self, text: &str, length: usize) -> Result<Vec<u32>> {
        let encoding = self.hf.encode_fast(text, false).map_err(|e| anyhow!("{e}"))?;
        let mut ids: Vec<u32> = encoding.get_ids().iter().take(length.saturating_sub(1)).copied().collect();
        ids.push(self.eos);
        ids.resize(length, self.pad);
        Ok(ids)
    }
}
