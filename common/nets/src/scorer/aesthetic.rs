//! LAION's aesthetic predictor: a head on CLIP-L's image embedding of unit length. The caption does not matter.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pipe::id;

use super::clip_model::{ClipModel, Reading};
use super::head::{Between, Form, Head};
use super::metric::{Band, Metric, ModelFiles, Needs, Options, Role};
use super::model::{Model, Scorer, Towers};
use super::picture::Picture;
use crate::weights::Weights;

pub const METRIC: Metric = Metric {
    name: "aesthetic",
    role: Role::Voter,
    needs: Needs::TowerAndHead,
    band: Band { mean: [5.0, 6.5], sd: [0.3, 0.7] },
    choices: &[],
    open,
};

struct Aesthetic {
    tower: ClipModel,
    head: Head,
}

fn open(files: &ModelFiles, options: &Options) -> Result<Scorer> {
    let file = match &files.head {
        Some(file) if !file.is_dir() => file.clone(),
        Some(folder) => head_in(folder)?,
        None => head_in(&files.tower)?,
    };
    let tower = ClipModel::open(&files.tower, Reading::HuggingFace, false, options)
        .context("the aesthetic head needs CLIP-L's image tower")?;
    let weights = Weights::open(&file)?;
    let head = Head::read(&weights, "layers", tower.width(), &FORMS)?;
    let hash = id::hex(&id::sha256_of(&[tower.hash.as_bytes(), weights.hash()?.as_bytes()]));
    Ok(Scorer {
        id: format!("sha256:{hash}; {}", tower.preprocess.id()),
        preprocess: Some(tower.preprocess),
        model: Model::Towers(Box::new(Aesthetic { tower, head })),
    })
}

/// `head.pth`, or the only `.pth` file of a folder.
pub(super) fn head_in(folder: &Path) -> Result<PathBuf> {
    let usual = folder.join("head.pth");
    if usual.is_file() {
        return Ok(usual);
    }
    ensure!(folder.is_dir(), "no head was named for the tower {}", folder.display());
    let cannot = || format!("cannot read {}", folder.display());
    let mut heads = vec![];
    for entry in folder.read_dir().with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.extension().is_some_and(|e| e == "pth") {
            heads.push(path);
        }
    }
    match &heads[..] {
        [one] => Ok(one.clone()),
        [] => bail!("{} holds no head (a .pth file); name it", folder.display()),
        _ => bail!("{} holds several .pth files; name the head", folder.display()),
    }
}

/// The published heads: sac+logos+ava1-l14-linearMSE and ava+logos-l14-linearMSE; ava+logos-l14-reluMSE.
pub(super) const FORMS: [Form; 2] = [([0, 2, 4, 6, 7], Between::Nothing), ([0, 3, 6, 9, 11], Between::Relu)];

impl Towers for Aesthetic {
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        self.tower.image_features(pictures)
    }

    fn score(&self, image: &[f32], _caption: &[f32]) -> f32 {
        self.head.apply(image) as f32
    }
}
