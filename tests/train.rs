//! `train`, through the binary. Bytes are compared between two runs that the test makes, numbers with those of
//! `tests/oracle/dpo.py` and of the parity kit.
#![cfg(feature = "nets")]

#[path = "train/batches.rs"]
mod batches;
#[path = "train/damage.rs"]
mod damage;
#[path = "train/data.rs"]
mod data;
#[path = "train/killed.rs"]
mod killed;
#[path = "train/lora.rs"]
mod lora;
#[path = "train/memory.rs"]
mod memory;
#[path = "train/method.rs"]
mod method;
#[path = "train/models.rs"]
mod models;
#[path = "train/numbers.rs"]
mod numbers;
#[path = "train/refused.rs"]
mod refused;
#[path = "train/runs.rs"]
mod runs;
mod util;

use std::path::Path;

use arrow::compute::concat_batches;
use serde_json::Value;
use util::{world::*, *};

/// A folder with 24 pairs and labels for them.
fn world() -> Dir {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(24));
    dir.put("labels.parquet", &labels(&pairs(24), some));
    dir
}

/// Trains the small model on them. `rest` replaces the default flags that follow it. Unless it continues a run, what is in `out` is
/// removed before.
fn train(dir: &Dir, out: &str, rest: &str) -> Tool {
    if !rest.contains("--resume") && !rest.contains("--dry-run") {
        let _ = std::fs::remove_dir_all(dir.path(out));
    }
    train_into(dir, out, rest)
}

fn train_into(dir: &Dir, out: &str, rest: &str) -> Tool {
    let rest: Vec<_> = rest.split_whitespace().collect();
    let mut args: Vec<&str> = vec!["-o", out, "-q"];
    if !rest.contains(&"--replay") {
        let data = rest.first().is_none_or(|a| a.starts_with("--"));
        args.extend(if data { &["pairs.parquet"][..] } else { &[] });
        let defaults = [("--labels", "labels.parquet"), ("--resolution", "16"), ("--train_batch_size", "4")];
        args.extend(defaults.iter().filter(|(flag, _)| !rest.contains(flag)).flat_map(|(flag, value)| [*flag, *value]));
    }
    let base = oracle("base").display().to_string();
    let usual =
        [("--base", &base[..]), ("--lr", "1e-4"), ("--lr_scheduler", "constant"), ("--checkpointing_steps", "0")];
    args.extend(usual.iter().filter(|(flag, _)| !rest.contains(flag)).flat_map(|(flag, value)| [*flag, *value]));
    dir.tool("train").args(rest.iter().chain(&args))
}

/// Compares every gradient to 2e-3 of its length, except those that are rounding alone.
#[track_caller]
fn same_gradients(ours: &Tensors, theirs: &Tensors) -> f64 {
    let largest = theirs.values().flat_map(values).fold(0.0, |m: f32, v| m.max(v.abs()));
    assert!(ours.keys().eq(theirs.keys()), "other tensors");
    let sizeable = theirs.iter().filter(|(_, t)| values(t).iter().any(|v| v.abs() > 1e-6 * largest));
    let (worst, name) = sizeable.map(|(n, t)| (relative(&ours[n], t), n)).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert!(worst < 2e-3, "{name} is off by {worst}");
    worst
}

fn log_lines(out: &Path) -> usize {
    std::fs::read_to_string(out.join("log.jsonl")).map_or(0, |text| text.lines().count())
}

fn safetensors(
    path: &Path,
    all: &[(String, candle_core::Tensor)],
    meta: Option<std::collections::HashMap<String, String>>,
) {
    let tensors: std::collections::HashMap<_, _> = all.iter().cloned().collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
    let Some(meta) = meta else { return };
    // The same file with metadata: a longer header before the same data.
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["__metadata__"] = serde_json::to_value(meta).unwrap();
    let header = serde_json::to_vec(&header).unwrap();
    let out = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat();
    std::fs::write(path, out).unwrap();
}
