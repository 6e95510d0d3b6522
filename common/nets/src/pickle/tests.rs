//! Against `torch.load`; the files are made by tests/oracle/torch_pickle.py.

use std::path::PathBuf;

use super::*;

fn from_here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn files() -> Vec<PathBuf> {
    let folder = from_here("../../tests/fixtures/pickle");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "pt"));
    files.sort();
    files
}

fn is_bad(file: &Path) -> bool {
    file.file_name().unwrap().to_str().unwrap().starts_with("bad_")
}

#[test]
fn tensors_are_torchs() {
    let good: Vec<_> = files().into_iter().filter(|f| !is_bad(f)).collect();
    assert_eq!(good.len(), 7);
    for file in good {
        let ours = read(&file).unwrap();
        let theirs = candle_core::safetensors::load(file.with_extension("safetensors"), &Device::Cpu).unwrap();
        assert!(ours.keys().eq(theirs.keys().collect::<std::collections::BTreeSet<_>>()), "{file:?} {:?}", ours.keys());
        for (name, tensor) in ours {
            let other = &theirs[&name];
            assert_eq!((tensor.dims(), tensor.dtype()), (other.dims(), other.dtype()), "{file:?} {name}");
            let values = |t: &Tensor| {
                t.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!(values(&tensor), values(other), "{file:?} {name}");
        }
    }
}

#[test]
fn what_is_no_weights_is_refused() {
    let mut seen = 0;
    for file in files().into_iter().filter(|f| is_bad(f)) {
        let error = format!("{:#}", read(&file).unwrap_err());
        let name = file.file_stem().unwrap().to_str().unwrap();
        println!("{name}: {}", error.split_once(": ").unwrap().1);
        let expected = match name {
            n if n.contains("os.system") => "asks for the class posix.system",
            n if n.contains("eval") => "eval, which weights do not need",
            "bad_instance" => "asks for the class os.system",
            "bad_outside" | "bad_huge" => "does not fit its storage",
            "bad_negative" => "a size is -1",
            "bad_short" => "instead of 1099511627776",
            "bad_missing" => "its elements are missing",
            "bad_type" => "torch.ComplexFloatStorage",
            "bad_number" | "bad_deep" => "no dict",
            "bad_before_1.6" => "before 1.6",
            _ => "",
        };
        assert!(error.contains(expected), "{name}: {error}");
        seen += 1;
    }
    assert!(seen > 14);
    assert!(!from_here("pwned").exists());
}

#[test]
fn damaged_bytes_never_panic() {
    let bytes = std::fs::read(from_here("../../tests/fixtures/pickle/nested.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pt");
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x2b;
        std::fs::write(&path, damaged).unwrap();
        let _ = read(&path); // tensors or an error
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn published_layouts_of_the_parity_kit() {
    let models = from_here("../../../shared/parity/given/models");
    for (file, name, dims) in [
        ("aesthetic/sac+logos+ava1-l14-linearMSE.pth", "layers.0.weight", &[1024, 768][..]),
        ("hpsv2/HPS_v2.1_compressed.pt", "visual.class_embedding", &[]),
        ("clip_h_open_clip/open_clip_pytorch_model.bin", "visual.class_embedding", &[]),
        ("nsfw_text_classifier/pytorch_model.bin", "pre_classifier.weight", &[]),
    ] {
        let tensors = read(&models.join(file)).unwrap();
        assert!(dims.is_empty() || tensors[name].dims() == dims);
        println!("{file}: {} tensors, {:?}", tensors.len(), tensors[name]);
    }
}

/// A few bytes that ask for any amount of memory: copies of an argument, and many views of one storage.
#[test]
fn bombs_are_refused_or_cost_what_they_weigh() {
    let n = 60_000;
    let text = [&b"X"[..], &300_000u32.to_le_bytes(), &[b'a'; 300_000]].concat();
    let again = b"h\x01h\x00\x85R".repeat(n);
    let list = |items: &[u8]| [b"\x80\x02](", items, b"eq\x00"].concat();
    let tensor = |shorter: i32| {
        let size = |n: i32| [&b"J"[..], &n.to_le_bytes()].concat();
        let storage = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu";
        [
            storage,
            &size(1 << 18)[..],
            b"tQJ\0\0\0\0(",
            &size((1 << 18) - shorter),
            b"t(J\x01\0\0\0t\x89ccollections\nOrderedDict\n)RtR",
        ]
        .concat()
    };
    let named = |i: i32| {
        let name = format!("t{i}");
        [&b"X"[..], &(name.len() as u32).to_le_bytes(), name.as_bytes(), &tensor(i)].concat()
    };
    let views: Vec<u8> = (0..4000).flat_map(named).collect();
    for (pickle, why) in [
        ([&list(&b"K\x01".repeat(n))[..], b"ctorch\nSize\nq\x01", &again, b"."].concat(), "no dict"),
        ([b"\x80\x02", &text[..], b"q\x00ctorch._utils\n_rebuild_parameter\nq\x01", &again, b"."].concat(), "no dict"),
        (
            [&list(&b"K\x01K\x01\x86".repeat(n / 2))[..], b"ccollections\nOrderedDict\nq\x01", &again, b"."].concat(),
            "again and again",
        ),
        (
            [
                b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n",
                &text[..],
                b"X\x03\0\0\0cpuK\x01tq\x00",
                &b"h\x00Q".repeat(n),
                b".",
            ]
            .concat(),
            "no dict",
        ),
        ([b"\x80\x02}(", &views[..], b"u."].concat(), "of one storage"),
        ([&list(&b"K\x01".repeat(65))[..], b"."].concat(), "no dict"),
    ] {
        let error = format!("{:#}", read_pickle(&pickle, &[0; 1 << 20]).unwrap_err());
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(
        read_pickle(&[b"\x80\x02}(", &named(0)[..], &named(1), b"u."].concat(), &[0; 1 << 20]).unwrap().len(),
        2
    );
}

#[test]
fn archives_of_other_programs_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ViT-L-14.pt");
    for (entries, what) in [
        (&["a/data.pkl", "a/constants.pkl", "a/code/__torch__.py"][..], "TorchScript"),
        (&["a/models/model.json", "a/archive_format"], "torch.export"),
        (&["x.npy"], "NumPy"),
        (&["readme.txt"], "torch did not write it"),
    ] {
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for entry in entries {
            zip.start_file(
                *entry,
                zip::write::SimpleFileOptions::default().compression_method(CompressionMethod::Stored),
            )
            .unwrap();
        }
        zip.finish().unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains(what) && error.contains("ViT-L-14.pt"), "{error}");
    }
}

fn read_pickle(pickle: &[u8], storage: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.bin");
    let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", storage)] {
        zip.start_file(name, zip::write::SimpleFileOptions::default().compression_method(CompressionMethod::Stored))
            .unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    read(&path)
}
