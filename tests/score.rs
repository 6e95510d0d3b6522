//! `score`, through the binary, with the scorers of the mini world: tables, resumption, pipes, bad input. What the numbers are is
//! tests/scorers.rs's to say.
#![cfg(feature = "nets")]

#[path = "score/bad.rs"]
mod bad;
#[path = "score/inputs.rs"]
mod inputs;
#[path = "score/judges.rs"]
mod judges;
#[path = "score/manners.rs"]
mod manners;
#[path = "score/same.rs"]
mod same;
mod util;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::array::{RecordBatch, StringArray, UInt32Array, UInt64Array};
use serde_json::Value;
use util::{world::*, *};

const METRICS: [&str; 4] = ["hps", "clip", "pickscore", "aesthetic"];
const COLUMNS: [&str; 8] =
    ["hps_0", "hps_1", "clip_0", "clip_1", "pickscore_0", "pickscore_1", "aesthetic_0", "aesthetic_1"];

fn scorers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/mini/scorers")
}

/// `score` with the mini world's models.
fn score(dir: &Dir, args: &str) -> Tool {
    dir.tool("score").args(args.split_whitespace()).args(["--models", scorers().to_str().unwrap()])
}

/// A folder with the first `n` pairs.
fn world(n: usize) -> Dir {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(n));
    dir
}

/// Every bit of the scores.
fn bits(table: &RecordBatch) -> Vec<Vec<u32>> {
    COLUMNS.iter().map(|c| column_f32(table, c).iter().map(|x| x.to_bits()).collect()).collect()
}

/// The images of pairs as an images table: of each pair first image 0, then image 1.
fn as_images(pairs: &RecordBatch) -> RecordBatch {
    let n = pairs.num_rows();
    let prompts = column_text(pairs, "caption");
    let both = |f: &dyn Fn(usize, usize) -> String| texts((0..2 * n).map(|i| f(i / 2, i % 2)));
    let bytes: Vec<Vec<u8>> = (0..2 * n).map(|i| image(pairs, ["jpg_0", "jpg_1"][i % 2], i / 2)).collect();
    table(vec![
        ("prompt_id", both(&|i, _| pipe::id::prompt_id(&prompts[i]))),
        ("prompt", both(&|i, _| prompts[i].clone())),
        ("set", both(&|_, _| "set".into())),
        ("category", Arc::new(StringArray::new_null(2 * n))),
        ("image_uid", both(&|i, k| format!("{i}-{k}"))),
        ("k", Arc::new(UInt32Array::from_iter_values((0..2 * n).map(|i| (i % 2) as u32)))),
        ("seed", Arc::new(UInt64Array::from_iter_values((0..2 * n).map(|i| u64::MAX - i as u64)))),
        ("model", both(&|_, _| "m".into())),
        ("image", images(&bytes.iter().map(|b| Some(&b[..])).collect::<Vec<_>>())),
    ])
}

fn colourfulness(dir: &Dir, tables: &str, out: &str) -> Tool {
    dir.tool("score").args(tables.split(' ')).args(["--metrics", "colourfulness", "--threads", "1", "-q", "-o", out])
}
