//! Strings of files and of the command line on their way to a person: nothing in them moves a terminal's cursor, forges a line,
//! turns the direction of the text or tells a secret.

use std::{borrow::Cow, path::Path};

/// Characters that a message shows of one string. No name that says something is longer.
const LONGEST: usize = 200;

/// Characters of a whole message: some screens. A longer one loses its middle.
const LONGEST_MESSAGE: usize = 3000;

/// A name or text of a file as part of a line: control characters, newlines and bidi marks are escaped, and of a long one the
/// first 200 characters are left.
pub fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST) {
        None => escaped(text),
        Some((cut, _)) => format!("{}... ({} characters)", escaped(&text[..cut]), text.chars().count()).into(),
    }
}

/// `text` in one line: control characters, newlines and bidi marks are escaped as in a Rust string.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(moves_the_reader) {
        return text.into();
    }
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if moves_the_reader(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line.into()
}

/// A path or URL without the credentials in it, in one line.
pub fn path(path: &Path) -> String {
    escaped(&without_secrets(&path.display().to_string())).into_owned()
}

/// A whole message of lines that are ours: its newlines stay, other control characters are escaped, credentials are left out.
pub fn message(text: &str) -> String {
    let text: Vec<_> = text.split('\n').map(escaped).collect();
    without_secrets(&text.join("\n")).into_owned()
}

/// A message in one line, without credentials; a very long one loses its middle.
pub fn sentence(text: &str) -> String {
    shortened(without_secrets(&escaped(text)).into_owned())
}

/// Control characters, line and paragraph separators, and the marks that turn the direction of what follows.
fn moves_the_reader(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` with `***` in place of the user and password of its URLs, of their queries, which hold the signature of a presigned
/// URL, and of the tokens of the hub.
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    if !text.contains("://") && !text.contains(HUB_TOKEN) {
        return text.into();
    }
    let word = |word: &str| match (word.find("://"), word.find(HUB_TOKEN)) {
        (Some(scheme), _) => without_credentials(word, scheme + 3),
        (None, Some(token)) if word[token..].len() >= SHORTEST_TOKEN => format!("{}***", &word[..token]),
        _ => word.to_owned(),
    };
    text.split_inclusive([' ', '\n', '\'', '"', '`', ',', ';', ')', ']']).map(word).collect::<String>().into()
}

/// How every token of the hub begins, and how long it is at least.
const HUB_TOKEN: &str = "hf_";
const SHORTEST_TOKEN: usize = 20;

/// A URL whose host, or the user before it, begins at `host`.
fn without_credentials(url: &str, host: usize) -> String {
    let (scheme, rest) = url.split_at(host);
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
    // A secret key may hold a slash; a port is a number.
    let names_user = |user: &str| {
        let port = |text: &str| text.split('/').next().unwrap_or_default().bytes().all(|b| b.is_ascii_digit());
        !user.contains('/') || user.split_once(':').is_some_and(|(_, rest)| !port(rest))
    };
    match rest.rsplit_once('@').filter(|(user, _)| names_user(user)) {
        Some((_, rest)) => format!("{scheme}***@{rest}{query}"),
        None => format!("{scheme}{rest}{query}"),
    }
}

fn shortened(text: String) -> String {
    let n = text.chars().count();
    if n <= LONGEST_MESSAGE {
        return text;
    }
    let (begin, end) = (LONGEST_MESSAGE * 2 / 3, LONGEST_MESSAGE / 3);
    let cut: String = text.chars().take(begin).collect();
    let rest: String = text.chars().skip(n - end).collect();
    format!("{cut} ... ({} characters left out) ... {rest}", n - begin - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_the_reader() {
        assert_eq!(shown("\u{1b}]0;x\u{7}\n\r\u{9b}\u{202e}é 猫"), "\\u{1b}]0;x\\u{7}\\n\\r\\u{9b}\\u{202e}é 猫");
        assert_eq!(shown(&"é".repeat(200)), "é".repeat(200));
        assert_eq!(shown(&"é".repeat(1000)), format!("{}... (1000 characters)", "é".repeat(200)));
        assert_eq!(message("a\u{8}\n\tb"), "a\\u{8}\n\\tb");
        let long = sentence(&format!("{}end", "x".repeat(1 << 20)));
        assert!(long.chars().count() < 3100 && long.ends_with("xend") && long.contains("characters left out"));
    }

    #[test]
    fn credentials_are_left_out() {
        for (url, left) in [
            ("cannot read https://me:pass@host:80/x.parquet: no", "cannot read https://***@host:80/x.parquet: no"),
            ("s3://AKID:SEC/RET@bucket/k", "s3://***@bucket/k"),
            ("'https://token@host/x', https://host/a?X-Amz-Signature=1", "'https://***@host/x', https://host/a?***"),
            ("http://host:8080/a@b s3://bucket/a@b", "http://host:8080/a@b s3://bucket/a@b"),
            ("HF_TOKEN=hf_abcdefghijklmnopqrst no", "HF_TOKEN=***no"),
            ("hf_hub in org/name@main", "hf_hub in org/name@main"),
        ] {
            assert_eq!(without_secrets(url), left);
        }
    }
}
