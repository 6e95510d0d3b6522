//! Models, pairs and labels for the tests that run a network.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, AsArray, BinaryArray, Float32Array, RecordBatch},
    datatypes::Int64Type,
};
use candle_core::{Device, Tensor};

use super::*;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `tests/oracle/dpo.py` made it: a Stable Diffusion model that trains a step in milliseconds, and what PyTorch says of it.
pub fn oracle(name: &str) -> PathBuf {
    repository().join("tests/fixtures/oracle").join(name)
}

/// A small file or folder that the tests carry along.
pub fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

/// The base of the mini world.
pub fn mini() -> PathBuf {
    repository().join("pipelines/mini/base")
}

/// The parity kit: models in the published layouts and the Python peers' answers. It lies beside the repository, because it is
/// large. Tests that use it are ignored unless asked for; `make test` asks for them if the kit is there.
pub fn parity(name: &str) -> PathBuf {
    let path = repository().join("../shared/parity/given").join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// The first `n` pairs of the mini world.
pub fn pairs(n: usize) -> RecordBatch {
    let all = read_parquet(&repository().join("pipelines/mini/pairs.parquet")).slice(0, n);
    let keep = ["caption", "image_0_uid", "image_1_uid", "jpg_0", "jpg_1", "label_0", "ranking_id"];
    let columns: Vec<_> = keep.iter().map(|name| all.schema().index_of(name).unwrap()).collect();
    all.project(&columns).unwrap()
}

/// The table with another column under this name.
pub fn with(table: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let fields = table.schema();
    let columns = fields.fields().iter().zip(table.columns());
    let replaced = columns.map(|(f, c)| (f.name().as_str(), if f.name() == name { column.clone() } else { c.clone() }));
    super::table(replaced.collect())
}

/// The table with images and uids of the sides exchanged.
pub fn swapped(table: &RecordBatch) -> RecordBatch {
    let mut out = table.clone();
    for (a, b) in [("image_0_uid", "image_1_uid"), ("jpg_0", "jpg_1")] {
        out = with(&with(&out, a, column(table, b).clone()), b, column(table, a).clone());
    }
    out
}

pub fn images(values: &[Option<&[u8]>]) -> ArrayRef {
    Arc::new(BinaryArray::from_iter(values.iter().copied()))
}

/// The bytes of one image.
pub fn image(table: &RecordBatch, name: &str, row: usize) -> Vec<u8> {
    column(table, name).as_binary::<i32>().value(row).to_vec()
}

/// A labels table with a (target, weight) for each pair.
pub fn labels(pairs: &RecordBatch, label: impl Fn(usize) -> (f32, f32)) -> RecordBatch {
    let n = pairs.num_rows();
    let (captions, zero, one) =
        (column_text(pairs, "caption"), column_text(pairs, "image_0_uid"), column_text(pairs, "image_1_uid"));
    let ranking = column(pairs, "ranking_id").as_primitive::<Int64Type>().clone();
    let id = |i: usize| pipe::id::pair_id(&captions[i], &zero[i], &one[i], &ranking.value(i).to_string());
    super::table(vec![
        ("pair_id", texts((0..n).map(id))),
        ("caption", texts(captions.clone())),
        ("image_0_uid", texts(zero.clone())),
        ("image_1_uid", texts(one.clone())),
        ("target", Arc::new(Float32Array::from_iter_values((0..n).map(|i| label(i).0)))),
        ("weight", Arc::new(Float32Array::from_iter_values((0..n).map(|i| label(i).1)))),
    ])
}

/// Every second pair prefers image 0, every fifth abstains.
pub fn some(i: usize) -> (f32, f32) {
    if i % 5 == 4 { (0.5, 0.0) } else { ((i % 2) as f32, 1.0) }
}

pub type Tensors = BTreeMap<String, Tensor>;

pub fn tensors(path: &Path) -> Tensors {
    let all = candle_core::safetensors::load(path, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    all.into_iter().collect()
}

/// The weights of a checkpoint folder.
pub fn weights(checkpoint: &Path) -> Tensors {
    tensors(&checkpoint.join("unet/diffusion_pytorch_model.safetensors"))
}

pub fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Names, shapes and every bit.
#[track_caller]
pub fn assert_same(a: &Tensors, b: &Tensors) {
    assert!(a.keys().eq(b.keys()) && !a.is_empty());
    for (name, x) in a {
        assert_eq!(x.dims(), b[name].dims(), "{name}");
        let bits = |t: &Tensor| values(t).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(x) == bits(&b[name]), "{name} differs by up to {}", max_abs(x, &b[name]));
    }
}

pub fn differ(a: &Tensors, b: &Tensors) -> bool {
    a.iter().any(|(name, x)| values(x) != values(&b[name]))
}

pub fn max_abs(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let far = values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(values(a).iter().all(|v| v.is_finite()));
    far
}

/// |a - b| / |b|
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let square = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>();
    let (a, b) = (values(a), values(b));
    assert_eq!(a.len(), b.len());
    let apart = square(&mut a.iter().zip(&b).map(|(a, b)| (a - b) as f64));
    (apart / square(&mut b.iter().map(|v| *v as f64)).max(f64::MIN_POSITIVE)).sqrt()
}

/// Max and mean distance over all tensors together.
#[track_caller]
pub fn distance(a: &Tensors, b: &Tensors) -> (f32, f64) {
    assert!(a.keys().eq(b.keys()), "other tensors");
    let max = a.iter().map(|(name, x)| max_abs(x, &b[name])).fold(0.0, f32::max);
    let sum: f64 = a
        .iter()
        .flat_map(|(name, x)| values(x).into_iter().zip(values(&b[name])))
        .map(|(a, b)| (a - b).abs() as f64)
        .sum();
    (max, sum / a.values().map(|t| t.elem_count()).sum::<usize>() as f64)
}

/// Tensors of a file whose names begin with `prefix`, without it.
pub fn under(all: &Tensors, prefix: &str) -> Tensors {
    all.iter().filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_owned(), t.clone()))).collect()
}

pub fn write_tensors(path: &Path, all: &Tensors) {
    let all: std::collections::HashMap<String, Tensor> = all.clone().into_iter().collect();
    candle_core::safetensors::save(&all, path).unwrap();
}

/// Copies a folder, writable.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            std::fs::write(&target, std::fs::read(&source).unwrap()).unwrap();
        }
    }
}

/// Everything below a folder, by relative name.
pub fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = PathBuf::from(entry.file_name());
        if entry.path().is_dir() {
            all.extend(tree(&entry.path()).into_iter().map(|(n, b)| (name.join(n), b)));
        } else {
            all.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    all
}

pub fn log(out: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for something that a running tool will do.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed().as_secs() < 120, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Starts a tool with nothing to read and nowhere to write.
pub fn spawn(mut tool: Tool) -> std::process::Child {
    use std::process::Stdio;
    tool.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

pub fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[track_caller]
pub fn near(ours: f64, theirs: f64, tolerance: f64) {
    assert!((ours - theirs).abs() <= tolerance, "{ours} is not {theirs} to {tolerance}");
}
