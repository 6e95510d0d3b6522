//! Writing weights: safetensors files that diffusers loads, whole or not at all.

use std::{collections::BTreeMap, io::Write, path::Path};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use pipe::atomic::{self, AtomicFile};
use pipe::origin::{self, Origin};
use pipe::place;
use safetensors::tensor::TensorInfo;

use crate::folder::DIFFUSERS_WEIGHTS;

/// The metadata key under which a file carries the CRC-32C of all its bytes, in hexadecimal digits, computed with zeros in place of
/// these digits.
pub(crate) const CHECKSUM: &str = "crc32c";

/// Writes named tensors (floats, or whole numbers of 32 or 64 bits) and text metadata as safetensors, with a checksum, which a pipe does not get. No more than
/// one tensor is copied at a time.
pub fn tensors(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: BTreeMap<String, String>) -> Result<()> {
    let about = tensors.iter().map(|(name, tensor)| (&name[..], tensor.dtype(), tensor.dims())).collect();
    stream(path, about, metadata, |name, mut file| {
        let tensor = &tensors[name];
        let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
        Ok(match tensor.dtype() {
            DType::F32 => put(&mut file, flat.to_vec1()?, f32::to_le_bytes),
            DType::F16 => {
                let values: Vec<half::f16> = flat.to_vec1()?;
                ensure!(
                    values.iter().all(|x| x.is_finite()),
                    "tensor '{name}' does not fit f16, whose largest number is 65504: store it as f32 or bf16"
                );
                put(&mut file, values, half::f16::to_le_bytes)
            }
            DType::I32 => put(&mut file, flat.to_vec1()?, i32::to_le_bytes),
            DType::I64 => put(&mut file, flat.to_vec1()?, i64::to_le_bytes),
            _ => put(&mut file, flat.to_vec1()?, half::bf16::to_le_bytes),
        }?)
    })
}

/// [`tensors`], of numbers that are made as they are written. `tensors`: name, type and shape of each; `write` writes the bytes of the
/// tensor of this name.
pub fn stream(
    path: &Path,
    mut tensors: Vec<(&str, DType, &[usize])>,
    mut metadata: BTreeMap<String, String>,
    mut write: impl FnMut(&str, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let no_sum = format!("{:08x}", 0);
    if !place::is_stream(path) {
        metadata.insert(CHECKSUM.into(), no_sum.clone());
    }
    // Wide numbers first, as safetensors' own writer puts them, so that each lies at a multiple of its width.
    tensors.sort_by_key(|(_, dtype, _)| std::cmp::Reverse(dtype.size_in_bytes()));
    // Not the crate's own header, whose metadata stands in a random order: the same content is the same bytes here.
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::to_value(metadata)?);
    }
    let mut start = 0;
    for &(name, dtype, shape) in &tensors {
        let is_stored = matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::I64);
        ensure!(is_stored, "tensor '{name}' holds {dtype:?}, which checkpoints do not store");
        let end = start + shape.iter().product::<usize>() * dtype.size_in_bytes();
        let info = TensorInfo { dtype: dtype.into(), shape: shape.to_vec(), data_offsets: (start, end) };
        header.insert(name.to_owned(), serde_json::to_value(info)?);
        start = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let sum_at = digits(&header, &no_sum);

    let mut file = Summed { file: AtomicFile::create(path)?, sum: 0 };
    let cannot = || format!("cannot write {}", path.display());
    file.write_all(&(header.len() as u64).to_le_bytes()).with_context(cannot)?;
    file.write_all(&header).with_context(cannot)?;
    for (name, ..) in tensors {
        write(name, &mut file).with_context(cannot)?;
    }
    let Summed { mut file, sum } = file;
    if let Some(at) = sum_at {
        file.replace(8 + at as u64, format!("{sum:08x}").as_bytes()).with_context(cannot)?;
    }
    file.commit()
}

/// Where the digits `sum` of the checksum stand in a header.
pub(crate) fn digits(header: &[u8], sum: &str) -> Option<usize> {
    let before = format!("\"{CHECKSUM}\":\"");
    let text = format!("{before}{sum}\"");
    header.windows(text.len()).position(|window| window == text.as_bytes()).map(|at| at + before.len())
}

struct Summed {
    file: AtomicFile,
    sum: u32,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.sum = crc32c::crc32c_append(self.sum, &bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn put<T: Copy, const N: usize>(file: &mut impl Write, values: Vec<T>, bytes: fn(T) -> [u8; N]) -> std::io::Result<()> {
    values.chunks(1 << 14).try_for_each(|c| file.write_all(&c.iter().flat_map(|v| bytes(*v)).collect::<Vec<u8>>()))
}

/// Writes a model folder for diffusers: `config.json`, copied from the folder `config_of`, and then the weights, whose
/// appearance says that the folder is complete.
pub fn model(folder: &Path, config_of: &Path, weights: &BTreeMap<String, Tensor>, origin: &Origin) -> Result<()> {
    let config = config_of.join("config.json");
    let text = std::fs::read(&config).with_context(|| format!("cannot read {}", config.display()))?;
    atomic::write(&folder.join("config.json"), &text)?;
    let metadata = BTreeMap::from([(origin::KEY.to_owned(), origin.to_json())]);
    tensors(&folder.join(DIFFUSERS_WEIGHTS), weights, metadata)
}
