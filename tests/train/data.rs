//! Where pairs and labels come from.

use super::*;

#[test]
fn from_the_cache_of_encode_as_from_pairs() {
    let dir = world();
    let encode = |out: &str, rest: &[&str]| {
        let args = ["pairs.parquet", "-o", out, "--resolution", "16", "-q", "--base"];
        dir.tool("encode").args(args).args([oracle("base")]).args(rest).ok();
    };
    encode("cache", &[]);
    encode("flips", &["--augment", "independent-flip"]);
    for (cache, rest) in [("cache", "--augment none"), ("flips", ""), ("flips", "--augment pair-flip")] {
        train(&dir, "a", &format!("--steps 3 {rest}")).ok();
        train(&dir, "b", &format!("{cache} --steps 3 {rest}")).ok();
        for (a, b) in log(&dir.path("a")).iter().zip(log(&dir.path("b"))) {
            for key in ["policy_winner_mse", "policy_loser_mse", "reference_winner_mse"] {
                near(b[key].as_f64().unwrap(), a[key].as_f64().unwrap(), 2e-3);
            }
        }
        assert_eq!(log(&dir.path("a"))[0]["loss"], log(&dir.path("b"))[0]["loss"]);
        assert!(differ(&weights(&dir.path("a")), &weights(&dir.path("b"))), "the cache was not used");
    }
    // Where the cache has no mirrored images, none are used, and a note says so if they were asked for.
    let args = ["cache", "--labels", "labels.parquet", "-o", "c", "--steps", "2", "--resolution", "16", "--base"];
    for (rest, noted) in
        [(&["--dry-run"][..], true), (&["--augment", "pair-flip", "--dry-run"], true), (&["-o", "e"], false)]
    {
        let run = dir.tool("train").args(args).args([oracle("base")]).args(rest).ok();
        assert_eq!(run.err.contains("the cache holds no mirrored images"), noted, "{}", run.err);
    }
    says(&train(&dir, "d", "cache --resolution 32").fails(2), &["holds images of 16 pixels", "--resolution"]);
    // A cache that was made with another model is refused.
    let error = train(&dir, "d", &format!("cache --base {}", mini().display())).fails(2);
    says(&error, &["the cache was made with another vae"]);
}

#[test]
fn from_parts_as_from_whole_tables() {
    let dir = world();
    let encode = |args: &[&str]| {
        let usual = ["pairs.parquet", "--resolution", "16", "-q", "--base"];
        dir.tool("encode").args(usual).args([oracle("base")]).args(args).ok();
    };
    encode(&["-o", "cache"]);
    std::fs::create_dir(dir.path("labels")).unwrap();
    for (i, (from, n)) in [(0, 5), (5, 11), (16, 8)].into_iter().enumerate() {
        encode(&["-o", "parts", "--shard", &format!("{i}/3")]);
        dir.put(&format!("labels/part-{i:05}-of-00003.parquet"), &dir.get("labels.parquet").slice(from, n));
    }
    train(&dir, "a", "cache --steps 3").ok();
    train(&dir, "b", "parts --steps 3 --labels labels").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));
    // Every part of the labels is part of the identity of a run.
    dir.put("labels/part-00002-of-00003.parquet", &labels(&pairs(24), |_| (1.0, 1.0)).slice(16, 8));
    let error = train(&dir, "b", "parts --steps 4 --labels labels --resume_from_checkpoint b").fails(2);
    says(&error, &["another --labels"]);
}

/// A labels table can come straight from `vote`, and the run knows it again.
#[test]
fn labels_come_from_a_pipe() {
    let dir = world();
    let ids = labels(&pairs(24), some);
    let score = |k: usize| floats((0..24).map(|i| Some(if i % 5 == 4 { 0.5 } else { ((i + k) % 2) as f32 })));
    let keys = ["pair_id", "caption", "image_0_uid", "image_1_uid"].map(|name| (name, column(&ids, name).clone()));
    let scores = [("label_0", floats(vec![None; 24])), ("hps_0", score(0)), ("hps_1", score(1))];
    dir.put("scores.parquet", &util::table(keys.into_iter().chain(scores).collect()));
    let vote = |out: &str| dir.tool("vote").args(["scores.parquet", "--metrics", "hps", "-q", "-o", out]).ok().out;
    vote("labels.parquet");
    let piped = vote("-");
    train(&dir, "file", "--steps 3").ok();
    train(&dir, "pipe", "--steps 3 --labels -").stdin(piped.clone()).ok();
    assert_same(&weights(&dir.path("file")), &weights(&dir.path("pipe")));
    train(&dir, "pipe", "--steps 4 --labels - --resume latest").stdin(piped).ok();
    dir.put("scores.parquet", &with(&dir.get("scores.parquet"), "hps_0", floats(vec![Some(0.7); 24])));
    let error = train(&dir, "pipe", "--steps 5 --labels - --resume pipe").stdin(vote("-")).fails(2);
    says(&error, &["another --labels"]);
    // The pairs themselves are visited in random order.
    let error = train(&dir, "x", "- --steps 3").fails(2);
    says(&error, &["DATA", "standard input", "Parquet"]);
}

#[test]
fn from_an_images_table_as_from_pairs() {
    let dir = world();
    let table = pairs(24);
    let side = |k: usize| {
        util::table(vec![
            ("image_uid", column(&table, &format!("image_{k}_uid")).clone()),
            ("image", column(&table, &format!("jpg_{k}")).clone()),
        ])
    };
    let both = concat_batches(&side(0).schema(), &[side(1), side(0)]).unwrap();
    dir.put("images.parquet", &both);
    train(&dir, "a", "--steps 3").ok();
    train(&dir, "b", "images.parquet --steps 3").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));
    dir.put("images.parquet", &both.slice(0, 30));
    let error = train(&dir, "c", "images.parquet --steps 3").fails(2);
    says(&error, &["labels.parquet, row 6", "is not in the data"]);
}

#[test]
fn a_caption_of_ten_thousand_characters() {
    let dir = world();
    let long: Vec<_> = column_text(&pairs(24), "caption").iter().map(|c| c.repeat(10_000 / c.len() + 1)).collect();
    assert!(long.iter().all(|c| c.len() >= 10_000));
    let table = with(&pairs(24), "caption", texts(long));
    dir.put("pairs.parquet", &table);
    dir.put("labels.parquet", &labels(&table, some));
    train(&dir, "out", "--steps 1").ok();
}
