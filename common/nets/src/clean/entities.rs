//! HTML character references: Python's `html.unescape`, and ftfy's stricter reading of it.

use std::{borrow::Cow, collections::HashMap, sync::LazyLock};

use regex::{Captures, Regex};

use super::{charmaps::windows_1252, regex};

/// HTML's named characters: `name codepoints...` in hexadecimal, `*` after a name that also stands without a semicolon.
const LIST: &str = include_str!("entities.txt");

/// By name without `&`, with `;` where HTML asks for it.
static HTML5: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let mut names = HashMap::new();
    for line in LIST.lines() {
        let mut words = line.split(' ');
        let Some(name) = words.next() else { continue };
        let text: String = words.filter_map(|hex| char::from_u32(u32::from_str_radix(hex, 16).ok()?)).collect();
        if let Some(bare) = name.strip_suffix('*') {
            names.insert(bare.to_owned(), text.clone());
        }
        names.insert(format!("{};", name.trim_end_matches('*')), text);
    }
    names
});

static REFERENCE: LazyLock<Regex> =
    LazyLock::new(|| regex(r"&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\x0c <&#;]{1,32};?)"));

/// Python's `html.unescape`: with or without semicolons, the longest known name first.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return text.into();
    }
    REFERENCE.replace_all(text, |found: &Captures<'_>| {
        let name = &found[1];
        match name.strip_prefix('#') {
            Some(number) => numbered(number),
            None => named(name).unwrap_or_else(|| found[0].to_owned()),
        }
    })
}

fn numbered(number: &str) -> String {
    let digits = number.trim_end_matches(';');
    let code = match digits.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    // Too long to be a number is too large to be a character.
    match code.unwrap_or(u32::MAX) {
        0 => char::REPLACEMENT_CHARACTER.into(),
        0x0d => "\r".into(),
        code @ 0x80..=0x9f => windows_1252(code as u8).into(),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        code if code <= 0x10_ffff && code & 0xfffe == 0xfffe => String::new(),
        code => char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER).into(),
    }
}

fn named(name: &str) -> Option<String> {
    if let Some(text) = HTML5.get(name) {
        return Some(text.clone());
    }
    // The longest known beginning of at least two characters.
    let mut cuts: Vec<usize> = name.char_indices().map(|(at, _)| at).skip(2).collect();
    cuts.reverse();
    cuts.iter().find_map(|&cut| HTML5.get(&name[..cut]).map(|text| format!("{text}{}", &name[cut..])))
}

static STRICT: LazyLock<Regex> = LazyLock::new(|| regex("&#?[0-9A-Za-z]{1,24};"));

/// Names in capitals that only ftfy reads (`&NTILDE;`), as its HTML_ENTITIES.
static CAPITALS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let small = HTML5.iter().filter(|(name, _)| name.ends_with(';') && **name == name.to_lowercase());
    small
        .map(|(name, text)| (name.to_uppercase(), text.to_uppercase()))
        .filter(|(name, _)| unescape(&format!("&{name}")) == format!("&{name}"))
        .collect()
});

/// ftfy's `unescape_html`: only what ends in a semicolon, and some names in capitals.
pub(super) fn unescape_strict(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return text.into();
    }
    STRICT.replace_all(text, |found: &Captures<'_>| {
        let (whole, name) = (&found[0], &found[0][1..]);
        if let Some(text) = HTML5.get(name).or_else(|| CAPITALS.get(name)) {
            return text.clone();
        }
        match unescape(whole) {
            text if name.starts_with('#') && !text.contains(';') => text.into_owned(),
            _ => whole.to_owned(),
        }
    })
}
