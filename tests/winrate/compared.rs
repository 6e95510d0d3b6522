//! What is compared: which tables, groups, prompts and images.

use super::*;

#[test]
fn each_table_against_every_later_one() {
    let dir = dir();
    dir.put("third.parquet", &two("third", &base()));
    let args = ["policy.parquet", "third.parquet", "base.parquet", "--best-of", "2", "--json", "-q"];
    let json = dir.tool("winrate").args(args).ok().json();
    let names: Vec<_> =
        json["comparisons"].as_array().unwrap().iter().map(|c| (c["a"].clone(), c["b"].clone())).collect();
    let pair = |a: &str, b: &str| (a.into(), b.into());
    assert_eq!(names, [pair("third", "base"), pair("policy", "base"), pair("policy", "third")]);
    assert_eq!(json["comparisons"][0]["all"]["metrics"]["hps"]["ties"], 4);
    assert_eq!(json["comparisons"][0]["all"]["metrics"]["hps"]["rate"], 0.0);
}

#[test]
fn only_what_is_asked_for_is_compared() {
    let dir = dir();
    dir.put("other.parquet", &two("other", &base()));
    let args = ["policy.parquet", "other.parquet", "base.parquet", "--best-of", "2", "--json", "-q"];
    let json = dir.tool("winrate").args(args).args(["--against", "other"]).ok().json();
    let pairs: Vec<_> =
        json["comparisons"].as_array().unwrap().iter().map(|c| (c["a"].clone(), c["b"].clone())).collect();
    assert_eq!(pairs, [("policy".into(), "other".into())]);
    let unknown = dir.tool("winrate").args(args).args(["--against", "policy"]).fails(2);
    assert!(unknown.contains("no table after the first is of the model 'policy'"), "{unknown}");
}

#[test]
fn models_of_one_name_are_distinguished_by_their_tables() {
    let dir = dir();
    let json = dir.tool("winrate").args(["policy.parquet", "policy.parquet", "--best-of", "2", "--json"]).ok().json();
    assert_eq!(json["comparisons"][0]["a"], "policy (policy.parquet)");
    assert_eq!(json["comparisons"][0]["all"]["metrics"]["clip"]["ties"], 4);
}

#[test]
fn groups() {
    let dir = dir();
    let rows = |args: &[&str]| -> Vec<String> {
        let json = dir.tool("winrate").args(BOTH).args(["--json", "-q"]).args(args).ok().json();
        let groups = json["comparisons"][0]["groups"].as_array().unwrap().clone();
        groups.iter().map(|g| format!("{} {}", g["name"].as_str().unwrap(), g["n"])).collect()
    };
    assert_eq!(rows(&[]), ["even 2", "odd 2"]);
    assert_eq!(rows(&["--by", "category"]), ["category 0 2", "category 1 1", "category 2 1"]);
    let error = dir.tool("winrate").args(BOTH).args(["--by", "challenge"]).fails(2);
    says(&error, &["policy.parquet", "challenge"]);
    // One set, or none: one row.
    for name in ["policy", "base"] {
        let table = dir.get(&format!("{name}.parquet"));
        dir.put(&format!("{name}.parquet"), &without(&table, "set"));
    }
    assert_eq!(rows(&[]), [""; 0]);
    let text = dir.tool("winrate").args(BOTH).ok();
    assert_eq!(text.text().lines().count(), 16, "{}", text.text());
}

#[test]
fn style_is_another_name_of_challenge() {
    let dir = dir();
    for (name, scores) in [("policy", policy()), ("base", base())] {
        let table = two(name, &scores);
        let mut columns = table.columns().to_vec();
        columns[table.schema().index_of("challenge").unwrap()] = texts((0..8).map(|i| format!("{} style", i / 4)));
        dir.put(&format!("{name}.parquet"), &RecordBatch::try_new(table.schema(), columns).unwrap());
    }
    let by = |by: &str| dir.tool("winrate").args(BOTH).args(["-q", "--by", by]).ok().text().to_owned();
    says(&by("style"), &["policy vs base  0 style  2  "]);
    says(&by("style"), &["  style  "]);
    let same = |text: String| text.split_whitespace().map(String::from).collect::<Vec<_>>();
    assert_eq!(same(by("style")), same(by("challenge").replace("challenge", "style")));
}

#[test]
fn the_first_images_by_k_count_in_any_row_order() {
    let dir = dir();
    let more: Vec<_> = policy().into_iter().map(|mut xs| (xs.extend([9.0, 9.0]), xs).1).collect();
    let more = two("policy", &more);
    let order: arrow::array::UInt32Array = (0..more.num_rows() as u32).rev().collect();
    dir.put("policy.parquet", &arrow::compute::take_record_batch(&more, &order).unwrap());
    let json = dir.tool("winrate").args(BOTH).args(["--json"]).ok().json();
    assert_eq!(json["comparisons"][0]["all"]["metrics"]["hps"]["wins"], 2);
    let json = dir.tool("winrate").args(["policy.parquet", "base.parquet", "--best-of", "1", "--json"]).ok().json();
    // 0.1 0.4 0.5 0.3 against 0.8 0.3 0.5 0.2
    assert_eq!(json["comparisons"][0]["all"]["metrics"]["hps"]["wins"], 2);
    assert_eq!(json["comparisons"][0]["all"]["metrics"]["hps"]["ties"], 1);
    let error = dir.tool("winrate").args(["policy.parquet", "base.parquet"]).fails(2);
    says(&error, &["'prompt 3' (set odd)", "4 of the 5", "--best-of 4"]);
}

/// A prompt whose images are apart is one prompt, also where all tables have it so.
#[test]
fn images_of_a_prompt_may_be_apart() {
    let dir = dir();
    let run = |args: &[&str]| dir.tool("winrate").args(args).args(["--json", "-q"]).ok().json()["comparisons"].clone();
    let [two, one] = [&BOTH[..], &["policy.parquet", "base.parquet", "--best-of", "1"]];
    let plain = [run(two), run(one)];
    for name in ["policy.parquet", "base.parquet"] {
        let order = arrow::array::UInt32Array::from(vec![0, 2, 4, 6, 5, 7, 1, 3]);
        dir.put(name, &arrow::compute::take_record_batch(&dir.get(name), &order).unwrap());
    }
    assert_eq!([run(two), run(one)], plain);
    // The same with a second image that does not follow the first prompt's.
    for name in ["policy.parquet", "base.parquet"] {
        let order = arrow::array::UInt32Array::from(vec![0, 2, 4, 6, 3, 1, 5, 7]);
        dir.put(name, &arrow::compute::take_record_batch(&dir.get(name), &order).unwrap());
    }
    assert_eq!(run(one)[0]["all"]["n"], 4);
}

#[test]
fn images_without_a_score_are_left_out_and_counted() {
    let dir = dir();
    let holes = |at: &[usize]| {
        let table = two("policy", &policy());
        let hps = column_f32(&table, "hps").into_iter().enumerate().map(|(i, x)| (!at.contains(&i)).then_some(x));
        let mut columns = table.columns().to_vec();
        columns[table.schema().index_of("hps").unwrap()] = floats(hps);
        RecordBatch::try_new(table.schema(), columns).unwrap()
    };
    // Without its 0.9 the first prompt is lost.
    dir.put("policy.parquet", &holes(&[1]));
    let run = dir.tool("winrate").args(BOTH).args(["--json"]).ok();
    says(&run.err, &["policy.parquet: 1 image without a score of hps"]);
    assert_eq!(run.json()["comparisons"][0]["all"]["metrics"]["hps"]["wins"], 1);
    assert_eq!(run.json()["tables"][0]["null_scores"]["hps"], 1);
    dir.put("policy.parquet", &holes(&[2, 3]));
    let error = dir.tool("winrate").args(BOTH).fails(2);
    says(&error, &["policy.parquet", "'prompt 1'", "hps"]);
    // The other metric has all.
    dir.tool("winrate").args(BOTH).args(["--metrics", "clip"]).ok();
}

#[test]
fn a_pipe_is_a_table_too() {
    let dir = dir();
    let args = ["-", "base.parquet", "--best-of", "2", "-q"];
    let piped = dir.tool("winrate").args(args).stdin(stream(&two("policy", &policy()))).ok();
    assert_eq!(piped.text(), dir.tool("winrate").args(BOTH).args(["-q"]).ok().text());
}

/// Tables with the same prompts in the same order need no memory for them, and the numbers are those of tables in any order.
#[test]
fn many_prompts_take_no_memory() {
    let dir = Dir::new();
    let n = 300_000;
    for (model, shift) in [("policy", 0), ("base", 1)] {
        let scores: Vec<_> = (0..n).map(|p| vec![((p + shift) * 7919 % 1009) as f32, (p % 17) as f32]).collect();
        dir.put(&format!("{model}.parquet"), &two(model, &scores));
    }
    let args = "--best-of 2 --resamples 100 --threads 2 --json -q";
    let winrate = env!("CARGO_BIN_EXE_winrate");
    let json = |tables: &str| -> serde_json::Value {
        let limited = format!("ulimit -v 100000; exec {winrate} {tables} {args}");
        let run = std::process::Command::new("sh").args(["-c", &limited]).current_dir(dir.path("")).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        serde_json::from_slice(&run.stdout).unwrap()
    };
    let plain = json("policy.parquet base.parquet");
    let all = &plain["comparisons"][0]["all"];
    assert_eq!(all["n"], n);
    // The policy has the same scores, but for those of the first prompt and of the last: hps is better in this share.
    let better = (0..n).filter(|p| (p * 7919 % 1009).max(p % 17) > ((p + 1) * 7919 % 1009).max(p % 17)).count();
    assert_eq!(all["metrics"]["hps"]["wins"], better);
    let low = all["metrics"]["hps"]["diff_low"].as_f64().unwrap();
    assert!(low < all["metrics"]["hps"]["diff"].as_f64().unwrap());

    let table = dir.get("base.parquet");
    let order: arrow::array::UInt32Array = (0..table.num_rows() as u32).rev().collect();
    dir.put("base.parquet", &arrow::compute::take_record_batch(&table, &order).unwrap());
    let other = dir.tool("winrate").args(["policy.parquet", "base.parquet"]).args(args.split(' ')).ok().json();
    assert_eq!(other["comparisons"], plain["comparisons"]);
}
