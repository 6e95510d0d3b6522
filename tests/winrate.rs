//! `winrate`, through the binary.

mod util;

use arrow::array::RecordBatch;
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

#[test]
fn text_for_people() {
    // hps: best 0.9 0.4 0.5 0.8 against 0.8 0.5 0.5 0.3, so won, lost, tied, won;
    // clip: best -0.1 -0.2 -0.5 -0.3 against -0.2 -0.3 -0.1 -0.2, so won, won, lost, lost.
    // from scipy.stats import binomtest; binomtest(2, 4).proportion_ci(method='wilson')  # 0.1500 0.8500
    // numpy: (mean(policy) - mean(base)) / std(base, ddof=1) = (0.4625 - 0.3625) / 0.2264 = 0.44
    let run = dir().tool("winrate").args(BOTH).ok();
    let text = "\
win rate, best of 2 images a prompt [95 % interval]
                set   n                          hps                 clip
policy vs base  even  2   50.0 % [9.5, 90.5], ties 1   50.0 % [9.5, 90.5]
policy vs base  odd   2           50.0 % [9.5, 90.5]   50.0 % [9.5, 90.5]
policy vs base  all   4  50.0 % [15.0, 85.0], ties 1  50.0 % [15.0, 85.0]

mean score (change in sd of the baseline)
                set   n             hps             clip
policy vs base  even  2  0.5000 (+0.32)  -0.5000 (-0.32)
policy vs base  odd   2  0.4250 (+0.79)  -0.4250 (-0.79)
policy vs base  all   4  0.4625 (+0.44)  -0.4625 (-0.44)
";
    assert_eq!(run.text(), text);
    says(&run.err, &["warning", "hps, clip"]);
}

#[test]
fn json_for_programs() {
    let dir = dir();
    let json = dir.tool("winrate").args(BOTH).args(["--json", "-q"]).ok().json();
    let c = &json["comparisons"][0];
    assert_eq!((&c["a"], &c["b"]), (&"policy".into(), &"base".into()));
    let hps = &c["all"]["metrics"]["hps"];
    assert_eq!((&hps["wins"], &hps["ties"], &hps["losses"]), (&2.into(), &1.into(), &1.into()));
    assert_eq!((&c["all"]["n"], &hps["rate"]), (&4.into(), &0.5.into()));
    let near = |value: &serde_json::Value, x: f64| assert!((value.as_f64().unwrap() - x).abs() < 1e-6, "{value} {x}");
    near(&hps["low"], 0.150_038_99);
    near(&hps["high"], 0.849_961_01);
    near(&hps["mean_a"], 0.4625);
    near(&hps["mean_b"], 0.3625);
    // numpy.std([.8, .2, .3, .5, .5, .1, .2, .3], ddof=1)
    near(&hps["sd_b"], 0.226_384_63);
    near(&hps["change_sd"], 0.1 / 0.226_384_63);
    assert_eq!(c["groups"][1]["name"], "odd");
    assert_eq!(c["groups"][1]["metrics"]["hps"]["wins"], 1);
    assert_eq!(json["tables"][1]["model"], "base");
    // To a file: the same bytes, and nothing on standard output.
    let run = dir.tool("winrate").args(BOTH).args(["--json", "-o", "new/w.json"]).ok();
    assert_eq!(run.out, b"");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&dir.bytes("new/w.json")).unwrap(), json);
}

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

/// Table I of the paper, DiffusionDPO against SD1.5 on Pick-a-Pic: 210, 170, 167, 157 of 297.
#[test]
fn table_1_of_the_paper() {
    let counts = [210, 170, 167, 157];
    let metrics = ["hps", "clip", "pickscore", "aesthetic"];
    let dir = Dir::new();
    let five = |best: f32| vec![0.0, best, 0.1, 0.0, 0.2];
    // The candidate's best is p; it wins where the baseline's, a threshold, is below.
    let candidate: Vec<_> = (0..297).map(|p| five(1.0 + p as f32)).collect();
    dir.put("dpo.parquet", &scored("dpo", &metrics, &candidate, |_, x| x));
    let baseline: Vec<_> = (0..297).map(|p| vec![1.0 + p as f32; 5]).collect();
    let above = |m: usize, x: f32| if x <= counts[m] as f32 { x - 0.5 } else { x + 0.5 };
    dir.put("base.parquet", &scored("base", &metrics, &baseline, above));
    let run = dir.tool("winrate").args(["dpo.parquet", "base.parquet"]).ok();
    says(run.text(), &["297", "70.7 % [65.3, 75.6]", "57.2 % [51.6, 62.7]", "56.2 % [", "52.9 % ["]);
    let json = dir.tool("winrate").args(["dpo.parquet", "base.parquet", "--json"]).ok().json();
    let rate = |m: &str| 100.0 * json["comparisons"][0]["all"]["metrics"][m]["rate"].as_f64().unwrap();
    assert_eq!(metrics.map(|m| format!("{:.2}", rate(m))), ["70.71", "57.24", "56.23", "52.86"]);
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
    assert_eq!(text.text().lines().count(), 7, "{}", text.text());
}

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
fn models_of_one_name_are_told_apart_by_their_tables() {
    let dir = dir();
    let json = dir.tool("winrate").args(["policy.parquet", "policy.parquet", "--best-of", "2", "--json"]).ok().json();
    assert_eq!(json["comparisons"][0]["a"], "policy (policy.parquet)");
    assert_eq!(json["comparisons"][0]["all"]["metrics"]["clip"]["ties"], 4);
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
            "policy.parquet",
            "worse.parquet",
            "base.parquet",
            "--best-of",
            "2",
            "--metrics",
            "hps",
            "--require",
            "0.5",
        ])
        .ok();
    dir.tool("winrate")
        .args([
            "policy.parquet",
            "base.parquet",
            "worse.parquet",
            "--best-of",
            "2",
            "--metrics",
            "hps",
            "--require",
            "0.6",
        ])
        .ok();
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
    // The nearest `score` counts, also behind another step, and not those behind it.
    let behind = |origin: &str| format!(r#""inputs":[{{"origin":{origin}}}]"#);
    let near = score("one", "two").replacen('{', &format!("{{{},", behind(&score("far", "away"))), 1);
    let later = format!(r#"{{"tool":"filter","version":"0","args":{{}},{}}}"#, behind(&near));
    put("base", &later);
    assert_eq!(dir.tool("winrate").args(BOTH).ok().err, "");
}

#[test]
fn other_seeds_are_a_note() {
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
    let error = dir.tool("winrate").args(BOTH).args(["--shard", "0/2"]).fails(2);
    says(&error, &["--shard"]);
}

#[test]
fn a_pipe_is_a_table_too() {
    let dir = dir();
    let args = ["-", "base.parquet", "--best-of", "2", "-q"];
    let piped = dir.tool("winrate").args(args).stdin(stream(&two("policy", &policy()))).ok();
    assert_eq!(piped.text(), dir.tool("winrate").args(BOTH).args(["-q"]).ok().text());
}
