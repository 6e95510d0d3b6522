//! What is written is read back: weights and their metadata, adapters, torch's pickles, names of values.
//!
//! The inputs are the same at every run. PROPTEST_RNG_SEED chooses others, PROPTEST_CASES more.

use std::{collections::BTreeMap, fmt::Debug, fs::File, io::Write, path::Path};

use candle_core::{DType, Device, Tensor};
use nets::{
    image::Antialias,
    lora::{self, Adapter, Adapters, LoraConfig},
    optim::LrSchedule,
    process::{ErrorOf, Spacing},
    sampler::Scheduler,
    weights::{self, Weights},
    write,
};
use pipe::{names::Names, origin::Origin};
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    test_runner::{Config, RngSeed},
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

fn config() -> Config {
    let config = Config { failure_persistence: None, ..Config::default() };
    match std::env::var_os("PROPTEST_RNG_SEED") {
        Some(_) => config,
        None => Config { rng_seed: RngSeed::Fixed(1), cases: 48, ..config },
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![vec(any::<char>(), 0..12).prop_map(String::from_iter), "[a-z_.]{1,8}".prop_map(String::from)]
}

/// Numbers of any bits, in a type that checkpoints store.
fn tensor() -> impl Strategy<Value = Tensor> {
    let shape = vec(0..4usize, 0..4);
    (shape, prop::sample::select(vec![DType::F32, DType::F16, DType::BF16])).prop_flat_map(|(shape, dtype)| {
        let bytes = shape.iter().product::<usize>() * dtype.size_in_bytes();
        vec(any::<u8>(), bytes)
            .prop_map(move |bytes| Tensor::from_raw_buffer(&bytes, dtype, &shape, &Device::Cpu).unwrap())
    })
}

/// Type, shape and bits.
fn bits(tensor: &Tensor) -> (DType, Vec<usize>, Vec<u64>) {
    let flat = tensor.flatten_all().unwrap();
    let bits = match tensor.dtype() {
        DType::F32 => flat.to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits().into()).collect(),
        DType::F64 => flat.to_vec1::<f64>().unwrap().iter().map(|v| v.to_bits()).collect(),
        DType::F16 => flat.to_vec1::<half::f16>().unwrap().iter().map(|v| v.to_bits().into()).collect(),
        DType::BF16 => flat.to_vec1::<half::bf16>().unwrap().iter().map(|v| v.to_bits().into()).collect(),
        DType::I64 => flat.to_vec1::<i64>().unwrap().iter().map(|v| *v as u64).collect(),
        other => panic!("{other:?}"),
    };
    (tensor.dtype(), tensor.dims().to_vec(), bits)
}

/// A tensor in a pickle: a view into a storage.
#[derive(Clone, Debug)]
struct View {
    storage: usize,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// What torch stores: element type, bytes per element, and the type here.
const STORAGES: [(&str, usize, DType); 5] = [
    ("FloatStorage", 4, DType::F32),
    ("HalfStorage", 2, DType::F16),
    ("BFloat16Storage", 2, DType::BF16),
    ("DoubleStorage", 8, DType::F64),
    ("LongStorage", 8, DType::I64),
];

/// Storages (type, bytes) and views into them, by name.
type Saved = (Vec<(usize, Vec<u8>)>, BTreeMap<String, View>);

fn saved() -> impl Strategy<Value = Saved> {
    let storage = (0..STORAGES.len(), 1..30usize)
        .prop_flat_map(|(kind, len)| vec(any::<u8>(), len * STORAGES[kind].1).prop_map(move |bytes| (kind, bytes)));
    vec(storage, 1..4).prop_flat_map(|storages| {
        let lengths: Vec<usize> = storages.iter().map(|(kind, bytes)| bytes.len() / STORAGES[*kind].1).collect();
        let view = (0..storages.len(), vec(1..4usize, 0..4), any::<prop::sample::Index>(), any::<bool>());
        let view = view.prop_filter_map("a view inside its storage", move |(storage, shape, offset, transposed)| {
            let spare = lengths[storage].checked_sub(shape.iter().product())?;
            let (mut strides, mut step) = (vec![0; shape.len()], 1);
            let axes: Vec<usize> =
                if transposed { (0..shape.len()).collect() } else { (0..shape.len()).rev().collect() };
            for axis in axes {
                strides[axis] = step;
                step *= shape[axis];
            }
            Some(View { storage, offset: offset.index(spare + 1), shape, strides })
        });
        (Just(storages), btree_map("[a-z.]{1,6}", view, 1..5))
    })
}

/// The pickle of `torch.save(state_dict)`, protocol 2. `memo`: storages are described once and then fetched from the memo.
fn pickle((storages, views): &Saved, memo: bool, inner: bool) -> Vec<u8> {
    let mut p = b"\x80\x02".to_vec();
    let text = |p: &mut Vec<u8>, text: &str| {
        p.push(b'X');
        p.extend((text.len() as u32).to_le_bytes());
        p.extend(text.as_bytes());
    };
    let int = |p: &mut Vec<u8>, n: usize| {
        p.push(b'J');
        p.extend((n as i32).to_le_bytes());
    };
    if inner {
        p.extend(b"}");
        text(&mut p, "state_dict");
    }
    p.extend(b"ccollections\nOrderedDict\n)R(");
    let mut described = vec![false; storages.len()];
    for (name, view) in views {
        text(&mut p, name);
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(");
        if memo && described[view.storage] {
            p.extend([b'h', view.storage as u8]);
        } else {
            let (kind, bytes) = &storages[view.storage];
            let (class, width, _) = STORAGES[*kind];
            p.extend(b"(");
            text(&mut p, "storage");
            p.extend(format!("ctorch\n{class}\n").bytes());
            text(&mut p, &view.storage.to_string());
            text(&mut p, "cpu");
            int(&mut p, bytes.len() / width);
            p.extend(b"tQ");
            p.extend([b'q', view.storage as u8]);
            described[view.storage] = true;
        }
        int(&mut p, view.offset);
        for list in [&view.shape, &view.strides] {
            p.push(b'(');
            list.iter().for_each(|&n| int(&mut p, n));
            p.push(b't');
        }
        p.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    p.extend(if inner { &b"us."[..] } else { b"u." });
    p
}

fn archive(path: &Path, saved: &Saved, memo: bool, inner: bool) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut put = |name: String, bytes: &[u8]| {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    };
    put("archive/data.pkl".into(), &pickle(saved, memo, inner));
    for (i, (_, bytes)) in saved.0.iter().enumerate() {
        put(format!("archive/data/{i}"), bytes);
    }
    zip.finish().unwrap();
}

/// The view's elements, one by one.
fn gathered(storages: &[(usize, Vec<u8>)], view: &View) -> Tensor {
    let (kind, bytes) = &storages[view.storage];
    let (_, width, dtype) = STORAGES[*kind];
    let mut elements = vec![];
    for n in 0..view.shape.iter().product() {
        let (mut rest, mut at) = (n, view.offset);
        for (size, stride) in view.shape.iter().zip(&view.strides).rev() {
            at += rest % size * stride;
            rest /= size;
        }
        elements.extend_from_slice(&bytes[at * width..(at + 1) * width]);
    }
    Tensor::from_raw_buffer(&elements, dtype, &view.shape, &Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn weights_are_read_as_they_were_written(
        tensors in btree_map(text().prop_filter("safetensors' own", |name| name != "__metadata__"), tensor(), 0..5),
        notes in btree_map(text(), text(), 0..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.safetensors");
        write::tensors(&file, &tensors, notes.clone()).unwrap();
        let read = Weights::open(&file).unwrap();
        prop_assert_eq!(read.names(), tensors.keys().cloned().collect::<Vec<_>>());
        for (name, tensor) in &tensors {
            prop_assert_eq!(bits(&read.raw(name).unwrap()), bits(tensor));
        }
        let said = weights::metadata(&file).unwrap();
        for (key, note) in &notes {
            prop_assert_eq!(said.get(key), Some(note));
        }
    }

    #[test]
    fn adapters_are_read_as_they_were_written(
        modules in btree_map("[a-z]{1,4}(\\.[a-z0-9]{1,3}){0,2}", (1..5usize, 1..5usize), 1..4),
        rank in 1..3usize, alpha in 0.0f64..1e3, targets in vec("[a-z_]{1,6}", 1..3), seed: u64, transformer: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = LoraConfig { rank, alpha, targets };
        let mut tensors = BTreeMap::new();
        for (module, (inner, out)) in &modules {
            let [a, b] = Adapter::names(module);
            let (first, second) = Adapter::initial(module, &[rank.max(*out), rank.max(*inner)], rank, seed, &Device::Cpu).unwrap();
            tensors.extend([(a, first.as_tensor().clone()), (b, second.as_tensor().clone())]);
        }
        let of = if transformer { "flow/sd3/transformer" } else { "oracle/base/unet" };
        let denoiser = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(of);
        let denoiser = nets::denoiser::Config::read(&denoiser).unwrap();
        lora::write(dir.path(), &config, &denoiser, &tensors, &BTreeMap::new(), &Origin::new("test")).unwrap();
        prop_assert_eq!(dir.path().join("kohya.safetensors").exists(), !transformer);
        let read = Adapters::open(&dir.path().join("pytorch_lora_weights.safetensors")).unwrap();
        prop_assert_eq!((read.config.rank, read.config.alpha, &read.config.targets), (rank, alpha, &config.targets));
        prop_assert!(read.tensors.keys().eq(tensors.keys()));
        for (name, tensor) in &tensors {
            prop_assert_eq!(bits(&read.tensors[name]), bits(tensor));
        }
    }

    #[test]
    fn a_pickle_is_read_as_torch_writes_it(saved in saved(), memo: bool, inner: bool) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pytorch_model.bin");
        archive(&file, &saved, memo, inner);
        let read = Weights::open(&file).unwrap();
        let (storages, views) = &saved;
        prop_assert_eq!(read.names(), views.keys().cloned().collect::<Vec<_>>());
        for (name, view) in views {
            prop_assert_eq!(bits(&read.raw(name).unwrap()), bits(&gathered(storages, view)));
        }
    }

    /// Cut anywhere, an archive or a safetensors file is refused.
    #[test]
    fn a_file_that_is_cut_is_refused(saved in saved(), cut in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let (pickle, weights) = (dir.path().join("pytorch_model.bin"), dir.path().join("w.safetensors"));
        archive(&pickle, &saved, true, false);
        let one = BTreeMap::from([("a".to_owned(), Tensor::ones(3, DType::F32, &Device::Cpu).unwrap())]);
        write::tensors(&weights, &one, BTreeMap::new()).unwrap();
        for file in [pickle, weights] {
            let mut bytes = std::fs::read(&file).unwrap();
            bytes.truncate(cut.index(bytes.len()));
            std::fs::write(&file, bytes).unwrap();
            prop_assert!(Weights::open(&file).is_err());
        }
    }
}

/// Every form that a flag has is parsed, from its name and each alias, and printed by its name.
#[track_caller]
fn forms<T: Names + PartialEq + Debug>() {
    for form in T::FORMS {
        for name in [form.form].iter().chain(form.aliases) {
            assert_eq!(name.parse::<T>().map(|value| value.to_string()), Ok(form.form.to_owned()));
        }
    }
}

#[test]
fn every_form_of_a_flag_is_read() {
    forms::<Scheduler>();
    forms::<Spacing>();
    forms::<ErrorOf>();
    forms::<LrSchedule>();
    forms::<Antialias>();
}
