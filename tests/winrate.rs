//! `winrate`, through the binary.

#[path = "winrate/seeds.rs"]
mod seeds;
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

/// The table of these scores, `scores[metric][prompt][k]`.
fn table_of(model: &str, metrics: &[&str], scores: &serde_json::Value) -> RecordBatch {
    let of = |m: usize| -> Vec<Vec<f32>> { serde_json::from_value(scores[m].clone()).unwrap() };
    let table = scored(model, metrics, &of(0), |_, x| x);
    let mut columns = table.columns().to_vec();
    for (m, name) in metrics.iter().enumerate() {
        columns[table.schema().index_of(name).unwrap()] = floats(of(m).into_iter().flatten().map(Some));
    }
    RecordBatch::try_new(table.schema(), columns).unwrap()
}

fn near(value: &serde_json::Value, expected: &serde_json::Value, tolerance: f64, what: &str) {
    let (x, y) = (value.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((x - y).abs() <= tolerance, "{what}: {x}, expected {y}");
}

/// Counts, intervals and probabilities of three models, against SciPy's (tests/oracle/winrate.py).
#[test]
fn the_statistics_are_scipys() {
    let oracle: serde_json::Value = serde_json::from_str(include_str!("fixtures/winrate.json")).unwrap();
    let dir = Dir::new();
    let models = ["balanced", "dpo", "base"];
    for model in models {
        let table = without(&table_of(model, &["hps", "clip"], &oracle["scores"][model]), "set");
        dir.put(&format!("{model}.parquet"), &table);
    }
    let args = ["balanced.parquet", "dpo.parquet", "base.parquet", "--best-of", "3", "-q"];
    let json = dir.tool("winrate").args(args).args(["--json"]).ok().json();
    let rate = |ours: &serde_json::Value, theirs: &serde_json::Value, what: &str| {
        for count in ["wins", "losses", "ties"] {
            assert_eq!(ours[count], theirs[count], "{what} {count}");
        }
        for exact in ["low", "high", "p", "p_holm"] {
            near(&ours[exact], &theirs[exact], 1e-7, &format!("{what} {exact}"));
        }
        // Another generator's draws: the ends differ by chance, and by the steps of a share of 60.
        for drawn in ["bootstrap_low", "bootstrap_high"] {
            near(&ours[drawn], &theirs[drawn], 0.0167, &format!("{what} {drawn}"));
        }
        let clear = theirs["p_holm"].as_f64().unwrap() <= 0.05;
        let ahead = if theirs["wins"].as_u64() > theirs["losses"].as_u64() { "a" } else { "b" };
        assert_eq!(ours["winner"].as_str(), clear.then_some(ahead), "{what}");
    };
    for (i, theirs) in oracle["cells"].as_array().unwrap().iter().enumerate() {
        let comparison = &json["comparisons"][i / 2];
        assert_eq!((&comparison["a"], &comparison["b"]), (&theirs["a"], &theirs["b"]));
        let ours = &comparison["all"]["metrics"][theirs["metric"].as_str().unwrap()];
        let what = format!("{} vs {}, {}", theirs["a"], theirs["b"], theirs["metric"]);
        rate(ours, &theirs["best"], &what);
        rate(&ours["mean_of_n"], &theirs["mean_of_n"], &format!("{what}, mean"));
        near(&ours["diff"], &theirs["diff"], 1e-7, &what);
        near(&ours["sd_b"], &theirs["sd_b"], 1e-7, &what);
        near(&ours["diff_low"], &theirs["diff_low"], 0.012, &what);
        near(&ours["diff_high"], &theirs["diff_high"], 0.012, &what);
        let in_sd = theirs["diff"].as_f64().unwrap() / theirs["sd_b"].as_f64().unwrap();
        near(&ours["change_sd"], &in_sd.into(), 1e-6, &what);
    }
    // Another seed draws otherwise; the draws of a seed are always the same.
    let low = |json: &serde_json::Value| json["comparisons"][1]["all"]["metrics"]["hps"]["diff_low"].clone();
    let other = dir.tool("winrate").args(args).args(["--json", "--seed", "1"]).ok().json();
    assert_ne!(low(&json), low(&other));
    assert_eq!(json, dir.tool("winrate").args(args).args(["--json", "--threads", "1"]).ok().json());
    // Signs stand where somebody is ahead, and nowhere else.
    let text = dir.tool("winrate").args(args).ok();
    let clear = oracle["cells"].as_array().unwrap().iter();
    let clear = clear.flat_map(|c| [&c["best"], &c["mean_of_n"]]).filter(|c| c["p_holm"].as_f64().unwrap() <= 0.05);
    assert_eq!(
        text.text().matches("] +").count() + text.text().matches(" +\n").count(),
        clear.count(),
        "{}",
        text.text()
    );
}

#[test]
fn text_for_people() {
    // hps: best 0.9 0.4 0.5 0.8 against 0.8 0.5 0.5 0.3, so won, lost, tied, won;
    // clip: best -0.1 -0.2 -0.5 -0.3 against -0.2 -0.3 -0.1 -0.2, so won, won, lost, lost.
    // from scipy.stats import binomtest; binomtest(2, 4).proportion_ci(method='wilson')  # 0.1500 0.8500
    // numpy: (mean(policy) - mean(base)) / std(base, ddof=1) = (0.4625 - 0.3625) / 0.2264 = 0.44
    let run = dir().tool("winrate").args(BOTH).ok();
    let text = "\
win rate, best of 2 images per prompt [95 % interval]
Who is ahead: + the candidate, - the baseline, no sign: a difference within the noise (exact sign test, Holm over these 6 rates, 5 %)
                set   n                          hps                 clip
policy vs base  even  2   50.0 % [9.5, 90.5], ties 1   50.0 % [9.5, 90.5]
policy vs base  odd   2           50.0 % [9.5, 90.5]   50.0 % [9.5, 90.5]
policy vs base  all   4  50.0 % [15.0, 85.0], ties 1  50.0 % [15.0, 85.0]

win rate, mean of 2 images per prompt
                set   n                  hps                 clip
policy vs base  even  2   50.0 % [9.5, 90.5]   50.0 % [9.5, 90.5]
policy vs base  odd   2   50.0 % [9.5, 90.5]   50.0 % [9.5, 90.5]
policy vs base  all   4  50.0 % [15.0, 85.0]  50.0 % [15.0, 85.0]

change of the mean score, in sd of the baseline's images [95 % paired bootstrap over prompts]
";
    assert!(run.text().starts_with(text), "{}", run.text());
    says(run.text(), &["+0.44 [", "-0.44 [", "+0.79 ["]);
    // Both metrics agree on the first prompt only, which is won; means: tied, lost and won, won and lost, won and lost.
    // binomtest(1, 4).proportion_ci(method='wilson')  # 0.0456 0.6994
    says(
        run.text(),
        &[
            "joint domination and collapse: prompts on which all 2 metrics are better, and on which all are worse [95 %",
            "                set   n    best: all better    best: all worse   mean: all better    mean: all worse\n",
            "policy vs base  all   4  25.0 % [4.6, 69.9]  0.0 % [0.0, 49.0]  0.0 % [0.0, 49.0]  0.0 % [0.0, 49.0]\n",
        ],
    );
    let one = dir().tool("winrate").args(BOTH).args(["--metrics", "hps"]).ok();
    assert!(!one.text().contains("joint"), "{}", one.text());
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
    let share = |prompts: u32, rate: f64| json!({ "prompts": prompts, "rate": rate });
    for (joint, domination, collapse) in
        [("joint", share(1, 0.25), share(0, 0.0)), ("joint_mean_of_n", share(0, 0.0), share(0, 0.0))]
    {
        let ours = &c["all"][joint];
        for (what, expected) in [("domination", domination), ("collapse", collapse)] {
            let (prompts, rate) = (&ours[what]["prompts"], &ours[what]["rate"]);
            assert_eq!(json!({ "prompts": prompts, "rate": rate }), expected, "{joint} {what}");
        }
    }
    near(&c["all"]["joint"]["domination"]["high"], 0.699_358_15);
    // The other way round, what was domination is collapse.
    let back =
        dir.tool("winrate").args(["base.parquet", "policy.parquet", "--best-of", "2", "--json", "-q"]).ok().json();
    assert_eq!(back["comparisons"][0]["all"]["joint"]["collapse"], c["all"]["joint"]["domination"]);
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
    assert_eq!(text.text().lines().count(), 16, "{}", text.text());
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
fn models_of_one_name_are_distinguished_by_their_tables() {
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
            "policy.parquet", "worse.parquet", "base.parquet", "--best-of", "2", "--metrics", "hps", "--require", "0.5",
        ])
        .ok();
    dir.tool("winrate")
        .args([
            "policy.parquet", "base.parquet", "worse.parquet", "--best-of", "2", "--metrics", "hps", "--require", "0.6",
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

#[test]
fn a_pipe_is_a_table_too() {
    let dir = dir();
    let args = ["-", "base.parquet", "--best-of", "2", "-q"];
    let piped = dir.tool("winrate").args(args).stdin(stream(&two("policy", &policy()))).ok();
    assert_eq!(piped.text(), dir.tool("winrate").args(BOTH).args(["-q"]).ok().text());
}

/// Whatever a model is called, nothing runs in a spreadsheet, is drawn on a page or moves a terminal.
#[test]
fn names_of_models_are_text_in_every_layout() {
    let dir = dir();
    dir.put("wild.parquet", &two("=cmd|' /C calc'!A0", &policy()));
    dir.put("tag.parquet", &two("<img src=x>\n\u{1b}[31m| forged |", &base()));
    let show = |format: &str| {
        let args = ["wild.parquet", "tag.parquet", "--best-of", "2", "-q", "--format", format];
        dir.tool("winrate").args(args).ok().text().to_owned()
    };
    let csv = show("csv");
    says(&csv, &["\n'=cmd|' /C calc'!A0,<img src=x>\\n\\u{1b}[31m| forged |,all,hps,best"]);
    says(&show("markdown"), &["| =cmd\\|' /C calc'!A0 vs &lt;img src=x>\\\\n\\\\u{1b}[31m\\| forged \\| |"]);
    says(&show("latex"), &["=cmd|' /C calc'!A0 vs \\textless{}img src=x\\textgreater{}\\textbackslash{}n"]);
    for format in ["text", "csv", "markdown", "latex"] {
        assert!(show(format).lines().all(|line| !line.chars().any(char::is_control)), "{format}");
    }
}

/// One model's wins are shown by every layout; `--means` and `--stats` are the paper's Tables V and VI.
#[test]
fn layouts_and_the_other_tables() {
    let dir = dir();
    let show = |args: &[&str]| dir.tool("winrate").args(BOTH).args(["-q"]).args(args).ok().text().to_owned();
    says(
        &show(&["--format", "markdown"]),
        &["| policy vs base | odd | 2 | 50.0 % [9.5, 90.5] |", "| :-- | :-- | --: |"],
    );
    says(
        &show(&["--format", "latex"]),
        &["policy vs base & odd & 2 & 50.0 \\% [9.5, 90.5] &", "\\begin{tabular}{llrrr}"],
    );
    let csv = show(&["--format", "csv"]);
    assert_eq!(csv.lines().count(), 1 + 3 * (2 * 2 + 2 * 2));
    says(
        &csv,
        &["\npolicy,base,all,(all better),best,,4,1,,,0.25,0.0455", "\npolicy,base,odd,(all worse),mean,,2,0,,,0,0,"],
    );
    says(&csv, &["candidate,baseline,set,metric,images,ahead,n,wins,losses,ties,rate,low,high,bootstrap low"]);
    says(&csv, &["\npolicy,base,all,hps,best,,4,2,1,1,0.5,0.15", "\npolicy,base,all,clip,mean,,4,2,2,0,0.5,"]);
    assert_eq!(show(&["--tests"]).lines().count(), 2 + 3 * (2 * 2 + 2 * 2));
    says(&show(&["--format", "latex"]), &["policy vs base & all & 4 & 25.0 \\% [4.6, 69.9] & 0.0 \\% [0.0, 49.0] &"]);
    says(&show(&["--format", "markdown"]), &["| policy vs base | all | 4 | 25.0 % [4.6, 69.9] | 0.0 % [0.0, 49.0] |"]);

    // numpy: mean([.8, .2, .3, .5, .5, .1, .2, .3]) = 0.3625, mean([.1, .9, .4, .2, .5, .5, .3, .8]) = 0.4625
    let means = show(&["--means"]);
    says(&means, &["base    all   4          0.3625", "policy  all   4  0.4625 (+0.44)", "difference from base"]);
    // numpy: std([.1, .9, .4, .2, .5, .5, .3, .8], ddof=1) = 0.2774
    let stats = show(&["--stats", "--format", "csv"]);
    says(&stats, &["policy,max,all,4,0.89999", "policy,min,all,4,0.1000000", "policy,sd,all,4,0.27742"]);
    // numpy: sqrt(mean([var([.1, .9], ddof=1), var([.4, .2], ddof=1), 0, var([.3, .8], ddof=1)])) = 0.34095
    says(&stats, &["policy,sd of a prompt,all,4,0.3409"]);
    // One table is enough for these, and too little for the others.
    let one = dir.tool("winrate").args(["policy.parquet", "--best-of", "2", "--stats", "-q"]).ok();
    says(
        one.text(),
        &["policy  sd              all   4  0.2774   0.2774", "policy  sd of a prompt  all   4  0.3410   0.3410"],
    );
    let error = dir.tool("winrate").args(["policy.parquet", "--best-of", "2"]).fails(2);
    says(&error, &["policy.parquet alone", "second table"]);
    dir.tool("winrate").args(BOTH).args(["--format", "csv", "--json"]).exits(2);
}

/// A metric that judges and had no vote is marked; that it had none is known by the origin, or said.
#[test]
fn held_out_judges_are_marked() {
    let dir = dir();
    let shown = |args: &[&str]| dir.tool("winrate").args(BOTH).args(["-q"]).args(args).ok().text().to_owned();
    assert!(!shown(&[]).contains("held out"));
    says(&shown(&["--held-out", "clip"]), &[" hps      clip (held out)"]);
    says(&dir.tool("winrate").args(BOTH).args(["--held-out", "blip"]).fails(2), &["blip", "hps, clip"]);
    let behind = |rule: &str| {
        let vote = format!(r#"{{"tool":"vote","version":"0","args":{{"rule":"{rule}","metrics":["hps","blip"]}}}}"#);
        let train = format!(r#"{{"tool":"train","version":"0","args":{{}},"inputs":[{{"origin":{vote}}}]}}"#);
        let sample = format!(r#"{{"tool":"sample","version":"0","args":{{}},"inputs":[{{}},{{"origin":{train}}}]}}"#);
        let inputs = format!(r#""models":{{"hps":"1","clip":"2"}},"inputs":[{{"origin":{sample}}}]"#);
        with_origin(&two("policy", &policy()), &format!(r#"{{"tool":"score","version":"0","args":{{}},{inputs}}}"#))
    };
    for (rule, voted, held_out) in [
        ("majority", &["blip", "hps"][..], &["clip"][..]),
        ("single:hps", &["hps"], &["clip"]),
        ("single:clip", &["clip"], &["hps"]),
        // People labelled: no metric judges what it taught, and none is singled out.
        ("human", &[], &[]),
    ] {
        dir.put("policy.parquet", &behind(rule));
        let json = dir.tool("winrate").args(BOTH).args(["--json", "-q"]).ok().json();
        assert_eq!(json["tables"][0]["voted"], serde_json::json!(voted), "{rule}");
        assert_eq!(json["held_out"], serde_json::json!(held_out), "{rule}");
    }
    dir.put("policy.parquet", &behind("majority"));
    let error = dir.tool("winrate").args(BOTH).args(["--held-out", "hps"]).fails(2);
    says(&error, &["hps voted on the labels behind policy.parquet"]);
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
