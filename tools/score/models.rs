//! Which metrics are asked for, and where their models lie.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nets::hub;
use nets::scorer::{self, Metric, ModelFiles, Needs};
use pipe::cli::Hub;

#[derive(clap::Args, Clone, Debug)]
pub struct ModelFlags {
    /// Folder with a model for each metric: DIR/hps, DIR/clip, ...
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// The model of one metric: a weight file, a folder or a hub id; for `aesthetic` also the head
    #[arg(long, value_name = "M=TOWER[,HEAD]")]
    model: Vec<String>,
    #[command(flatten)]
    hub: Hub,
}

pub fn metrics(names: &[String]) -> Result<Vec<&'static Metric>> {
    let mut metrics: Vec<&Metric> = vec![];
    for name in names {
        let metric = scorer::named(name)?;
        ensure!(metrics.iter().all(|m| m.name != metric.name), "--metrics names '{name}' twice");
        metrics.push(metric);
    }
    Ok(metrics)
}

impl ModelFlags {
    /// Where each metric's model lies: at the path that `--model` gives, else in the folder of `--models`.
    pub fn files(&self, metrics: &[&Metric]) -> Result<Vec<ModelFiles>> {
        let named = self.named(metrics)?;
        let files = |metric: &&Metric| -> Result<ModelFiles> {
            let name = metric.name;
            if metric.needs == Needs::Nothing {
                return Ok(ModelFiles { tower: PathBuf::new(), head: None });
            }
            let paths = named.iter().find(|(n, _)| *n == name).map(|(_, paths)| *paths);
            let (tower, head) = match (paths, &self.models) {
                (Some(paths), _) => tower_and_head(metric, paths),
                (None, Some(folder)) => (in_folder(folder, name)?, None),
                (None, None) => bail!("metric '{name}' has no model; add --models DIR, or --model {name}=PATH"),
            };
            if let Some(head) = &head {
                ensure!(head.exists(), "{} does not exist; expected the head of '{name}'", head.display());
            }
            Ok(ModelFiles { tower: self.hub.folder(&tower, hub::resolve)?, head })
        };
        metrics.iter().map(files).collect()
    }

    /// The values of `--model` as (metric, paths).
    fn named(&self, metrics: &[&Metric]) -> Result<Vec<(&str, &str)>> {
        let mut named: Vec<(&str, &str)> = vec![];
        for flag in &self.model {
            let parts = flag.split_once('=');
            let (name, paths) = parts.with_context(|| format!("--model {flag} is not METRIC=TOWER[,HEAD]"))?;
            let metric = scorer::named(name).with_context(|| format!("--model {flag}"))?;
            ensure!(metric.needs != Needs::Nothing, "--model {flag}: '{name}' needs no model");
            ensure!(metrics.iter().any(|m| m.name == name), "--model {flag}: --metrics does not name '{name}'");
            ensure!(named.iter().all(|(n, _)| *n != name), "--model names '{name}' twice");
            named.push((name, paths));
        }
        Ok(named)
    }
}

/// `TOWER` or `TOWER,HEAD`. A path that exists may hold a comma.
fn tower_and_head(metric: &Metric, paths: &str) -> (PathBuf, Option<PathBuf>) {
    match paths.split_once(',') {
        Some((tower, head)) if metric.needs == Needs::TowerAndHead && !Path::new(paths).exists() => {
            (tower.into(), Some(head.into()))
        }
        _ => (paths.into(), None),
    }
}

/// The model of a metric in the folder of `--models`.
fn in_folder(folder: &Path, name: &str) -> Result<PathBuf> {
    ensure!(folder.is_dir(), "--models {} is not a folder", folder.display());
    let tower = folder.join(name);
    ensure!(
        tower.exists(),
        "{} does not exist; put the files of '{name}' there, or name them with --model {name}=PATH",
        tower.display()
    );
    Ok(tower)
}

/// The metric and its flags, in front of an error about its model.
pub fn described(metric: &Metric) -> String {
    let name = metric.name;
    let paths = if metric.needs == Needs::TowerAndHead { "TOWER,HEAD" } else { "TOWER" };
    let choices: String = metric.choices.iter().map(|choice| format!(", --{}", choice.name)).collect();
    format!("metric '{name}' (--model {name}={paths}{choices})")
}
