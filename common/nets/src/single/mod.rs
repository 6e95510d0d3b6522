//! Stable Diffusion or FLUX in one file, under its original tensor names, as Civitai and kohya's scripts have it.
//!
//! It is read through a folder like diffusers', which lasts as long as the program: the configurations lie there, and weights that
//! are looked for there are those of the file under diffusers' names.

mod published;
mod write;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use pipe::{place, scratch};
use published::Kind;
pub use published::{Family, configs};
pub use write::write;

use crate::folder::{DENOISER, TRANSFORMER};
use crate::mmdit::MMDiTConfig;
use crate::names::{self, Names, UNET};
use crate::process::PredictionType;
use crate::vae::VaeConfig;
use crate::weights::{self, Shapes, Weights};
use crate::{config, unet};

/// One network of a model in one file.
#[derive(Clone)]
pub struct Network {
    file: PathBuf,
    part: Part,
    /// The prefix of its tensors' names.
    prefix: &'static str,
}

/// The parts of a model: the folder of each, and what the names of its tensors begin with in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Unet,
    Vae,
    /// Stable Diffusion 1's text encoder.
    Clip,
    /// Stable Diffusion 2's.
    OpenClip,
    /// SDXL's two.
    ClipOfTwo,
    OpenClipOfTwo,
    /// The denoiser of Stable Diffusion 3 and FLUX, and their text encoders.
    Transformer,
    ClipOfThree,
    OpenClipOfThree,
    T5OfThree,
    T5OfTwo,
}

impl Part {
    pub const ALL: [Self; 6] =
        [Self::Unet, Self::Vae, Self::Clip, Self::OpenClip, Self::ClipOfTwo, Self::OpenClipOfTwo];

    /// The possible parts of a file with a transformer.
    const OF_SD3: [Self; 5] = [Self::Transformer, Self::Vae, Self::ClipOfThree, Self::OpenClipOfThree, Self::T5OfThree];
    const OF_FLUX: [Self; 4] = [Self::Transformer, Self::Vae, Self::ClipOfThree, Self::T5OfTwo];

    pub fn folder(self) -> &'static str {
        match self {
            Self::Unet => DENOISER,
            Self::Transformer => TRANSFORMER,
            Self::Vae => "vae",
            Self::Clip | Self::OpenClip | Self::ClipOfTwo | Self::ClipOfThree => "text_encoder",
            Self::OpenClipOfTwo | Self::OpenClipOfThree | Self::T5OfTwo => "text_encoder_2",
            Self::T5OfThree => "text_encoder_3",
        }
    }

    pub fn prefix(self) -> &'static str {
        match self {
            Self::Unet | Self::Transformer => UNET,
            Self::Vae => "first_stage_model.",
            Self::Clip => "cond_stage_model.transformer.",
            Self::OpenClip => "cond_stage_model.model.",
            Self::ClipOfTwo => "conditioner.embedders.0.transformer.",
            Self::OpenClipOfTwo => "conditioner.embedders.1.model.",
            Self::ClipOfThree => "text_encoders.clip_l.transformer.",
            Self::OpenClipOfThree => "text_encoders.clip_g.transformer.",
            Self::T5OfThree | Self::T5OfTwo => "text_encoders.t5xxl.transformer.",
        }
    }

    /// The names of its tensors. `folder` holds its configuration.
    pub fn names(self, folder: &Path) -> Result<Names> {
        let config = folder.join("config.json");
        Ok(match self {
            Self::Unet => unet::read_config(&config)?.first_names(),
            Self::Vae => Names::vae(VaeConfig::read(&config)?.block_out_channels.len()),
            Self::Transformer => MMDiTConfig::open(&config)?.first_names(),
            Self::Clip | Self::ClipOfTwo | Self::ClipOfThree | Self::OpenClipOfThree => Names::clip(),
            Self::T5OfThree | Self::T5OfTwo => Names::t5(),
            Self::OpenClip => Names::open_clip_text(false),
            Self::OpenClipOfTwo => Names::open_clip_text(true),
        })
    }
}

/// The networks of the folders that [`folder`] made.
static NETWORKS: Mutex<BTreeMap<PathBuf, Network>> = Mutex::new(BTreeMap::new());

/// The network that [`folder`] put at `path`.
pub(crate) fn network(path: &Path) -> Option<Network> {
    NETWORKS.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
}

/// The weights of the folder `at` are those of the network from now on.
fn put(at: PathBuf, network: Network) {
    NETWORKS.lock().unwrap_or_else(PoisonError::into_inner).insert(at.clone(), network.clone());
    weights::lie_elsewhere(at, move |folder| network.weights(folder));
}

impl Network {
    /// Its weights under diffusers' names. `folder` holds its configuration.
    fn weights(&self, folder: &Path) -> Result<Weights> {
        let (names, prefix) = (self.part.names(folder)?, self.prefix);
        // A transformer's names may begin with nothing.
        let others = |name: &str| prefix.is_empty() && Part::OF_SD3[1..].iter().any(|p| name.starts_with(p.prefix()));
        let all = Weights::of_files(vec![self.file.clone()], |name| name.starts_with(prefix) && !others(name))?;
        ensure!(
            !all.names().is_empty(),
            "{} holds no {}: no tensor's name begins with {prefix}",
            self.file.display(),
            self.part.folder()
        );
        all.renamed(|name| {
            let name = name.strip_prefix(prefix).unwrap_or(name);
            match (names.ours(name), self.part) {
                // The denoiser refuses what it does not know.
                (ours, Part::Unet | Part::Transformer) if ours.is_empty() => {
                    vec![(name.to_owned(), names::Part::Whole)]
                }
                (ours, _) => ours,
            }
        })
    }
}

/// The prefix of a transformer's tensors in a file, and the parts that such a file may hold.
fn transformer(shapes: &Shapes) -> Option<(&'static str, &'static [Part])> {
    let kinds = [("joint_blocks.0.", &Part::OF_SD3[..]), ("double_blocks.0.", &Part::OF_FLUX[..])];
    [UNET, ""].into_iter().find_map(|prefix| {
        let holds =
            |block: &str| shapes.keys().any(|name| name.strip_prefix(prefix).is_some_and(|n| n.starts_with(block)));
        kinds.iter().find(|(block, _)| holds(block)).map(|(_, parts)| (prefix, *parts))
    })
}

/// A folder of the model in the file `path`, or of a VAE or a transformer alone; of another file, the path itself. The
/// configurations are those of the folder `described_by`, or of the published model that the file's tensors look like.
pub fn folder(path: &Path, described_by: Option<&Path>) -> Result<PathBuf> {
    let shapes = weights::shapes(path)?;
    if let Some((prefix, parts)) = transformer(&shapes) {
        return of_transformer(path, prefix, parts, &shapes, described_by);
    }
    if shapes.contains_key("decoder.up.0.block.0.norm1.weight") {
        return of_vae(path, described_by);
    }
    if shapes.keys().any(|name| name.starts_with(UNET)) {
        of_unet(path, &shapes, described_by)
    } else {
        Ok(path.to_owned())
    }
}

/// Where the folder of the model in the file `path` is made.
fn made_of(path: &Path) -> Result<PathBuf> {
    Ok(scratch::folder()?.join(path.file_stem().unwrap_or_default()))
}

/// `parts`: what such a file may hold. What it lacks, such as T5, is that of the folder `described_by`.
fn of_transformer(
    path: &Path,
    prefix: &'static str,
    parts: &[Part],
    shapes: &Shapes,
    described_by: Option<&Path>,
) -> Result<PathBuf> {
    let name = path.display();
    let base = described_by.with_context(|| {
        format!("{name} holds the transformer of Stable Diffusion 3 or FLUX, and no config.json describes it")
    })?;
    let bare = |name: &String| ["joint_blocks.", "double_blocks."].iter().any(|block| name.starts_with(block));
    ensure!(
        prefix.is_empty() || !shapes.keys().any(bare),
        "{name} holds a transformer twice, with and without {prefix}"
    );
    let made = made_of(path)?;
    let is_here = |part: &Part| *part == Part::Transformer || shapes.keys().any(|name| name.starts_with(part.prefix()));
    let here: Vec<Part> = parts.iter().copied().filter(is_here).collect();
    link(base, &made, &here, TRANSFORMER).with_context(|| format!("{name}, described by {}", base.display()))?;
    for part in here.into_iter().filter(|part| made.join(part.folder()).is_dir()) {
        let prefix = if part == Part::Transformer { prefix } else { part.prefix() };
        put(made.join(part.folder()), Network { file: path.to_owned(), part, prefix });
    }
    Ok(made)
}

fn of_vae(path: &Path, described_by: Option<&Path>) -> Result<PathBuf> {
    let none = || format!("{} is a VAE, and no config.json describes it", path.display());
    let base = described_by.with_context(none)?;
    let made = made_of(path)?;
    let denoiser = if base.join(TRANSFORMER).is_dir() { TRANSFORMER } else { DENOISER };
    link(base, &made, &Part::ALL, denoiser)?;
    put(made.join(Part::Vae.folder()), Network { file: path.to_owned(), part: Part::Vae, prefix: "" });
    Ok(made)
}

fn of_unet(path: &Path, shapes: &Shapes, described_by: Option<&Path>) -> Result<PathBuf> {
    let name = path.display();
    ensure!(
        shapes.contains_key(&format!("{UNET}input_blocks.0.0.weight")),
        "{name} holds another denoiser than a UNet: such models are read from a folder as diffusers saves it"
    );
    let made = made_of(path)?;
    match described_by {
        Some(folder) => link(folder, &made, &Part::ALL, DENOISER)
            .with_context(|| format!("{name}, described by {}", folder.display()))?,
        None => {
            let kind = Kind::of(path, shapes)?;
            if kind.family == Family::V2 {
                let v = kind.prediction == PredictionType::VPrediction;
                let (is, other) = if v { ("v", "the noise") } else { ("the noise", "v") };
                config::warn(&format!("{name} is Stable Diffusion 2 and seems to predict {is}, not {other}"));
            }
            for (file, content) in kind.files() {
                let at = made.join(file);
                fs::create_dir_all(place::folder_of(&at))?;
                fs::write(&at, content.to_string()).with_context(|| format!("cannot write {}", at.display()))?;
            }
        }
    }
    for part in Part::ALL {
        let present = shapes.keys().any(|name| name.starts_with(part.prefix()));
        let at = made.join(part.folder());
        if present || (network(&at).is_none() && at.is_dir()) {
            put(at, Network { file: path.to_owned(), part, prefix: part.prefix() });
        }
    }
    Ok(made)
}

/// Links the files of the model folder `from`, which has a `denoiser`, into `to`; of `parts` the configurations alone.
fn link(from: &Path, to: &Path, parts: &[Part], denoiser: &str) -> Result<()> {
    let from = from.canonicalize()?;
    ensure!(from.join(denoiser).join("config.json").is_file(), "it holds no {denoiser}/config.json");
    fs::create_dir_all(to)?;
    for entry in from.read_dir()? {
        let entry = entry?;
        let (path, at) = (entry.path(), to.join(entry.file_name()));
        if parts.iter().any(|part| path.ends_with(part.folder())) {
            fs::create_dir_all(&at)?;
            symlink(path.join("config.json"), at.join("config.json"))?;
        } else {
            symlink(&path, &at)?;
        }
    }
    Ok(())
}
