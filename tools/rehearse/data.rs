//! A few pairs in Pick-a-Pic's own columns, and a few prompts in each published format.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray,
};
use mozjpeg::{ColorSpace, Compress};
use pipe::{atomic, origin::Origin, seed, table::Output};
use serde_json::json;

/// Where the experiments look for it.
const TABLE: &str = "pickapic_v2/data/train-00000-of-00001.parquet";

const PROMPTS: [&str; 6] = [
    "a lighthouse in a storm, oil painting", "two red apples on a blue table, photograph",
    "the old town at night, seen from the river", "a fox that reads a newspaper in the tram",
    "a glass house in a birch forest, early morning", "portrait of a clockmaker, 35mm, soft light",
];

fn prompt(i: usize) -> String {
    let text = PROMPTS[i % PROMPTS.len()];
    if i < PROMPTS.len() { text.into() } else { format!("{text}, number {i}") }
}

/// Writes a file unless it exists.
pub fn keep(path: &Path, content: &[u8]) -> Result<()> {
    if path.exists() { Ok(()) } else { atomic::write(path, content) }
}

/// Writes `count` pairs of JPEG pictures of `side` pixels, unless the table exists.
pub fn pairs(folder: &Path, side: usize, count: usize, seed: u64) -> Result<()> {
    let path = folder.join(TABLE);
    if path.exists() {
        return Ok(());
    }
    let uid = |pair: usize, image: usize| format!("00000000-0000-4000-8000-{:012}", 2 * pair + image);
    let texts =
        |of: &dyn Fn(usize) -> String| -> ArrayRef { Arc::new(StringArray::from_iter_values((0..count).map(of))) };
    let images = |image: usize| -> Result<ArrayRef> {
        let all = (0..count).map(|pair| picture(side, seed, &uid(pair, image))).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(BinaryArray::from_iter_values(all)))
    };
    let yes = || -> ArrayRef { Arc::new(BooleanArray::from(vec![true; count])) };
    let numbers =
        |of: fn(i64) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values((0..count as i64).map(of))) };
    // Image 0 wins in every second pair.
    let label = |image: usize| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values((0..count).map(|pair| ((pair + image) % 2) as f64)))
    };
    let table = RecordBatch::try_from_iter([
        ("are_different", yes()),
        ("best_image_uid", texts(&|pair| uid(pair, (pair + 1) % 2))),
        ("caption", texts(&prompt)),
        ("created_at", Arc::new(TimestampNanosecondArray::from(vec![1_680_000_000_000_000_000; count])) as ArrayRef),
        ("has_label", yes()),
        ("image_0_uid", texts(&|pair| uid(pair, 0))),
        ("image_0_url", texts(&|_| String::new())),
        ("image_1_uid", texts(&|pair| uid(pair, 1))),
        ("image_1_url", texts(&|_| String::new())),
        ("jpg_0", images(0)?),
        ("jpg_1", images(1)?),
        ("label_0", label(0)),
        ("label_1", label(1)),
        ("model_0", texts(&|_| "random".into())),
        ("model_1", texts(&|_| "random".into())),
        ("ranking_id", numbers(|pair| pair)),
        ("user_id", numbers(|_| 0)),
        ("num_example_per_prompt", numbers(|_| 1)),
        ("__index_level_0__", numbers(|pair| pair)),
    ])?;
    let mut output = Output::create(&path, table.schema().as_ref().clone(), &Origin::new("rehearse"))?;
    output.write(&table)?;
    output.finish().map(drop)
}

/// A JPEG of a colour gradient with grain: about as many bytes as a picture of Pick-a-Pic.
fn picture(side: usize, seed: u64, uid: &str) -> Result<Vec<u8>> {
    let mut draws = seed::draws(seed, "picture", uid, 0);
    let corners: Vec<[f64; 3]> = (0..4).map(|_| [0; 3].map(|_| draws.uniform() * 200.0)).collect();
    let mut pixels = Vec::with_capacity(3 * side * side);
    for y in 0..side {
        for x in 0..side {
            let (v, u) = (y as f64 / side as f64, x as f64 / side as f64);
            let grain = 40.0 * draws.uniform();
            for ((a, b), (c, d)) in corners[0].iter().zip(&corners[1]).zip(corners[2].iter().zip(&corners[3])) {
                let colour = (a * (1.0 - u) + b * u) * (1.0 - v) + (c * (1.0 - u) + d * u) * v;
                pixels.push((colour + grain) as u8);
            }
        }
    }
    let mut compress = Compress::new(ColorSpace::JCS_RGB);
    compress.set_size(side, side);
    compress.set_quality(90.0);
    let mut started = compress.start_compress(vec![]).context("cannot write a JPEG")?;
    started.write_scanlines(&pixels).context("cannot write a JPEG")?;
    started.finish().context("cannot write a JPEG")
}

/// Writes `count` prompts as each of the three sets of the paper is published, each unless it exists.
pub fn prompts(folder: &Path, count: usize) -> Result<()> {
    let set = |name: &str| (0..count).map(|i| format!("{}, {name}", prompt(i))).collect::<Vec<_>>();
    let text: String = set("a caption").iter().map(|prompt| format!("{prompt}\n")).collect();
    let rows = set("from a list").into_iter().map(|prompt| format!("{prompt}\tArts\tBasic\t\n"));
    let tsv: String = ["Prompt\tCategory\tChallenge\tNote\n".to_owned()].into_iter().chain(rows).collect();
    let test = set("for four images").into_iter().enumerate().map(|(i, prompt)| {
        let images: Vec<String> = (0..4).map(|k| format!("{:06}.jpg", 4 * i + k)).collect();
        json!({ "prompt": prompt, "image_path": images, "rank": [1, 2, 3, 4], "raw_annotations": [] })
    });
    let json = serde_json::to_string(&test.collect::<Vec<_>>())?;
    for (name, content) in [("pickapic.txt", text), ("PartiPrompts.tsv", tsv), ("hpdv2.json", json)] {
        keep(&folder.join("prompts").join(name), content.as_bytes())?;
    }
    Ok(())
}
