//! Cleans a caption as open_clip's tokenizer does: ftfy's `fix_text`, `html.unescape` twice, white space, lower case.
//!
//! The rules and tables are those of ftfy 6.3.1 (Robyn Speer, Apache-2.0). The crate plsfix is not used: it is five
//! thousand lines.

mod charmaps;
mod entities;
mod mojibake;

use std::sync::LazyLock;

use regex::{NoExpand, Regex};
use tokenizers::NormalizedString;

/// open_clip's `_clean_lower`, which the metrics `hps` and `clip` apply before they tokenise a caption.
pub fn open_clip(text: &str) -> String {
    let text = fix_text(text);
    let text = entities::unescape(&text);
    let text = entities::unescape(&text);
    words(&text).join(" ").to_lowercase()
}

/// Python's `str.split()`. Its white space includes U+001C to U+001F.
fn words(text: &str) -> Vec<&str> {
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    text.split(space).filter(|word| !word.is_empty()).collect()
}

/// ftfy's `fix_text` with its defaults, line by line.
pub fn fix_text(text: &str) -> String {
    // A line with `<`, and all lines after it, are taken for HTML: their entities are left as they are.
    let mut html = false;
    let mut fixed = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        html |= line.contains('<');
        fixed += &fix_line(line, html);
    }
    fixed
}

/// Passes that follow ftfy step by step. Deeper nested references, which nobody writes, are then resolved in one.
const SINGLY: usize = 8;

/// ftfy's `fix_and_explain`: repeats all repairs until nothing changes.
fn fix_line(line: &str, html: bool) -> String {
    let mut text = line.to_owned();
    for pass in 0.. {
        let before = text.clone();
        if !html {
            text = match pass {
                0..SINGLY => entities::unescape_strict(&text).into_owned(),
                _ => entities::unescape_fully(&text),
            };
        }
        // Fast path: most captions are ASCII, which only two of the repairs can change.
        if text.is_ascii() {
            text = plain_controls(&text);
        } else {
            text = mojibake::fix_encoding(text);
            text = mojibake::fix_c1_controls(&text);
            text = typography(&text);
            text = plain_controls(&text);
            let mut normalized = NormalizedString::from(text);
            normalized.nfc();
            text = normalized.get().to_owned();
        }
        // ftfy also repairs surrogates, which a Rust string cannot contain.
        if text == before {
            break;
        }
    }
    text
}

/// Splits Latin ligatures, replaces full-width and half-width characters by normal ones and curly quotes by straight ones.
fn typography(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'Ĳ' => out += "IJ",
            'ĳ' => out += "ij",
            'ŉ' => out += "ʼn",
            'Ǳ' => out += "DZ",
            'ǲ' => out += "Dz",
            'ǳ' => out += "dz",
            'Ǆ' => out += "DŽ",
            'ǅ' => out += "Dž",
            'ǆ' => out += "dž",
            'Ǉ' => out += "LJ",
            'ǈ' => out += "Lj",
            'ǉ' => out += "lj",
            'Ǌ' => out += "NJ",
            'ǋ' => out += "Nj",
            'ǌ' => out += "nj",
            'ﬀ' => out += "ff",
            'ﬁ' => out += "fi",
            'ﬂ' => out += "fl",
            'ﬃ' => out += "ffi",
            'ﬄ' => out += "ffl",
            'ﬅ' => out += "ſt",
            'ﬆ' => out += "st",
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ffef}' => {
                let mut wide = NormalizedString::from(c.to_string());
                wide.nfkc();
                out += wide.get();
            }
            _ => out.push(c),
        }
    }
    // Quotes come last, because the other replacements may produce them.
    let quotes = |c| match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        _ => c,
    };
    out.chars().map(quotes).collect()
}

static TERMINAL: LazyLock<Regex> = LazyLock::new(|| regex(r"\x1b\[[\d;]*[a-zA-Z]"));

/// Replaces all line breaks by `\n` and removes terminal colours and control characters.
fn plain_controls(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
    let control = |c: &char| {
        matches!(c, '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f')
            || matches!(c, '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
    };
    TERMINAL.replace_all(&text, NoExpand("")).chars().filter(|c| !control(c)).collect()
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| unreachable!("a constant pattern: {error}"))
}

#[cfg(test)]
mod tests;
