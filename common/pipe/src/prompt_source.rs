//! Reads prompts from whatever a benchmark publishes: TSV, JSON, text, Parquet, an Arrow stream. The format is recognised by the
//! content, not by the name.

use std::collections::HashSet;
use std::io::{BufRead, Cursor, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{Array, StringArray};
use arrow::datatypes::DataType;
use serde_json::Value;

use crate::id::{hex, prompt_id, sha256};
use crate::origin::InputOrigin;
use crate::schema::{pairs, prompts as col};
use crate::table::{self, Inputs};

/// One row of a prompts table.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub prompt_id: String,
    pub prompt: String,
    /// The benchmark: a name from the caller or the table, else the file's stem.
    pub set: String,
    pub category: Option<String>,
    pub challenge: Option<String>,
    pub nsfw_prob: Option<f32>,
}

/// How many prompts were read and how many were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Prompts in the sources, without blank ones.
    pub read: usize,
    /// Blank lines and empty prompts.
    pub blank: usize,
    /// Prompts that their set already had.
    pub duplicates: usize,
}

/// The prompts of several sources, in order, each text once per set.
pub struct Prompts {
    pub prompts: Vec<Prompt>,
    pub counts: Counts,
    pub origins: Vec<InputOrigin>,
}

/// A prompt as a source has it.
#[derive(Debug, Default, PartialEq)]
struct Entry {
    prompt: String,
    set: Option<String>,
    category: Option<String>,
    challenge: Option<String>,
    nsfw_prob: Option<f32>,
}

impl Entry {
    fn new(prompt: &str) -> Self {
        Self { prompt: prompt.to_owned(), ..Self::default() }
    }
}

/// Reads all prompts of `paths` (`-`: standard input). `set` names the set of all of them. Without it the set is what a table says
/// in its column `set`, and otherwise the file's stem.
pub fn read(paths: &[PathBuf], set: Option<&str>) -> Result<Prompts> {
    ensure!(paths.iter().filter(|p| p.as_os_str() == "-").count() <= 1, "standard input (`-`) can be named only once");
    let mut all = Prompts { prompts: vec![], counts: Counts::default(), origins: vec![] };
    let mut seen = HashSet::new();
    for path in paths {
        let stem = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        let stem = if stem == "-" { "stdin".into() } else { stem };
        let before = all.counts.read;
        let Counts { read, blank, duplicates } = &mut all.counts;
        let prompts = &mut all.prompts;
        let origins = entries(path, &mut |entry| {
            if entry.prompt.trim().is_empty() {
                *blank += 1;
                return;
            }
            *read += 1;
            let id = prompt_id(&entry.prompt);
            let set = set.map(str::to_owned).or(entry.set).unwrap_or_else(|| stem.clone());
            if !seen.insert((set.clone(), id.clone())) {
                *duplicates += 1;
                return;
            }
            let Entry { prompt, category, challenge, nsfw_prob, .. } = entry;
            prompts.push(Prompt { prompt_id: id, prompt, set, category, challenge, nsfw_prob });
        })?;
        ensure!(all.counts.read > before, "{} has no prompts", name(path));
        all.origins.extend(origins);
    }
    Ok(all)
}

fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".into() } else { path.display().to_string() }
}

/// Hands every entry of one source to `give`.
fn entries(path: &Path, give: &mut dyn FnMut(Entry)) -> Result<Vec<InputOrigin>> {
    let name = name(path);
    let say = || format!("cannot read {name}");
    let stdin = path.as_os_str() == "-";
    if path.is_dir() || table::is_url(path) {
        return table_entries(Inputs::open(&[path.to_owned()])?, give);
    }
    let text = if stdin {
        let mut stdin = std::io::stdin().lock();
        ensure!(!stdin.is_terminal(), "standard input is a terminal; pipe prompts into it, or name a file");
        // Every Arrow stream begins with this byte, and no text does.
        if stdin.fill_buf().with_context(say)?.first() == Some(&0xff) {
            drop(stdin);
            return table_entries(Inputs::open(&[path.to_owned()])?, give);
        }
        let mut bytes = vec![];
        stdin.read_to_end(&mut bytes).with_context(say)?;
        bytes
    } else {
        let mut file = std::fs::File::open(path).with_context(say)?;
        let mut bytes = vec![];
        Read::by_ref(&mut file).take(6).read_to_end(&mut bytes).with_context(say)?;
        if bytes.first() == Some(&0xff) && table::is_table(&bytes) {
            // It may be a named pipe, which cannot be opened again.
            return table_entries(Inputs::stream(&name, Cursor::new(bytes).chain(file))?, give);
        } else if table::is_table(&bytes) {
            return table_entries(Inputs::open(&[path.to_owned()])?, give);
        }
        file.read_to_end(&mut bytes).with_context(say)?;
        bytes
    };
    ensure!(!text.is_empty(), "{name} is empty: no prompts in it");
    ensure!(
        !table::is_table(&text),
        "{name} is a Parquet file, which cannot be read from a pipe: name the file itself"
    );
    text_entries(&name, &text)?.into_iter().for_each(give);
    Ok(vec![InputOrigin { sha256: Some(hex(&sha256(&text))), origin: None }])
}

fn table_entries(mut inputs: Inputs, give: &mut dyn FnMut(Entry)) -> Result<Vec<InputOrigin>> {
    let text = if inputs.has(col::PROMPT) { col::PROMPT } else { pairs::CAPTION };
    inputs.require(&[text], "prompts are read from a column 'prompt' or 'caption'")?;
    // A pairs table has none of the other columns; an images table has them.
    let columns = [text, col::SET, col::CATEGORY, col::CHALLENGE, col::NSFW_PROB];
    for rows in inputs.read(Some(&columns), 0..usize::MAX, table::BATCH)? {
        let rows = rows?;
        let prompts = rows.text(text)?;
        let textual = |name| match rows.batch.column_by_name(name).map(|c| c.data_type()) {
            Some(DataType::Null) | None => Ok(StringArray::new_null(rows.len())),
            Some(_) => rows.text_or_null(name),
        };
        let (sets, categories, challenges) = (textual(col::SET)?, textual(col::CATEGORY)?, textual(col::CHALLENGE)?);
        let probs = if rows.has(col::NSFW_PROB) { Some(rows.f32_or_null(col::NSFW_PROB)?) } else { None };
        let at = |column: &StringArray, i| column.is_valid(i).then(|| column.value(i).to_owned());
        for i in 0..rows.len() {
            give(Entry {
                prompt: prompts.value(i).to_owned(),
                set: at(&sets, i),
                category: at(&categories, i),
                challenge: at(&challenges, i),
                nsfw_prob: probs.as_ref().filter(|p| p.is_valid(i)).map(|p| p.value(i)),
            });
        }
    }
    inputs.origins()
}

/// TSV with a header, JSON, or one prompt a line.
fn text_entries(name: &str, bytes: &[u8]) -> Result<Vec<Entry>> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            bail!("{name}, line {line}: neither UTF-8 text nor a table; convert it with `iconv -t UTF-8`")
        }
    };
    if let Some(json) = json(text) {
        return json
            .with_context(|| format!("{name} begins like JSON but is not JSON"))?
            .iter()
            .enumerate()
            .map(|(i, value)| {
                json_entry(value).with_context(|| {
                    format!("{name}, element {i} (from 0): expected a string or an object with a text 'prompt'")
                })
            })
            .collect();
    }
    let mut lines = text.lines().map(|line| line.strip_suffix('\r').unwrap_or(line));
    let header: Vec<_> = lines.clone().next().unwrap_or_default().split('\t').map(str::to_lowercase).collect();
    let find = |names: &[&str]| header.iter().position(|h| names.contains(&h.as_str()));
    let Some(prompt) = find(&["prompt", "prompts", "caption"]).filter(|_| header.len() > 1) else {
        let first = header.concat();
        let name_of = |field: &str| ["prompt", "prompts", "caption"].contains(&field.trim_matches('"'));
        // A single column has such a name without a comma.
        let csv = first.contains([',', '"']) && first.split(',').next().is_some_and(name_of);
        ensure!(
            !csv,
            "{name} begins with the header of a CSV file ('{first}'); save it as TSV, or as one prompt a line"
        );
        // One column: its name is not a prompt, unless the file has nothing else.
        let named = name_of(&first) && lines.clone().nth(1).is_some();
        return Ok(lines.skip(usize::from(named)).map(Entry::new).collect());
    };
    let (category, challenge) = (find(&["category"]), find(&["challenge"]));
    lines.next();
    let entry = |(i, line): (usize, &str)| -> Result<Entry> {
        let fields: Vec<_> = line.split('\t').collect();
        ensure!(
            fields.len() <= header.len(),
            "{name}, line {}: {} fields, but the header has {}",
            i + 2,
            fields.len(),
            header.len()
        );
        let field =
            |at: Option<usize>| at.and_then(|at| fields.get(at)).filter(|f| !f.is_empty()).map(|f| f.to_string());
        let prompt = field(Some(prompt)).unwrap_or_default();
        Ok(Entry { prompt, category: field(category), challenge: field(challenge), ..Entry::default() })
    };
    lines.enumerate().map(entry).collect()
}

/// The elements of a JSON array, or of lines of JSON objects; `None` if the text is neither. A plain prompt may begin with a bracket
/// too, so a bracket alone does not make it JSON.
fn json(text: &str) -> Option<Result<Vec<Value>>> {
    let begin = text.trim_start();
    if let Some(inside) = begin.strip_prefix('[') {
        let parsed = serde_json::from_str(begin);
        let looks = inside.trim_start().starts_with(['"', '{', ']']);
        return (parsed.is_ok() || looks).then(|| Ok(parsed?));
    }
    let inside = begin.strip_prefix('{')?;
    inside.trim_start().starts_with('"').then(|| {
        let values = serde_json::Deserializer::from_str(begin).into_iter().collect::<Result<_, _>>();
        Ok(values?)
    })
}

fn json_entry(value: &Value) -> Option<Entry> {
    if let Some(prompt) = value.as_str() {
        return Some(Entry::new(prompt));
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let prompt = text(col::PROMPT).or_else(|| text(pairs::CAPTION))?;
    Some(Entry { prompt, category: text(col::CATEGORY), challenge: text(col::CHALLENGE), ..Entry::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(text: &str) -> Vec<String> {
        text_entries("x", text.as_bytes()).unwrap().into_iter().map(|e| e.prompt).collect()
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
        let error = |text: &[u8]| format!("{:#}", text_entries("x", text).unwrap_err());
        assert!(error(b"a\nb\n\xff\n").contains("line 3"), "{}", error(b"a\nb\n\xff\n"));
        assert!(error(b"Prompt\tNote\na\tb\nc\td\te\n").contains("line 3: 3 fields"));
        assert!(error(b"[\"a\", 7]").contains("element 1"));
        assert!(error(b"[\"a\", ").contains("JSON"));
        assert!(error(b"Prompt,Category\na,b\n").contains("CSV"));
        assert!(error(b"\"prompt\"\n\"a cat, sitting\"\n").contains("CSV"));
    }
}
