//! CLIP's byte-pair tokenizer, as the peers have it in two styles over one vocabulary.
//!
//! Hugging Face's fast tokenizer (NFC, lower case) serves Stable Diffusion and PickScore; open_clip's (ftfy, HTML
//! entities, lower case) serves HPS and CLIP. The styles differ in special tokens, padding and how a long text ends.

use std::{panic::catch_unwind, path::Path, sync::LazyLock};

use anyhow::{Context, Result, anyhow, bail, ensure};
use regex::Regex;
use serde_json::{Value, json};
use tokenizers::{AddedToken, Model, ModelWrapper, Tokenizer as Hf, models::bpe::BPE};

use crate::{clean, file};

pub mod unigram;
pub mod wordpiece;

/// The merges of OpenAI's CLIP (bpe_simple_vocab_16e6, MIT licence). Its vocabulary follows from them.
const MERGES: &str = include_str!("clip_merges.txt");

/// The pattern by which CLIP splits a text into words.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// open_clip's pattern: its two special tokens come first, and case is ignored. Case matters in the last class only: Python's
/// `regex` leaves out U+0345, a mark whose capital is a letter, so that no word holds it.
const OPEN_CLIP_WORDS: &str =
    r"(?i:<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\u{345}]+";

/// Whose tokenizer reads a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// transformers' CLIPTokenizerFast, for `pickscore`, `sample`, `train` and `encode`.
    Hf,
    /// open_clip's SimpleTokenizer, for `hps` and `clip`.
    OpenClip,
}

pub struct Tokenizer {
    style: Style,
    /// The tokenizer with the added tokens, for [`Style::Hf`].
    hf: Hf,
    /// The merges alone, for [`Style::OpenClip`].
    bpe: BPE,
    pub bos: u32,
    /// End of text. A text that is cut ends with it too.
    pub eos: u32,
    /// The token that fills the context: 0 for open_clip, else the one of `special_tokens_map.json`.
    pub pad: u32,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, with `special_tokens_map.json` and
    /// `tokenizer_config.json` if they exist. A folder without a vocabulary means CLIP's own of 49,408 tokens.
    pub fn from_folder(folder: &Path, style: Style) -> Result<Self> {
        let has = |name: &str| folder.join(name).is_file();
        let whole = || format!("{} holds no CLIP tokenizer", folder.display());
        let hf = if has("tokenizer.json") {
            from_json(&folder.join("tokenizer.json"))
        } else if has("vocab.json") && has("merges.txt") {
            file::text(&folder.join("vocab.json")).and_then(|vocab| {
                let vocab = serde_json::from_str(&vocab).context("vocab.json")?;
                clip(vocab, &file::text(&folder.join("merges.txt"))?)
            })
        } else {
            clip(builtin_vocab(), MERGES)
        };
        Self::new(hf.with_context(whole)?, style, &Specials::read(folder)?).with_context(whole)
    }

    fn new(mut hf: Hf, style: Style, specials: &Specials) -> Result<Self> {
        let ModelWrapper::BPE(bpe) = hf.get_model().clone() else { bail!("its model is not byte-pair encoding") };
        // The context length is the caller's.
        hf.with_padding(None).with_truncation(None).map_err(|e| anyhow!("{e}"))?;
        let id = |token: &str| hf.token_to_id(token).with_context(|| format!("its vocabulary lacks '{token}'"));
        let (bos, eos, pad) = (id(&specials.bos)?, id(&specials.eos)?, id(&specials.pad)?);
        // As in transformers, special tokens are found in the text first: Stable Diffusion 2, which pads with `!`, reads every
        // `!` of a prompt as padding.
        let added = [&specials.bos, &specials.eos, &specials.pad].map(|t| AddedToken::from(t.clone(), true));
        hf.add_special_tokens(added).map_err(|e| anyhow!("{e}"))?;
        let pad = if style == Style::OpenClip { 0 } else { pad };
        Ok(Self { style, hf, bpe, bos, eos, pad })
    }

    /// A stable name of the style, for provenance.
    pub fn id(&self) -> &'static str {
        match self.style {
            Style::Hf => "hf-clip-fast",
            Style::OpenClip => "open_clip",
        }
    }

    /// SHA-256 over vocabulary and special tokens, in hexadecimal. CLIP's own vocabulary has the same hash in any files.
    pub fn hash(&self) -> String {
        let mut tokens: Vec<(u32, String)> = self.hf.get_vocab(false).into_iter().map(|(t, id)| (id, t)).collect();
        tokens.sort_unstable();
        let specials = [self.bos, self.eos, self.pad].map(|id| id.to_le_bytes()).concat();
        let ids: Vec<[u8; 4]> = tokens.iter().map(|(id, _)| id.to_le_bytes()).collect();
        let parts = tokens.iter().zip(&ids).flat_map(|((_, token), id)| [token.as_bytes(), id]);
        pipe::id::hex(&pipe::id::sha256_of(&parts.chain([&specials[..]]).collect::<Vec<_>>()))
    }

    /// The number of ids: the text tower's embedding needs as many rows.
    pub fn vocab_size(&self) -> usize {
        self.hf.get_vocab_size(true)
    }

    /// The ids of BOS, the text cut to `context - 2` tokens, and EOS: at most `context` ids.
    pub fn ids(&self, text: &str, context: usize) -> Result<Vec<u32>> {
        ensure!(context >= 2, "a context of {context} tokens has no room for a text");
        let text = beginning(text);
        let body = match self.style {
            Style::Hf => self.hf.encode_fast(text, false).map_err(|e| anyhow!("{e}"))?.get_ids().to_vec(),
            Style::OpenClip => self.open_clip(text)?,
        };
        let body = &body[..body.len().min(context - 2)];
        Ok([&[self.bos], body, &[self.eos]].concat())
    }

    /// [`Tokenizer::ids`], padded to exactly `context` ids.
    pub fn encode(&self, text: &str, context: usize) -> Result<Vec<u32>> {
        let mut ids = self.ids(text, context)?;
        ids.resize(context, self.pad);
        Ok(ids)
    }

    fn open_clip(&self, text: &str) -> Result<Vec<u32>> {
        static SPLIT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(OPEN_CLIP_WORDS).ok());
        let split = SPLIT.as_ref().context("the pattern of words does not compile")?;
        let mut ids = vec![];
        for word in split.find_iter(&clean::open_clip(text)) {
            match word.as_str() {
                "<start_of_text>" => ids.push(self.bos),
                "<end_of_text>" => ids.push(self.eos),
                word => {
                    let word: String = word.bytes().map(byte_char).collect();
                    ids.extend(self.bpe.tokenize(&word).map_err(|e| anyhow!("{e}"))?.iter().map(|t| t.id));
                }
            }
        }
        Ok(ids)
    }
}

/// The longest text that is read; no model reads more than a thousandth of it. A long text is looked through several times, and
/// takes several times its memory.
pub(crate) fn beginning(text: &str) -> &str {
    const READ: usize = 1 << 20;
    if text.len() <= READ {
        return text;
    }
    let text = text.trim_start();
    let end = (0..=READ.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

struct Specials {
    bos: String,
    eos: String,
    pad: String,
}

impl Default for Specials {
    fn default() -> Self {
        Self { bos: BOS.into(), eos: EOS.into(), pad: EOS.into() }
    }
}

const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";

impl Specials {
    /// `special_tokens_map.json` before `tokenizer_config.json` before CLIP's own.
    fn read(folder: &Path) -> Result<Self> {
        let mut files = vec![];
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if path.is_file() {
                let parsed: Value = serde_json::from_str(&file::text(&path)?)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                files.push(parsed);
            }
        }
        // A token is its text, or an object that holds it.
        let text = |value: &Value| Some(value.as_str().or(value["content"].as_str())?.to_owned());
        let find = |key: &str| files.iter().find_map(|file| text(&file[key]));
        let clip = Self::default();
        let eos = find("eos_token").unwrap_or(clip.eos);
        Ok(Self { bos: find("bos_token").unwrap_or(clip.bos), pad: find("pad_token").unwrap_or(eos.clone()), eos })
    }
}

/// The tokenizer that transformers makes of `vocab.json` and `merges.txt` (CLIPConverter in convert_slow_tokenizer.py).
fn clip(vocab: Value, merges: &str) -> Result<Hf> {
    let id = |token: &str| vocab[token].as_u64().with_context(|| format!("the vocabulary lacks '{token}'"));
    let (bos, eos) = (id(BOS)?, id(EOS)?);
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty()).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": {
            "type": "RobertaProcessing", "sep": [EOS, eos], "cls": [BOS, bos],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": EOS, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    });
    tokenizer.to_string().parse().map_err(|e| anyhow!("{e}"))
}

/// The files of OpenAI's CLIP tokenizer: name and content.
pub fn clip_files() -> [(&'static str, String); 2] {
    [("vocab.json", builtin_vocab().to_string()), ("merges.txt", MERGES.to_owned())]
}

/// CLIP's vocabulary in OpenAI's order: 256 byte characters, the same at the end of a word, all merges joined, BOS, EOS.
fn builtin_vocab() -> Value {
    let printable = |b: &u8| char::from(*b) == byte_char(*b);
    let bytes = (0..=255).filter(printable).chain((0..=255).filter(|b| !printable(b))).map(byte_char);
    let singles: Vec<String> = bytes.map(String::from).collect();
    let ends = singles.iter().map(|c| format!("{c}</w>"));
    let merged = MERGES.lines().skip(1).map(|line| line.replace(' ', ""));
    let specials = [BOS, EOS].map(String::from);
    let tokens = singles.iter().cloned().chain(ends).chain(merged).chain(specials);
    tokens.enumerate().map(|(id, token)| (token, json!(id))).collect::<serde_json::Map<_, _>>().into()
}

/// GPT-2's `bytes_to_unicode`: printable bytes stand for themselves, the others for the characters from U+0100 on.
fn byte_char(byte: u8) -> char {
    static TABLE: LazyLock<[char; 256]> = LazyLock::new(|| {
        let mut next = 0x100u32;
        std::array::from_fn(|b| match b {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(b as u8),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap_or_default()
            }
        })
    });
    TABLE[usize::from(byte)]
}

/// The tokenizer of a `tokenizer.json`. The crate panics at some that are damaged.
fn from_json(file: &Path) -> Result<Hf> {
    let read = || Hf::from_file(file).map_err(|error| anyhow!("{error}"));
    let read = catch_unwind(read).unwrap_or_else(|_| Err(anyhow!("a part of it is damaged")));
    read.with_context(|| format!("{} is not a tokenizer", file.display()))
}

#[cfg(test)]
mod tests;
