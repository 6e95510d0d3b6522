//! Finds and repairs text that was decoded with the wrong encoding (`cafÃ©`). The rules are those of ftfy 6.3.1 (Robyn Speer,
//! Apache-2.0): its `badness` expression, its encodings in its order, and its repairs of lost bytes.

use std::sync::LazyLock;

use regex::{Regex, bytes};

use super::charmaps::{CHARMAPS, LATIN_1, windows_1252};
use super::regex;

/// Classes of characters by their role in such text (ftfy's MOJIBAKE_CATEGORIES).
const CATEGORIES: [(&str, &str); 15] = [
    ("common", "\u{a0}\u{ad}·´–—―…’"),
    ("c1", "\u{80}-\u{9f}"),
    ("bad", "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}ªº"),
    ("law", "¶§"),
    ("currency", "¢£¥₧€"),
    ("start_punctuation", "¡«¿©΄΅‘‚“„•‹\u{f8ff}"),
    ("end_punctuation", "®»˝”›™"),
    ("numeric", "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№"),
    ("kaomoji", "Ò-ÖÙ-Üò-öø-üŐŌŪŲ°"),
    ("upper_accented", "À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
    ("lower_accented", "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ"),
    ("upper_common", "ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я"),
    ("lower_common", "α-ωάέήίΰа-џ"),
    ("box", "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓"),
    // Python's \s and \w, which are not Rust's.
    ("space", r"\s\x1c-\x1f"),
];

/// Sequences of characters that are rarely intended (ftfy's BADNESS_RE), one case per line.
const BADNESS: &[&str] = &[
    "[{c1}]",
    "[{bad}{lower_accented}{upper_accented}{box}{start_punctuation}{end_punctuation}{currency}{numeric}{law}][{bad}]",
    "[a-zA-Z][{lower_common}{upper_common}][{bad}]",
    "[{bad}][{lower_accented}{upper_accented}{box}{start_punctuation}{end_punctuation}{currency}{numeric}{law}]",
    "[{lower_accented}{lower_common}{box}{end_punctuation}{currency}{numeric}][{upper_accented}]",
    "[{box}{end_punctuation}{currency}{numeric}][{lower_accented}]",
    "[{lower_accented}{box}{end_punctuation}][{currency}]",
    "[{space}][{upper_accented}][{currency}]",
    "[{upper_accented}{box}][{numeric}{law}]",
    "[{lower_accented}{upper_accented}{box}{currency}{end_punctuation}][{start_punctuation}][{numeric}]",
    "[{lower_accented}{upper_accented}{currency}{numeric}{box}{law}][{end_punctuation}][{start_punctuation}]",
    "[{currency}{numeric}{box}][{start_punctuation}]",
    "[a-z][{upper_accented}][{start_punctuation}{currency}]",
    "[{box}][{kaomoji}]",
    "[{lower_accented}{upper_accented}{currency}{numeric}{start_punctuation}{end_punctuation}{law}][{box}]",
    "[{box}][{end_punctuation}]",
    r"[{lower_accented}{upper_accented}][{start_punctuation}{end_punctuation}][\p{L}\p{N}_]",
    "[Œœ][^A-Za-z]",
    "[{upper_accented}]°",
    "[ÂÃÎÐ][€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»{start_punctuation}{end_punctuation}–—´]",
    "×[²³]",
    "(?:[ØÙ][{common}{currency}{bad}{numeric}{start_punctuation}ŸŠ®°µ»]){2}",
    "à[²µ¹¼½¾]",
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚Ä[ìîïòôúùû†°¢π]",
    "‚[âó][àä°ê]",
    "вЂ",
    "[ВГРС][{c1}{bad}{start_punctuation}{end_punctuation}{currency}°µ][ВГРС]",
    "ГўВЂВ.[A-Za-z ]",
    "Ã[\u{a0}¡]",
    "[a-z][{space}]?[ÃÂ] ",
    "^[ÃÂ] ",
    "[a-z.,?!{end_punctuation}]Â[ {start_punctuation}{end_punctuation}]",
    "β€[™\u{a0}Ά\u{ad}®°]",
    "[ΒΓΞΟ][{c1}{bad}{start_punctuation}{end_punctuation}{currency}°][ΒΓΞΟ]",
    "ā€",
];

static BAD: LazyLock<Regex> = LazyLock::new(|| {
    let whole = BADNESS.join("|");
    regex(&CATEGORIES.iter().fold(whole, |all, (name, class)| all.replace(&format!("{{{name}}}"), class)))
});

/// UTF-8 whose byte 0xa0 became a space (ftfy's ALTERED_UTF8_RE).
static ALTERED: LazyLock<bytes::Regex> = LazyLock::new(|| {
    bytes_regex(
        r"[\xc2\xc3\xc5\xce\xd0\xd9] |[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] |\xf0 [\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf] [\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf] ",
    )
});

/// UTF-8, or CESU-8, some of whose bytes became U+FFFD (here 0x1a) or a question mark (ftfy's LOSSY_UTF8_RE).
static LOSSY: LazyLock<bytes::Regex> = LazyLock::new(|| {
    bytes_regex(
        r"[\xc2-\xdf]\x1a|[\xc2-\xc3]\?|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a",
    )
});

fn bytes_regex(pattern: &str) -> bytes::Regex {
    let regex = bytes::RegexBuilder::new(pattern).unicode(false).build();
    regex.unwrap_or_else(|error| unreachable!("a constant pattern: {error}"))
}

fn is_bad(text: &str) -> bool {
    !text.is_ascii() && BAD.is_match(text)
}

/// ftfy's `fix_encoding`: applies one repair after another until nothing changes.
pub(super) fn fix_encoding(mut text: String) -> String {
    while let Some(fixed) = fix_one_step(&text).filter(|fixed| *fixed != text) {
        text = fixed;
    }
    text
}

/// ftfy's `_fix_encoding_one_step_and_explain`; `None` if nothing looks wrong.
fn fix_one_step(text: &str) -> Option<String> {
    if !is_bad(text) {
        return None;
    }
    for charmap in CHARMAPS {
        let Some(mut bytes) = charmap.encode(text) else { continue };
        if charmap.space_may_be_a0 && ALTERED.is_match(&bytes) {
            bytes = restore_a0(&bytes);
        }
        if charmap.sloppy {
            bytes = LOSSY.replace_all(&bytes, bytes::NoExpand("\u{fffd}".as_bytes())).into_owned();
        }
        if let Some(fixed) = decode_variants(&bytes) {
            return Some(fixed);
        }
    }
    let fixed = fix_embedded(text);
    if fixed != text {
        return Some(fixed);
    }
    // Latin-1 text that was really Windows-1252, if every byte is defined there.
    if let Some(bytes) = LATIN_1.encode(text)
        && !bytes.iter().any(|b| matches!(b, 0x81 | 0x8d | 0x8f | 0x90 | 0x9d))
    {
        let fixed: String = bytes.into_iter().map(windows_1252).collect();
        if fixed != text {
            return Some(fixed);
        }
    }
    Some(fix_c1_controls(text))
}

/// Reads C1 control characters as the characters that Windows-1252 has in their place, as browsers do.
pub(super) fn fix_c1_controls(text: &str) -> String {
    let fix = |c| if ('\u{80}'..='\u{9f}').contains(&c) { windows_1252(u32::from(c) as u8) } else { c };
    text.chars().map(fix).collect()
}

/// ftfy's `restore_byte_a0`: turns a space back into byte 0xa0 where only that makes valid UTF-8.
fn restore_a0(bytes: &[u8]) -> Vec<u8> {
    // `Ã ` alone is `à `, unless a Portuguese or English word follows.
    let mut words = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        let lone = rest.starts_with(b"\xc3 ")
            && ![&b" "[..], b"quele", b"quela", b"quilo", b"s "].iter().any(|word| rest[2..].starts_with(word));
        if lone {
            words.extend(b"\xc3\xa0 ");
            rest = &rest[2..];
        } else {
            words.push(first);
            rest = tail;
        }
    }
    let spaces_back = |found: &bytes::Captures<'_>| -> Vec<u8> {
        found[0].iter().map(|&b| if b == b' ' { 0xa0 } else { b }).collect()
    };
    ALTERED.replace_all(&words, spaces_back).into_owned()
}

/// Decodes UTF-8, CESU-8's surrogate pairs and Java's two-byte zero; `None` if the bytes are none of these.
fn decode_variants(bytes: &[u8]) -> Option<String> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        match rest {
            [0xc0, 0x80, tail @ ..] => {
                plain.push(0);
                rest = tail;
            }
            [0xed, a @ 0xa0..=0xaf, b @ 0x80..=0xbf, 0xed, c @ 0xb0..=0xbf, d @ 0x80..=0xbf, tail @ ..] => {
                let [a, b, c, d] = [a, b, c, d].map(|&b| u32::from(b));
                let code = ((a & 0x0f) << 16) + ((b & 0x3f) << 10) + ((c & 0x0f) << 6) + (d & 0x3f) + 0x1_0000;
                plain.extend(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
                rest = tail;
            }
            _ => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(plain).ok()
}

/// The characters that bytes 0xc2 to 0xdf become in encodings like Latin-1; then those of 0xe0 to 0xef and of 0xf0 to 0xf3 (ftfy's
/// UTF8_CLUES).
const FIRST_OF_2: &str = "ĂÂÄĀÅÃÆĆČÇĎĐÉĚÊËĖÈĒĘÐĞĢÍÎÏİÌĪĶĹĻŁŃŇŅÑÓÔÖŐÒŌØÕŘŚŠŞŢÞÚÛÜŰÙŪŲŮÝŹŽŻß×\
    ΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩΪΫάέήίВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ";
const FIRST_OF_3: &str = "áăâäàāąåãæćčçďéěêëėèēęęģíîïìīįķĺļŕźΰαβγδεζηθικλμνξοабвгдежзийклмноп";
const FIRST_OF_4: &str = "đðğóšπσру";
/// The characters that bytes 0x80 to 0xbf become and that are rarely intended, besides U+0080 to U+00BF.
const CONTINUATION_STRICT: &str = "ĄÆĽŁØŖŚŠŞŤŸŹŽŻŒąæƒľłøŗśšşťźžżœˆˇ˘˛˜˝΄΅ΆΈΉΊΌΎΏЁЂЃЄЅІЇЈЉЊЋЌЎЏёђѓєѕіїјљњћќўџҐґ†‡‰‹›€№™";
/// The characters that bytes 0x80 to 0xbf become and that may be intended.
const CONTINUATION_LOOSE: &str = " –—―‘’‚“”„•…";

fn strict(c: char) -> bool {
    ('\u{80}'..='\u{bf}').contains(&c) || CONTINUATION_STRICT.contains(c)
}

/// The number of characters at the start of `text` that look like wrongly decoded UTF-8 (ftfy's UTF8_DETECTOR_RE).
fn detect(text: &[char]) -> usize {
    let mut end = 0;
    'run: while let Some(&first) = text.get(end) {
        for (firsts, more) in [(FIRST_OF_2, 1), (FIRST_OF_3, 2), (FIRST_OF_4, 3)] {
            let follow = text.get(end + 1..end + 1 + more);
            let continues = |&c: &char| strict(c) || CONTINUATION_LOOSE.contains(c);
            if firsts.contains(first) && follow.is_some_and(|chars| chars.iter().all(continues)) {
                end += 1 + more;
                continue 'run;
            }
        }
        break;
    }
    end
}

/// ftfy's `decode_inconsistent_utf8`: repairs each part that looks broken on its own.
fn fix_embedded(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut fixed = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let after_garble = at > 0 && strict(chars[at - 1]);
        match if after_garble { 0 } else { detect(&chars[at..]) } {
            0 => {
                fixed.push(chars[at]);
                at += 1;
            }
            n => {
                let part: String = chars[at..at + n].iter().collect();
                // If the part is the whole text, it has been tried already.
                fixed += &if n < chars.len() && is_bad(&part) { fix_encoding(part) } else { part };
                at += n;
            }
        }
    }
    fixed
}
