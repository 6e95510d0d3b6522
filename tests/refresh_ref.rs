//! `refresh-ref`, through the binary.
#![cfg(feature = "nets")]

mod util;

use candle_core::{DType, Tensor};
use util::{world::*, *};

fn refresh(dir: &Dir, policy: &str, reference: &str, rest: &[&str]) -> Tool {
    let models = ["--policy", policy, "--reference", reference, "-o", "out"];
    dir.tool("refresh-ref").args(models).args(rest)
}

/// The small model's two UNets, under short names.
fn models() -> Dir {
    let dir = Dir::new();
    copy(&oracle("policy"), &dir.path("policy"));
    copy(&oracle("base/unet"), &dir.path("base/unet"));
    dir
}

fn f32s(all: &Tensors) -> Tensors {
    all.iter().map(|(n, t)| (n.clone(), t.to_dtype(DType::F32).unwrap())).collect()
}

#[test]
fn rate_1_is_the_policy_and_rate_0_the_reference() {
    let dir = models();
    refresh(&dir, "policy", "base", &[]).ok();
    let out = weights(&dir.path("out"));
    assert!(out.values().all(|t| t.dtype() == DType::F32), "f32, whatever the models were stored in");
    assert_same(&out, &f32s(&weights(&dir.path("policy"))));
    assert_eq!(dir.bytes("out/unet/config.json"), dir.bytes("policy/unet/config.json"));
    // Also by the unet/ itself, and in place.
    refresh(&dir, "policy/unet", "base/unet", &["--rate", "0"]).ok();
    assert_same(&weights(&dir.path("out")), &f32s(&weights(&dir.path("base"))));
    refresh(&dir, "policy", "out", &["--rate=1"]).ok();
    assert_same(&weights(&dir.path("out")), &f32s(&weights(&dir.path("policy"))));
}

#[test]
fn rate_one_half_is_the_middle() {
    let dir = models();
    let run = refresh(&dir, "policy", "base", &["--rate", "0.5"]).ok();
    says(&run.err, &["out holds the reference after a step of 0.5 towards the policy"]);
    assert_eq!(refresh(&dir, "policy", "base", &["--rate", "0.5", "--json"]).ok().json()["rate"], 0.5);
    let (a, b) = (f32s(&weights(&dir.path("policy"))), f32s(&weights(&dir.path("base"))));
    for (name, middle) in weights(&dir.path("out")) {
        let want: Tensor = ((&a[&name] + &b[&name]).unwrap() / 2.0).unwrap();
        assert!(max_abs(&middle, &want) < 1e-6, "{name}");
    }
    // Twice a half is three quarters.
    refresh(&dir, "policy", "out", &["--rate", "0.5"]).ok();
    let name = "conv_in.weight";
    let want = ((&a[name] * 0.75).unwrap() + (&b[name] * 0.25).unwrap()).unwrap();
    assert!(max_abs(&weights(&dir.path("out"))[name], &want) < 1e-6);
}

#[test]
fn same_work_same_bytes_and_its_origin() {
    let dir = models();
    refresh(&dir, "policy", "base", &["--rate", "0.25"]).ok();
    let first = tree(&dir.path("out"));
    copy(&dir.path("policy"), &dir.path("elsewhere"));
    refresh(&dir, "elsewhere", "base", &["--rate", "0.25", "--threads", "2"]).ok();
    assert!(tree(&dir.path("out")) == first);
    assert_eq!(first.len(), 2, "config and weights, nothing else");
    let file = dir.path("out/unet/diffusion_pytorch_model.safetensors");
    let origin: serde_json::Value = serde_json::from_str(&nets::weights::metadata(&file).unwrap()["origin"]).unwrap();
    assert_eq!((&origin["tool"], &origin["args"]["rate"]), (&"refresh-ref".into(), &0.25.into()));
    let hash = pipe::id::file_hash(&dir.path("policy/unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(origin["inputs"][0]["sha256"], hash);
}

#[test]
fn what_does_not_fit_is_named_and_nothing_is_written() {
    let dir = models();
    let mini = mini().display().to_string();
    says(&refresh(&dir, "policy", &mini, &[]).fails(2), &["policy and reference differ in architecture", "conv_in"]);
    says(&refresh(&dir, "policy", "policy", &["-o", "x.ckpt"]).fails(2), &["x.ckpt", ".safetensors"]);
    let file = dir.path("base/unet/diffusion_pytorch_model.safetensors");
    let whole = tensors(&file);
    let name = "time_embedding.linear_1.weight";
    let mut all = whole.clone();
    all.remove(name);
    write_tensors(&file, &all);
    says(&refresh(&dir, "policy", "base", &[]).fails(2), &["differ in architecture", name, "is missing"]);
    says(&refresh(&dir, "base", "policy", &[]).fails(2), &[name, "is missing"]);
    all.insert(name.into(), whole[name].narrow(0, 0, 3).unwrap());
    write_tensors(&file, &all);
    says(&refresh(&dir, "policy", "base", &[]).fails(2), &[name, "has shape [3, 8], expected [32, 8]"]);
    dir.write("base/unet/diffusion_pytorch_model.safetensors", &std::fs::read(&file).unwrap()[..3000]);
    says(&refresh(&dir, "policy", "base", &[]).fails(2), &["base/unet", "is not a whole safetensors file"]);
    std::fs::remove_file(&file).unwrap();
    says(&refresh(&dir, "policy", "base", &[]).fails(2), &["base/unet holds no weights"]);
    for rate in ["1.5", "nan"] {
        says(&refresh(&dir, "policy", "policy", &["--rate", rate]).exits(2).err, &["--rate", rate]);
    }
    says(&refresh(&dir, "policy", "policy", &["--shard", "0/2"]).exits(2).err, &["--shard"]);
    says(&refresh(&dir, "policy", "absent", &[]).fails(2), &["absent does not exist"]);
    assert_eq!(dir.list(), ["base", "policy"]);
    let error = dir.tool("refresh-ref").args(["--policy", "policy", "--reference", "policy", "-o", "-"]).fails(2);
    says(&error, &["a checkpoint is a folder; name one with -o"]);
    assert_eq!(dir.list(), ["base", "policy"]);
    dir.write("plain", "a file");
    let error = dir.tool("refresh-ref").args(["--policy", "policy", "--reference", "policy", "-o", "plain"]).fails(2);
    says(&error, &["plain"]);
    assert_eq!(dir.bytes("plain"), b"a file");
}

/// The policy took days; the reference is meant to be replaced.
#[test]
fn the_policy_is_not_replaced() {
    let dir = models();
    let before = tree(&dir.path("policy"));
    for policy in ["policy", "policy/unet"] {
        says(&refresh(&dir, policy, "base", &["--rate", "0.5", "-o", "policy"]).fails(2), &["also an input"]);
    }
    assert!(tree(&dir.path("policy")) == before);
    refresh(&dir, "policy", "base", &["--rate", "0.5", "-o", "base"]).ok();
    assert_eq!(dir.list(), ["base", "policy"]);
}

/// Damage does not pass from one checkpoint into the next.
#[test]
fn numbers_that_are_none_are_refused() {
    let dir = models();
    let file = |model: &str| dir.path(&format!("{model}/unet/diffusion_pytorch_model.safetensors"));
    let name = "time_embedding.linear_1.weight";
    for (model, dtype, value) in [
        ("policy", DType::F32, f32::NAN),
        ("policy", DType::F16, f32::INFINITY),
        ("base", DType::BF16, f32::NAN),
        ("base", DType::F32, f32::NEG_INFINITY),
        ("policy", DType::I64, 7.0),
    ] {
        let whole = std::fs::read(file(model)).unwrap();
        let mut all = f32s(&tensors(&file(model)));
        let shape = all[name].shape().clone();
        let mut numbers = values(&all[name]);
        *numbers.last_mut().unwrap() = value;
        let changed = Tensor::from_vec(numbers, &shape, &candle_core::Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        all.insert(name.into(), changed);
        write_tensors(&file(model), &all);
        let error = refresh(&dir, "policy", "base", &["--rate", "0.5"]).fails(2);
        let what = if dtype == DType::I64 { "holds I64, expected floats" } else { "NaN or infinity" };
        says(&error, &[model, name, what]);
        assert_eq!(dir.list(), ["base", "policy"]);
        std::fs::write(file(model), whole).unwrap();
    }
}

#[test]
fn a_changed_byte_is_found_by_the_checksum() {
    let dir = models();
    refresh(&dir, "policy", "base", &["--rate", "0.5", "-o", "made"]).ok();
    let file = "made/unet/diffusion_pytorch_model.safetensors";
    let mut bytes = dir.bytes(file);
    let last = bytes.len() - 4; // a low bit: still a number
    bytes[last] ^= 1;
    dir.write(file, bytes);
    for (policy, reference) in [("made", "base"), ("policy", "made")] {
        says(&refresh(&dir, policy, reference, &["--rate", "0.5"]).fails(2), &[file, "is damaged", "checksum"]);
    }
    assert_eq!(dir.list(), ["base", "made", "policy"]);
}
