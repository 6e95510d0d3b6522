//! torch's zip pickles (`.bin`, `.pt`, `.pth`), read as data: no code in them is ever run.

mod machine;
pub mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufReader, Read};
use std::{fs::File, path::Path, rc::Rc};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{Device, Tensor, WithDType};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorInfo};
use zip::{CompressionMethod, ZipArchive, read::ZipFile, result::ZipError};

use machine::{Heap, Id, Storage, Value, View};

type Archive = ZipArchive<BufReader<File>>;

/// Reads all named tensors onto the CPU, in the type in which they are stored. They are the values of the file's dict
/// `state_dict` if it has one, else of the file's dict itself. Values that are not tensors are left out.
///
/// A tensor that fills its storage is read straight into place; only views into larger storages are copied.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    read_some(path, |_| true)
}

/// [`read`], of the tensors whose names are `wanted`.
pub fn read_some(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    read_archive(path, wanted, None).with_context(|| format!("cannot read {}", path.display()))
}

/// Where the numbers of a tensor lie in its file, and the checksum of their bytes.
pub struct Place {
    pub info: TensorInfo,
    pub start: u64,
    pub crc32: u32,
}

/// [`read_some`], without the tensors that fill a storage of floats, as all weights do: of these only the places.
pub fn open_some(
    path: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<(BTreeMap<String, Place>, BTreeMap<String, Tensor>)> {
    let mut places = BTreeMap::new();
    let read = read_archive(path, wanted, Some(&mut places));
    Ok((places, read.with_context(|| format!("cannot read {}", path.display()))?))
}

/// The shapes of all tensors.
pub fn shapes(path: &Path) -> Result<BTreeMap<String, Vec<usize>>> {
    let (_, _, views) = views(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(views.into_iter().map(|(name, view)| (name, view.shape.clone())).collect())
}

fn read_archive(
    path: &Path,
    wanted: impl Fn(&str) -> bool,
    mut places: Option<&mut BTreeMap<String, Place>>,
) -> Result<BTreeMap<String, Tensor>> {
    let (mut archive, folder, mut views) = views(path)?;
    views.retain(|name, _| wanted(name));
    let mut by_storage: BTreeMap<&str, Vec<(&str, &View)>> = BTreeMap::new();
    for (name, view) in &views {
        check(view).with_context(|| format!("tensor '{name}'"))?;
        by_storage.entry(&view.storage.key).or_default().push((name, &**view));
    }
    let mut tensors = BTreeMap::new();
    for (key, views) in by_storage {
        let file = format!("{folder}data/{key}");
        if let (Some(places), [(name, view)]) = (&mut places, &views[..])
            && let Some(place) = place(&mut archive, &file, view)
        {
            places.insert((*name).to_owned(), place);
            continue;
        }
        let all = views_of(&mut archive, &file, &views).with_context(|| format!("tensor '{}'", views[0].0))?;
        tensors.extend(views.iter().map(|(name, _)| (*name).to_owned()).zip(all));
    }
    Ok(tensors)
}

/// The archive, the folder of its entries, and its tensors by name.
fn views(path: &Path) -> Result<(Archive, String, BTreeMap<String, Rc<View>>)> {
    let mut file = File::open(path)?;
    let mut magic = [0; 2];
    ensure!(
        file.read_exact(&mut magic).is_ok() && &magic == b"PK",
        "it is not a torch archive; load a file of torch before 1.6 in a later torch and save it again"
    );
    let size = file.metadata()?.len();
    let mut archive = ZipArchive::new(BufReader::with_capacity(1 << 20, File::open(path)?))?;
    let mut claimed = 0u64;
    for i in 0..archive.len() {
        claimed = claimed.saturating_add(archive.by_index_raw(i)?.size());
    }
    // torch never compresses, so no two entries can share bytes.
    ensure!(claimed <= size, "its entries claim {claimed} bytes, and the file has {size}: torch did not write it");
    let pickle = pickle_name(&archive)?;
    let folder = pickle.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    if let Ok(order) = entry(&mut archive, &format!("{folder}byteorder")) {
        ensure!(order == b"little", "its numbers are big-endian, which is not supported");
    }
    let (heap, whole) = machine::load(&entry(&mut archive, &pickle)?)?;
    Ok((archive, folder, tensors_of(&heap, whole)?))
}

/// The name of the pickle: `data.pkl` in a folder of any name.
fn pickle_name(archive: &Archive) -> Result<String> {
    let names = archive.file_names().collect::<zip::result::ZipResult<Vec<_>>>()?;
    let ends = |end: &str| names.iter().any(|name| name.ends_with(end));
    ensure!(
        !(ends("constants.pkl") || ends("code/__torch__.py")),
        "it is a TorchScript archive, a program with its weights, as OpenAI's ViT-L-14.pt is; take the same model as transformers or \
         open_clip store it (openai/clip-vit-large-patch14 for this one), or save its weights with \
         torch.save(torch.jit.load(FILE).state_dict(), NEW)"
    );
    ensure!(
        !(ends("serialized_exported_program.json") || ends("models/model.json") || ends("archive_format")),
        "it is a program of torch.export (.pt2); save its weights with torch.save(torch.export.load(FILE).state_dict, NEW)"
    );
    ensure!(!ends(".npy"), "it is an archive of NumPy's arrays (.npz); name the model's safetensors or torch file");
    let mut found: Vec<_> = names.iter().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).collect();
    found.sort_by_key(|name| name.len());
    Ok(found.first().context("it is a zip file without data.pkl, so torch did not write it")?.to_string())
}

/// The longest pickle that is read, in bytes. That of a network of a thousand tensors has some hundred kilobytes.
const LONGEST: u64 = 16 << 20;

/// The bytes of a small entry.
fn entry(archive: &mut Archive, name: &str) -> Result<Vec<u8>> {
    let mut entry = stored(archive, name)?;
    ensure!(entry.size() <= LONGEST, "{name} has {} bytes, more than the {LONGEST} that are read", entry.size());
    let mut bytes = vec![];
    entry.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// An entry as torch writes it: neither encrypted nor compressed.
fn stored<'a>(archive: &'a mut Archive, name: &str) -> Result<ZipFile<'a, BufReader<File>>> {
    let entry = archive.by_name(name).map_err(|error| match error {
        ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED) => {
            anyhow!("it is encrypted; unpack it with its password")
        }
        error => error.into(),
    })?;
    ensure!(entry.compression() == CompressionMethod::Stored, "{name} is compressed, so torch did not write it");
    Ok(entry)
}

/// The tensors by name; the last one where a name comes twice.
fn tensors_of(heap: &Heap, whole: Id) -> Result<BTreeMap<String, Rc<View>>> {
    let Value::Dict(mut dict) = heap[whole].clone() else { bail!("it holds no dict of tensors") };
    let named = |name: &str| dict.iter().rfind(|(key, _)| matches!(&heap[*key], Value::Text(k) if **k == *name));
    if let Some(Value::Dict(inner)) = named("state_dict").map(|&(_, value)| &heap[value]) {
        dict = inner.clone();
    }
    let tensors: BTreeMap<_, _> = dict
        .iter()
        .filter_map(|&(key, value)| match (&heap[key], &heap[value]) {
            (Value::Text(name), Value::Tensor(view)) => Some((name.to_string(), view.clone())),
            _ => None,
        })
        .collect();
    ensure!(!tensors.is_empty(), "it holds no tensors by name, neither at its top nor under 'state_dict'");
    Ok(tensors)
}

/// The place of a tensor that fills a storage of floats in `file`.
fn place(archive: &mut Archive, file: &str, view: &View) -> Option<Place> {
    let (dtype, width) = match view.storage.class {
        "torch.FloatStorage" => (Dtype::F32, 4),
        "torch.HalfStorage" => (Dtype::F16, 2),
        "torch.BFloat16Storage" => (Dtype::BF16, 2),
        _ => return None,
    };
    let count = view.shape.iter().product::<usize>();
    let bytes = count.checked_mul(width)?;
    let entry = stored(archive, file).ok()?; // who reads it says what is wrong with it
    let fills = contiguous(view) && count == view.storage.len && entry.size() == bytes as u64;
    let info = TensorInfo { dtype, shape: view.shape.clone(), data_offsets: (0, bytes) };
    fills.then_some(Place { info, start: entry.data_start()?, crc32: entry.crc32() })
}

/// The tensors that are views into one storage, in the order of `views`.
fn views_of(archive: &mut Archive, file: &str, views: &[(&str, &View)]) -> Result<Vec<Tensor>> {
    let storage = &views[0].1.storage;
    ensure!(views.iter().all(|(_, view)| view.storage == *storage), "its storage is described in two ways");
    match storage.class {
        "torch.FloatStorage" => typed(archive, file, storage, views, f32::from_le_bytes),
        "torch.HalfStorage" => typed(archive, file, storage, views, f16::from_le_bytes),
        "torch.BFloat16Storage" => typed(archive, file, storage, views, bf16::from_le_bytes),
        "torch.DoubleStorage" => typed(archive, file, storage, views, f64::from_le_bytes),
        "torch.LongStorage" => typed(archive, file, storage, views, i64::from_le_bytes),
        "torch.IntStorage" => typed(archive, file, storage, views, i32::from_le_bytes),
        "torch.ShortStorage" => typed(archive, file, storage, views, i16::from_le_bytes),
        "torch.ByteStorage" | "torch.BoolStorage" => typed(archive, file, storage, views, u8::from_le_bytes),
        other => bail!("it is stored as {other}, which is not supported"),
    }
}

fn typed<T: WithDType, const N: usize>(
    archive: &mut Archive,
    file: &str,
    storage: &Storage,
    views: &[(&str, &View)],
    from: impl Fn([u8; N]) -> T,
) -> Result<Vec<Tensor>> {
    let distinct: HashSet<&View> = views.iter().map(|(_, view)| *view).collect();
    let copied = distinct.iter().map(|view| view.shape.iter().product::<usize>()).fold(0, usize::saturating_add);
    // Tensors that share memory see it once or, tied or transposed, a few times.
    ensure!(
        copied <= storage.len.saturating_mul(8),
        "{} tensors see the {} elements of one storage as {copied}",
        distinct.len(),
        storage.len
    );
    let mut data = elements(archive, file, storage.len, from)?;
    let mut done: HashMap<&View, Tensor> = HashMap::new();
    for (index, (_, view)) in views.iter().enumerate() {
        if done.contains_key(view) {
            continue;
        }
        let last = views[index + 1..].iter().all(|(_, other)| *other == *view);
        let values = if contiguous(view) && view.shape.iter().product::<usize>() == data.len() {
            if last { std::mem::take(&mut data) } else { data.clone() }
        } else {
            gather(&data, view)
        };
        done.insert(view, Tensor::from_vec(values, &view.shape[..], &Device::Cpu)?);
    }
    let found = |(_, view): &(&str, &View)| done.get(view).cloned().context("a tensor is missing");
    views.iter().map(found).collect()
}

/// Reads `len` elements of a storage through a small buffer.
fn elements<T, const N: usize>(
    archive: &mut Archive,
    file: &str,
    len: usize,
    from: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>> {
    let mut entry = stored(archive, file).map_err(|e| anyhow!("its elements are missing ({file}: {e:#})"))?;
    let mut data: Vec<T> = vec![];
    let mut buffer = vec![0; (1 << 16) * N];
    // No more memory is reserved than the entry has bytes, whatever a damaged header claims.
    let room = len.min(usize::try_from(entry.size())? / N);
    data.try_reserve_exact(room)?;
    while data.len() < len {
        let want = buffer.len().min((len - data.len()).saturating_mul(N));
        let filled = fill(&mut entry, &mut buffer[..want])?;
        // Part of an element at the end does not count.
        data.extend(buffer[..filled].as_chunks::<N>().0.iter().map(|&bytes| from(bytes)));
        ensure!(filled == want, "its storage has {} elements instead of {len}: the file is damaged", data.len());
    }
    // Reads to the end of the entry, so that its checksum is compared.
    std::io::copy(&mut entry, &mut std::io::sink())?;
    Ok(data)
}

/// Reads until the buffer is full or the entry ends.
fn fill(entry: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match entry.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Checks that all elements lie in the storage.
fn check(view: &View) -> Result<()> {
    ensure!(view.shape.len() == view.strides.len(), "it has strides {:?} for shape {:?}", view.strides, view.shape);
    let product = view.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).context("its shape overflows")?;
    let reach =
        view.shape.iter().zip(&view.strides).try_fold(view.offset, |end, (&size, &stride)| {
            end.checked_add(size.saturating_sub(1).checked_mul(stride)?)
        });
    let inside = product == 0 || reach.is_some_and(|end| end < view.storage.len);
    // The second condition keeps a broadcast view from being multiplied out.
    ensure!(
        inside && product <= view.storage.len,
        "its shape {:?} does not fit its storage of {} elements",
        view.shape,
        view.storage.len
    );
    Ok(())
}

/// Whether the view's elements follow each other from the start of the storage.
fn contiguous(view: &View) -> bool {
    let mut step = 1;
    view.offset == 0
        && view.shape.iter().zip(&view.strides).rev().all(|(&size, &stride)| {
            let follows = size == 1 || stride == step;
            step *= size;
            follows
        })
}

/// The view's elements in row-major order. The view must have passed [`check`].
fn gather<T: Copy>(data: &[T], view: &View) -> Vec<T> {
    let count = view.shape.iter().product();
    let mut out = Vec::with_capacity(count);
    let mut index = vec![0; view.shape.len()];
    let mut at = view.offset;
    for _ in 0..count {
        out.push(data[at]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += view.strides[axis];
            if index[axis] < view.shape[axis] {
                break;
            }
            at -= view.strides[axis] * index[axis];
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests;
