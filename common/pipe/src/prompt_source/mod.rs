//! Reads prompts from whatever a benchmark publishes: CSV, TSV, JSON, text, Parquet, an Arrow stream. The format is recognised by
//! the content, not by the name.

mod text;

use std::collections::HashSet;
use std::io::{BufRead, Cursor, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use arrow::array::Array;

use crate::id::{hex, prompt_id, sha256};
use crate::origin::InputOrigin;
use crate::schema::{pairs, prompts as col};
use crate::scored::owned;
use crate::table::{self, Inputs};
use crate::{foreign, place};

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
    if path.is_dir() || place::is_url(path) {
        return table_entries(Inputs::open(&[path.to_owned()])?, give);
    }
    let text = if path.as_os_str() == "-" {
        let mut stdin = std::io::stdin().lock();
        ensure!(!stdin.is_terminal(), "standard input is a terminal; pipe prompts into it, or name a file");
        // Every Arrow stream begins with this byte, and no text does.
        if stdin.fill_buf().with_context(say)?.first() == Some(&0xff) {
            drop(stdin);
            return table_entries(Inputs::open(&[path.to_owned()])?, give);
        }
        whole_text(&name, &mut stdin)?
    } else {
        let hint = || match path.exists() {
            true => say(),
            false => format!("{} (a prompt itself comes through a pipe: echo 'a fox' | ... -)", say()),
        };
        let mut file = std::fs::File::open(path).with_context(hint)?;
        let mut begin = vec![];
        Read::by_ref(&mut file).take(6).read_to_end(&mut begin).with_context(say)?;
        if begin.first() == Some(&0xff) && table::is_table(&begin) {
            // It may be a named pipe, which cannot be opened again.
            return table_entries(Inputs::stream(&name, Cursor::new(begin).chain(file))?, give);
        } else if table::is_table(&begin) {
            return table_entries(Inputs::open(&[path.to_owned()])?, give);
        }
        whole_text(&name, &mut Cursor::new(begin).chain(file))?
    };
    text::entries(&name, &text)?.into_iter().for_each(give);
    Ok(vec![InputOrigin { sha256: Some(hex(&sha256(&text))), origin: None }])
}

/// Bytes of one file of text: some million prompts. A longer list belongs in a table.
const LONGEST_TEXT: u64 = 1 << 28;

/// The bytes of a source that is not a table.
fn whole_text(name: &str, source: &mut dyn Read) -> Result<Vec<u8>> {
    let say = || format!("cannot read {name}");
    let mut bytes = vec![];
    source.take(1 << 16).read_to_end(&mut bytes).with_context(say)?;
    ensure!(!bytes.is_empty(), "{name} is empty: no prompts in it");
    ensure!(
        !table::is_table(&bytes),
        "{name} is a Parquet file, which cannot be read from a pipe: name the file itself"
    );
    let kind = if bytes.contains(&0) { foreign::named(&bytes) } else { foreign::named_text(&bytes) };
    if let Some(kind) = kind {
        bail!("{name} is {kind}");
    }
    ensure!(!bytes.contains(&0), "{name} is neither text nor a table: it holds bytes of 0");
    source.take(LONGEST_TEXT).read_to_end(&mut bytes).with_context(say)?;
    ensure!(
        bytes.len() as u64 <= LONGEST_TEXT,
        "{name} is a text of more than {} MiB; write its prompts as a Parquet table with a column 'prompt'",
        LONGEST_TEXT >> 20
    );
    Ok(bytes)
}

/// Names of the column of prompts, in capitals or not; the first that is there counts.
const NAMES: [&str; 3] = [col::PROMPT, "prompts", pairs::CAPTION];

fn table_entries(mut inputs: Inputs, give: &mut dyn FnMut(Entry)) -> Result<Vec<InputOrigin>> {
    // PartiPrompts writes its columns with capitals. A pairs table has none but the prompt's; an images table has them all.
    let fields = inputs.schema().fields().clone();
    let find = |wanted: &str| {
        let exact = fields.iter().find(|f| f.name() == wanted);
        exact.or_else(|| fields.iter().find(|f| f.name().to_lowercase() == wanted)).map(|f| f.name().as_str())
    };
    let Some(prompt) = NAMES.into_iter().find_map(find) else {
        inputs.require(&[col::PROMPT], "prompts are read from a column 'prompt' or 'caption'")?;
        bail!("{}: no column of prompts", inputs.name())
    };
    let [set, category, challenge, prob] =
        [col::SET, col::CATEGORY, col::CHALLENGE, col::NSFW_PROB].map(|name| find(name).unwrap_or(name));
    for rows in inputs.read(Some(&[prompt, set, category, challenge, prob]), 0..usize::MAX, table::BATCH)? {
        let rows = rows?;
        let prompts = rows.text(prompt)?;
        let [sets, categories, challenges] = [set, category, challenge].map(|name| rows.text_if_there(name));
        let (sets, categories, challenges) = (sets?, categories?, challenges?);
        let probs = if rows.has(prob) { Some(rows.f32_or_null(prob)?) } else { None };
        for i in 0..rows.len() {
            give(Entry {
                prompt: prompts.value(i).to_owned(),
                set: owned(&sets, i),
                category: owned(&categories, i),
                challenge: owned(&challenges, i),
                nsfw_prob: probs.as_ref().filter(|p| p.is_valid(i)).map(|p| p.value(i)),
            });
        }
    }
    inputs.origins()
}
