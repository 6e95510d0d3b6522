//! The pictures that `train --sample-every` draws beside its log: a row per prompt, the base first, then the policy step by step.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use maud::{Markup, html};
use serde_json::Value;

use crate::embed::LADDER;

/// Columns beside the base's: as many as a screen shows.
const STEPS: usize = 7;
/// Rows of a run.
const PROMPTS: usize = 12;

/// The pictures that a run has drawn so far.
pub struct Pictures {
    run: String,
    prompts: Vec<String>,
    /// Heading and folder, the base first.
    columns: Vec<(String, PathBuf)>,
    /// The lines of winrates.jsonl.
    winrates: Vec<Value>,
}

impl Pictures {
    /// Those beside the log of `run`, if it has any.
    pub fn read(log: &Path, run: &str) -> Result<Option<Self>> {
        let folder = log.with_file_name("pictures");
        let Ok(prompts) = fs::read_to_string(folder.join("prompts.txt")) else { return Ok(None) };
        let mut steps = steps_of(&folder)?;
        let every = steps.len().div_ceil(STEPS).max(1);
        let last = steps.len().saturating_sub(1);
        // The last of all is shown, and every n-th before it.
        steps =
            steps.into_iter().enumerate().filter(|(i, _)| (last - i).is_multiple_of(every)).map(|(_, s)| s).collect();
        let base = Some(("base".to_owned(), folder.join("base"))).filter(|(_, base)| base.is_dir());
        let steps = steps.into_iter().map(|(step, path)| (format!("step {step}"), path));
        let winrates = fs::read_to_string(folder.join("winrates.jsonl")).unwrap_or_default();
        Ok(Some(Self {
            run: run.to_owned(),
            prompts: prompts.lines().take(PROMPTS).map(str::to_owned).collect(),
            columns: base.into_iter().chain(steps).collect(),
            winrates: winrates.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
        }))
    }

    pub fn section(&self) -> Result<Markup> {
        let rows = self.prompts.iter().enumerate().map(|(i, prompt)| {
            let cell =
                |(heading, folder): &(String, PathBuf)| self.cell(heading, &folder.join(format!("{i:02}.png")), prompt);
            Ok((prompt, self.columns.iter().map(cell).collect::<Result<Vec<_>>>()?))
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        Ok(html! {
            h3 { (self.run) }
            div.scroll { table.pictures {
                thead { tr { th { "prompt" } @for (heading, _) in &self.columns { th { (heading) } } } }
                tbody { @for (prompt, cells) in &rows { tr { th scope="row" { (prompt) } @for cell in cells { td { (cell) } } } } }
            } }
            p.remark { "Every picture of a prompt is drawn from the same noise." }
            (self.rates())
        })
    }

    fn cell(&self, heading: &str, file: &Path, prompt: &str) -> Result<Markup> {
        let Ok(bytes) = fs::read(file) else { return Ok(html! { "-" }) }; // not drawn yet
        let image = LADDER[3].embed(&bytes, None).with_context(|| file.display().to_string())?;
        Ok(html! { img src=(image.src) width="128" alt={ (prompt) ", " (heading) }; })
    }

    /// On what share of the prompts the policy's picture scores higher than the base's.
    fn rates(&self) -> Markup {
        let metrics = |line: &Value| line["metrics"].as_object().cloned().unwrap_or_default();
        let Some(last) = self.winrates.last() else { return html! {} };
        let names: Vec<String> = metrics(last).keys().cloned().collect();
        let percent = |value: &Value| value.as_f64().map_or("-".into(), |x| format!("{:.0}", 100.0 * x));
        html! {
            div.scroll { table {
                thead { tr { th { "win rate over the base, %" } th { "prompts" } @for name in &names { th { (name) } } } }
                tbody { @for line in &self.winrates { tr {
                    th scope="row" { "step " (line["step"]) }
                    td { (line["n"]) }
                    @for name in &names {
                        @let cell = &metrics(line)[name];
                        td { (percent(&cell["rate"])) " [" (percent(&cell["low"])) ", " (percent(&cell["high"])) "]" }
                    }
                } } }
            } }
        }
    }
}

/// The folders of pictures by step.
fn steps_of(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let step = |path: PathBuf| Some((path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?, path));
    let mut steps: Vec<(u64, PathBuf)> = entries.flatten().filter_map(|entry| step(entry.path())).collect();
    steps.sort();
    Ok(steps)
}
