//! `winrate`, through the binary.

#[path = "winrate/compared.rs"]
mod compared;
#[path = "winrate/numbers.rs"]
mod numbers;
#[path = "winrate/refused.rs"]
mod refused;
#[path = "winrate/seeds.rs"]
mod seeds;
#[path = "winrate/shown.rs"]
mod shown;
mod util;

use arrow::array::RecordBatch;
use serde_json::json;
use util::*;

/// Two metrics, the second a worse image's better: b = -a.
fn two(model: &str, scores: &[Vec<f32>]) -> RecordBatch {
    scored(model, &["hps", "clip"], scores, |m, x| if m == 0 { x } else { -x })
}

fn policy() -> Vec<Vec<f32>> {
    vec![vec![0.1, 0.9], vec![0.4, 0.2], vec![0.5, 0.5], vec![0.3, 0.8]]
}

fn base() -> Vec<Vec<f32>> {
    vec![vec![0.8, 0.2], vec![0.3, 0.5], vec![0.5, 0.1], vec![0.2, 0.3]]
}

/// A folder with both tables.
fn dir() -> Dir {
    let dir = Dir::new();
    dir.put("policy.parquet", &two("policy", &policy()));
    dir.put("base.parquet", &two("base", &base()));
    dir
}

const BOTH: [&str; 4] = ["policy.parquet", "base.parquet", "--best-of", "2"];

fn near(value: &serde_json::Value, expected: &serde_json::Value, tolerance: f64, what: &str) {
    let (x, y) = (value.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((x - y).abs() <= tolerance, "{what}: {x}, expected {y}");
}
