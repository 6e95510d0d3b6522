//! How many pairs per second `vote` decides: each rule on score columns in memory, with one thread; then the whole program, from
//! a table with captions and keys to a table of labels.
//!
//!   cargo bench --bench vote
//!   cargo bench --bench vote -- 2000000      pairs of the whole program's table
#![allow(dead_code)]

#[path = "../../tools/vote/arena.rs"]
mod arena;
#[path = "../../tools/vote/ballot.rs"]
mod ballot;
#[path = "../../tools/vote/decide.rs"]
mod decide;
#[path = "../../tools/vote/rule.rs"]
mod rule;
#[path = "../../tools/vote/scales.rs"]
mod scales;
#[path = "../../tools/vote/summary.rs"]
mod summary;

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray};
use ballot::{Ballot, Scores};
use decide::Judge;
use pipe::{
    id,
    origin::Origin,
    rule::Rule,
    schema,
    seed::{Draws, draws},
    table::Output,
};
use rule::{Tally, Ties};
use scales::Scales;
use summary::Summary;

const METRICS: [&str; 4] = ["hps", "clip", "pickscore", "aesthetic"];
const BATCH: usize = 8192;

fn main() {
    let pairs: usize = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let metrics: Vec<String> = METRICS.map(String::from).to_vec();
    let (keys, columns) = batch(0);
    let columns: Vec<Float32Array> = columns;
    let rate = |rule: Rule| {
        let tally =
            Tally::new(rule, &metrics, vec![1.0, 0.9, 0.8, 1.1], &Scales::new()).expect("a rule over these metrics");
        let judge = Judge { tally, ties: Ties::Abstain, seed: 0, arena: None };
        let (mut summary, mut n, begun) = (Summary::new(&metrics), 0, Instant::now());
        while begun.elapsed() < Duration::from_millis(300) {
            // Eq. 6, the rule with its pivots, and everything that is counted.
            let scores = columns.chunks(2).map(|m| Scores::new(m[0].clone(), m[1].clone(), 0.0)).collect();
            let label_0 = (0..BATCH).map(|i| Some([0.0, 0.5, 1.0][i % 3])).collect();
            let ballot = Ballot { ids: keys[0].clone(), keys: vec![], label_0, scores, prompts: vec![], earlier: None };
            summary.add(&ballot, &judge.decide(&ballot));
            n += BATCH;
        }
        n as f64 / begun.elapsed().as_secs_f64() / 1e6
    };
    println!("million pairs per second and thread, four metrics and people, on columns in memory");
    for rule in ["majority", "single:hps", "random", "sum", "soft", "unanimous", "quorum:3", "weighted", "human"] {
        println!("  {rule:10} {:6.2}", rate(rule.parse().expect("a rule")));
    }

    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("scores.parquet");
    let mut table = Output::create(&path, schema::scores(&metrics), &Origin::new("bench")).expect("a table");
    for i in 0..pairs.div_ceil(BATCH) {
        let (keys, scores) = batch(i as u64);
        let labels = Float32Array::from_iter_values((0..BATCH).map(|i| [0.0, 0.5, 1.0][i % 3]));
        let keys = keys.into_iter().map(|k| Arc::new(k) as ArrayRef);
        let scores = scores.into_iter().map(|s| Arc::new(s) as ArrayRef);
        let columns = keys.chain([Arc::new(labels) as ArrayRef]).chain(scores).collect();
        table.write(&RecordBatch::try_new(table.schema.clone(), columns).expect("rows")).expect("rows");
    }
    let rows = table.finish().expect("a table");
    println!("million pairs per second, the whole program over {rows} pairs with captions and keys");
    for threads in ["1", "4"] {
        let begun = Instant::now();
        let mut vote = Command::new(env!("CARGO_BIN_EXE_vote"));
        let status = vote
            .arg(&path)
            .arg("-o")
            .arg(dir.path().join("labels.parquet"))
            .args(["-q", "--threads", threads])
            .status();
        assert!(status.is_ok_and(|s| s.success()));
        println!("  --threads {threads}  {:6.2}", rows as f64 / begun.elapsed().as_secs_f64() / 1e6);
    }
}

/// Keys and scores of 8,192 pairs: captions of 20 words, ids as long as Pick-a-Pic's.
fn batch(i: u64) -> (Vec<StringArray>, Vec<Float32Array>) {
    let mut draws = draws(0, "bench", "", i);
    let word = |d: &mut Draws| {
        ["a", "castle", "in", "the", "sky", "oil", "on", "canvas", "dragon", "4k"][d.below(10) as usize]
    };
    let caption: Vec<String> =
        (0..BATCH).map(|_| (0..20).map(|_| word(&mut draws)).collect::<Vec<_>>().join(" ")).collect();
    let uid: Vec<[String; 2]> =
        (0..BATCH).map(|_| [0, 1].map(|_| format!("{:016x}{:016x}", draws.next_u64(), draws.next_u64()))).collect();
    let ids = caption.iter().zip(&uid).map(|(c, u)| id::pair_id(c, &u[0], &u[1], ""));
    let ids = StringArray::from_iter_values(ids);
    let uids = [0, 1].map(|side| StringArray::from_iter_values(uid.iter().map(|u| &u[side])));
    let [uid_0, uid_1] = uids;
    let scores = (0..8).map(|_| draws.normals(BATCH).into()).collect();
    (vec![ids, StringArray::from_iter_values(&caption), uid_0, uid_1], scores)
}
