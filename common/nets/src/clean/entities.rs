//! HTML character references such as `&amp;`: Python's `html.unescape`, and ftfy's stricter version of it.

use std::{borrow::Cow, collections::HashMap, sync::LazyLock};

use regex::{Captures, Regex};

use super::{charmaps::windows_1252, regex};

/// The characters of a named reference, for example of `&copy;`. HTML allows some names without the semicolon; those are names of
/// their own.
fn entity(reference: &str) -> Option<&'static str> {
    std::str::from_utf8(htmlize::ENTITIES.get(reference.as_bytes())?).ok()
}

static REFERENCE: LazyLock<Regex> =
    LazyLock::new(|| regex(r"&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\x0c <&#;]{1,32};?)"));

/// Python's `html.unescape`: references with or without a semicolon. Of a name that is not known, the longest known beginning counts.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return text.into();
    }
    REFERENCE.replace_all(text, |found: &Captures<'_>| match found[1].strip_prefix('#') {
        Some(number) => numbered(number),
        None => named(&found[0]).unwrap_or_else(|| found[0].to_owned()),
    })
}

/// The character of a decimal number, or of a hexadecimal one after `x`, as browsers read it.
fn numbered(number: &str) -> String {
    let digits = number.trim_end_matches(';');
    let code = match digits.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    // A number that overflows is not a character either.
    match code.unwrap_or(u32::MAX) {
        0 => char::REPLACEMENT_CHARACTER.into(),
        0x0d => "\r".into(),
        code @ 0x80..=0x9f => windows_1252(code as u8).into(),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        code if code <= 0x10_ffff && code & 0xfffe == 0xfffe => String::new(),
        code => char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER).into(),
    }
}

/// The characters of the longest known beginning of `reference`, of at least two letters after the `&`, and the rest as it stands.
fn named(reference: &str) -> Option<String> {
    let ends = reference.char_indices().map(|(at, _)| at).skip(3).chain([reference.len()]);
    let ends: Vec<usize> = ends.collect();
    ends.iter().rev().find_map(|&end| Some(entity(&reference[..end])?.to_owned() + &reference[end..]))
}

static STRICT: LazyLock<Regex> = LazyLock::new(|| regex("&#?[0-9A-Za-z]{1,24};"));

/// References in capitals that only ftfy reads (`&NTILDE;`): its HTML_ENTITIES beyond HTML's own.
static CAPITALS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let names = htmlize::ENTITIES.keys().filter_map(|name| std::str::from_utf8(name).ok());
    let lower = names.filter(|name| name.ends_with(';') && **name == name.to_lowercase());
    lower
        .filter_map(|name| Some((name.to_uppercase(), entity(name)?.to_uppercase())))
        .filter(|(name, _)| unescape(name) == *name)
        .collect()
});

/// ftfy's `unescape_html`: only references that end in a semicolon, and some names in capitals.
pub(super) fn unescape_strict(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return text.into();
    }
    STRICT.replace_all(text, |found: &Captures<'_>| strict(&found[0]))
}

/// The text that one reference stands for, or the reference itself.
fn strict(reference: &str) -> String {
    if let Some(text) = entity(reference).or_else(|| CAPITALS.get(reference).map(String::as_str)) {
        return text.to_owned();
    }
    match unescape(reference) {
        text if reference.starts_with("&#") && !text.contains(';') => text.into_owned(),
        _ => reference.to_owned(),
    }
}

/// [`unescape_strict`] until nothing changes, in time that grows with the text alone: `&amp;amp;amp;...` takes one pass for each
/// `amp;` otherwise.
pub(super) fn unescape_fully(text: &str) -> String {
    const LONGEST: usize = 27; // of `STRICT`
    let mut rest: Vec<char> = text.chars().rev().collect(); // the next one last
    let mut out = String::with_capacity(text.len());
    while let Some(c) = rest.pop() {
        out.push(c);
        if c != ';' {
            continue;
        }
        let near = out.len().saturating_sub(LONGEST);
        let Some(begin) = out.bytes().skip(near).rposition(|b| b == b'&').map(|at| near + at) else { continue };
        let reference = &out[begin..];
        if STRICT.find(reference).is_none_or(|found| found.len() != reference.len()) {
            continue;
        }
        let plain = strict(reference);
        if plain != reference {
            out.truncate(begin);
            // What it stands for may be the end of a reference itself.
            rest.extend(plain.chars().rev());
        }
    }
    out
}
