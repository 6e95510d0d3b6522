//! Prompts in text: JSON, lines of JSON, CSV or TSV with a header, or one prompt per line.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Entry, NAMES};
use crate::delimited::{Delimited, header_of, one_column};
use crate::schema::prompts as col;
use crate::strict::Strict;
use crate::text::shown;

/// The entries of a text that `name` calls.
pub(super) fn entries(name: &str, bytes: &[u8]) -> Result<Vec<Entry>> {
    let text = utf8(name, bytes)?;
    if let Some(json) = json(text) {
        let values = json.with_context(|| format!("{name} begins like JSON but is not JSON"))?;
        let entry = |(i, value): (usize, &Value)| {
            of_json(value).with_context(|| {
                format!("{name}, element {i} (from 0): expected a string or an object with a text 'prompt'")
            })
        };
        return values.iter().enumerate().map(entry).collect();
    }
    // A file of an old Macintosh ends its lines with a carriage return alone.
    let old = (!text.contains('\n') && text.trim_end().contains('\r')).then(|| text.replace('\r', "\n"));
    let text = old.as_deref().unwrap_or(text);
    if let Some(table) = Delimited::with_column(text, is_prompt) {
        return of_table(name, table);
    }
    if let Some(header) = header_of(text) {
        let header: Vec<_> = header.iter().map(|name| shown(name)).collect();
        bail!(
            "{name} has the look of a CSV file with the columns {}; call the one with the prompts `prompt`, or, if every \
             line is a prompt, make `prompt` the first line",
            header.join(", ")
        );
    }
    let first = text.lines().next().unwrap_or_default();
    let named = is_prompt(first.trim().trim_matches('"')) && text.lines().nth(1).is_some();
    match one_column(text) {
        Some(records) if named => {
            Ok(records.into_iter().skip(1).flat_map(|r| r.fields).map(|f| Entry::new(&f)).collect())
        }
        Some(records)
            if records.len() > 1 && text.lines().all(|line| line.trim().is_empty() || line.starts_with('"')) =>
        {
            bail!(
                "{name}: every line is in quotes, as in a CSV file; make `prompt` its first line, or take the quotes away"
            )
        }
        // The name of the only column is not a prompt, unless the file has nothing else.
        _ => Ok(text.lines().skip(usize::from(named)).map(Entry::new).collect()),
    }
}

fn utf8<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str> {
    let line = |at: usize| 1 + bytes[..at].iter().filter(|&&b| b == b'\n').count();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => bail!(
            "{name}, line {}: neither UTF-8 text nor a table; convert it with `iconv -t UTF-8`",
            line(error.valid_up_to())
        ),
    };
    ensure!(!text.contains('\0'), "{name} is not text: it holds bytes of 0");
    Ok(text)
}

fn is_prompt(column: &str) -> bool {
    NAMES.contains(&column.to_lowercase().as_str())
}

fn of_table(name: &str, table: Delimited) -> Result<Vec<Entry>> {
    let find = |wanted: &str| table.header.iter().position(|column| column.to_lowercase() == wanted);
    let prompt = NAMES.iter().find_map(|name| find(name)).unwrap_or_default();
    let others = [col::SET, col::CATEGORY, col::CHALLENGE].map(find);
    let entry = |fields: Vec<String>| {
        let [set, category, challenge] = others.map(|at| at.map(|at| fields[at].clone()).filter(|f| !f.is_empty()));
        Entry { prompt: fields[prompt].clone(), set, category, challenge, nsfw_prob: None }
    };
    table.map(|record| record.map(|r| entry(r.fields)).with_context(|| name.to_owned())).collect()
}

/// The elements of a JSON array, or of lines of JSON objects; `None` if the text is neither. A plain prompt may begin with a bracket
/// too, so a bracket alone does not make it JSON.
fn json(text: &str) -> Option<Result<Vec<Value>>> {
    let begin = text.trim_start();
    if let Some(inside) = begin.strip_prefix('[') {
        let parsed = serde_json::from_str::<Vec<Strict>>(begin);
        let looks = inside.trim_start().starts_with(['"', '{', ']']);
        return (parsed.is_ok() || looks).then(|| Ok(parsed?.into_iter().map(|Strict(value)| value).collect()));
    }
    let inside = begin.strip_prefix('{')?;
    inside.trim_start().starts_with('"').then(|| {
        let values = serde_json::Deserializer::from_str(begin).into_iter();
        Ok(values.map(|value| value.map(|Strict(value)| value)).collect::<Result<_, _>>()?)
    })
}

fn of_json(value: &Value) -> Option<Entry> {
    if let Some(prompt) = value.as_str() {
        return Some(Entry::new(prompt));
    }
    let find = |wanted: &str| {
        let fields = value.as_object()?;
        fields.iter().find(|(name, _)| name.to_lowercase() == wanted).map(|(_, value)| value)
    };
    let prompt = NAMES.iter().find_map(|name| find(name)?.as_str())?.to_owned();
    let text = |name: &str| match find(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    };
    let [set, category, challenge] = [col::SET, col::CATEGORY, col::CHALLENGE].map(text);
    Some(Entry { prompt, set, category, challenge, nsfw_prob: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(text: &str) -> Vec<String> {
        entries("x", text.as_bytes()).unwrap().into_iter().map(|e| e.prompt).collect()
    }

    #[test]
    fn content_says_what_it_is() {
        assert_eq!(prompts("a cat\r\n\r\n[a] dog\r\n"), ["a cat", "", "[a] dog"]);
        assert_eq!(prompts("\u{feff}[a] dog\n{b} cat"), ["[a] dog", "{b} cat"]);
        assert_eq!(prompts("[\"a cat\", {\"prompt\": \"a dog\", \"image_path\": []}]"), ["a cat", "a dog"]);
        assert_eq!(prompts("{\"prompt\": \"a cat\"}\n{\"prompt\": \"a dog\"}\n"), ["a cat", "a dog"]);
        assert_eq!(prompts("Prompt\tNote\n\"a\" cat\tx\n"), ["\"a\" cat"]);
        assert_eq!(prompts("Prompt\r\na cat, sitting\r\na dog\r\n"), ["a cat, sitting", "a dog"]);
        assert_eq!(prompts("prompt"), ["prompt"]);
        assert_eq!(prompts("prompt of the day\na cat\n"), ["prompt of the day", "a cat"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &[u8]| format!("{:#}", entries("x", text).unwrap_err());
        assert!(error(b"a\nb\n\xff\n").contains("line 3"), "{}", error(b"a\nb\n\xff\n"));
        assert!(error(b"Prompt\tNote\na\tb\nc\td\te\n").contains("line 3: 3 fields"));
        assert!(error(b"[\"a\", 7]").contains("element 1"));
        assert!(error(b"[\"a\", ").contains("JSON"));
        assert!(error(b"Prompt,Category\n\"a,b\n").contains("line 2: a quote is opened"));
        assert!(error(b"id,text\n1,a cat\n").contains("CSV file with the columns id, text"));
        assert!(error(b"\"a cat\"\n\"a dog\"\n").contains("every line is in quotes"));
        assert!(error(b"a\0b").contains("not text"));
        let long = [b"Prompt,Category\n\"", &b"x".repeat(2 << 20)[..], b"\",a\n"].concat(); // a quote that is not closed takes no more
        assert!(error(&long).contains("1048576"));
        assert_eq!(prompts(&"x".repeat(2 << 20))[0].len(), 2 << 20);
    }

    #[test]
    fn csv_is_read_as_csv() {
        for text in [
            ",Prompts,Category\n0,A red car.,Colors\n1,\"A cat, a \"\"dog\"\"\nin two lines\",Counting\n",
            "id;Prompt\r\n0;A red car.\r\n1;\"A cat, a \"\"dog\"\"\nin two lines\"\r\n",
            "\u{feff}\"caption\"\n\"A red car.\"\n\"A cat, a \"\"dog\"\"\nin two lines\"\n",
        ] {
            assert_eq!(prompts(text), ["A red car.", "A cat, a \"dog\"\nin two lines"], "{text}");
        }
        let all = entries("x", b"set,Prompt,challenge\ns,a,\n,b,c\n").unwrap();
        assert_eq!(all[0], Entry { set: Some("s".into()), ..Entry::new("a") });
        assert_eq!(all[1], Entry { challenge: Some("c".into()), ..Entry::new("b") });
        // Prose with commas and quotes is prose.
        let prose = "a cat, sitting\n\"Wonders\" of the world\n5\" of rain, no more, no less\n";
        assert_eq!(prompts(prose), prose.lines().collect::<Vec<_>>());
        assert_eq!(prompts("\"Deep, he said\na dog, he said\n"), ["\"Deep, he said", "a dog, he said"]);
        assert_eq!(prompts("a cat\ra dog\r"), ["a cat", "a dog"]);
    }

    #[test]
    fn every_field_of_json_counts() {
        let all = entries("x", br#"[{"Prompt": "a", "category": 3, "set": "s", "challenge": null}]"#).unwrap();
        assert_eq!(all, [Entry { category: Some("3".into()), set: Some("s".into()), ..Entry::new("a") }]);
    }
}
