//! LAION's aesthetic predictor: a head on CLIP-L's image embedding of unit length. The caption does not matter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use pipe::id;

use super::clip_model::{ClipModel, Reading};
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
    let head = Head::read(&weights, tower.width())?;
    let hash = id::hex(&id::sha256_of(&[tower.hash.as_bytes(), weights.hash()?.as_bytes()]));
    Ok(Scorer {
        id: format!("sha256:{hash}; {}", tower.preprocess.id()),
        preprocess: Some(tower.preprocess),
        model: Model::Towers(Box::new(Aesthetic { tower, head })),
    })
}

/// `head.pth`, or the only `.pth` file of a folder.
fn head_in(folder: &Path) -> Result<PathBuf> {
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

/// y = x W^T + b
struct Layer {
    weight: Vec<f64>, // (out, in)
    bias: Vec<f64>,   // (out)
}

impl Layer {
    fn apply(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.weight.chunks_exact(x.len()).zip(&self.bias);
        rows.map(|(row, b)| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b).collect()
    }

    /// One layer that does what `before` and then this layer do.
    fn after(&self, before: &Layer) -> Layer {
        let (inner, width) = (before.bias.len(), before.weight.len() / before.bias.len());
        let mut weight = Vec::with_capacity(self.bias.len() * width);
        for row in self.weight.chunks_exact(inner) {
            let mut sum = vec![0f64; width];
            for (w, before) in row.iter().zip(before.weight.chunks_exact(width)) {
                sum.iter_mut().zip(before).for_each(|(sum, b)| *sum += w * b);
            }
            weight.extend(sum);
        }
        Layer { weight, bias: self.apply(&before.bias) }
    }
}

/// Layers with ReLU between them. A head without activations is one layer.
pub(super) struct Head(Vec<Layer>);

/// The numbers of the linear layers in the published heads. The numbers between them belong to dropout and activations.
const LINEAR: [usize; 5] = [0, 2, 4, 6, 7]; // sac+logos+ava1-l14-linearMSE, ava+logos-l14-linearMSE
const RELU: [usize; 5] = [0, 3, 6, 9, 11]; // ava+logos-l14-reluMSE

impl Head {
    /// Reads a head for vectors of `width` numbers.
    pub(super) fn read(weights: &Weights, width: usize) -> Result<Self> {
        let mut numbers = BTreeMap::new();
        for name in weights.names() {
            if let Some(number) = name.strip_prefix("layers.").and_then(|n| n.strip_suffix(".weight")) {
                numbers.insert(number.parse::<usize>().ok(), name);
            }
        }
        let numbers: Vec<usize> = numbers.into_keys().flatten().collect();
        ensure!(
            numbers == LINEAR || numbers == RELU,
            "{} is not a known aesthetic head: its linear layers are {numbers:?}, expected layers.{LINEAR:?} (nothing between them) or {RELU:?} (ReLU between them)",
            weights.name
        );
        let mut layers: Vec<Layer> = vec![];
        let mut inner = width;
        for n in &numbers {
            let name = format!("layers.{n}.bias");
            let out = weights.raw(&name)?.elem_count();
            layers.push(Layer {
                weight: doubles(&weights.get(&format!("layers.{n}.weight"), &[out, inner])?)?,
                bias: doubles(&weights.get(&name, &[out])?)?,
            });
            inner = out;
        }
        ensure!(inner == 1, "{}: the last layer gives {inner} numbers, expected one", weights.name);
        if numbers == LINEAR {
            // Without activations, five layers are one affine map.
            layers = layers.into_iter().reduce(|before, layer| layer.after(&before)).into_iter().collect();
        }
        Ok(Self(layers))
    }

    /// The score of a vector `x` (width) of unit length.
    pub(super) fn apply(&self, x: &[f32]) -> f32 {
        let mut x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        for (i, layer) in self.0.iter().enumerate() {
            if i > 0 {
                x.iter_mut().for_each(|v| *v = v.max(0.0));
            }
            x = layer.apply(&x);
        }
        x[0] as f32
    }
}

fn doubles(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

impl Towers for Aesthetic {
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        self.tower.image_features(pictures)
    }

    fn score(&self, image: &[f32], _caption: &[f32]) -> f32 {
        self.head.apply(image)
    }
}
