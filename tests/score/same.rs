//! Each image and each caption is scored once, and to the same bits however a table is read or cut.

use arrow::compute::concat_batches;

use super::*;

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
