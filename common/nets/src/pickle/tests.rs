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
