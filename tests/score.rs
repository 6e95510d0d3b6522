//! `score`, through the binary, with the scorers of the mini world: tables, resumption, pipes, bad input. What the numbers are is
//! tests/scorers.rs's to say.
#![cfg(feature = "nets")]

#[path = "score/manners.rs"]
mod manners;
mod util;

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use arrow::{
    array::{RecordBatch, StringArray, UInt32Array, UInt64Array},
    compute::concat_batches,
    datatypes::{DataType, Field, Metadata, Schema},
};
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

#[test]
fn each_image_and_each_caption_goes_through_the_models_once() {
    let dir = Dir::new();
    let ten = pairs(10);
    // The same pairs again, with the images exchanged, and each image 0 against itself.
    let twice = concat_batches(&ten.schema(), [&ten, &ten]).unwrap();
    let itself = with(&ten, "jpg_1", column(&ten, "jpg_0").clone());
    dir.put("pairs.parquet", &concat_batches(&ten.schema(), [&twice, &swapped(&ten), &itself]).unwrap());
    let summary = score(&dir, "pairs.parquet -o s.parquet --json").ok().json();
    let uids: std::collections::HashSet<Vec<u8>> =
        (0..20).map(|i| image(&ten, ["jpg_0", "jpg_1"][i % 2], i / 2)).collect();
    let captions: std::collections::HashSet<String> = column_text(&ten, "caption").into_iter().collect();
    assert_eq!(summary["rows"], 40);
    for (key, count) in [
        ("distinct_images", uids.len()),
        ("images_embedded", uids.len()),
        ("distinct_captions", captions.len()),
        ("captions_embedded", captions.len()),
        ("identical_pairs", 10),
        ("undecodable", 0),
        ("black_images", 0),
    ] {
        assert_eq!(summary[key], count, "{key}");
    }
    let metric = &summary["metrics"]["clip"];
    assert_eq!(metric["n"], 80);
    assert!(metric["min"].as_f64() < metric["mean"].as_f64() && metric["mean"].as_f64() < metric["max"].as_f64());
    // Exchanged images are exchanged columns; an image against itself is a tie.
    let all = bits(&dir.get("s.parquet"));
    for side_0 in (0..8).step_by(2) {
        assert_eq!(all[side_0][..10], all[side_0][10..20]);
        assert_eq!(all[side_0][..10], all[side_0 + 1][20..30]);
        assert_eq!(all[side_0 + 1][..10], all[side_0][20..30]);
        assert_eq!(all[side_0][30..], all[side_0 + 1][30..]);
    }
}

#[test]
fn an_image_beside_other_captions_goes_through_the_models_once() {
    let dir = Dir::new();
    let ten = pairs(10);
    let captions = column_text(&ten, "caption");
    let turned = |by: usize| with(&ten, "caption", texts((0..10).map(|i| captions[(i + by) % 10].clone())));
    let all: Vec<_> = (0..10).map(turned).collect();
    dir.put("pairs.parquet", &concat_batches(&ten.schema(), &all).unwrap());
    let summary = score(&dir, "pairs.parquet -o s.parquet --json").ok().json();
    for (distinct, embedded) in [("distinct_images", "images_embedded"), ("distinct_captions", "captions_embedded")] {
        assert!(summary[distinct].as_u64() <= Some(20));
        assert_eq!(summary[distinct], summary[embedded]);
    }
    let hps = column_f32(&dir.get("s.parquet"), "hps_0");
    assert!((1..10).all(|i| hps[10 * i..10 * i + 10] != hps[..10]));
}

#[test]
fn a_judge_scores_and_does_not_vote_unless_it_is_named() {
    let dir = world(12);
    dir.put("images.parquet", &as_images(&pairs(12)));
    let model = format!("clip-l={}", scorers().join("clip").display());
    let metrics = ["--metrics", "hps,colourfulness,clip-l", "--model", &model];
    score(&dir, "pairs.parquet -o s.parquet").args(metrics).ok();
    score(&dir, "images.parquet -o i.parquet").args(metrics).ok();
    let (scores, scored) = (dir.get("s.parquet"), dir.get("i.parquet"));
    let colour = [column_f32(&scores, "colourfulness_0"), column_f32(&scores, "colourfulness_1")].concat();
    assert!(colour.iter().all(|m| (0.0..200.0).contains(m)) && colour.iter().any(|&m| m > 10.0), "{colour:?}");
    for metric in ["colourfulness", "clip-l"] {
        assert_eq!(column_f32(&scored, metric)[3], column_f32(&scores, &format!("{metric}_1"))[1]);
    }
    let voters = |scores: &str, more: &[&str]| -> Vec<String> {
        dir.tool("vote").args([scores, "-o", "labels.parquet"]).args(more).ok();
        let schema = dir.get("labels.parquet").schema();
        schema.fields().iter().filter_map(|f| Some(f.name().strip_prefix("vote_")?.to_owned())).collect()
    };
    assert_eq!(voters("s.parquet", &[]), ["hps"]);
    assert_eq!(voters("s.parquet", &["--metrics", "colourfulness,hps"]), ["colourfulness", "hps"]);
    assert_eq!(voters("s.parquet", &["--metrics", "hps,clip-l"]), ["hps", "clip-l"]);
    // In a table of its own, and through a pipe.
    score(&dir, "pairs.parquet -o hps.parquet --metrics hps").ok();
    let judge = score(&dir, "pairs.parquet -o - -q --metrics colourfulness").ok();
    dir.tool("vote").args(["hps.parquet", "-", "-o", "labels.parquet"]).stdin(judge.out.clone()).ok();
    assert!(dir.get("labels.parquet").column_by_name("vote_colourfulness").is_none());
    dir.put("judge.parquet", &judge.table());
    assert_eq!(voters("hps.parquet", &["judge.parquet"]), ["hps"]);
    let tool = dir.tool("score").args(["pairs.parquet", "-o", "c.parquet", "--metrics", "colourfulness"]);
    tool.ok(); // without any model
    let error = score(&dir, "pairs.parquet -o s.parquet --metrics colourfulness --model colourfulness=x").fails(2);
    says(&error, &["'colourfulness' needs no model"]);
}

/// Scores of another program.
type Judged = Vec<Option<f32>>;

/// Pairs and images, their scores by `score`, and those of another program: of both sides of each pair, and of the images.
fn judged() -> (Dir, [Judged; 2], Judged) {
    let dir = world(12);
    let drawn = as_images(&pairs(12));
    dir.put("policy.parquet", &drawn);
    score(&dir, "pairs.parquet -o scores.parquet --metrics hps").ok();
    score(&dir, "policy.parquet -o policy-scored.parquet --metrics hps").ok();
    let judged = |text: &str, bytes: &[u8]| (bytes.len() % 10 != 2).then_some((text.len() * bytes.len() % 100) as f32);
    let values = |table: &RecordBatch, text: &str, bytes: &str| -> Vec<Option<f32>> {
        let texts = column_text(table, text);
        (0..table.num_rows()).map(|i| judged(&texts[i], &image(table, bytes, i))).collect()
    };
    let pairs = dir.get("pairs.parquet");
    let sides = ["jpg_0", "jpg_1"].map(|side| values(&pairs, "caption", side));
    let images = values(&drawn, "prompt", "image");
    assert!(images.contains(&None));
    (dir, sides, images)
}

/// FORMATS.md's recipe for the scores of another program.
#[test]
#[ignore = "needs Python with pyarrow"]
fn scores_added_by_the_recipe_are_read() {
    let (dir, sides, images) = judged();
    let judge = "judge = lambda text, image: len(text) * len(image) % 100 if len(image) % 10 != 2 else None\n";
    let formats = include_str!("../common/FORMATS.md");
    let recipe = formats.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let run = Command::new(python).args(["-c", &(judge.to_owned() + recipe)]).current_dir(dir.path("")).output();
    let run = run.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    are_read(&dir, &sides, &images);
}

#[test]
fn scores_made_elsewhere_are_read() {
    let (dir, sides, images) = judged();
    let add = |from: &str, columns: &[(&str, &Vec<Option<f32>>)], to: &str| {
        let table = dir.get(from);
        let (mut fields, mut all) = (table.schema().fields().to_vec(), table.columns().to_vec());
        for (name, values) in columns {
            let role = Metadata::default().with("role", "judge");
            fields.push(Arc::new(Field::new(*name, DataType::Float32, true).with_metadata(role)));
            all.push(floats(values.iter().copied()));
        }
        let schema = Schema::new(fields).with_metadata(table.schema().metadata().clone());
        dir.put(to, &RecordBatch::try_new(Arc::new(schema), all).unwrap());
    };
    add("scores.parquet", &[("hpsv3_0", &sides[0]), ("hpsv3_1", &sides[1])], "scores-hpsv3.parquet");
    add("policy-scored.parquet", &[("hpsv3", &images)], "policy-hpsv3.parquet");
    are_read(&dir, &sides, &images);
}

/// `vote` and `winrate` read the added columns.
fn are_read(dir: &Dir, sides: &[Judged; 2], images: &[Option<f32>]) {
    let vote = |metrics: &[&str]| -> RecordBatch {
        dir.tool("vote").args(["scores-hpsv3.parquet", "-o", "labels.parquet", "-q"]).args(metrics).ok();
        dir.get("labels.parquet")
    };
    assert!(vote(&[]).column_by_name("vote_hpsv3").is_none());
    let named = vote(&["--metrics", "hps,hpsv3"]);
    let s = |i: usize| sides[0][i].zip(sides[1][i]).map_or(0, |(m_0, m_1)| i8::from(m_0 > m_1) - i8::from(m_0 < m_1));
    assert_eq!(column_i8(&named, "vote_hpsv3"), (0..12).map(s).collect::<Vec<_>>());
    assert_eq!(column_i8(&named, "vote_hps"), column_i8(&vote(&[]), "vote_hps"));
    assert_eq!(column_f32_or_null(&dir.get("policy-hpsv3.parquet"), "hpsv3"), images);
    // Against itself every score is a tie; a null score is left out, and the column does not name its model.
    dir.put("base-hpsv3.parquet", &dir.get("policy-hpsv3.parquet"));
    let args = ["policy-hpsv3.parquet", "base-hpsv3.parquet", "--best-of", "2", "--json"];
    let run = dir.tool("winrate").args(args).ok();
    let json = run.json();
    assert_eq!(json["metrics"], serde_json::json!(["hps", "hpsv3"]));
    let nulls = images.iter().filter(|score| score.is_none()).count();
    assert_eq!(json["tables"][0]["null_scores"]["hpsv3"], nulls);
    assert_eq!(json["comparisons"][0]["all"]["metrics"]["hpsv3"]["ties"], 12);
    says(&run.err, &["does not name the scorer of hpsv3"]);
}

#[test]
fn the_report_names_what_is_odd_in_the_data() {
    let dir = Dir::new();
    let some = pairs(24);
    let black = nets::image::png(&nets::image::Rgb { width: 9, height: 7, data: vec![0; 9 * 7 * 3] }, None).unwrap();
    // A black image in row 0, one image on both sides of rows 1 and 2; of the human labels a third are ties, a third missing.
    let image_0: Vec<_> = (0..24).map(|i| if i == 0 { black.clone() } else { image(&some, "jpg_0", i) }).collect();
    let image_1: Vec<_> =
        (0..24).map(|i| image(&some, if [1, 2].contains(&i) { "jpg_0" } else { "jpg_1" }, i)).collect();
    let column = |all: &[Vec<u8>]| images(&all.iter().map(|b| Some(&b[..])).collect::<Vec<_>>());
    let labels = floats((0..24).map(|i| [Some(1.0), Some(0.5), None][i % 3]));
    let labels = with(&with(&with(&some, "jpg_0", column(&image_0)), "jpg_1", column(&image_1)), "label_0", labels);
    dir.put("pairs.parquet", &labels);
    let run = score(&dir, "pairs.parquet -o s.parquet --json --metrics aesthetic,colourfulness").ok();
    let summary = run.json();
    for (key, count) in [
        ("rows", 24),
        ("black_images", 1),
        ("identical_pairs", 2),
        ("label_ties", 8),
        ("label_missing", 8),
        ("undecodable", 0),
    ] {
        assert_eq!(summary[key], count, "{key}");
    }
    assert_eq!(summary["collapsed"], serde_json::json!([]));
    assert_eq!(summary["metrics"]["aesthetic"]["known_mean"], serde_json::json!([5.0, 6.5]));
    let said = score(&dir, "pairs.parquet -o s.parquet --metrics aesthetic,colourfulness").ok().err;
    says(
        &said,
        &["1 image all black; 2 pairs of one image with itself, 8 human ties, 8 rows without", "usual mean", "5..6.5"],
    );
    // Where `has_label` is false, a label is none.
    let has = |i: usize| [Some(true), Some(false), Some(false), None][i % 4];
    let mut columns: Vec<_> = labels
        .schema()
        .fields()
        .iter()
        .map(|f| (f.name().clone(), labels.column_by_name(f.name()).unwrap().clone()))
        .collect();
    let all: arrow::array::BooleanArray = (0..24).map(has).collect();
    columns.push(("has_label".to_owned(), Arc::new(all)));
    dir.put("has.parquet", &table(columns.iter().map(|(name, c)| (name.as_str(), c.clone())).collect()));
    let summary = score(&dir, "has.parquet -o h.parquet --json --metrics colourfulness").ok().json();
    let expected: Vec<_> =
        (0..24).map(|i| [Some(1.0), Some(0.5), None][i % 3].filter(|_| has(i) != Some(false))).collect();
    assert_eq!(column_f32_or_null(&dir.get("h.parquet"), "label_0"), expected);
    assert_eq!(summary["label_missing"], expected.iter().filter(|l| l.is_none()).count());
    assert_eq!(summary["label_ties"], expected.iter().filter(|l| **l == Some(0.5)).count());
    // Grey images, all of them, and no labels.
    let grey = |i: usize| {
        let data = vec![i as u8; 3 * 3 * 3];
        nets::image::png(&nets::image::Rgb { width: 3, height: 3, data }, None).unwrap()
    };
    let greys: Vec<_> = (1..25).map(grey).collect();
    let table = with(&without(&some, "label_0"), "jpg_0", column(&greys));
    dir.put("grey.parquet", &with(&table, "jpg_1", column(&greys)));
    let run = score(&dir, "grey.parquet -o g.parquet --json --metrics colourfulness").ok();
    assert_eq!(
        (&run.json()["collapsed"], &run.json()["label_missing"]),
        (&serde_json::json!(["colourfulness"]), &24.into())
    );
    says(&run.err, &["warning: colourfulness gives nearly the same score to every image"]);
}

#[test]
fn threads_batches_and_shards_change_no_bit() {
    let dir = world(70);
    score(&dir, "pairs.parquet -o one.parquet --threads 1 --batch 1").ok();
    score(&dir, "pairs.parquet -o two.parquet --threads 2 --batch 7").ok();
    assert!(dir.bytes("one.parquet") == dir.bytes("two.parquet"));
    for i in 0..3 {
        score(&dir, &format!("pairs.parquet -o parts --shard {i}/3")).ok();
    }
    assert_eq!(dir.list(), ["one.parquet", "pairs.parquet", "parts", "two.parquet"]);
    let (whole, parts) = (dir.get("one.parquet"), dir.get("parts"));
    assert_eq!(bits(&whole), bits(&parts));
    assert_eq!(whole.columns()[..5], parts.columns()[..5]);
    // Pipes in and out, and a folder of parts as input.
    let piped = score(&dir, "- -o -").stdin(stream(&pairs(70))).ok().table();
    assert_eq!(bits(&whole), bits(&piped));
    std::fs::create_dir(dir.path("folder")).unwrap();
    dir.put("folder/part-00000-of-00002.parquet", &pairs(70).slice(0, 33));
    dir.put("folder/part-00001-of-00002.parquet", &pairs(70).slice(33, 37));
    score(&dir, "folder -o folder.parquet").ok();
    assert_eq!(bits(&whole), bits(&dir.get("folder.parquet")));
}

#[test]
fn images_tables_are_scored_as_pairs_are() {
    let dir = world(12);
    dir.put("images.parquet", &as_images(&pairs(12)));
    score(&dir, "pairs.parquet -o scores.parquet").ok();
    score(&dir, "images.parquet -o scored.parquet").ok();
    let (scores, scored) = (dir.get("scores.parquet"), dir.get("scored.parquet"));
    let names: Vec<_> = scored.schema().fields().iter().map(|f| f.name().clone()).collect();
    let keys = ["prompt_id", "prompt", "set", "category", "challenge", "image_uid", "k", "seed", "model"];
    assert_eq!(names, [&keys[..], &METRICS].concat());
    for metric in METRICS {
        let both = [0, 1].map(|side| column_f32(&scores, &format!("{metric}_{side}")));
        let pairs: Vec<f32> = both[0].iter().zip(&both[1]).flat_map(|(a, b)| [*a, *b]).collect();
        assert_eq!(column_f32(&scored, metric), pairs);
    }
    assert_eq!(column_text(&scored, "image_uid")[3], "1-1");
    // What made the scores can be compared: `winrate` asks for equal ids.
    let models = |table: &RecordBatch| {
        let origin: Value = serde_json::from_str(&table.schema().metadata()["origin"]).unwrap();
        origin["models"].clone()
    };
    assert_eq!(models(&scores), models(&scored));
    let id = models(&scores)["hps"].as_str().unwrap().to_owned();
    assert!(id.starts_with("sha256:") && id.ends_with("; letterbox-antialias/64; open_clip"), "{id}");
    assert!(models(&scores)["aesthetic"].as_str().unwrap().ends_with("; hf-clip-430/64"));
    score(&dir, "pairs.parquet -o legacy.parquet --hps-resize legacy").ok();
    assert_ne!(models(&dir.get("legacy.parquet"))["hps"], models(&scores)["hps"]);
    assert_eq!(models(&dir.get("legacy.parquet"))["pickscore"], models(&scores)["pickscore"]);
}

#[test]
fn bad_rows_stop_it_or_are_counted() {
    let good = pairs(6);
    let at = |name: &str, row: usize| image(&good, name, row);
    let truncated = at("jpg_0", 2);
    let truncated = truncated[..truncated.len() / 2].to_vec();
    // A PNG that claims 100,000 x 100,000 pixels.
    let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\x01\x86\xa0\0\x01\x86\xa0\x08\x02\0\0\0".to_vec();
    bomb.extend([0x2f, 0x93, 0x4b, 0x3f]);
    let zero = [Some(at("jpg_0", 0)), Some(at("jpg_0", 1)), Some(truncated), None, Some(at("jpg_0", 4)), Some(bomb)];
    let zero: Vec<_> = zero.iter().map(|b| b.as_deref()).collect();
    let captions = StringArray::from(vec![Some("a"), Some("b"), Some("c"), Some("d"), None, Some("f")]);
    let cases = [
        (2, "jpg_0", images(&[zero[0], zero[1], zero[2], zero[0], zero[0], zero[0]]), &["truncated"][..]),
        (3, "jpg_0", images(&[zero[0], zero[1], zero[0], None, zero[0], zero[0]]), &["null"]),
        (4, "caption", Arc::new(captions.clone()), &["caption is null"]),
        (5, "jpg_0", images(&[zero[0], zero[1], zero[0], zero[0], zero[0], zero[5]]), &["PNG"]),
    ];
    for (row, name, column, why) in cases {
        let dir = Dir::new();
        dir.put("pairs.parquet", &with(&good, name, column));
        let error = score(&dir, "pairs.parquet -o s.parquet").fails(2);
        says(&error, &["pairs.parquet", &format!("row {row} (from 0)"), "--skip-bad"]);
        says(&error, why);
        assert!(!dir.path("s.parquet").exists());
    }
    let dir = Dir::new();
    dir.put("pairs.parquet", &with(&with(&good, "jpg_0", images(&zero)), "caption", Arc::new(captions)));
    let summary = score(&dir, "pairs.parquet -o s.parquet --skip-bad --json").ok().json();
    assert_eq!(
        (&summary["rows"], &summary["undecodable"], &summary["null_captions"]),
        (&6.into(), &3.into(), &1.into())
    );
    let scores = dir.get("s.parquet");
    for metric in METRICS {
        let missing = |side: &str| -> Vec<bool> {
            column_f32_or_null(&scores, &format!("{metric}_{side}")).iter().map(Option::is_none).collect()
        };
        assert_eq!(missing("0"), [false, false, true, true, true, true], "{metric}");
        assert_eq!(missing("1"), [false, false, false, false, true, false], "{metric}");
    }
    assert_eq!(column_text(&scores, "caption")[4], "");
    dir.tool("vote").args(["s.parquet", "-o", "labels.parquet"]).ok();
}

#[test]
fn captions_of_any_length() {
    let dir = Dir::new();
    let captions = ["".to_owned(), "word ".repeat(2000), "🙂".repeat(10_000), "<end_of_text> x".into(), "x".into()];
    dir.put("pairs.parquet", &with(&pairs(5), "caption", texts(captions)));
    score(&dir, "pairs.parquet -o s.parquet").ok();
    assert!(column_f32(&dir.get("s.parquet"), "hps_0").iter().all(|x| x.is_finite()));
}

#[test]
fn verify_finds_a_changed_score() {
    let dir = world(20);
    score(&dir, "pairs.parquet -o s.parquet").ok();
    let run = score(&dir, "pairs.parquet -o s.parquet --verify 7").ok();
    says(&run.err, &["s.parquet: 56 scores in 7 rows are the same"]);
    let scores = dir.get("s.parquet");
    let mut wrong = column_f32(&scores, "clip_1");
    wrong[11] += 3e-5;
    dir.put("s.parquet", &with(&scores, "clip_1", floats(wrong.into_iter().map(Some))));
    let before = dir.bytes("s.parquet");
    let error = score(&dir, "pairs.parquet -o s.parquet --verify 100").fails(1);
    says(&error, &["1 of 160 scores differ", "s.parquet, row 11 (from 0): clip_1 is"]);
    score(&dir, "pairs.parquet -o s.parquet --verify 100 --metrics hps,aesthetic").ok();
    assert!(dir.bytes("s.parquet") == before, "--verify writes nothing");
    dir.put("less.parquet", &pairs(19));
    says(&score(&dir, "less.parquet -o s.parquet --verify 3").fails(2), &["20 rows", "19"]);
    says(&score(&dir, "pairs.parquet -o absent.parquet --verify 3").fails(2), &["absent.parquet"]);
    says(&score(&dir, "pairs.parquet -o s.parquet --verify 0").exits(2).err, &["--verify", "0 is not in 1.."]);
    let why = ["--verify draws rows at random; name the table as a Parquet file"];
    says(&score(&dir, "- -o s.parquet --verify 3").stdin(stream(&pairs(20))).fails(2), &why);
    says(&score(&dir, "pairs.parquet -o - --verify 3").fails(2), &why);
}

#[test]
fn a_wrong_command_line_says_what_to_do() {
    let dir = world(3);
    dir.put("images.parquet", &as_images(&pairs(3)));
    dir.put("no_jpg.parquet", &without(&pairs(3), "jpg_1"));
    dir.put("no_prompt.parquet", &without(&as_images(&pairs(3)), "prompt"));
    dir.put("neither.parquet", &without(&as_images(&pairs(3)), "image"));
    for (args, parts) in [
        (
            "pairs.parquet -o s.parquet --metrics hps,beauty",
            &["no metric 'beauty'", "hps, clip, pickscore, aesthetic, clip-l, colourfulness"][..],
        ),
        ("pairs.parquet -o s.parquet --metrics hps,hps", &["'hps' twice"]),
        ("pairs.parquet -o s.parquet --batch 0", &["--batch is 0"]),
        ("pairs.parquet -o s.parquet --model clip", &["METRIC=TOWER"]),
        ("pairs.parquet -o s.parquet --model clip=absent", &["absent", "does not exist"]),
        ("pairs.parquet -o s.parquet --model clip=x --metrics hps", &["--metrics does not name 'clip'"]),
        ("no_jpg.parquet -o s.parquet", &["no_jpg.parquet: column 'jpg_1' is missing (found: caption"]),
        ("no_prompt.parquet -o s.parquet", &["column 'prompt' is missing"]),
        ("neither.parquet -o s.parquet", &["neither a pairs table", "nor an images table"]),
        ("pairs.parquet", &["-o PATH"]),
    ] {
        says(&score(&dir, args).fails(2), parts);
    }
    let tool = dir.tool("score").args(["pairs.parquet", "-o", "s.parquet", "--models", "absent"]);
    says(&tool.fails(2), &["--models absent is not a folder"]);
    says(
        &dir.tool("score").args(["pairs.parquet", "-o", "s.parquet"]).fails(2),
        &["'hps' has no model", "--models DIR"],
    );
    std::fs::create_dir(dir.path("empty")).unwrap();
    let tool = dir.tool("score").args(["pairs.parquet", "-o", "s.parquet", "--models", "empty"]);
    says(&tool.fails(2), &["empty/hps does not exist", "--model hps=PATH"]);
    assert!(!dir.list().iter().any(|name| name.starts_with("s.parquet")));
}

fn colourfulness(dir: &Dir, tables: &str, out: &str) -> Tool {
    dir.tool("score").args(tables.split(' ')).args(["--metrics", "colourfulness", "--threads", "1", "-q", "-o", out])
}

fn uids(table: &RecordBatch) -> Vec<String> {
    column_text(table, "image_0_uid")
}

/// Nobody knows how many rows come out of a stream; the tables after it are read all the same.
#[test]
fn tables_after_a_stream_keep_their_rows() {
    let dir = Dir::new();
    let all = pairs(9);
    dir.put("two.parquet", &all.slice(4, 2));
    dir.write("one.arrows", stream(&all.slice(0, 4)));
    dir.write("three.arrows", stream(&all.slice(6, 3)));
    for tables in ["one.arrows two.parquet three.arrows", "- two.parquet three.arrows"] {
        colourfulness(&dir, tables, "out").stdin(stream(&all.slice(0, 4))).ok();
        assert_eq!(uids(&dir.get("out")), uids(&all), "{tables}");
    }
    colourfulness(&dir, "two.parquet one.arrows", "out").ok();
    assert_eq!(uids(&dir.get("out")), [uids(&all.slice(4, 2)), uids(&all.slice(0, 4))].concat());
}

/// As other programs name the files of one table.
#[test]
fn folders_of_parts_by_other_programs() {
    let dir = Dir::new();
    let all = pairs(6);
    let put = |folder: &str, names: [&str; 3]| {
        std::fs::create_dir_all(dir.path(folder)).unwrap();
        for (i, name) in names.iter().enumerate() {
            dir.put(&format!("{folder}/{name}"), &all.slice(2 * i, 2));
        }
    };
    put("hub", ["0000.parquet", "0001.parquet", "0002.parquet"]);
    let spark = |partition: usize, file: usize| format!("part-{partition:05}-0f3e-4a1b.c{file:03}.snappy.parquet");
    put("spark", [&spark(0, 0), &spark(0, 1), &spark(7, 0)]); // it writes nothing for partitions without rows
    dir.write("spark/_SUCCESS", "");
    put("named", ["train-00000-of-00003.parquet", "train-00001-of-00003.parquet", "train-00002-of-00003.parquet"]);
    for folder in ["hub", "spark", "named"] {
        colourfulness(&dir, folder, "out").ok();
        assert_eq!(uids(&dir.get("out")), uids(&all), "{folder}");
    }
    std::fs::remove_file(dir.path("hub/0001.parquet")).unwrap();
    says(&colourfulness(&dir, "hub", "new").fails(2), &["hub", "part 1 is missing"]);
    std::fs::remove_file(dir.path("named/train-00002-of-00003.parquet")).unwrap();
    says(&colourfulness(&dir, "named", "new").fails(2), &["train-00002-of-00003.parquet is missing"]);
    dir.put("spark/part-00000-other.c000.snappy.parquet", &all);
    says(&colourfulness(&dir, "spark", "new").fails(2), &["different tables"]);
}

/// Whatever bit of a batch's header is wrong: a sentence, or the right rows. A panic of a crate that reads is not the end.
#[test]
fn damaged_streams_end_in_a_sentence() {
    let dir = Dir::new();
    let table = scores(&[None; 5], &[("hps", &[Some(0.25); 5], &[Some(0.5); 5])]);
    let whole = stream(&table);
    let after_schema = 8 + u32::from_le_bytes(whole[4..8].try_into().unwrap()) as usize;
    let header = u32::from_le_bytes(whole[after_schema + 4..after_schema + 8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for at in (after_schema + 8..after_schema + 8 + header).step_by(2) {
        let mut damaged = whole.clone();
        damaged[at] ^= 16;
        dir.write("damaged", damaged);
        let run = dir.tool("vote").args(["damaged", "-q", "-o", "out", "--threads", "1"]).run();
        match run.code {
            Some(0) => assert_eq!(dir.get("out").num_rows(), 5, "byte {at}"),
            Some(2) => {
                assert!(run.err.starts_with("vote: damaged") && run.err.lines().count() == 1, "{at}: {}", run.err)
            }
            code => panic!("byte {at}: exit {code:?}: {}", run.err),
        }
        refused += usize::from(run.code == Some(2));
        let _ = std::fs::remove_file(dir.path("out"));
    }
    assert!(refused > 20, "only {refused} were noticed");
}

/// A panic on the thread that reads ahead was taken for the end of the rows.
#[test]
fn a_broken_reader_is_not_the_end_of_the_rows() {
    let dir = Dir::new();
    let all = pairs(4);
    let whole = stream(&all.slice(0, 2));
    let second = stream(&all.slice(2, 2));
    let length = |at: usize, bytes: &[u8]| 8 + u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
    let schema = length(0, &second);
    let batch = &second[schema..]; // with its end mark
    let header = length(0, batch);
    let mut outcomes = [0, 0];
    for at in (8..header).step_by(7) {
        let mut damaged = [&whole[..whole.len() - 8], batch].concat();
        damaged[whole.len() - 8 + at] ^= 64;
        dir.write("damaged", damaged);
        let run = colourfulness(&dir, "damaged", "out").run();
        match run.code {
            Some(0) => assert_eq!(dir.get("out").num_rows(), 4, "byte {at}"),
            code => assert!(code == Some(2) && !dir.path("out").exists(), "byte {at}: {code:?} {}", run.err),
        }
        outcomes[usize::from(run.code == Some(2))] += 1;
        let _ = std::fs::remove_file(dir.path("out"));
    }
    assert!(outcomes[1] > 5, "{outcomes:?}");
}
