//! Reading weights: named tensors from safetensors files (any float type, whole or in shards) and torch's zip pickles.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use pipe::id;
use pipe::origin::{self, Origin};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorInfo};

use crate::folder;
use crate::foreign::{self, Content};
use crate::lora::Adapter;
use crate::names::Part;
use crate::pickle::{self, Place};
use crate::tensor_file::{Header, header};
pub use crate::tensor_file::{check, file_hash, metadata};

/// The second half of the rows before the first.
pub(crate) fn exchanged(x: &Tensor) -> Result<Tensor> {
    let half = x.dim(0)? / 2;
    Ok(Tensor::cat(&[x.narrow(0, half, half)?, x.narrow(0, 0, half)?], 0)?)
}

/// Named tensors of one network.
pub struct Weights {
    pub name: String,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, Stored>,
    imagined: Option<Imagined>,
}

/// Weights that hold whatever they are asked for, as zeros that take no memory.
struct Imagined {
    has: Box<dyn Fn(&str) -> bool + Send + Sync>,
    asked: Mutex<Shapes>,
}

/// The shapes of tensors by their names.
pub type Shapes = BTreeMap<String, Vec<usize>>;

enum Stored {
    /// Read when it is asked for. The file is not mapped: pages of a mapped file count as this program's memory once they
    /// have been touched. `start`: the offset of the tensor's first byte. `crc32`: the checksum of its bytes, if it has one.
    InFile {
        file: Arc<File>,
        info: TensorInfo,
        start: u64,
        crc32: Option<u32>,
    },
    InMemory(Tensor),
    /// Part of another one, of these dimensions.
    Part(Arc<Stored>, Part, Vec<usize>),
    /// Another one with an adapter added, in f32.
    Adapted(Box<Stored>, Arc<Adapter>),
}

impl Stored {
    fn dims(&self) -> &[usize] {
        match self {
            Self::InFile { info, .. } => &info.shape,
            Self::InMemory(tensor) => tensor.dims(),
            Self::Part(_, _, dims) => dims,
            Self::Adapted(base, _) => base.dims(),
        }
    }

    fn part(whole: &Arc<Self>, part: Part) -> Result<Self> {
        let dims = whole.dims();
        let part_dims = match (part, dims) {
            (Part::Whole | Part::Pixel, _) => dims.to_vec(),
            (Part::Rows { count, of, .. }, [rows, rest @ ..]) if rows % of == 0 => {
                [&[rows / of * count], rest].concat()
            }
            (Part::Exchanged, [rows, ..]) if rows % 2 == 0 => dims.to_vec(),
            (Part::Transposed, [rows, columns]) => vec![*columns, *rows],
            (Part::Rows { .. } | Part::Exchanged, _) => {
                bail!("it has shape {dims:?}, whose rows are not those of several tensors of ours")
            }
            (Part::Transposed, _) => bail!("it has shape {dims:?}, expected a matrix"),
        };
        Ok(Self::Part(whole.clone(), part, part_dims))
    }

    /// Reads the tensor. If its numbers are to be `finite`, they are looked at while they are in a core's cache.
    fn read(&self, finite: bool) -> Result<Tensor> {
        let (file, info, start, crc32) = match self {
            Self::InFile { file, info, start, crc32 } => (file, info, *start, *crc32),
            Self::InMemory(tensor) => {
                let is_finite = |tensor: &Tensor| -> Result<bool> {
                    Ok(ops::sum_of_squares(&tensor.to_dtype(DType::F32)?)?.is_finite())
                };
                ensure!(!finite || !tensor.dtype().is_float() || is_finite(tensor)?, NOT_FINITE);
                return Ok(tensor.clone());
            }
            Self::Adapted(base, adapter) => {
                let weight = base.read(finite)?.to_dtype(DType::F32)?;
                return Ok((&weight + adapter.delta()?.reshape(weight.dims())?)?);
            }
            Self::Part(whole, part, dims) => {
                let whole = whole.read(finite)?;
                return Ok(match part {
                    Part::Whole | Part::Pixel => whole,
                    Part::Rows { from, count, .. } => whole.narrow(0, dims[0] / count * from, dims[0])?.contiguous()?,
                    Part::Exchanged => exchanged(&whole)?,
                    Part::Transposed => whole.t()?.contiguous()?,
                });
            }
        };
        let sound = |bytes: &[u8]| {
            let same = crc32.is_none_or(|sum| sum == crc32fast::hash(bytes));
            ensure!(same, "its numbers do not have the checksum that the file has of them: the file is damaged");
            Ok(())
        };
        if info.dtype == Dtype::F32 {
            let mut values = vec![0f32; info.shape.iter().product()];
            // In pieces on all threads: a network of gigabytes may be read at every step.
            values.par_chunks_mut(PIECE).enumerate().try_for_each(|(i, values)| {
                file.read_exact_at(bytemuck::cast_slice_mut(values), start + 4 * (i * PIECE) as u64)?;
                ensure!(!finite || !holds(values, |x| x.to_bits(), 0x7f80_0000), NOT_FINITE);
                Ok(())
            })?;
            sound(bytemuck::cast_slice(&values))?;
            return Ok(Tensor::from_vec(values, &info.shape[..], &Device::Cpu)?);
        }
        let mut bytes = vec![0u8; info.data_offsets.1 - info.data_offsets.0];
        file.read_exact_at(&mut bytes, start)?;
        sound(&bytes)?;
        let exponent = match info.dtype {
            Dtype::F16 => Some(0x7c00),
            Dtype::BF16 => Some(0x7f80),
            _ => None,
        };
        let half = |bytes: &[u8; 2]| u32::from(u16::from_le_bytes(*bytes));
        let found = exponent.filter(|_| finite).is_some_and(|exponent| {
            bytes.par_chunks(2 * PIECE).any(|piece| holds(piece.as_chunks().0, half, exponent))
        });
        // All networks compute in f32 at most, so an f64 beyond its range would become infinity.
        let fits = |bytes: &[u8; 8]| (f64::from_le_bytes(*bytes) as f32).is_finite();
        let beyond = info.dtype == Dtype::F64 && finite && !bytes.as_chunks().0.iter().all(fits);
        ensure!(!found && !beyond, NOT_FINITE);
        Ok(Tensor::from_raw_buffer(&bytes, info.dtype.try_into()?, &info.shape, &Device::Cpu)?)
    }
}

/// Numbers that are read at once, which stay in a core's cache.
const PIECE: usize = 1 << 16;

const NOT_FINITE: &str = "it holds NaN or infinity: the file is damaged, or the training that wrote it has diverged";

/// Whether all bits of the `exponent` are set in any number: those of NaN and infinity are.
fn holds<T>(values: &[T], bits: impl Fn(&T) -> u32, exponent: u32) -> bool {
    values.iter().fold(false, |found, x| found | (bits(x) & exponent == exponent))
}

type Open = dyn Fn(&Path) -> Result<Weights> + Send + Sync;

/// Folders whose weights lie elsewhere, and how they are read.
static ELSEWHERE: Mutex<BTreeMap<PathBuf, Arc<Open>>> = Mutex::new(BTreeMap::new());

/// From now on the weights of `folder`, which holds none, are what `open` makes of it.
pub(crate) fn lie_elsewhere(folder: PathBuf, open: impl Fn(&Path) -> Result<Weights> + Send + Sync + 'static) {
    ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner).insert(folder, Arc::new(open));
}

/// From now on the weights of `folder` have these adapters, by the names of the tensors that they belong to. `from`: their file,
/// for messages.
pub(crate) fn adapt(folder: PathBuf, adapters: BTreeMap<String, Arc<Adapter>>, from: String) {
    let mut elsewhere = ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = elsewhere.get(&folder).cloned();
    let open = move |path: &Path| {
        let weights = match &before {
            Some(open) => open(path)?,
            None => Weights::of_files(folder::weight_files(path)?, |_| true)?,
        };
        weights.adapted(&adapters).with_context(|| from.clone())
    };
    elsewhere.insert(folder, Arc::new(open));
}

impl Weights {
    /// Opens a weight file, an index of several, or the weights in a model folder.
    pub fn open(path: &Path) -> Result<Self> {
        let elsewhere = ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        match elsewhere {
            Some(open) => open(path),
            None => Self::of_files(folder::weight_files(path)?, |_| true),
        }
    }

    /// Tensors in memory. `name`: what messages call them.
    pub fn in_memory(name: &str, tensors: BTreeMap<String, Tensor>) -> Self {
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, Stored::InMemory(tensor))).collect();
        Self { name: name.to_owned(), files: vec![], tensors, imagined: None }
    }

    /// Weights that hold whatever a network asks for. `has`: what they answer a network that asks whether a name is there.
    pub(crate) fn imagined(has: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        let imagined = Imagined { has: Box::new(has), asked: Default::default() };
        Self { imagined: Some(imagined), ..Self::in_memory("imagined weights", BTreeMap::new()) }
    }

    /// The requests to imagined weights.
    pub(crate) fn asked(self) -> Shapes {
        self.imagined.map(|all| all.asked.into_inner().unwrap_or_else(PoisonError::into_inner)).unwrap_or_default()
    }

    /// The tensors in `files` whose names are `wanted`; those of pickles that are not whole storages are read at once.
    pub(crate) fn of_files(files: Vec<PathBuf>, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let name = files.first().map(|file| file.display().to_string()).unwrap_or_default();
        let mut tensors = BTreeMap::new();
        for file in &files {
            match foreign::content(file)? {
                Content::Safetensors => tensors.extend(stored(file)?.into_iter().filter(|(name, _)| wanted(name))),
                Content::Pickle => {
                    let (places, read) = pickle::open_some(file, &wanted)?;
                    let opened = Arc::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?);
                    tensors.extend(places.into_iter().map(|(name, Place { info, start, crc32 })| {
                        (name, Stored::InFile { file: opened.clone(), info, start, crc32: Some(crc32) })
                    }));
                    tensors.extend(read.into_iter().map(|(name, tensor)| (name, Stored::InMemory(tensor))))
                }
            }
        }
        Ok(Self { name, files, tensors, imagined: None })
    }

    /// The same weights under other names: `rename` says which tensors each name becomes. Two names for one tensor are an error.
    pub fn renamed(self, rename: impl Fn(&str) -> Vec<(String, Part)>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, whole) in self.tensors {
            let whole = Arc::new(whole);
            for (ours, part) in rename(&name) {
                let stored = Stored::part(&whole, part).with_context(|| format!("{}: tensor '{name}'", self.name))?;
                ensure!(!tensors.contains_key(&ours), "{}: it holds '{ours}' twice, once as '{name}'", self.name);
                tensors.insert(ours, stored);
            }
        }
        Ok(Self { tensors, ..self })
    }

    /// The same weights with adapters added, as they are read.
    fn adapted(mut self, adapters: &BTreeMap<String, Arc<Adapter>>) -> Result<Self> {
        for (name, adapter) in adapters {
            let base = self.tensors.remove(name);
            let base = base.with_context(|| format!("{}: tensor '{name}' is missing", self.name))?;
            let (weight, [a, b]) = (base.dims(), [adapter.a.dims(), adapter.b.dims()]);
            let numbers = b[0] * a[1..].iter().product::<usize>();
            ensure!(
                numbers == weight.iter().product::<usize>()
                    && b[2..].iter().all(|side| *side == 1)
                    && b[0] == weight[0],
                "the adapter of '{name}' has the shapes {a:?} and {b:?}, which do not fit {weight:?}"
            );
            self.tensors.insert(name.clone(), Stored::Adapted(Box::new(base), adapter.clone()));
        }
        Ok(self)
    }

    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.imagined.as_ref().map_or_else(|| self.tensors.contains_key(name), |all| (all.has)(name))
    }

    pub fn dims(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(Stored::dims)
    }

    /// A tensor on the CPU, in the type in which it is stored.
    pub fn raw(&self, name: &str) -> Result<Tensor> {
        self.read(name, false)
    }

    fn read(&self, name: &str, finite: bool) -> Result<Tensor> {
        let stored = self.tensors.get(name).with_context(|| format!("{}: tensor '{name}' is missing", self.name))?;
        stored.read(finite).with_context(|| format!("{}: cannot read tensor '{name}'", self.name))
    }

    /// A tensor of any type; NaN and infinity are refused.
    pub fn numbers(&self, name: &str) -> Result<Tensor> {
        self.read(name, true)
    }

    /// The same of floats, which are numbers: NaN and infinity are refused.
    pub fn floats(&self, name: &str) -> Result<Tensor> {
        let tensor = self.read(name, true)?;
        ensure!(
            tensor.dtype().is_float(),
            "{}: tensor '{name}' holds {:?}, expected floats",
            self.name,
            tensor.dtype()
        );
        Ok(tensor)
    }

    /// Floats of the given shape. A stored (out, in) serves for (out, in, 1, 1) and the other way round.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let Some(imagined) = &self.imagined {
            let mut asked = imagined.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.insert(name.to_owned(), shape.to_vec());
            return Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?);
        }
        let tensor = self.floats(name)?;
        let first_two = |dims: &[usize]| dims.iter().copied().take(2).collect::<Vec<_>>();
        let same = tensor.dims() == shape
            || (tensor.elem_count() == shape.iter().product::<usize>()
                && first_two(tensor.dims()) == first_two(shape)
                && shape.len() >= 2);
        ensure!(same, "{}: tensor '{name}' has shape {:?}, expected {shape:?}", self.name, tensor.dims());
        Ok(tensor.reshape(shape)?)
    }

    /// SHA-256 over the weight files, in hexadecimal. For one file it is what `sha256sum` prints.
    pub fn hash(&self) -> Result<String> {
        match &self.files[..] {
            [one] => file_hash(one),
            many => {
                let hashes = many.iter().map(|f| file_hash(f)).collect::<Result<Vec<_>>>()?;
                Ok(id::hex(&id::sha256(hashes.join("\n").as_bytes())))
            }
        }
    }

    /// The `origin` in the metadata of a checkpoint that this project wrote.
    pub fn origin(&self) -> Option<Origin> {
        let file = self.files.first()?;
        Origin::from_json(metadata(file).ok()?.get(origin::KEY)?)
    }
}

/// candle's number type for weights that are written.
pub fn dtype(dtype: pipe::device::Dtype) -> DType {
    match dtype {
        pipe::device::Dtype::F32 => DType::F32,
        pipe::device::Dtype::F16 => DType::F16,
        pipe::device::Dtype::Bf16 => DType::BF16,
    }
}

/// The shapes of the tensors in a file, which are not read.
pub fn shapes(file: &Path) -> Result<Shapes> {
    match foreign::content(file)? {
        Content::Safetensors => Ok(stored(file)?.into_iter().map(|(name, t)| (name, t.dims().to_vec())).collect()),
        Content::Pickle => pickle::shapes(file),
    }
}

fn stored(path: &Path) -> Result<Vec<(String, Stored)>> {
    let Header { file, metadata, end } = header(path)?;
    let file = Arc::new(file);
    let place = |(name, info): (String, &TensorInfo)| {
        let start = end + info.data_offsets.0 as u64;
        (name, Stored::InFile { file: file.clone(), info: info.clone(), start, crc32: None })
    };
    Ok(metadata.tensors().into_iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write;

    #[test]
    fn what_is_written_is_read_and_shapes_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let t = Tensor::from_vec(vec![1f32, 2., 3., 4.], (2, 2), &Device::Cpu).unwrap();
        let meta = BTreeMap::from([("origin".to_string(), "x".to_string())]);
        write::tensors(&path, &BTreeMap::from([("a.weight".to_string(), t)]), meta).unwrap();
        let w = Weights::open(&path).unwrap();
        assert_eq!(w.get("a.weight", &[2, 2]).unwrap().to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.]]);
        assert_eq!(w.get("a.weight", &[2, 2, 1, 1]).unwrap().dims(), [2, 2, 1, 1]);
        assert!(w.get("a.weight", &[4]).unwrap_err().to_string().contains("'a.weight' has shape [2, 2], expected [4]"));
        assert!(w.get("b", &[4]).unwrap_err().to_string().contains("'b' is missing"));
        assert_eq!(metadata(&path).unwrap()["origin"], "x");
    }

    #[test]
    fn tensors_of_a_pickle_are_read_when_they_are_asked_for_and_their_checksums_compared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pytorch_model.bin");
        let values = [1f32, 2., 3.];
        let tensors: [(&str, DType, &[usize]); 2] = [("a", DType::F32, &[3, 1]), ("b", DType::F32, &[3])];
        let write = |_: &str, file: &mut dyn std::io::Write| Ok(file.write_all(bytemuck::cast_slice(&values))?);
        pickle::write::stream(&path, &tensors, Some("state_dict"), write).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        assert!(weights.tensors.values().all(|stored| matches!(stored, Stored::InFile { .. })));
        assert_eq!(weights.get("a", &[3, 1]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
        assert_eq!(pickle::read(&path).unwrap()["b"].to_vec1::<f32>().unwrap(), values);
        // One bit of `b`: the last of the two storages.
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(12).rposition(|w| w == bytemuck::cast_slice::<f32, u8>(&values)).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        assert!(weights.raw("a").is_ok());
        let error = format!("{:#}", weights.raw("b").unwrap_err());
        assert!(error.contains("pytorch_model.bin") && error.contains("'b'") && error.contains("checksum"), "{error}");
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
                let one = BTreeMap::from([(name.to_string(), one)]);
                write::tensors(&dir.path().join(file), &one, BTreeMap::new()).unwrap();
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
