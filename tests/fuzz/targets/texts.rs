//! Captions, and the files that say how they become tokens.

use std::{path::Path, sync::LazyLock};

use nets::clean;
use nets::tokenizer::{Style, Tokenizer, wordpiece};

use super::{fixture, put};

/// A caption, cleaned and tokenised in both styles.
pub fn caption(_: &Path, bytes: &[u8]) {
    static CLIP: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| {
        [Style::Hf, Style::OpenClip].map(|style| {
            Tokenizer::from_folder(Path::new("no folder: CLIP's own"), style).expect("CLIP's own tokenizer")
        })
    });
    let text = String::from_utf8_lossy(bytes);
    let _ = clean::open_clip(&text);
    for tokenizer in &*CLIP {
        let ids = tokenizer.encode(&text, 77).expect("a caption has tokens");
        assert_eq!(ids.len(), 77);
    }
}

/// Each of a tokenizer's files, beside whole other ones.
pub fn tokenizer(folder: &Path, bytes: &[u8]) {
    let whole = fixture("oracle/base/tokenizer");
    let files = ["vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"];
    for damaged in files.into_iter().chain(["tokenizer.json", "vocab.txt"]) {
        let folder = folder.join(damaged.replace('.', "-"));
        if !folder.exists() {
            for file in files {
                put(&folder, file, &std::fs::read(whole.join(file)).expect("the repository's tokenizer"));
            }
        }
        put(&folder, damaged, bytes);
        for style in [Style::Hf, Style::OpenClip] {
            if let Ok(tokenizer) = Tokenizer::from_folder(&folder, style) {
                let _ = tokenizer.encode("a cat, two cats! \u{e9}\u{fb01}<|endoftext|>", 16);
                let _ = tokenizer.hash();
            }
        }
        let _ = wordpiece::from_folder(&folder, 16).map(|(bert, _)| bert.encode("a cat", true).is_ok());
    }
}
