//! What `winrate` refuses, warns of or fails by `--require`, and what it says.

use super::*;

#[test]
fn both_tables_must_hold_the_same_prompts_and_one_model() {
    let dir = dir();
    dir.put("three.parquet", &two("three", &base()[..3]));
    for (args, has, lacks) in [
        (["policy.parquet", "three.parquet"], "policy.parquet", "three.parquet"),
        (["three.parquet", "policy.parquet"], "policy.parquet", "three.parquet"),
    ] {
        let error = dir.tool("winrate").args(args).args(["--best-of", "2"]).fails(2);
        says(&error, &[&format!("prompt 'prompt 3' (set odd) is in {has} but not in {lacks}")]);
    }
    let schema = two("x", &base()).schema();
    let mixed = arrow::compute::concat_batches(&schema, &[two("x", &base()), two("y", &base())]).unwrap();
    dir.put("mixed.parquet", &mixed);
    let error = dir.tool("winrate").args(["mixed.parquet", "base.parquet", "--best-of", "2"]).fails(2);
    says(&error, &["mixed.parquet, row 8", "'y'", "'x'"]);
    let twice = arrow::compute::concat_batches(&schema, &[two("x", &base()), two("x", &base())]).unwrap();
    dir.put("twice.parquet", &twice);
    let error = dir.tool("winrate").args(["twice.parquet", "base.parquet", "--best-of", "2"]).fails(2);
    says(&error, &["twice.parquet", "prompt 0", "k = 0 twice"]);
}

#[test]
fn different_scorers_are_refused() {
    let dir = dir();
    let score = |hps: &str, clip: &str| {
        format!(r#"{{"tool":"score","version":"0","args":{{}},"models":{{"hps":"{hps}","clip":"{clip}"}}}}"#)
    };
    let put = |name: &str, origin: &str| {
        let table = dir.get(&format!("{name}.parquet"));
        dir.put(&format!("{name}.parquet"), &with_origin(&table, origin));
    };
    put("policy", &score("one", "two"));
    put("base", &score("one", "two"));
    assert_eq!(dir.tool("winrate").args(BOTH).ok().err, "");
    put("base", &score("one", "three"));
    let error = dir.tool("winrate").args(BOTH).fails(2);
    says(&error, &["clip", "policy.parquet", "base.parquet", "different scorers"]);
    dir.tool("winrate").args(BOTH).args(["--metrics", "hps"]).ok();
    // The same model in another arithmetic gives other numbers.
    let half = score("one", "two").replace(r#""args":{}"#, r#""args":{"dtype":"f16"}"#);
    put("base", &half);
    says(&dir.tool("winrate").args(BOTH).fails(2), &["hps comes from different scorers", "policy.parquet"]);
    put("policy", &half);
    assert_eq!(dir.tool("winrate").args(BOTH).ok().err, "");
    put("policy", &score("one", "two"));
    // The nearest `score` counts, also behind another step, and not those behind it.
    let behind = |origin: &str| format!(r#""inputs":[{{"origin":{origin}}}]"#);
    let near = score("one", "two").replacen('{', &format!("{{{},", behind(&score("far", "away"))), 1);
    let later = format!(r#"{{"tool":"filter","version":"0","args":{{}},{}}}"#, behind(&near));
    put("base", &later);
    assert_eq!(dir.tool("winrate").args(BOTH).ok().err, "");
}

/// Two tables whose prompts have the same ids may be of different prompts.
#[test]
fn another_text_under_the_same_prompt_id_is_refused() {
    let dir = dir();
    let base = dir.get("base.parquet");
    let other = |prompt: usize| {
        let text = |row: usize| if row / 2 == prompt { "a\u{1b}[2Jcat".into() } else { format!("prompt {}", row / 2) };
        let index = base.schema().index_of("prompt").unwrap();
        let mut columns = base.columns().to_vec();
        columns[index] = texts((0..base.num_rows()).map(text));
        RecordBatch::try_new(base.schema(), columns).unwrap()
    };
    let reversed: arrow::array::UInt32Array = (0..8).rev().collect();
    // Side by side, in another order, and through a pipe.
    dir.put("base.parquet", &other(2));
    let expected = ["prompt_id '0000000000000002'", "'prompt 2' in policy.parquet", "'a\\u{1b}[2Jcat' in base.parquet"];
    says(&dir.tool("winrate").args(BOTH).fails(2), &expected);
    dir.put("base.parquet", &arrow::compute::take_record_batch(&other(2), &reversed).unwrap());
    says(&dir.tool("winrate").args(BOTH).fails(2), &expected);
    let run = dir.tool("winrate").args(["policy.parquet", "-", "--best-of", "2"]).stdin(stream(&other(0))).fails(2);
    says(&run, &["prompt_id '0000000000000000'", "in standard input"]);
    // Within one table.
    let mixed = arrow::compute::concat_batches(&base.schema(), [&other(1).slice(0, 3), &base.slice(3, 5)]).unwrap();
    dir.put("base.parquet", &mixed);
    says(
        &dir.tool("winrate").args(BOTH).fails(2),
        &["'a\\u{1b}[2Jcat' in base.parquet and 'prompt 1' in base.parquet"],
    );
}

#[test]
fn other_seeds_give_a_note() {
    let dir = dir();
    let table = two("base", &base());
    let mut columns = table.columns().to_vec();
    columns[table.schema().index_of("seed").unwrap()] =
        std::sync::Arc::new(arrow::array::UInt64Array::from_iter_values(900..908));
    dir.put("base.parquet", &RecordBatch::try_new(table.schema(), columns).unwrap());
    says(&dir.tool("winrate").args(BOTH).ok().err, &["note", "4 prompts from different seeds"]);
}

#[test]
fn bad_numbers_and_names_are_named() {
    let dir = dir();
    let mut scores = base();
    scores[2][1] = f32::NAN;
    dir.put("nan.parquet", &two("nan", &scores));
    let error = dir.tool("winrate").args(["policy.parquet", "nan.parquet", "--best-of", "2"]).fails(2);
    says(&error, &["nan.parquet, row 5", "hps is NaN"]);
    let error = dir.tool("winrate").args(BOTH).args(["--metrics", "hps,blip"]).fails(2);
    says(&error, &["'blip'", "hps, clip"]);
    dir.put("less.parquet", &without(&two("less", &base()), "clip"));
    let error = dir.tool("winrate").args(["policy.parquet", "less.parquet", "--best-of", "2"]).fails(2);
    says(&error, &["less.parquet", "'clip' is missing", "--metrics"]);
    says(&dir.tool("winrate").args(BOTH).args(["--shard", "0/2"]).exits(2).err, &["--shard"]);
}

/// So many groups or resamples are no table and no interval that anybody asked for.
#[test]
fn absurd_numbers_are_refused() {
    let dir = dir();
    let scores = vec![vec![0.5]; 1001];
    for model in ["a", "b"] {
        let table = two(model, &scores);
        let mut columns = table.columns().to_vec();
        columns[table.schema().index_of("category").unwrap()] = texts((0..1001).map(|i| i.to_string()));
        dir.put(&format!("{model}.parquet"), &RecordBatch::try_new(table.schema(), columns).unwrap());
    }
    let error = dir.tool("winrate").args(["a.parquet", "b.parquet", "--best-of", "1", "--by", "category"]).fails(2);
    says(&error, &["a.parquet", "1000", "category", "--by"]);
    for n in ["4294967295", "99"] {
        says(&dir.tool("winrate").args(BOTH).args(["--resamples", n]).exits(2).err, &["--resamples", n, "1000000"]);
    }
}

#[test]
fn require_answers_by_exit_code() {
    let dir = dir();
    let winrate = |p: &str| dir.tool("winrate").args(BOTH).args(["--require", p]);
    winrate("0.5").ok();
    let run = winrate("0.51").exits(1);
    says(&run.err, &["hps 0.5000 is below the required 0.51", "clip"]);
    says(run.text(), &["50.0 %"]);
    says(&winrate("1.5").fails(2), &["--require", "0 to 1"]);
    // The first against the last decides, not those between.
    dir.put("worse.parquet", &two("worse", &vec![vec![0.0, 0.0]; 4]));
    dir.tool("winrate")
        .args([
            "policy.parquet", "worse.parquet", "base.parquet", "--best-of", "2", "--metrics", "hps", "--require", "0.5",
        ])
        .ok();
    dir.tool("winrate")
        .args([
            "policy.parquet", "base.parquet", "worse.parquet", "--best-of", "2", "--metrics", "hps", "--require", "0.6",
        ])
        .ok();
}

/// What cannot be judged is refused before anything is printed.
#[test]
fn require_is_not_passed_over() {
    let dir = dir();
    dir.put("other.parquet", &two("other", &base()));
    let three = ["policy.parquet", "other.parquet", "base.parquet", "--best-of", "2", "--require", "0.1"];
    let run = dir.tool("winrate").args(three).args(["--against", "other"]).exits(2);
    says(&run.err, &["--require", "the last, base.parquet", "--against leaves out its model 'base'"]);
    assert_eq!(run.text(), "");
    dir.tool("winrate").args(three).args(["--against", "other,base"]).ok();
    let run = dir.tool("winrate").args(["policy.parquet", "--best-of", "2", "--means", "--require", "0.1"]).exits(2);
    says(&run.err, &["--require", "policy.parquet alone"]);
    assert_eq!(run.text(), "");
    // With two tables it judges beside any view.
    dir.tool("winrate").args(BOTH).args(["--means", "--require", "0.9"]).exits(1);
}
