//! BERT's WordPiece tokenizer, for the text classifier and for judges that are built on BLIP.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use pipe::id;
use tokenizers::{
    AddedToken, Tokenizer, TruncationParams, models::wordpiece::WordPiece, normalizers::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer, processors::bert::BertProcessing,
};

use crate::{file, json};

/// The vocabulary of google-bert/bert-base-uncased (Apache-2.0). The folders of BLIP's judges do not hold it.
pub const UNCASED: &str = include_str!("bert_vocab.txt");

/// The tokenizer of `tokenizer.json` if that exists, else BERT's tokenizer over `vocab.txt`; and the file that was read.
pub fn from_folder(folder: &Path, positions: usize) -> Result<(Tokenizer, PathBuf)> {
    let (ready, vocabulary) = (folder.join("tokenizer.json"), folder.join("vocab.txt"));
    if ready.is_file() {
        return Ok((cut(super::from_json(&ready)?, positions)?, ready));
    }
    // BERT's default: lower-case the text, unless tokenizer_config.json says otherwise.
    let cased = folder.join("tokenizer_config.json");
    let cased = cased.is_file() && json::read::<serde_json::Value>(&cased)?["do_lower_case"] == false;
    let cannot = || format!("cannot read {}", vocabulary.display());
    let tokenizer = bert(&file::text(&vocabulary)?, !cased).with_context(cannot)?;
    Ok((cut(tokenizer, positions)?, vocabulary))
}

/// The tokenizer of BLIP's judges: bert-base-uncased with [DEC] and [ENC] behind its vocabulary, and the hash of the vocabulary.
/// A `vocab.txt` in the folder is read in place of the built-in one.
pub fn blip(folder: &Path, positions: usize) -> Result<(Tokenizer, String)> {
    let file = folder.join("vocab.txt");
    let cannot = || format!("cannot read {}", file.display());
    let text = match file.is_file() {
        true => std::fs::read_to_string(&file).with_context(cannot)?,
        false => UNCASED.to_owned(),
    };
    let mut tokenizer = bert(&text, true).with_context(cannot)?;
    tokenizer.add_special_tokens(["[DEC]", "[ENC]"].map(special)).map_err(|e| anyhow!("{e}"))?;
    Ok((cut(tokenizer, positions)?, id::hex(&id::sha256(text.as_bytes()))))
}

fn special(token: &str) -> AddedToken {
    AddedToken::from(token.to_owned(), true)
}

/// BERT's tokenizer over a vocabulary of one token per line.
fn bert(vocabulary: &str, lowercase: bool) -> Result<Tokenizer> {
    let pieces =
        WordPiece::read_bytes(vocabulary.as_bytes()).and_then(|pieces| WordPiece::builder().vocab(pieces).build());
    let mut tokenizer = Tokenizer::new(pieces.map_err(|e| anyhow!("{e}"))?);
    let id = |token: &str| tokenizer.token_to_id(token).with_context(|| format!("it has no '{token}'"));
    let (sep, cls, _) = (id("[SEP]")?, id("[CLS]")?, id("[UNK]")?);
    let normalizer = BertNormalizer::new(true, true, None, lowercase);
    tokenizer.with_normalizer(Some(normalizer)).map_err(|e| anyhow!("{e}"))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(BertProcessing::new(("[SEP]".into(), sep), ("[CLS]".into(), cls))));
    let added = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(special);
    tokenizer.add_special_tokens(added).map_err(|e| anyhow!("{e}"))?;
    Ok(tokenizer)
}

/// The tokenizer without padding; a text is cut to `positions` tokens, [CLS] and [SEP] among them.
fn cut(mut tokenizer: Tokenizer, positions: usize) -> Result<Tokenizer> {
    let cut = TruncationParams { max_length: positions, ..Default::default() };
    tokenizer.with_padding(None).with_truncation(Some(cut)).map_err(|e| anyhow!("{e}"))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids are those of transformers' BertTokenizer with BLIP's two tokens.
    #[test]
    fn special_tokens_count_in_their_own_case_and_accents_go() {
        let (tokenizer, _) = blip(Path::new("no folder"), 35).unwrap();
        let ids = |text: &str| tokenizer.encode_fast(text, true).unwrap().get_ids().to_vec();
        assert_eq!(ids("   \t\n "), [101, 102]);
        assert_eq!(
            ids("[CLS] [DEC] [PAD] [MASK] [UNK] velvet violet [enc] [sep] [PAD]"),
            [101, 101, 30522, 0, 103, 100, 10966, 8766, 1031, 4372, 2278, 1033, 1031, 19802, 1033, 0, 102]
        );
        assert_eq!(
            ids("caf\u{e9} na\u{ef}ve \u{c5}ngstr\u{f6}m e\u{301}cole stra\u{df}e"),
            [101, 7668, 15743, 17076, 15687, 12431, 2358, 27807, 102]
        );
        assert_eq!(ids(&"fox ".repeat(40)).len(), 35);
        assert_eq!(ids(&format!("{} {}", "x".repeat(101), "fox")), [101, 100, 4419, 102]);
    }
}
