//! Which metrics, and where their models lie.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nets::{
    hub,
    scorer::{Files, Metric, Options, Scorer, Source},
};

/// Opened metrics by name.
pub type Scorers = Vec<(&'static str, Box<dyn Scorer>)>;

/// The metrics of `--metrics`.
///
/// # Errors
/// One that does not exist, or stands twice.
pub fn metrics(names: &[String]) -> Result<Vec<&'static Metric>> {
    let mut metrics: Vec<&Metric> = vec![];
    for name in names {
        let metric = Metric::named(name)?;
        ensure!(metrics.iter().all(|m| m.name != metric.name), "--metrics names '{name}' twice");
        metrics.push(metric);
    }
    Ok(metrics)
}

/// Where each metric's model lies: what `--model` says, else `--models`.
///
/// # Errors
/// A metric without a model (where it needs one); a path that does not exist; a `--model` for a metric that is not asked for.
pub fn sources(
    metrics: &[&Metric],
    folder: Option<&Path>,
    given: &[String],
    allow_download: bool,
) -> Result<Vec<Source>> {
    let mut named = vec![];
    for flag in given {
        let (name, paths) =
            flag.split_once('=').with_context(|| format!("--model {flag} is not METRIC=TOWER or METRIC=TOWER,HEAD"))?;
        let metric = Metric::named(name).with_context(|| format!("--model {flag}"))?;
        ensure!(metric.files != Files::Nothing, "--model {flag}: '{name}' needs no model");
        ensure!(metrics.iter().any(|m| m.name == name), "--model {flag}: --metrics does not name '{name}'");
        ensure!(named.iter().all(|(n, _)| *n != name), "--model names '{name}' twice");
        named.push((name, paths));
    }
    let source = |metric: &&Metric| -> Result<Source> {
        let name = metric.name;
        if metric.files == Files::Nothing {
            return Ok(Source { tower: PathBuf::new(), head: None });
        }
        let (tower, head) = match (named.iter().find(|(n, _)| *n == name), folder) {
            (Some((_, paths)), _) => match paths.split_once(',') {
                Some((tower, head)) if metric.files == Files::TowerAndHead && !Path::new(paths).exists() => {
                    (PathBuf::from(tower), Some(PathBuf::from(head)))
                }
                _ => (PathBuf::from(paths), None),
            },
            (None, Some(folder)) => {
                ensure!(folder.is_dir(), "--models {} is not a folder", folder.display());
                let tower = folder.join(name);
                ensure!(
                    tower.exists(),
                    "{} does not exist; put the files of '{name}' there, or name them with --model {name}=PATH",
                    tower.display()
                );
                (tower, None)
            }
            (None, None) => bail!("metric '{name}' has no model; add --models DIR, or --model {name}=PATH"),
        };
        if let Some(head) = &head {
            ensure!(head.exists(), "{} does not exist; expected the head of '{name}'", head.display());
        }
        Ok(Source { tower: hub::resolve(&tower, allow_download)?, head })
    };
    metrics.iter().map(source).collect()
}

/// Loads every model.
pub fn open(metrics: &[&'static Metric], sources: &[Source], options: &Options) -> Result<Scorers> {
    let open = |(metric, source): (&&'static Metric, &Source)| {
        let scorer = (metric.open)(source, options).with_context(|| format!("metric '{}'", metric.name))?;
        Ok((metric.name, scorer))
    };
    metrics.iter().zip(sources).map(open).collect()
}
