//! Prompts to what the UNet is told of them: one text encoder in Stable Diffusion 1 and 2, two in SDXL.

use std::{path::Path, str::FromStr};

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Result as Candle, Tensor};
use serde::Deserialize;

use crate::{
    json,
    text::{TextModel, TextStates},
    tokenizer::{Style, Tokenizer},
    unet::{Added, UNetConfig},
};

/// What the UNet is told of B prompts.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// What it attends to, (B, T, D).
    pub states: Tensor,
    /// SDXL's pooled and projected state of the second encoder, (B, P); `None` in Stable Diffusion 1 and 2.
    pub pooled: Option<Tensor>,
}

impl Conditioning {
    /// All rows one after the other: for classifier-free guidance, or for the two images of a pair.
    pub fn cat(all: &[&Self]) -> Candle<Self> {
        let rows = |of: fn(&Self) -> Option<&Tensor>| -> Candle<Option<Tensor>> {
            let found: Option<Vec<&Tensor>> = all.iter().map(|c| of(c)).collect();
            found.map(|rows| Tensor::cat(&rows, 0)).transpose()
        };
        match rows(|c| Some(&c.states))? {
            Some(states) => Ok(Self { states, pooled: rows(|c| c.pooled.as_ref())? }),
            None => candle_core::bail!("no prompts to put together"),
        }
    }

    /// Row 0 again and again, `n` rows.
    pub fn repeat(&self, n: usize) -> Candle<Self> {
        let times = |x: &Tensor| x.narrow(0, 0, 1)?.repeat([&[n], &vec![1; x.rank() - 1][..]].concat());
        Ok(Self { states: times(&self.states)?, pooled: self.pooled.as_ref().map(times).transpose()? })
    }

    pub fn to_device(&self, device: &Device) -> Candle<Self> {
        let pooled = self.pooled.as_ref().map(|p| p.to_device(device)).transpose()?;
        Ok(Self { states: self.states.to_device(device)?, pooled })
    }

    pub fn to_dtype(&self, dtype: DType) -> Candle<Self> {
        let pooled = self.pooled.as_ref().map(|p| p.to_dtype(dtype)).transpose()?;
        Ok(Self { states: self.states.to_dtype(dtype)?, pooled })
    }

    /// SDXL's further argument of [`crate::unet::UNet::forward`], one `TimeIds` a row; `None` in Stable Diffusion 1 and 2,
    /// which know no sizes.
    pub fn added(&self, sizes: &[TimeIds]) -> Candle<Option<Added>> {
        let Some(pooled) = &self.pooled else { return Ok(None) };
        let ids: Vec<f32> = sizes.iter().flat_map(|s| s.0).collect();
        let time_ids = Tensor::from_vec(ids, (sizes.len(), 6), pooled.device())?;
        Ok(Some(Added { text_embeds: pooled.clone(), time_ids }))
    }
}

/// What SDXL is told of one image, in pixels: original height and width, crop top and left, target height and width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeIds(pub [f32; 6]);

impl TimeIds {
    /// (height, width) of the file, (top, left) of the crop, (height, width) of what the network sees.
    pub fn new(original: [usize; 2], crop: [usize; 2], target: [usize; 2]) -> Self {
        let [oh, ow] = original;
        let [top, left] = crop;
        let [th, tw] = target;
        Self([oh, ow, top, left, th, tw].map(|n| n as f32))
    }

    /// An image that was made at this size: neither resized nor cropped.
    pub fn whole(height: usize, width: usize) -> Self {
        Self::new([height, width], [0, 0], [height, width])
    }
}

impl FromStr for TimeIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<f32>> =
            text.split(',').map(|n| n.trim().parse::<u32>().ok().map(|n| n as f32)).collect();
        let ids = numbers.and_then(|n| n.try_into().ok());
        ids.map(Self).ok_or_else(|| "expected six whole numbers, as 1024,1024,0,0,1024,1024".into())
    }
}

/// The part of `model_index.json` that says how prompts are read.
#[derive(Deserialize)]
#[serde(default)]
struct ModelIndex {
    force_zeros_for_empty_prompt: bool,
}

impl Default for ModelIndex {
    fn default() -> Self {
        Self { force_zeros_for_empty_prompt: true }
    }
}

/// Tokenizer and text encoder that belong together.
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

/// SDXL's second encoder, whose pooled state is told too.
struct Second {
    reader: Reader,
    /// Without a negative prompt the UNet is told zeros, not what the encoders say of "".
    force_zeros: bool,
}

/// Reads prompts as the model in a folder was trained to.
pub struct PromptEncoder {
    first: Reader,
    second: Option<Second>,
}

impl PromptEncoder {
    /// From `base/tokenizer` and `base/text_encoder`, and in SDXL `base/tokenizer_2` and `base/text_encoder_2`.
    ///
    /// # Errors
    /// A part is missing or damaged.
    pub fn open(base: &Path, dtype: DType, device: &Device) -> Result<Self> {
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

    /// What the UNet is told of B prompts, as it was trained: "" is the empty prompt, read as any other.
    ///
    /// One encoder: its last hidden state after the final norm. Two: their penultimate states side by side, and the
    /// second's projected state at the end of the text.
    pub fn encode<S: AsRef<str>>(&self, prompts: &[S]) -> Result<Conditioning> {
        let one = self.first.read(prompts)?;
        let Some(second) = &self.second else { return Ok(Conditioning { states: one.last, pooled: None }) };
        let two = second.reader.read(prompts)?;
        let states = Tensor::cat(&[one.penultimate, two.penultimate], D::Minus1)?; // (B, T, D1 + D2)
        Ok(Conditioning { states, pooled: Some(second.reader.text.project(&two.pooled)?) })
    }

    /// What guidance leads away from, one row: a negative prompt, or without one the empty prompt (SDXL's
    /// `model_index.json` may ask for zeros instead).
    pub fn negative(&self, prompt: Option<&str>) -> Result<Conditioning> {
        let read = self.encode(&[prompt.unwrap_or("")])?;
        let zeros = prompt.is_none() && self.second.as_ref().is_some_and(|s| s.force_zeros);
        if !zeros {
            return Ok(read);
        }
        let pooled = read.pooled.as_ref().map(Tensor::zeros_like).transpose()?;
        Ok(Conditioning { states: read.states.zeros_like()?, pooled })
    }

    /// [T, D] of the states, and P of the pooled state in SDXL.
    pub fn shape(&self) -> ([usize; 2], Option<usize>) {
        let one = &self.first.text.config;
        let two = self.second.as_ref().map(|s| &s.reader.text.config);
        let width = one.hidden_size + two.map_or(0, |c| c.hidden_size);
        ([one.max_position_embeddings, width], two.map(|c| c.projection_dim))
    }

    pub fn is_sdxl(&self) -> bool {
        self.second.is_some()
    }

    /// # Errors
    /// The UNet was trained with other text encoders.
    pub fn check(&self, unet: &UNetConfig) -> Result<()> {
        let ([_, width], pooled) = self.shape();
        unet.check_told(width, pooled)
    }

    /// The folders of the encoders inside a base: names for provenance.
    pub fn parts(&self) -> &'static [&'static str] {
        if self.second.is_some() { &["text_encoder", "text_encoder_2"] } else { &["text_encoder"] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_ids_are_six_whole_numbers() {
        assert_eq!("1024, 768,0,8,512,384".parse(), Ok(TimeIds::new([1024, 768], [0, 8], [512, 384])));
        assert_eq!(TimeIds::whole(64, 48).0, [64., 48., 0., 0., 64., 48.]);
        for bad in ["", "1,2,3,4,5", "1,2,3,4,5,6,7", "1,2,3,4,5,-6", "1,2,3,4,5,x"] {
            assert!(bad.parse::<TimeIds>().unwrap_err().contains("six whole numbers"), "{bad}");
        }
    }
}
