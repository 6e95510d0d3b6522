//! From prompts to conditioning: one text encoder in Stable Diffusion 1 and 2, two in SDXL.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};

use crate::conditioning::{Conditioning, Widths};
use crate::text::{TextModel, TextStates};
use crate::tokenizer::{Style, Tokenizer};
use crate::{folder, json};

crate::json::defaults! {
    /// The part of `model_index.json` that says how prompts are read.
    struct ModelIndex {
        force_zeros_for_empty_prompt: bool = true,
    }
}

struct Reader {
    tokenizer: Tokenizer,
    text: TextModel,
}

impl Reader {
    fn open(base: &Path, suffix: &str, dtype: DType, device: &Device) -> Result<Self> {
        let text = TextModel::open(&base.join(format!("text_encoder{suffix}")), dtype, device)?;
        let tokenizer = Tokenizer::from_folder(&base.join(format!("tokenizer{suffix}")), Style::Hf)?;
        Ok(Self { tokenizer, text })
    }

    fn read<S: AsRef<str>>(&self, prompts: &[S]) -> Result<TextStates> {
        let context = self.text.config.max_position_embeddings;
        let ids = prompts.iter().map(|p| self.tokenizer.encode(p.as_ref(), context)).collect::<Result<Vec<_>>>()?;
        self.text.forward(&ids)
    }
}

/// SDXL's second text encoder, whose pooled state conditions the denoiser too.
struct Second {
    reader: Reader,
    /// Without a negative prompt the conditioning is zeros, not the states of the empty prompt.
    force_zeros: bool,
}

/// Encodes prompts as the model in a folder was trained to read them.
pub struct PromptEncoder {
    first: Reader,
    second: Option<Second>,
}

impl PromptEncoder {
    /// From `base/tokenizer` and `base/text_encoder`, and in SDXL `base/tokenizer_2` and `base/text_encoder_2`.
    pub fn open(base: &Path, dtype: DType, device: &Device) -> Result<Self> {
        folder::model(base)?;
        let first = Reader::open(base, "", dtype, device)?;
        if !base.join("text_encoder_2").is_dir() {
            return Ok(Self { first, second: None });
        }
        let index = base.join("model_index.json");
        let index = if index.is_file() { json::read(&index)? } else { ModelIndex::default() };
        let reader = Reader::open(base, "_2", dtype, device)?;
        reader.text.check_projection().with_context(|| base.join("text_encoder_2").display().to_string())?;
        let (tokens, others) = (first.text.config.max_position_embeddings, reader.text.config.max_position_embeddings);
        ensure!(tokens == others, "{}: one text encoder reads {tokens} tokens, the other {others}", base.display());
        Ok(Self { first, second: Some(Second { reader, force_zeros: index.force_zeros_for_empty_prompt }) })
    }

    /// The conditioning of B prompts, without sizes. The empty prompt is encoded as any other.
    ///
    /// One encoder: its last hidden state after the final norm. Two: their penultimate states side by side, and the
    /// second's projected state at the end of the text.
    pub fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Conditioning> {
        let one = self.first.read(prompts)?;
        let Some(second) = &self.second else {
            return Ok(Conditioning { states: one.last, pooled: None, sizes: vec![] });
        };
        let two = second.reader.read(prompts)?;
        let states = Tensor::cat(&[one.penultimate, two.penultimate], D::Minus1)?; // (B, T, D1 + D2)
        Ok(Conditioning { states, pooled: Some(second.reader.text.project(&two.pooled)?), sizes: vec![] })
    }

    /// What guidance leads away from, one row: a negative prompt, or without one the empty prompt (SDXL's
    /// `model_index.json` may ask for zeros instead).
    pub fn negative(&self, prompt: Option<&str>) -> Result<Conditioning> {
        let encoded = self.encode(&[prompt.unwrap_or("")])?;
        let zeros = prompt.is_none() && self.second.as_ref().is_some_and(|s| s.force_zeros);
        if zeros { Ok(encoded.zeros_like()?) } else { Ok(encoded) }
    }

    /// T: tokens per prompt.
    pub fn tokens(&self) -> usize {
        self.first.text.config.max_position_embeddings
    }

    pub fn widths(&self) -> Widths {
        let one = &self.first.text.config;
        let two = self.second.as_ref().map(|s| &s.reader.text.config);
        let states = one.hidden_size + two.map_or(0, |c| c.hidden_size);
        Widths { states, pooled: two.map(|c| c.projection_dim) }
    }

    /// The folders of the text encoders in the model folder, which are their names in the provenance too.
    pub fn parts(&self) -> &'static [&'static str] {
        if self.second.is_some() { &["text_encoder", "text_encoder_2"] } else { &["text_encoder"] }
    }
}
