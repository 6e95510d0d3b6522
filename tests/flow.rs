//! Stable Diffusion 3, 3.5 and FLUX: transformers that follow a flow, against diffusers, transformers and peft. The small models are
//! those of `tests/oracle/flow.py`, which the repository carries.
#![cfg(feature = "nets")]

#[path = "flow/peers.rs"]
mod peers;
#[path = "flow/pictures.rs"]
mod pictures;
#[path = "flow/refused.rs"]
mod refused;
#[path = "flow/training.rs"]
mod training;
mod util;

use candle_core::{DType, Device, Tensor};
use nets::{conditioning::Conditioning, denoiser::Denoiser, prompt::PromptEncoder};
use serde_json::Value;
use util::{world::*, *};

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn close(ours: &Tensor, theirs: &Tensor, tolerance: f32, what: &str) {
    let far = max_abs(ours, theirs);
    println!("{what}: {far:.1e}");
    assert!(far <= tolerance, "{what}: off by {far}");
}

/// Compares every gradient to 2e-3 of its length, except those that are rounding alone.
#[track_caller]
fn same_gradients(ours: &Tensors, theirs: &Tensors) {
    let largest = theirs.values().flat_map(values).fold(0.0, |m: f32, v| m.max(v.abs()));
    let sizeable = theirs.iter().filter(|(_, t)| values(t).iter().any(|v| v.abs() > 1e-6 * largest));
    let (worst, name) = sizeable.map(|(n, t)| (relative(&ours[n], t), n)).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!("worst gradient {worst:.1e} {name}");
    assert!(worst < 2e-3, "{name} is off by {worst}");
}

fn small(name: &str) -> std::path::PathBuf {
    fixture("flow").join(name)
}

fn expected() -> (Tensors, Value) {
    let json = std::fs::read(small("expected.json")).unwrap();
    (tensors(&small("expected.safetensors")), serde_json::from_slice(&json).unwrap())
}

/// `sample` with the small models.
fn sample(dir: &Dir, rest: &str) -> Tool {
    dir.tool("sample").args(["prompts.txt", "-q", "--steps", "4"]).args(rest.split_whitespace())
}

fn with_prompts() -> Dir {
    let dir = Dir::new();
    let prompts = strings(&expected().1["prompts"]);
    dir.write("prompts.txt", prompts[..2].join("\n"));
    dir
}

/// The pictures of a table.
fn tree_of(dir: &Dir, name: &str) -> Vec<Vec<u8>> {
    use arrow::array::AsArray;
    let table = dir.get(name);
    let images = column(&table, "image").as_binary::<i32>();
    images.iter().map(|image| image.unwrap().to_vec()).collect()
}

fn train(dir: &Dir, out: &str, rest: &str) -> Tool {
    if !rest.contains("--resume") {
        let _ = std::fs::remove_dir_all(dir.path(out));
    }
    let base = small("sd3").display().to_string();
    let mut args = vec!["-o", out, "-q", "--lr_scheduler", "constant", "--checkpointing_steps", "0"];
    args.extend(["--base", &base].into_iter().filter(|_| !rest.contains("--base")));
    dir.tool("train").args(rest.split_whitespace()).args(args)
}

/// 24 pairs of the mini world at 16 pixels, their labels and a cache of `encode`.
fn world(name: &str) -> Dir {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(24));
    dir.put("labels.parquet", &labels(&pairs(24), some));
    let args = ["pairs.parquet", "-o", "cache", "--resolution", "16", "-q"];
    dir.tool("encode").args(args).arg("--base").arg(small(name)).ok();
    dir
}

const DATA: &str = "cache --labels labels.parquet --resolution 16 --train_batch_size 4";
