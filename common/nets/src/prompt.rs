//! From prompts to conditioning: one text encoder in Stable Diffusion 1 and 2, two in SDXL and FLUX, three in Stable Diffusion 3.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};

use crate::conditioning::{Conditioning, Widths};
use crate::mmdit::{FLUX, SD3};
use crate::text::{TextModel, TextStates};
use crate::tokenizer::{Style, Tokenizer, unigram::Unigram};
use crate::{denoiser::Config, folder, json, t5::T5};

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

/// T5, which reads longer prompts than CLIP.
struct T5Reader {
    tokenizer: Unigram,
    text: T5,
    dtype: DType,
}

impl T5Reader {
    fn open(base: &Path, suffix: &str, dtype: DType, device: &Device) -> Result<Self> {
        let text = T5::open(&base.join(format!("text_encoder{suffix}")), dtype, device)?;
        Ok(Self { text, dtype, tokenizer: Unigram::from_folder(&base.join(format!("tokenizer{suffix}")))? })
    }

    /// (B, `length`, width)
    fn read<S: AsRef<str>>(&self, prompts: &[S], length: usize) -> Result<Tensor> {
        let ids = prompts.iter().map(|p| self.tokenizer.encode(p.as_ref(), length)).collect::<Result<Vec<_>>>()?;
        Ok(self.text.forward(&ids)?.to_dtype(self.dtype)?)
    }
}

/// The text encoders of one kind of model.
enum Encoders {
    /// Stable Diffusion 1 and 2.
    One(Box<Reader>),
    /// SDXL: the pooled state of the second conditions the denoiser too. `force_zeros`: without a negative prompt the
    /// conditioning is zeros, not the states of the empty prompt.
    Two { readers: Box<[Reader; 2]>, force_zeros: bool },
    /// Stable Diffusion 3, with T5 or without it. `width`: of the states that the transformer attends to.
    Three { readers: Box<[Reader; 2]>, t5: Option<Box<T5Reader>>, width: usize },
    /// FLUX: CLIP's pooled state and T5's states.
    Flux { reader: Box<Reader>, t5: Box<T5Reader> },
}

/// Tokens of T5 in diffusers' pipelines for Stable Diffusion 3 and for FLUX.
const T5_TOKENS: [usize; 2] = [256, 512];

/// Encodes prompts as the model in a folder was trained to read them.
pub struct PromptEncoder(Encoders);

impl PromptEncoder {
    /// From `base/tokenizer` and `base/text_encoder`, and where the model has more of them `base/tokenizer_2`,
    /// `base/text_encoder_2`, `base/tokenizer_3` and `base/text_encoder_3`.
    pub fn open(base: &Path, dtype: DType, device: &Device) -> Result<Self> {
        folder::model(base)?;
        ensure!(
            !base.is_dir() || base.join("text_encoder").is_dir(),
            "{} is not a complete model, because it has no text_encoder/ (a checkpoint of `train` has the denoiser alone)",
            base.display()
        );
        let reader = |suffix: &str| Reader::open(base, suffix, dtype, device);
        let t5 = |suffix: &str| T5Reader::open(base, suffix, dtype, device).map(Box::new);
        let class = folder::transformer_class(base)?;
        Ok(Self(match class.as_deref() {
            Some(FLUX) => Encoders::Flux { reader: Box::new(reader("")?), t5: t5("_2")? },
            Some(SD3) => {
                let readers = Box::new(two(base, reader)?);
                readers[0].text.check_projection().with_context(|| base.join("text_encoder").display().to_string())?;
                let width = Config::read(&base.join(folder::TRANSFORMER))?.widths.states;
                let has_t5 = base.join("text_encoder_3").is_dir();
                Encoders::Three { readers, t5: if has_t5 { Some(t5("_3")?) } else { None }, width }
            }
            _ if !base.join("text_encoder_2").is_dir() => Encoders::One(Box::new(reader("")?)),
            _ => {
                let index = base.join("model_index.json");
                let index = if index.is_file() { json::read(&index)? } else { ModelIndex::default() };
                let force_zeros = index.force_zeros_for_empty_prompt;
                Encoders::Two { readers: Box::new(two(base, reader)?), force_zeros }
            }
        }))
    }

    /// The conditioning of B prompts, without sizes. The empty prompt is encoded as any other.
    ///
    /// One encoder: its last hidden state after the final norm. Two: their penultimate states side by side, and the
    /// second's projected state at the end of the text. Stable Diffusion 3: their penultimate states side by side, filled up with
    /// zeros, and after them T5's states, or zeros without T5; the projected states of both. FLUX: T5's states alone, and the
    /// first encoder's state at the end of the text.
    pub fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Conditioning> {
        let (states, pooled) = match &self.0 {
            Encoders::One(reader) => (reader.read(prompts)?.last, None),
            Encoders::Two { readers, .. } => {
                let [one, two] = [readers[0].read(prompts)?, readers[1].read(prompts)?];
                let states = Tensor::cat(&[one.penultimate, two.penultimate], D::Minus1)?; // (B, T, D1 + D2)
                (states, Some(readers[1].text.project(&two.pooled)?))
            }
            Encoders::Three { readers, t5, .. } => {
                let width = self.widths().states;
                let [one, two] = [readers[0].read(prompts)?, readers[1].read(prompts)?];
                let pooled = [readers[0].text.project(&one.pooled)?, readers[1].text.project(&two.pooled)?];
                let clip = Tensor::cat(&[one.penultimate, two.penultimate], D::Minus1)?;
                let (b, _, narrow) = clip.dims3()?;
                let clip = clip.pad_with_zeros(D::Minus1, 0, width.saturating_sub(narrow))?;
                let long = match t5 {
                    Some(t5) => t5.read(prompts, T5_TOKENS[0])?,
                    None => Tensor::zeros((b, T5_TOKENS[0], width), clip.dtype(), clip.device())?,
                };
                (Tensor::cat(&[clip, long], 1)?, Some(Tensor::cat(&pooled, D::Minus1)?))
            }
            Encoders::Flux { reader, t5 } => (t5.read(prompts, T5_TOKENS[1])?, Some(reader.read(prompts)?.pooled)),
        };
        Ok(Conditioning::of_text(states, pooled))
    }

    /// The prompt that guidance leads away from, one row: a negative prompt, or without one the empty prompt (SDXL's
    /// `model_index.json` may ask for zeros instead).
    pub fn negative(&self, prompt: Option<&str>) -> Result<Conditioning> {
        let encoded = self.encode(&[prompt.unwrap_or("")])?;
        let zeros = prompt.is_none() && matches!(self.0, Encoders::Two { force_zeros: true, .. });
        if zeros { Ok(encoded.zeros_like()?) } else { Ok(encoded) }
    }

    /// T: tokens per prompt.
    pub fn tokens(&self) -> usize {
        let clip = |reader: &Reader| reader.text.config.max_position_embeddings;
        match &self.0 {
            Encoders::One(reader) => clip(reader),
            Encoders::Two { readers, .. } => clip(&readers[0]),
            Encoders::Three { readers, .. } => clip(&readers[0]) + T5_TOKENS[0],
            Encoders::Flux { .. } => T5_TOKENS[1],
        }
    }

    pub fn widths(&self) -> Widths {
        let (states, pooled) = match &self.0 {
            Encoders::One(reader) => (reader.text.config.hidden_size, None),
            Encoders::Two { readers, .. } => {
                let [one, two] = readers.each_ref().map(|reader| &reader.text.config);
                (one.hidden_size + two.hidden_size, Some(two.projection_dim))
            }
            Encoders::Three { readers, t5, width } => {
                let pooled = readers.iter().map(|reader| reader.text.config.projection_dim).sum();
                (t5.as_ref().map_or(*width, |t5| t5.text.config.d_model), Some(pooled))
            }
            Encoders::Flux { reader, t5 } => (t5.text.config.d_model, Some(reader.text.config.hidden_size)),
        };
        Widths { states, pooled }
    }

    /// The folders of the text encoders in the model folder, which are their names in the provenance too.
    pub fn parts(&self) -> &'static [&'static str] {
        let encoders = match &self.0 {
            Encoders::One(_) => 1,
            Encoders::Two { .. } | Encoders::Flux { .. } | Encoders::Three { t5: None, .. } => 2,
            Encoders::Three { .. } => 3,
        };
        &TEXT_ENCODERS[..encoders]
    }
}

/// The text encoders' folders in a model folder.
pub const TEXT_ENCODERS: [&str; 3] = ["text_encoder", "text_encoder_2", "text_encoder_3"];

/// Two CLIP text encoders that read the same number of tokens; the second has a projection.
fn two(base: &Path, reader: impl Fn(&str) -> Result<Reader>) -> Result<[Reader; 2]> {
    let (first, second) = (reader("")?, reader("_2")?);
    second.text.check_projection().with_context(|| base.join("text_encoder_2").display().to_string())?;
    let [tokens, others] = [&first, &second].map(|reader| reader.text.config.max_position_embeddings);
    ensure!(tokens == others, "{}: one text encoder reads {tokens} tokens, the other {others}", base.display());
    Ok([first, second])
}
