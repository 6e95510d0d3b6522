//! Texts: log.jsonl, the JSON of `winrate`, files of settings, the page and the card of `report`, and lists of prompts.

use std::{fs, path::Path};

use anyhow::Result;
use pipe::text::count;
use pipe::winrates::Winrates;
use serde_json::Value;

use crate::finding::{Finding, How};
use crate::lists::Named;

/// The longest text that is read, in bytes: a log of a million steps has half of it.
const LONGEST: u64 = 1 << 30;

/// `None` where the file is none of them.
pub fn look_at(path: &Path, how: How) -> Result<Option<Finding>> {
    let mut begin = [0; 16];
    let file = fs::File::open(path)?;
    let read = std::os::unix::fs::FileExt::read_at(&file, &mut begin, 0).unwrap_or(0);
    let begin = begin[..read].to_ascii_lowercase();
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let look: fn(&str, &Path, Named) -> Finding = match () {
        () if file.metadata()?.len() > LONGEST => return Ok(None),
        () if begin.starts_with(b"{") && ending == "jsonl" => {
            |text, _, images| if is_log(text) { log(text) } else { lines(text, images) }
        }
        () if begin.starts_with(b"{") || (begin.starts_with(b"[") && ending == "json") => {
            |text, _, images| json(text, images)
        }
        () if begin.starts_with(b"<!doctype html") || begin.starts_with(b"<html") => |text, path, _| page(text, path),
        () if ending == "md" && begin.starts_with(b"---") => |text, _, _| card(text),
        () if ending == "toml" => |text, _, _| settings(text),
        () if ending == "txt" && read > 0 => |text, _, _| prompts(text),
        () => return Ok(None),
    };
    Ok(Some(look(&String::from_utf8_lossy(&fs::read(path)?), path, Named::new(path, how))))
}

fn page(text: &str, path: &Path) -> Finding {
    let ours = text.contains("name=\"generator\" content=\"balanced-dpo report\"");
    let mut finding = Finding::new(if ours { "page of `report`" } else { "web page" });
    if !ours {
        finding.problem("`report` did not write it; a failed download leaves such a page: download the file again");
    } else if !text.trim_end().ends_with("</html>") {
        finding.problem("its end is missing");
    }
    // Images in a folder beside it (`report --images-in folder`).
    let names = text.split("/shown-").skip(1).filter_map(|rest| Some(format!("shown-{}", rest.split_once('"')?.0)));
    let is_usual = path.extension().is_some_and(|ending| ending == "html");
    let page = if is_usual { path.with_extension("") } else { path.to_owned() };
    let folder = page.display().to_string() + "-images";
    let lost = |name: &String| !fs::metadata(Path::new(&folder).join(name)).is_ok_and(|file| file.len() > 0);
    let lost: Vec<_> = names.filter(lost).collect();
    if let Some(first) = lost.first().filter(|_| ours) {
        finding.problem(format!("{} of its images are missing or empty, {folder}/{first} first", lost.len()));
    }
    finding
}

/// Markdown that begins with the hub's front matter, and of `report` ends with a block of JSON.
fn card(text: &str) -> Finding {
    let ours = text.contains("\n- balanced-dpo\n");
    let mut finding = Finding::new(if ours { "model card of `report`" } else { "Markdown" });
    let matter = text.lines().skip(1).any(|line| line == "---");
    if !matter || (ours && !text.trim_end().ends_with("\n}\n```")) {
        finding.problem("its end is missing");
    }
    finding
}

fn settings(text: &str) -> Finding {
    let tool = text.lines().next().and_then(|line| line.strip_prefix("# Settings of `")?.split('`').next());
    let mut finding = Finding::new(tool.map_or("settings".to_owned(), |tool| format!("settings of `{tool}`")));
    if let Err(error) = toml::de::DeTable::parse(text) {
        let line = error.span().map_or(1, |span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
        finding.problem(format!("line {line}: {}", error.message()));
    }
    finding
}

fn prompts(text: &str) -> Finding {
    let lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    let mut finding =
        Finding::new("text").holds(format!("{}, which `prompts` and `sample` read as prompts", count(lines, "line")));
    if text.contains(['\0', '\u{fffd}']) {
        finding.problem("it is not UTF-8");
    }
    finding
}

fn json(text: &str, mut images: Named) -> Finding {
    let first = text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok());
    match first {
        Some(_) if is_log(text) => return log(text),
        Some(Value::Object(_)) if text.trim_end().contains('\n') => return lines(text, images),
        _ => {}
    }
    match serde_json::from_str::<Winrates>(text) {
        Ok(winrates) => {
            let rates = winrates.comparisons.len().max(winrates.seeds.len());
            let metrics = winrates.metrics.join(", ");
            Finding::new("win rates").holds(format!("{}, metrics {metrics}", count(rates, "comparison")))
        }
        Err(_) => match serde_json::from_str::<Value>(text) {
            Ok(Value::Array(all)) => {
                let mut finding = Finding::new("list in JSON").holds(count(all.len(), "entry"));
                all.iter().filter_map(Value::as_object).for_each(|object| images.look_for_those_of(object));
                images.tell(&mut finding);
                finding
            }
            Ok(_) => {
                Finding::unknown("JSON", "it is not what `winrate --json` writes, nor another file that is read here")
            }
            Err(error) => Finding::not_whole("JSON", &error.into()),
        },
    }
}

fn is_log(text: &str) -> bool {
    let first = text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok());
    first.is_some_and(|line| line.get("step").is_some() && line.get("loss").is_some())
}

/// Lines of JSON, such as lists for `pairs` and `prompts`.
fn lines(text: &str, mut images: Named) -> Finding {
    let mut finding = Finding::new("lines of JSON");
    let full = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (i, line) in full() {
        match serde_json::from_str::<Value>(line) {
            Ok(value) => value.as_object().into_iter().for_each(|object| images.look_for_those_of(object)),
            Err(_) => finding.problem(format!("line {} is damaged", i + 1)),
        }
    }
    images.tell(&mut finding);
    finding.holds(count(full().count(), "line"))
}

/// Every line is the object of a step, and the steps follow each other.
fn log(text: &str) -> Finding {
    let mut finding = Finding::new("log of `train`");
    let (mut last, mut steps) = (None, 0);
    for (i, line) in text.lines().enumerate() {
        let step = serde_json::from_str::<Value>(line).ok().and_then(|line| line.get("step")?.as_u64());
        match (step, last) {
            (None, _) => finding.problem(format!("line {} is damaged", i + 1)),
            (Some(step), Some(before)) if step != before + 1 => {
                finding.problem(format!("line {}: step {step} follows step {before}", i + 1));
            }
            _ => {}
        }
        steps += usize::from(step.is_some());
        last = step.or(last);
    }
    finding.holds(format!("{}, the last is {}", count(steps, "step"), last.unwrap_or_default()))
}
