//! Models by hub id, `org/name[@revision]`: from the hub's cache on this machine, and fetched only when that is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Component, Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::{Repo, RepoType, api::sync::ApiBuilder};

use crate::folder::Naming;

/// The folder that a model argument means: the path itself if it exists, else what the hub's cache holds under this id.
pub fn resolve(arg: &Path, allow_download: bool) -> Result<PathBuf> {
    let id = arg.to_str().filter(|_| !arg.exists()).and_then(split);
    let Some((name, revision)) = id else { return Ok(arg.to_owned()) }; // a path; opening it says what is missing
    let caches = caches()?;
    let cached = caches.iter().find_map(|cache| cached(cache, name, revision));
    let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| is_on(name));
    if let (true, None) = (allow_download, offline) {
        return match (fetch(&caches[0], name, revision), cached) {
            (Err(_), Some(folder)) => Ok(folder), // offline, but in the cache
            (fetched, _) => fetched.with_context(|| format!("cannot fetch {name} from the hub")),
        };
    }
    match cached {
        Some(folder) => Ok(folder),
        None => bail!(
            "{} does not exist, and the hub's cache {} holds no model of this name; and it may not be downloaded{}",
            arg.display(),
            caches.iter().map(|cache| cache.display().to_string()).collect::<Vec<_>>().join(" or "),
            offline.map(|name| format!(" while {name} is set")).unwrap_or_default()
        ),
    }
}

/// The usual name of the model `arg`: `name` or `name@revision` of a hub id, the name in the hub's cache of a path into it, and
/// `None` for other paths.
pub fn name(arg: &Path) -> Option<String> {
    if let Some((name, revision)) = arg.to_str().filter(|_| !arg.exists()).and_then(split) {
        let name = name.rsplit('/').next().unwrap_or(name);
        return Some(if revision == MAIN { name.to_owned() } else { format!("{name}@{revision}") });
    }
    let parts: Vec<_> = arg.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    let repo = parts.windows(2).find(|two| two[0].starts_with("models--") && two[1] == "snapshots")?;
    Some(repo[0].rsplit("--").next()?.to_owned())
}

const MAIN: &str = "main";

/// `org/name[@revision]` -> (`org/name`, revision); anything else is a path.
fn split(id: &str) -> Option<(&str, &str)> {
    let (name, revision) = id.split_once('@').unwrap_or((id, MAIN));
    let (org, model) = name.split_once('/')?;
    (is_word(org) && is_word(model) && revision.split('/').all(is_word)).then_some((name, revision))
}

/// Letters, digits and `-_.`, beginning with a letter or digit: part of a name, and never a way out of a folder.
fn is_word(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(plain)
}

/// Where models of the hub lie: first where huggingface_hub looks and writes, then where older libraries wrote.
fn caches() -> Result<Vec<PathBuf>> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from).map(from_home);
    let home = || set("HOME").map(|home| home.join(".cache"));
    let hub = set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(set("HF_HOME")?.join("hub")))
        .or_else(|| Some(set("XDG_CACHE_HOME").or_else(home)?.join("huggingface/hub")))
        .context("the hub's cache has no place: set HF_HOME, or HOME")?;
    Ok([Some(hub), set("TRANSFORMERS_CACHE"), set("DIFFUSERS_CACHE")].into_iter().flatten().collect())
}

/// `~/x`, which huggingface_hub takes too.
fn from_home(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path,
    }
}

/// Whether a variable is set to what huggingface_hub takes for yes.
fn is_on(name: &str) -> bool {
    env::var(name).is_ok_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
}

/// The snapshot of a branch, a tag or a commit.
fn cached(cache: &Path, name: &str, revision: &str) -> Option<PathBuf> {
    let repo = cache.join(format!("models--{}", name.replace('/', "--")));
    let snapshot =
        |commit: &str| Some(repo.join("snapshots").join(commit)).filter(|folder| is_word(commit) && folder.is_dir());
    let named = || fs::read_to_string(repo.join("refs").join(revision)).ok();
    snapshot(revision).or_else(|| snapshot(named()?.trim()))
}

/// Downloads the files that the cache lacks.
fn fetch(cache: &Path, name: &str, revision: &str) -> Result<PathBuf> {
    let repo = Repo::with_revision(name.into(), RepoType::Model, revision.into());
    let mut api =
        ApiBuilder::from_cache(hf_hub::Cache::new(cache.to_owned())).with_progress(std::io::stderr().is_terminal());
    if let Ok(endpoint) = env::var("HF_ENDPOINT") {
        api = api.with_endpoint(endpoint);
    }
    if let Some(token) = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].iter().find_map(|name| env::var(name).ok()) {
        api = api.with_token(Some(token));
    }
    let api = api.build()?.repo(repo);
    let listed: Vec<String> = api.info()?.siblings.into_iter().map(|file| file.rfilename).collect();
    let mut folder = None;
    for file in wanted(&listed) {
        let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(inside, "it lists the file {file:?}, which does not lie in it");
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
        let mut weights = Naming::all().map(|naming| files_of(&naming, names));
        all.extend(weights.find(|files| !files.is_empty()).into_iter().flatten());
    }
    all
}

/// The files of the weights of this naming among (name, path): the whole, or an index and its shards.
fn files_of<'a>(naming: &Naming, names: &[(&str, &'a str)]) -> Vec<&'a str> {
    let select = |wanted: &dyn Fn(&str) -> bool| -> Vec<&'a str> {
        names.iter().filter(|(name, _)| wanted(name)).map(|(_, file)| *file).collect()
    };
    let (whole, index) = (select(&|name| name == naming.whole()), naming.index());
    if !whole.is_empty() || !names.iter().any(|(name, _)| *name == index) {
        return whole;
    }
    select(&|name| name == index || naming.is_shard(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths() {
        assert_eq!(split("org/name"), Some(("org/name", "main")));
        assert_eq!(split("stable-diffusion-v1-5/sd.1_5@fp16"), Some(("stable-diffusion-v1-5/sd.1_5", "fp16")));
        for path in [
            "name", "./org/name", "/org/name", "a/b/c", "../name", "org/", "org/name@", "runs dir/x", "a/b@../../x",
            "a/b@/x", "a/b@x//y",
        ] {
            assert_eq!(split(path), None, "{path}");
        }
    }

    #[test]
    fn models_of_the_hub_have_their_own_names() {
        for (path, expected) in [
            ("org/name", Some("name")),
            ("org/name@v2", Some("name@v2")),
            ("/c/models--org--tiny/snapshots/0123/unet", Some("tiny")),
            ("runs/policy/x", None),
        ] {
            assert_eq!(name(Path::new(path)).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn one_format_of_each_weight() {
        let files = [
            "README.md", "model_index.json", "v1-5-pruned.ckpt", "safety_checker/config.json", "tokenizer/merges.txt",
            "text_encoder_2/model.fp16-00001-of-00002.safetensors",
            "text_encoder_2/model.fp16-00002-of-00002.safetensors", "text_encoder_2/model.safetensors.index.fp16.json",
            "unet/config.json", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
            "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
            "vae/diffusion_pytorch_model.safetensors.index.json", "vae/diffusion_pytorch_model.bin",
        ]
        .map(String::from);
        let wanted: Vec<_> = wanted(&files).into_iter().collect();
        assert_eq!(
            wanted,
            [
                "model_index.json", "text_encoder_2/model.fp16-00001-of-00002.safetensors",
                "text_encoder_2/model.fp16-00002-of-00002.safetensors",
                "text_encoder_2/model.safetensors.index.fp16.json", "tokenizer/merges.txt", "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
                "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
                "vae/diffusion_pytorch_model.safetensors.index.json",
            ]
        );
    }
}
