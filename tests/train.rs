//! `train`, through the binary. Bytes are compared between two runs made here and now, numbers with those of
//! `tests/oracle/dpo.py`, and with the parity kit where it lies beside the repository.
#![cfg(feature = "nets")]

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

/// Training on them, of the small model; `rest` goes before what is usual here.
fn train(dir: &Dir, out: &str, rest: &str) -> Tool {
    let rest: Vec<_> = rest.split_whitespace().collect();
    let mut args: Vec<&str> = vec!["-o", out, "-q"];
    if !rest.contains(&"--replay") {
        let data = rest.first().is_none_or(|a| a.starts_with("--"));
        args.extend(if data { &["pairs.parquet"][..] } else { &[] });
        let usual = [("--labels", "labels.parquet"), ("--resolution", "16"), ("--train_batch_size", "4")];
        args.extend(usual.iter().filter(|(flag, _)| !rest.contains(flag)).flat_map(|(flag, value)| [*flag, *value]));
    }
    let base = oracle("base").display().to_string();
    let usual =
        [("--base", &base[..]), ("--lr", "1e-4"), ("--lr_scheduler", "constant"), ("--checkpointing_steps", "0")];
    args.extend(usual.iter().filter(|(flag, _)| !rest.contains(flag)).flat_map(|(flag, value)| [*flag, *value]));
    dir.tool("train").args(rest.iter().chain(&args))
}
