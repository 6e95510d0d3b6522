//! Checkpoints in (safetensors in any float, sharded, torch zip-pickles) and out (f32 safetensors that diffusers loads).

use std::{
    cell::RefCell,
    collections::BTreeMap,
    collections::HashMap,
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var, safetensors::MmapedSafetensors};
use serde::de::DeserializeOwned;

use crate::pickle;

/// Named tensors, in files or in memory.
pub struct Weights {
    /// For messages: the file or folder.
    pub name: String,
    files: Vec<PathBuf>,
    body: Body,
}

enum Body {
    Mapped(MmapedSafetensors),
    Memory(BTreeMap<String, Tensor>),
}

/// File names that hold a network's weights, the preferred first.
pub(crate) const NAMES: [&str; 10] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "model.fp16.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "HPS_v2.1_compressed.pt",
    "HPS_v2_compressed.pt",
];

impl Weights {
    /// Opens a weight file, or the one that a model folder holds.
    ///
    /// # Errors
    /// Nothing there that holds weights; a damaged file; a pickle that asks for foreign classes.
    pub fn open(path: &Path) -> Result<Self> {
        let files = locate(path)?;
        let name = files.first().map_or(path, |f| f).display().to_string();
        let is_safetensors = |f: &PathBuf| f.extension().is_some_and(|e| e == "safetensors");
        let body = if files.iter().all(is_safetensors) {
            // SAFETY: mapped read-only; as everywhere, a file that another program rewrites meanwhile gives garbage.
            let mapped = unsafe { MmapedSafetensors::multi(&files) };
            Body::Mapped(mapped.with_context(|| format!("{name} is not a whole safetensors file"))?)
        } else {
            let mut all = BTreeMap::new();
            for file in &files {
                all.extend(pickle::read(file)?);
            }
            Body::Memory(all)
        };
        Ok(Self { name, files, body })
    }

    /// The same weights under other names, made by `rename` from each (name, tensor).
    pub fn renamed(self, rename: impl Fn(&str, Tensor) -> Result<Vec<(String, Tensor)>>) -> Result<Self> {
        let mut all = BTreeMap::new();
        for name in self.names() {
            all.extend(rename(&name, self.raw(&name)?)?);
        }
        Ok(Self { name: self.name, files: self.files, body: Body::Memory(all) })
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = match &self.body {
            Body::Mapped(mapped) => mapped.tensors().into_iter().map(|(name, _)| name).collect(),
            Body::Memory(all) => all.keys().cloned().collect(),
        };
        names.sort_unstable();
        names
    }

    pub fn has(&self, name: &str) -> bool {
        match &self.body {
            Body::Mapped(mapped) => mapped.get(name).is_ok(),
            Body::Memory(all) => all.contains_key(name),
        }
    }

    /// A tensor as it is stored, on the CPU.
    ///
    /// # Errors
    /// It is missing.
    pub fn raw(&self, name: &str) -> Result<Tensor> {
        let tensor = match &self.body {
            Body::Mapped(mapped) if self.has(name) => Some(mapped.load(name, &Device::Cpu)?),
            Body::Memory(all) => all.get(name).cloned(),
            Body::Mapped(_) => None,
        };
        tensor.with_context(|| format!("{}: tensor '{name}' is missing", self.name))
    }

    /// A float tensor of the given shape.
    ///
    /// # Errors
    /// It is missing, of another shape (a trailing 1x1 is forgiven), or not of floats.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.raw(name)?;
        ensure!(
            tensor.dtype().is_float(),
            "{}: tensor '{name}' holds {:?}, expected floats",
            self.name,
            tensor.dtype()
        );
        let spatial = |dims: &[usize]| dims.iter().copied().take(2).collect::<Vec<_>>();
        let same = tensor.dims() == shape
            || (tensor.elem_count() == shape.iter().product::<usize>()
                && spatial(tensor.dims()) == spatial(shape)
                && shape.len() >= 2);
        ensure!(same, "{}: tensor '{name}' has shape {:?}, expected {shape:?}", self.name, tensor.dims());
        Ok(tensor.reshape(shape)?)
    }

    /// SHA-256 over the weight files, in hexadecimal; of one file, what `sha256sum` prints.
    pub fn hash(&self) -> Result<String> {
        match &self.files[..] {
            [one] => pipe::id::file_hash(one),
            many => {
                let hashes = many.iter().map(|f| pipe::id::file_hash(f)).collect::<Result<Vec<_>>>()?;
                Ok(pipe::id::hex(&pipe::id::sha256(hashes.join("\n").as_bytes())))
            }
        }
    }

    /// The `origin` in the metadata of a checkpoint that this project wrote.
    pub fn origin(&self) -> Option<pipe::origin::Origin> {
        let file = self.files.first()?;
        pipe::origin::Origin::from_json(metadata(file).ok()?.get(pipe::origin::KEY)?)
    }
}

/// The text metadata of a safetensors file.
pub fn metadata(file: &Path) -> Result<HashMap<String, String>> {
    use std::io::Read;
    let say = || format!("{} is not a whole safetensors file", file.display());
    let mut reader = std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let size = reader.metadata()?.len();
    let mut length = [0; 8];
    reader.read_exact(&mut length).with_context(say)?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= size.saturating_sub(8), say());
    let mut header = vec![0; length as usize];
    reader.read_exact(&mut header).with_context(say)?;
    let header: serde_json::Value = serde_json::from_slice(&header).with_context(say)?;
    let pairs = header.get("__metadata__").and_then(|m| m.as_object()).into_iter().flatten();
    Ok(pairs.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
}

fn locate(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return if path.to_string_lossy().ends_with(".index.json") { shards(path) } else { Ok(vec![path.to_owned()]) };
    }
    ensure!(path.is_dir(), "{} does not exist; expected a model's folder or weight file", path.display());
    for name in NAMES {
        let file = path.join(name);
        if file.is_file() {
            return Ok(vec![file]);
        }
        let index = path.join(format!("{name}.index.json"));
        if index.is_file() {
            return shards(&index);
        }
    }
    bail!("{} holds no weights (looked for {} and the like)", path.display(), NAMES[..4].join(", "))
}

/// The files that a `*.index.json` lists.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index_of: Index = read_json(index)?;
    let mut files: Vec<_> = index_of.weight_map.values().map(|f| index.with_file_name(f)).collect();
    files.sort();
    files.dedup();
    for file in &files {
        ensure!(file.is_file(), "{} lists {}, which is missing", index.display(), file.display());
    }
    Ok(files)
}

/// Reads a JSON file into `T`; unknown keys are ignored, missing ones take `T`'s defaults.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} does not hold what is expected", path.display()))
}

/// Trainable tensors by name, in name order: the order of every sum over them.
pub type Params = BTreeMap<String, Var>;

/// Hands out a network's tensors by path, as `loader.pp("conv_in").get("weight", &[..])`.
#[derive(Clone)]
pub struct Loader<'a> {
    weights: &'a Weights,
    prefix: String,
    device: Device,
    dtype: DType,
    params: Option<Rc<RefCell<Params>>>,
    /// Tensors share the variables' memory but are not tracked: for a reference that can be refreshed in place.
    detached: bool,
}

impl<'a> Loader<'a> {
    /// Tensors that stay as they are.
    pub fn frozen(weights: &'a Weights, dtype: DType, device: &Device) -> Self {
        Self { weights, prefix: String::new(), device: device.clone(), dtype, params: None, detached: false }
    }

    /// Variables, f32, gathered in `params()`; with `detached`, what the network sees is not tracked.
    pub fn variables(weights: &'a Weights, device: &Device, detached: bool) -> Self {
        Self { params: Some(Default::default()), detached, ..Self::frozen(weights, DType::F32, device) }
    }

    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { prefix, ..self.clone() }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    pub fn has(&self, name: &str) -> bool {
        self.weights.has(&self.path(name))
    }

    /// See [`Weights::get`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let path = self.path(name);
        let tensor = self.weights.get(&path, shape)?.to_dtype(self.dtype)?.to_device(&self.device)?;
        let Some(params) = &self.params else { return Ok(tensor) };
        let var = Var::from_tensor(&tensor)?;
        let seen = if self.detached { var.as_detached_tensor() } else { var.as_tensor().clone() };
        params.borrow_mut().insert(path, var);
        Ok(seen)
    }

    /// All variables handed out so far.
    pub fn params(&self) -> Params {
        self.params.as_ref().map(|p| p.borrow().clone()).unwrap_or_default()
    }
}

/// Writes named f32 tensors and metadata, whole or not at all.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: HashMap<String, String>) -> Result<()> {
    use safetensors::tensor::{Dtype, TensorView};
    let mut bytes = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
        let (dtype, data) = match tensor.dtype() {
            DType::F32 => {
                (Dtype::F32, flat.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
            }
            DType::F16 => (Dtype::F16, flat.to_vec1::<half::f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            DType::BF16 => (Dtype::BF16, flat.to_vec1::<half::bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
            other => bail!("tensor '{name}' holds {other:?}, which checkpoints do not store"),
        };
        bytes.push((name, dtype, tensor.dims().to_vec(), data));
    }
    let mut views = vec![];
    for (name, dtype, shape, data) in &bytes {
        views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), data)?));
    }
    // One key, so that the order of a hash map's keys cannot change the bytes.
    ensure!(metadata.len() <= 1, "a checkpoint carries one metadata key");
    let blob = safetensors::serialize(views, Some(metadata)).context("cannot lay out the checkpoint")?;
    pipe::atomic::write(path, &blob)
}

/// The weight file of a diffusers model folder.
pub const DIFFUSERS_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// Writes `folder/config.json` (copied from `config_of`, so that diffusers finds what it wrote) and then the weights,
/// whose appearance says that the folder is whole.
pub fn write_model(
    folder: &Path,
    config_of: &Path,
    tensors: &BTreeMap<String, Tensor>,
    origin: &pipe::origin::Origin,
) -> Result<()> {
    let config = config_of.join("config.json");
    let text = std::fs::read(&config).with_context(|| format!("cannot read {}", config.display()))?;
    pipe::atomic::write(&folder.join("config.json"), &text)?;
    let metadata = HashMap::from([(pipe::origin::KEY.to_owned(), origin.to_json())]);
    write(&folder.join(DIFFUSERS_WEIGHTS), tensors, metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_shapes_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let t = Tensor::from_vec(vec![1f32, 2., 3., 4.], (2, 2), &Device::Cpu).unwrap();
        let meta = HashMap::from([("origin".to_string(), "x".to_string())]);
        write(&path, &BTreeMap::from([("a.weight".to_string(), t)]), meta).unwrap();
        let w = Weights::open(&path).unwrap();
        assert_eq!(w.get("a.weight", &[2, 2]).unwrap().to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.]]);
        assert_eq!(w.get("a.weight", &[2, 2, 1, 1]).unwrap().dims(), [2, 2, 1, 1]);
        assert!(w.get("a.weight", &[4]).unwrap_err().to_string().contains("'a.weight' has shape [2, 2], expected [4]"));
        assert!(w.get("b", &[4]).unwrap_err().to_string().contains("'b' is missing"));
        assert_eq!(metadata(&path).unwrap()["origin"], "x");
    }
}
