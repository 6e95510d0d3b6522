//! HPS v2: the cosine of a CLIP-H that was trained on human choices.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use pipe::names::Names;

use super::clip_model::{ClipModel, Layout, RESIZE, Reading};
use super::metric::{Band, Choice, Metric, ModelFiles, Needs, Options, Role};
use super::model::Scorer;
pub const METRIC: Metric = Metric {
    name: "hps",
    role: Role::Voter,
    needs: Needs::Tower,
    band: Band { mean: [0.2, 0.3], sd: [0.01, 0.04] },
    choices: &[&VERSION, &RESIZE],
    open,
};

pipe::names! {
    /// Editions of HPSv2: the same arithmetic with other weights, and so other scores.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Version {
        /// HPSv2, the file HPS_v2_compressed.pt
        V2_0 = "2.0",
        /// HPSv2.1, the file HPS_v2.1_compressed.pt
        V2_1 = "2.1",
    }
}

const VERSION: Choice = Choice {
    name: "hps-version",
    help: "Which HPS an open_clip file (HPS_v2.1_compressed.pt) is; nothing in it says so, and the scores differ",
    values: Version::FORMS,
    default: None,
};

fn open(files: &ModelFiles, options: &Options) -> Result<Scorer> {
    let chosen = options.choice(&VERSION)?;
    let tower = published_file(&files.tower, chosen)?;
    let model = ClipModel::open(&tower, Reading::open_clip(options)?, true, options)?;
    check_version(&model.file, model.layout, chosen)?;
    Ok(model.scorer())
}

/// Both editions may lie in one folder, as on the hub.
fn published_file(tower: &Path, chosen: Option<Version>) -> Result<PathBuf> {
    let file = |version| match version {
        Version::V2_0 => tower.join("HPS_v2_compressed.pt"),
        Version::V2_1 => tower.join("HPS_v2.1_compressed.pt"),
    };
    match chosen {
        Some(version) if file(version).is_file() => Ok(file(version)),
        None if [Version::V2_0, Version::V2_1].into_iter().all(|v| file(v).is_file()) => {
            bail!("{} holds HPS 2.0 and 2.1; choose one of them", tower.display())
        }
        _ => Ok(tower.to_owned()),
    }
}

/// Only the user can say which edition a file is: the arithmetic is the same, so nothing would notice a mistake, and a file
/// may have any name. A name that contradicts the user is refused all the same.
fn check_version(file: &Path, layout: Layout, chosen: Option<Version>) -> Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let named = match &*name {
        n if n.contains("v2.1") => Some(Version::V2_1),
        n if n.contains("v2.0") || n.contains("HPS_v2_") => Some(Version::V2_0),
        _ => None,
    };
    match (chosen, named) {
        (Some(chosen), Some(named)) if chosen != named => {
            bail!("version {chosen} was chosen, but {} says {named}", file.display())
        }
        (Some(_), _) => Ok(()),
        (None, _) => {
            ensure!(
                layout == Layout::HuggingFace,
                "{} does not say which HPS it is, and the editions give different scores; choose version {}",
                file.display(),
                named.map_or("2.0 or 2.1".into(), |v| v.to_string())
            );
            Ok(())
        }
    }
}
