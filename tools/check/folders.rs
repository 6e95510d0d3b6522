//! Folders: checkpoints, models, what `encode` writes, and unfinished work.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nets::lora::KOHYA_FILE;
use nets::{folder, weights as nets_weights};
use pipe::schema::{images, pairs};
use pipe::table::{BATCH, Inputs, has_parts};
use pipe::text::count;
use serde_json::Value;

use crate::finding::{Finding, How};
use crate::{tables, texts, weights};

/// `None`: the folder is none of these; it may hold the parts of a table.
pub fn look_into(path: &Path, how: How) -> Result<Option<Finding>> {
    let has = |name: &str| path.join(name).exists();
    Ok(if has("plan.json") {
        Some(unfinished(path))
    } else if has("model_index.json") {
        Some(model(path, how))
    } else if has("state") || has("lora") || folder::DENOISERS.iter().any(|part| has(part)) {
        Some(checkpoint(path, how)?)
    } else if has("latents.parquet") || has("captions.parquet") {
        Some(encoded(path, how)?)
    } else if has(folder::ADAPTERS) {
        Some(weights::file(&path.join(folder::ADAPTERS), how)?)
    } else if has("config.json") {
        let mut finding = weights::folder(path, how);
        finding.kind = "network".into();
        Some(finding)
    } else {
        None
    })
}

/// Folders inside folders that are looked into.
const DEEPEST: usize = 8;

/// A folder of several things. `look` looks at each of them. Links to folders are not followed.
pub fn several(path: &Path, look: impl Fn(&Path) -> Result<Finding>) -> Result<Finding> {
    let (mut finding, mut whole, mut others) = (Finding::new("folder"), 0, 0);
    for (name, inner) in things_in(path, String::new(), 0)? {
        let found = look(&inner).unwrap_or_else(|error| Finding::not_whole("", &error));
        match found.unknown {
            _ if !found.problems.is_empty() => {
                finding.problems.extend(found.problems.iter().map(|problem| format!("{name}: {problem}")));
            }
            Some(_) => others += 1,
            None => {
                finding.holds.push(format!("{name}: whole, {}", found.kind));
                whole += 1;
            }
        }
    }
    if others > 0 {
        finding.holds.push(format!("{} of kinds that are not read here", count(others, "file")));
    }
    if whole == 0 && finding.problems.is_empty() {
        finding.unknown = Some("it holds no kind of file that these tools use".into());
    }
    Ok(finding)
}

/// The files in a folder, and its folders that are one thing each, by their names from there.
fn things_in(folder: &Path, prefix: String, depth: usize) -> Result<Vec<(String, PathBuf)>> {
    let cannot = || format!("cannot read {}", folder.display());
    let entries = fs::read_dir(folder).with_context(cannot)?.map(|entry| Ok(entry.with_context(cannot)?.path()));
    let mut entries = entries.collect::<Result<Vec<_>>>()?;
    entries.sort();
    let mut things = vec![];
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{prefix}{name}");
        let is_inner = path.is_dir() && !is_one_thing(&path);
        if !is_inner || depth == DEEPEST {
            things.push((name, path)); // also what is neither a file nor a folder
        } else if !path.is_symlink() {
            things.extend(things_in(&path, name + "/", depth + 1)?);
        }
    }
    Ok(things)
}

/// Whether a folder is a model, a checkpoint, a table in parts and so on.
fn is_one_thing(path: &Path) -> bool {
    has_parts(path) || !matches!(look_into(path, How { quick: true, root: None }), Ok(None))
}

/// `OUT.partial/`.
fn unfinished(path: &Path) -> Finding {
    let parts = fs::read_dir(path).into_iter().flatten().flatten();
    let parts = parts.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "crc32c")).count();
    let mut finding = Finding::new("unfinished work").holds(format!("{parts} finished parts"));
    finding.problem("the work was stopped before its end: the same command continues it");
    finding
}

/// A model as diffusers stores it: the parts that model_index.json names.
fn model(path: &Path, how: How) -> Finding {
    let text = fs::read(path.join("model_index.json")).unwrap_or_default();
    let Ok(Value::Object(index)) = serde_json::from_slice(&text) else {
        let mut finding = Finding::new("model");
        finding.problem("model_index.json is damaged");
        return finding;
    };
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("model").to_owned();
    let mut finding = Finding::new(format!("model ({})", pipe::text::shown(&class)));
    let parts = index.iter().filter(|(_, of)| of.as_array().is_some_and(|of| of.iter().all(Value::is_string)));
    for (name, _) in parts {
        let part = path.join(name);
        if !part.exists() && ["safety_checker", "feature_extractor"].contains(&&**name) {
            finding.holds.push(format!("without {name}, which is not needed here"));
            continue;
        }
        let needed: &[&str] = match &**name {
            "scheduler" => &["scheduler_config.json"],
            "feature_extractor" | "image_processor" => &["preprocessor_config.json"],
            name if name.starts_with("tokenizer") => &[],
            _ => &["config.json"],
        };
        let lost: Vec<_> = needed.iter().filter(|file| !part.join(file).is_file()).collect();
        lost.iter().for_each(|file| finding.problem(format!("{name}/{file} is missing")));
        let is = |file: &str| part.join(file).is_file();
        if name.starts_with("tokenizer") {
            let whole = is("tokenizer.json") || is("spiece.model") || (is("vocab.json") && is("merges.txt"));
            if !whole {
                finding.problem(format!("{name}/ holds neither vocab.json with merges.txt nor tokenizer.json"));
            }
        } else if needed == ["config.json"] && lost.is_empty() {
            finding.with_part(name, weights::folder(&part, how));
        }
    }
    finding
}

/// What `train` or `refresh-ref` writes.
fn checkpoint(path: &Path, how: How) -> Result<Finding> {
    let mut finding = Finding::new("checkpoint");
    let state = path.join("state/optimizer.safetensors");
    let published = folder::DENOISERS.iter().chain(&["lora"]).map(|part| path.join(part)).filter(|part| part.is_dir());
    let published: Vec<_> = published.collect();
    for folder in &published {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let part = if name == "lora" {
            weights::file(&folder.join(folder::ADAPTERS), how)?
        } else {
            weights::folder(folder, how)
        };
        finding.with_part(&name, part);
        let kohya = folder.join(KOHYA_FILE);
        if name == "lora" && kohya.exists() {
            let part = weights::file(&kohya, how).unwrap_or_else(|error| Finding::not_whole("", &error));
            finding.problems.extend(part.problems.into_iter().map(|problem| format!("{KOHYA_FILE}: {problem}")));
        }
        if name != "lora" && !folder.join("config.json").is_file() {
            finding.problem(format!("{name}/config.json is missing"));
        }
    }
    if published.is_empty() {
        finding.problem(
            "neither unet/, transformer/ nor lora/ is there: the run has not ended, or its weights were removed",
        );
    }
    if state.is_file() {
        finding.kind = "checkpoint of `train`".into();
        finding.with_part("state", weights::file(&state, how)?);
        finding.problems.extend(of_other_step(&state, finding.origin.as_ref()));
    } else if path.join("state").is_dir() {
        finding.problem("state/optimizer.safetensors is missing: no run can continue from here");
    } else if finding.origin.as_ref().is_some_and(|origin| origin.tool == "train") {
        finding.holds.push("without state/: it can be used, and no run can continue from it".into());
    }
    let log = path.join("log.jsonl");
    if log.is_file()
        && let Some(log) = texts::look_at(&log, how)?
    {
        finding.with_part("log.jsonl", log);
    }
    let older =
        fs::read_dir(path)?.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("checkpoint-"));
    let mut older: Vec<_> = older.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    older.sort();
    for path in older {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Finding { problems, .. } = checkpoint(&path, how)?;
        finding.holds.push(format!("{name}: {}", if problems.is_empty() { "whole" } else { "NOT whole" }));
        finding.problems.extend(problems.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    Ok(finding)
}

/// Weights and state belong together by their origin.
fn of_other_step(state: &Path, published: Option<&pipe::origin::Origin>) -> Option<String> {
    let text = nets_weights::metadata(state).ok()?.remove("train")?;
    let saved: Value = serde_json::from_str(&text).ok()?;
    let same = serde_json::to_value(published?).ok()? == *saved.get("origin")?;
    (!same).then(|| "the weights do not belong to state/".into())
}

/// The tables of `encode`.
const ENCODED: [&str; 3] = ["latents", "captions", "pairs"];

fn encoded(path: &Path, how: How) -> Result<Finding> {
    let mut finding = Finding::new("folder of `encode`");
    for name in ENCODED {
        let table = path.join(name).with_extension("parquet");
        match table.exists() {
            true => finding.with_part(name, tables::look_at(&table, how)?),
            false => finding.problem(format!("{name}.parquet is missing")),
        }
    }
    if finding.is_whole() && !how.quick {
        let table = |name: &str| Inputs::open_one(&path.join(name).with_extension("parquet"));
        let uids = texts_of(table("latents")?, images::IMAGE_UID)?;
        let captions = texts_of(table("captions")?, pairs::CAPTION)?;
        for (column, known, what) in [
            (pairs::UID[0], &uids, "latents"),
            (pairs::UID[1], &uids, "latents"),
            (pairs::CAPTION, &captions, "captions"),
        ] {
            let lost = texts_of(table("pairs")?, column)?.difference(known).count();
            if lost > 0 {
                finding.problem(format!("{what}.parquet lacks {lost} values of `{column}` in pairs.parquet"));
            }
        }
    }
    Ok(finding)
}

fn texts_of(mut table: Inputs, column: &str) -> Result<HashSet<String>> {
    let mut all = HashSet::new();
    for rows in table.read(Some(&[column]), 0..usize::MAX, BATCH)? {
        let texts = rows?.text_or_null(column)?;
        all.extend(texts.iter().flatten().map(str::to_owned));
    }
    Ok(all)
}
