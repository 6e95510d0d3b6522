//! HPS v2: the cosine of a CLIP-H that was trained on human choices.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::{
    Band, Files, HpsVersion, Metric, Options, Role, Scorer, Source,
    clip_model::{ClipModel, Layout, Reading},
};

pub const METRIC: Metric = Metric {
    name: "hps",
    role: Role::Voter,
    files: Files::Tower,
    band: Band { mean: [0.2, 0.3], sd: [0.01, 0.04] },
    letterboxed: true,
    open,
};

fn open(source: &Source, options: &Options) -> Result<Box<dyn Scorer>> {
    let tower = published_file(&source.tower, options.hps_version)?;
    let mut model = ClipModel::open(&tower, Reading::OpenClip(options.antialias), true, options)?;
    model.version = version(&model.file, model.layout, options.hps_version)?;
    Ok(Box::new(model))
}

/// Both editions may lie in one folder, as on the hub.
fn published_file(tower: &Path, version: Option<HpsVersion>) -> Result<PathBuf> {
    let file = |version| match version {
        HpsVersion::V2_0 => tower.join("HPS_v2_compressed.pt"),
        HpsVersion::V2_1 => tower.join("HPS_v2.1_compressed.pt"),
    };
    let there = [HpsVersion::V2_0, HpsVersion::V2_1].map(|v| file(v).is_file());
    match version {
        Some(version) if file(version).is_file() => Ok(file(version)),
        None if there == [true, true] => {
            bail!("{} holds HPS 2.0 and 2.1; choose with --hps-version 2.0 or 2.1", tower.display())
        }
        _ => Ok(tower.to_owned()),
    }
}

/// The edition, which only the flag can say: the arithmetic is the same, so nothing would notice a mistake, and a file's
/// name is whatever somebody called it. A name that contradicts the flag is refused all the same.
fn version(file: &Path, layout: Layout, flag: Option<HpsVersion>) -> Result<Option<String>> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let named = match &*name {
        n if n.contains("v2.1") => Some(HpsVersion::V2_1),
        n if n.contains("v2.0") || n.contains("HPS_v2_") => Some(HpsVersion::V2_0),
        _ => None,
    };
    match (flag, named) {
        (Some(flag), Some(named)) if flag != named => {
            bail!("--hps-version {} was given, but {} says {}", flag, file.display(), named)
        }
        (Some(flag), _) => Ok(Some(flag.to_string())),
        (None, _) => {
            ensure!(
                layout == Layout::HuggingFace,
                "{} does not say which HPS it is, and the editions give different scores; add --hps-version {}",
                file.display(),
                named.map_or("2.0 or 2.1".into(), |named| named.to_string())
            );
            Ok(None)
        }
    }
}
