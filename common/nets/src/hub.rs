//! Models by hub id, `org/name[@revision]`: from the hub's cache on this machine, and fetched only when that is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hf_hub::{Cache, CacheRepo, Repo, RepoType, api::sync::ApiBuilder};

use crate::folder::{self, WEIGHTS};

/// The folder that a model argument means: the path itself if it exists, else what the hub's cache (`$HF_HOME`) holds under
/// this id.
pub fn resolve(arg: &Path, allow_download: bool) -> Result<PathBuf> {
    let id = arg.to_str().filter(|_| !arg.exists()).and_then(split);
    let Some((name, revision)) = id else { return Ok(arg.to_owned()) }; // a path; opening it says what is missing
    let repo = Repo::with_revision(name.into(), RepoType::Model, revision.into());
    let cached = cached(&Cache::from_env().repo(repo.clone()), revision);
    if allow_download {
        return match (fetch(repo), cached) {
            (Err(_), Some(folder)) => Ok(folder), // offline, but in the cache
            (fetched, _) => fetched.with_context(|| format!("cannot fetch {name} from the hub")),
        };
    }
    match cached {
        Some(folder) => Ok(folder),
        None => bail!(
            "{} does not exist, and the hub's cache {} holds no model of this name; and it may not be downloaded",
            arg.display(),
            Cache::from_env().path().display()
        ),
    }
}

/// `org/name[@revision]` -> (`org/name`, revision); anything else is a path.
fn split(id: &str) -> Option<(&str, &str)> {
    let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
    let (org, model) = name.split_once('/')?;
    let word = |w: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        w.starts_with(|c: char| c.is_ascii_alphanumeric()) && w.chars().all(plain)
    };
    (word(org) && word(model) && !revision.is_empty()).then_some((name, revision))
}

fn cached(repo: &CacheRepo, revision: &str) -> Option<PathBuf> {
    let commit = repo.pointer_path(revision);
    if commit.is_dir() { Some(commit) } else { repo.get(".").map(|folder| folder.components().collect()) }
}

fn fetch(repo: Repo) -> Result<PathBuf> {
    let api = ApiBuilder::from_env().with_progress(std::io::stderr().is_terminal()).build()?.repo(repo);
    let listed: Vec<String> = api.info()?.siblings.into_iter().map(|file| file.rfilename).collect();
    let mut folder = None;
    for file in wanted(&listed) {
        let path = api.get(file).with_context(|| file.to_owned())?;
        folder = path.ancestors().nth(file.split('/').count()).map(Path::to_owned);
    }
    folder.context("it holds no model")
}

/// The files to download: all small files, and of the formats in which a folder holds its weights the one that would be
/// opened.
fn wanted(files: &[String]) -> BTreeSet<&str> {
    let mut folders: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for file in files {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        folders.entry(folder).or_default().push((name, file));
    }
    folders.remove("safety_checker"); // never needed
    let is_small = |name: &str| (name.ends_with(".json") || name.ends_with(".txt")) && !name.contains(".index.");
    let mut all = BTreeSet::new();
    for names in folders.values() {
        all.extend(names.iter().filter(|(name, _)| is_small(name)).map(|(_, file)| *file));
        let weights = WEIGHTS.iter().map(|weights| files_of(weights, names));
        all.extend(weights.into_iter().find(|files| !files.is_empty()).into_iter().flatten());
    }
    all
}

/// The files of the weights called `weights` among (name, path): the whole, or an index and its shards.
fn files_of<'a>(weights: &str, names: &[(&str, &'a str)]) -> Vec<&'a str> {
    let select = |wanted: &dyn Fn(&str) -> bool| -> Vec<&'a str> {
        names.iter().filter(|(name, _)| wanted(name)).map(|(_, file)| *file).collect()
    };
    let whole = select(&|name| name == weights);
    let index = folder::indices(weights).into_iter().find(|index| names.iter().any(|(name, _)| name == index));
    let (Some(index), true) = (index, whole.is_empty()) else { return whole };
    let (stem, kind) = weights.rsplit_once('.').unwrap_or((weights, ""));
    let half = index.contains(".fp16.");
    let is_shard = |name: &str| {
        name.starts_with(stem) && name.contains("-of-") && name.ends_with(kind) && name.contains(".fp16") == half
    };
    select(&|name| name == index || is_shard(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths() {
        assert_eq!(split("org/name"), Some(("org/name", "main")));
        assert_eq!(split("stable-diffusion-v1-5/sd.1_5@fp16"), Some(("stable-diffusion-v1-5/sd.1_5", "fp16")));
        for path in ["name", "./org/name", "/org/name", "a/b/c", "../name", "org/", "org/name@", "runs dir/x"] {
            assert_eq!(split(path), None, "{path}");
        }
    }

    #[test]
    fn one_format_of_each_weight() {
        let files = [
            "README.md",
            "model_index.json",
            "v1-5-pruned.ckpt",
            "safety_checker/config.json",
            "tokenizer/merges.txt",
            "text_encoder_2/model.fp16-00001-of-00002.safetensors",
            "text_encoder_2/model.fp16-00002-of-00002.safetensors",
            "text_encoder_2/model.safetensors.index.fp16.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
            "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
            "vae/diffusion_pytorch_model.safetensors.index.json",
            "vae/diffusion_pytorch_model.bin",
        ]
        .map(String::from);
        let wanted: Vec<_> = wanted(&files).into_iter().collect();
        assert_eq!(
            wanted,
            [
                "model_index.json",
                "text_encoder_2/model.fp16-00001-of-00002.safetensors",
                "text_encoder_2/model.fp16-00002-of-00002.safetensors",
                "text_encoder_2/model.safetensors.index.fp16.json",
                "tokenizer/merges.txt",
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
                "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
                "vae/diffusion_pytorch_model.safetensors.index.json",
            ]
        );
    }
}
