//! Checkpoints in (safetensors in any float, sharded, torch zip-pickles) and out (f32 safetensors that diffusers loads).

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::DeserializeOwned;

use crate::{
    lora::{self, Adapter, LoraConfig},
    params::Params,
    pickle,
};

/// Named tensors, in files or in memory.
pub struct Weights {
    /// For messages: the file or folder.
    pub name: String,
    files: Vec<PathBuf>,
    body: Body,
}

enum Body {
    /// Read when asked for. Not mapped: pages of a mapped file count as this program's memory once they were touched.
    Files(BTreeMap<String, Stored>),
    Memory(BTreeMap<String, Tensor>),
}

/// Where a tensor lies.
struct Stored {
    file: Arc<File>,
    info: TensorInfo,
    start: u64,
}

impl Stored {
    fn read(&self) -> Result<Tensor> {
        let (shape, n) = (&self.info.shape[..], self.info.shape.iter().product());
        let read = |bytes: &mut [u8]| self.file.read_exact_at(bytes, self.start);
        Ok(match self.info.dtype {
            Dtype::F32 => {
                let mut values = vec![0f32; n];
                // In pieces on all threads: a network of gigabytes may be read at every step.
                let piece = 1 << 20;
                values.par_chunks_mut(piece).enumerate().try_for_each(|(i, values)| {
                    let at = self.start + 4 * (i * piece) as u64;
                    self.file.read_exact_at(bytemuck::cast_slice_mut(values), at)
                })?;
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
            other => {
                let mut bytes = vec![0u8; self.info.data_offsets.1 - self.info.data_offsets.0];
                read(&mut bytes)?;
                Tensor::from_raw_buffer(&bytes, other.try_into()?, shape, &Device::Cpu)?
            }
        })
    }
}

/// Every tensor of a safetensors file, still in the file.
fn stored(path: &Path) -> Result<Vec<(String, Stored)>> {
    let say = || format!("{} is not a whole safetensors file", path.display());
    let (header, file) = header(path)?;
    let metadata: Metadata = serde_json::from_slice(&header).with_context(say)?;
    let begin = 8 + header.len() as u64;
    ensure!(begin + metadata.data_len() as u64 == file.metadata()?.len(), say());
    let file = Arc::new(file);
    let place = |(name, info): (String, &TensorInfo)| {
        let start = begin + info.data_offsets.0 as u64;
        (name, Stored { file: file.clone(), info: info.clone(), start })
    };
    Ok(metadata.tensors().into_iter().map(place).collect())
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
            let mut all = BTreeMap::new();
            for file in &files {
                all.extend(stored(file)?);
            }
            Body::Files(all)
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
        match &self.body {
            Body::Files(all) => all.keys().cloned().collect(),
            Body::Memory(all) => all.keys().cloned().collect(),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        match &self.body {
            Body::Files(all) => all.contains_key(name),
            Body::Memory(all) => all.contains_key(name),
        }
    }

    /// The shape of a tensor, if it is there.
    pub fn dims(&self, name: &str) -> Option<&[usize]> {
        match &self.body {
            Body::Files(all) => all.get(name).map(|s| &s.info.shape[..]),
            Body::Memory(all) => all.get(name).map(Tensor::dims),
        }
    }

    /// A tensor as it is stored, on the CPU.
    ///
    /// # Errors
    /// It is missing.
    pub fn raw(&self, name: &str) -> Result<Tensor> {
        let tensor = match &self.body {
            Body::Files(all) => all.get(name).map(|s| s.read()).transpose(),
            Body::Memory(all) => Ok(all.get(name).cloned()),
        };
        let tensor = tensor.with_context(|| format!("{}: cannot read tensor '{name}'", self.name))?;
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

/// The JSON header of a safetensors file, and the file.
fn header(path: &Path) -> Result<(Vec<u8>, File)> {
    let say = || format!("{} is not a whole safetensors file", path.display());
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let size = file.metadata()?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).with_context(say)?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= size.saturating_sub(8), say());
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).with_context(say)?;
    Ok((header, file))
}

/// The text metadata of a safetensors file.
pub fn metadata(path: &Path) -> Result<HashMap<String, String>> {
    let header: serde_json::Value = serde_json::from_slice(&header(path)?.0)
        .with_context(|| format!("{} is not a whole safetensors file", path.display()))?;
    let pairs = header.get("__metadata__").and_then(|m| m.as_object()).into_iter().flatten();
    Ok(pairs.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
}

fn locate(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return if path.extension().is_some_and(|e| e == "json") { shards(path) } else { Ok(vec![path.to_owned()]) };
    }
    ensure!(path.is_dir(), "{} does not exist; expected a model's folder or weight file", path.display());
    for name in NAMES {
        let file = path.join(name);
        if file.is_file() {
            return Ok(vec![file]);
        }
        for index in indices(name) {
            if path.join(&index).is_file() {
                return shards(&path.join(index));
            }
        }
    }
    bail!("{} holds no weights (looked for {} and the like)", path.display(), NAMES[..4].join(", "))
}

/// What the index of weights in several files may be called; `name` is that of the whole.
pub(crate) fn indices(name: &str) -> [String; 2] {
    [format!("{name}.index.json"), format!("{name}.index.fp16.json")]
}

/// The files that an index lists.
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

/// Hands out a network's tensors by path, as `loader.pp("conv_in").get("weight", &[..])`.
#[derive(Clone)]
pub struct Loader<'a> {
    weights: &'a Weights,
    prefix: String,
    device: Device,
    dtype: DType,
    trained: Trained,
    params: Rc<RefCell<Params>>,
    /// Frozen tensors handed out before, for networks that share them.
    shared: Option<Rc<RefCell<BTreeMap<String, Tensor>>>>,
    /// The network sees the variables' memory but is not tracked: for a reference that can be refreshed in place.
    detached: bool,
}

/// Which of a network's tensors are variables.
#[derive(Clone)]
enum Trained {
    Nothing,
    Everything,
    /// Low-rank adapters beside frozen layers, begun from a seed.
    Adapters(Rc<LoraConfig>, u64),
}

impl<'a> Loader<'a> {
    /// Tensors that stay as they are.
    pub fn frozen(weights: &'a Weights, dtype: DType, device: &Device) -> Self {
        Self {
            weights,
            prefix: String::new(),
            device: device.clone(),
            dtype,
            trained: Trained::Nothing,
            params: Default::default(),
            shared: None,
            detached: false,
        }
    }

    /// Variables, f32, gathered in `params()`; with `detached`, what the network sees is not tracked.
    pub fn variables(weights: &'a Weights, device: &Device, detached: bool) -> Self {
        Self { trained: Trained::Everything, detached, ..Self::frozen(weights, DType::F32, device) }
    }

    /// Frozen tensors of which every network that is loaded through a clone of this loader holds the same.
    pub fn shared(weights: &'a Weights, device: &Device) -> Self {
        Self { shared: Some(Default::default()), ..Self::frozen(weights, DType::F32, device) }
    }

    /// The same, with new adapters on the layers that `config` names; these are what `params()` gathers.
    pub fn adapted(&self, config: &LoraConfig, seed: u64, detached: bool) -> Self {
        let trained = Trained::Adapters(Rc::new(config.clone()), seed);
        Self { trained, detached, params: Default::default(), ..self.clone() }
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
        let load =
            || Ok::<_, anyhow::Error>(self.weights.get(&path, shape)?.to_dtype(self.dtype)?.to_device(&self.device)?);
        if let Trained::Everything = self.trained {
            return Ok(self.seen(path.clone(), Var::from_tensor(&load()?)?));
        }
        let Some(shared) = &self.shared else { return load() };
        if let Some(tensor) = shared.borrow().get(&path) {
            return Ok(tensor.clone());
        }
        let tensor = load()?;
        shared.borrow_mut().insert(path, tensor.clone());
        Ok(tensor)
    }

    /// The adapter of the linear layer at this path, if it has one; `weight`: the shape of the layer's weight.
    pub fn adapter(&self, weight: &[usize]) -> Result<Option<Adapter>> {
        let Trained::Adapters(config, seed) = &self.trained else { return Ok(None) };
        if !config.adapts(&self.prefix) {
            return Ok(None);
        }
        let (rank, full) = (config.rank, weight[0].min(weight[1]));
        ensure!(
            rank <= full,
            "adapters of rank {rank} are wider than the layer '{}', whose weight has rank {full} at most: give a smaller \
             --lora_rank, or leave it out of --lora_targets",
            self.prefix
        );
        let (a, b) = lora::initial(&self.prefix, weight, rank, *seed, &self.device)?;
        let [name_a, name_b] = lora::names(&self.prefix);
        Ok(Some(Adapter { a: self.seen(name_a, a), b: self.seen(name_b, b), scale: config.scale() }))
    }

    /// # Errors
    /// Adapters are asked for here, on a layer that is not linear.
    pub fn refuse_adapter(&self) -> Result<()> {
        let asked = matches!(&self.trained, Trained::Adapters(config, _) if config.adapts(&self.prefix));
        ensure!(!asked, "'{}' is no linear layer: leave it out of the layers to adapt", self.prefix);
        Ok(())
    }

    fn seen(&self, path: String, var: Var) -> Tensor {
        let seen = if self.detached { var.as_detached_tensor() } else { var.as_tensor().clone() };
        self.params.borrow_mut().insert(path, var);
        seen
    }

    /// All variables handed out so far.
    pub fn params(&self) -> Params {
        self.params.borrow().clone()
    }
}

/// Writes named float tensors and metadata as safetensors, whole or not at all; no more than one tensor is copied at a time.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: BTreeMap<String, String>) -> Result<()> {
    // Wide numbers first, as safetensors' own writer, so that each lies at a multiple of its width.
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut from = 0;
    for (name, tensor) in &order {
        let dtype = match tensor.dtype() {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            other => bail!("tensor '{name}' holds {other:?}, which checkpoints do not store"),
        };
        let to = from + tensor.elem_count() * tensor.dtype().size_in_bytes();
        let entry = serde_json::json!({"dtype": dtype, "shape": tensor.dims(), "data_offsets": [from, to]});
        header.insert((*name).clone(), entry);
        from = to;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = pipe::atomic::AtomicFile::create(path)?;
    let say = || format!("cannot write {}", path.display());
    file.write_all(&(header.len() as u64).to_le_bytes()).with_context(say)?;
    file.write_all(&header).with_context(say)?;
    for (_, tensor) in order {
        let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
        match tensor.dtype() {
            DType::F32 => put(&mut file, flat.to_vec1()?, f32::to_le_bytes),
            DType::F16 => put(&mut file, flat.to_vec1()?, half::f16::to_le_bytes),
            _ => put(&mut file, flat.to_vec1()?, half::bf16::to_le_bytes),
        }
        .with_context(say)?;
    }
    file.commit()
}

fn put<T: Copy, const N: usize>(file: &mut impl Write, values: Vec<T>, bytes: fn(T) -> [u8; N]) -> std::io::Result<()> {
    values.chunks(1 << 14).try_for_each(|c| file.write_all(&c.iter().flat_map(|v| bytes(*v)).collect::<Vec<u8>>()))
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
    let metadata = BTreeMap::from([(pipe::origin::KEY.to_owned(), origin.to_json())]);
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
        let meta = BTreeMap::from([("origin".to_string(), "x".to_string())]);
        write(&path, &BTreeMap::from([("a.weight".to_string(), t)]), meta).unwrap();
        let w = Weights::open(&path).unwrap();
        assert_eq!(w.get("a.weight", &[2, 2]).unwrap().to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.]]);
        assert_eq!(w.get("a.weight", &[2, 2, 1, 1]).unwrap().dims(), [2, 2, 1, 1]);
        assert!(w.get("a.weight", &[4]).unwrap_err().to_string().contains("'a.weight' has shape [2, 2], expected [4]"));
        assert!(w.get("b", &[4]).unwrap_err().to_string().contains("'b' is missing"));
        assert_eq!(metadata(&path).unwrap()["origin"], "x");
    }

    #[test]
    fn an_index_of_either_name_leads_to_its_shards() {
        for index in ["model.safetensors.index.json", "model.safetensors.index.fp16.json"] {
            let dir = tempfile::tempdir().unwrap();
            let map = serde_json::json!({ "weight_map": { "a": "x-1.safetensors", "b": "x-2.safetensors" } });
            std::fs::write(dir.path().join(index), map.to_string()).unwrap();
            let error = Weights::open(dir.path()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("x-1.safetensors, which is missing"), "{error}");
            for (name, file) in [("a", "x-1.safetensors"), ("b", "x-2.safetensors")] {
                let one = Tensor::ones(3, DType::F16, &Device::Cpu).unwrap();
                write(&dir.path().join(file), &BTreeMap::from([(name.to_string(), one)]), BTreeMap::new()).unwrap();
            }
            let weights = Weights::open(dir.path()).unwrap();
            assert_eq!(weights.names(), ["a", "b"]);
            assert_eq!(weights.get("b", &[3]).unwrap().to_vec1::<half::f16>().unwrap()[2].to_f32(), 1.0);
        }
    }

    #[test]
    fn pickles_may_be_in_shards_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut map = serde_json::Map::new();
        let mut expected = BTreeMap::new();
        for (i, whole) in ["dtypes", "views"].iter().enumerate() {
            let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pickle").join(whole);
            let shard = format!("pytorch_model-0000{}-of-00002.bin", i + 1);
            std::fs::copy(fixture.with_extension("pt"), dir.path().join(&shard)).unwrap();
            let tensors = candle_core::safetensors::load(fixture.with_extension("safetensors"), &Device::Cpu).unwrap();
            map.extend(tensors.keys().map(|name| (name.clone(), shard.clone().into())));
            expected.extend(tensors);
        }
        let index = dir.path().join("pytorch_model.bin.index.json");
        std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
        for path in [dir.path(), &index] {
            let weights = Weights::open(path).unwrap();
            assert!(weights.names().iter().eq(expected.keys()) && weights.files.len() == 2);
            for (name, theirs) in &expected {
                let values =
                    |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                assert_eq!(values(&weights.raw(name).unwrap()), values(theirs), "{name}");
            }
        }
        std::fs::remove_file(dir.path().join("pytorch_model-00002-of-00002.bin")).unwrap();
        let error = Weights::open(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("pytorch_model-00002-of-00002.bin, which is missing"), "{error}");
    }
}
