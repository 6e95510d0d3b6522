//! The numbers: against SciPy's and the paper's.

use super::*;

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

/// Counts, intervals and probabilities of three models, against SciPy's (tests/oracle/winrate.py).
#[test]
fn the_statistics_are_scipys() {
    let oracle: serde_json::Value = serde_json::from_str(include_str!("../fixtures/winrate.json")).unwrap();
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
