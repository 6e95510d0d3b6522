//! What `vote` refuses or warns of, and what it says.

use super::*;

#[test]
fn images_that_make_no_pairs_are_named() {
    let dir = Dir::new();
    dir.put("images.parquet", &three_prompts());
    let fails = |args: &[&str]| dir.tool("vote").args(args).args(["-o", "x.parquet"]).fails(2);
    says(&fails(&["images.parquet"]), &["'pair_id' is missing", "--pairs"]);
    says(&fails(&["images.parquet", "--pairs", "all", "--shard", "0/2"]), &["--shard", "belong together"]);
    says(&fails(&["images.parquet", "--pairs", "all", "--rule", "human"]), &["label_0", "--rule human"]);
    says(&fails(&["images.parquet", "--pairs", "all", "--human-voter"]), &["--human-voter"]);
    let table = three_prompts();
    dir.put("alone.parquet", &table.slice(6, 1));
    says(&fails(&["alone.parquet", "--pairs", "all"]), &["alone.parquet", "no prompt has two images"]);
    dir.put("even.parquet", &table.slice(3, 4));
    says(&fails(&["even.parquet", "--pairs", "pareto"]), &["even.parquet", "no prompt has two Pareto fronts"]);
    let again = concat_batches(&table.schema(), &[table.slice(0, 4), table.slice(0, 1)]).unwrap();
    dir.put("again.parquet", &again);
    says(&fails(&["again.parquet", "--pairs", "all"]), &["again.parquet, row 4", "'prompt 0' comes again"]);
    let twice = concat_batches(&table.schema(), &[table.slice(0, 2), table.slice(1, 1)]).unwrap();
    dir.put("twice.parquet", &twice);
    says(&fails(&["twice.parquet", "--pairs", "all"]), &["twice.parquet, row 2", "policy-0-1 appears twice"]);
}

#[test]
fn tables_side_by_side_must_hold_the_same_pairs() {
    let dir = Dir::new();
    let both = many(3000, 6);
    let only = |m: &str| {
        let drop: Vec<_> = ["hps", "clip", "pickscore", "aesthetic"].iter().filter(|x| **x != m).collect();
        drop.iter().fold(both.clone(), |t, x| without(&without(&t, &format!("{x}_0")), &format!("{x}_1")))
    };
    dir.put("hps.parquet", &only("hps"));
    let clip = only("clip");
    let schema = clip.schema();
    let swapped = [clip.slice(0, 2000), clip.slice(2001, 1), clip.slice(2000, 1), clip.slice(2002, 998)];
    dir.put("clip.parquet", &concat_batches(&schema, &swapped).unwrap());
    let error = dir.tool("vote").args(["hps.parquet", "clip.parquet", "-o", "x.parquet"]).fails(2);
    says(&error, &["hps.parquet, row 2000", "p2000", "clip.parquet, row 2000", "p2001", "same pairs"]);
    dir.put("clip.parquet", &clip.slice(0, 2999));
    let error = dir.tool("vote").args(["hps.parquet", "clip.parquet", "-o", "x.parquet"]).fails(2);
    says(&error, &["3000 rows", "2999"]);
    // A pipe shows only at its end that it is shorter.
    let error =
        dir.tool("vote").args(["hps.parquet", "-", "-o", "x.parquet"]).stdin(stream(&clip.slice(0, 2999))).fails(2);
    says(&error, &["standard input has fewer rows than hps.parquet"]);
    assert_eq!(dir.list(), ["clip.parquet", "hps.parquet"]);
    dir.put("half.parquet", &without(&without(&both, "clip_0"), "clip_1"));
    let error = dir.tool("vote").args(["hps.parquet", "half.parquet", "-o", "x.parquet"]).fails(2);
    says(&error, &["hps.parquet has [hps]", "half.parquet has [hps, pickscore, aesthetic]", "--metrics"]);
    dir.tool("vote").args(["hps.parquet", "half.parquet", "-o", "x.parquet", "--metrics", "hps"]).ok();
    assert_eq!(dir.get("x.parquet").num_rows(), 6000);
}

#[test]
fn a_collapsed_metric_is_a_warning() {
    let dir = Dir::new();
    let same = [Some(0.25), Some(0.3)];
    let table = scores(&[None, None], &[("hps", &same, &same), ("clip", &same, &[Some(0.1), Some(0.9)])]);
    dir.put("s.parquet", &table);
    let run = dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "--json"]).ok();
    says(&run.err, &["warning: hps scores both images alike"]);
    assert!(!run.err.contains("clip"));
    assert_eq!(run.json()["collapsed"], serde_json::json!(["hps"]));
}

#[test]
fn a_score_that_is_not_a_number_is_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let dir = Dir::new();
        let mut clip = vec![Some(0.5); 2000];
        clip[1500] = Some(bad);
        let fine = vec![Some(0.1); 2000];
        dir.put("s.parquet", &scores(&vec![None; 2000], &[("hps", &fine, &fine), ("clip", &fine, &clip)]));
        let error = dir.tool("vote").args(["s.parquet", "-o", "l.parquet"]).fails(2);
        says(&error, &["s.parquet, row 1500", "clip_1", &bad.to_string()]);
        assert_eq!(dir.list(), ["s.parquet"]);
        // A metric that does not vote is not read.
        dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "--metrics", "hps"]).ok();
    }
}

#[test]
fn what_is_missing_is_named() {
    let dir = Dir::new();
    dir.put("s.parquet", &four());
    let vote = |args: &[&str]| dir.tool("vote").args(["-o", "l.parquet"]).args(args).fails(2);
    says(&vote(&["s.parquet", "--metrics", "hps,blip"]), &["'blip'", "hps, clip, pickscore, aesthetic"]);
    says(&vote(&["s.parquet", "--metrics", "hps,hps"]), &["'hps' twice"]);
    says(&vote(&["s.parquet", "--rule", "single:blip"]), &["'blip'", "hps, clip"]);
    says(&vote(&["s.parquet", "--rule", "single:hps", "--metrics", "clip"]), &["'hps'", "clip"]);
    says(&vote(&["s.parquet", "--rule", "quorum:5"]), &["quorum:5", "only 4 vote"]);
    says(&vote(&["s.parquet", "--rule", "weighted"]), &["--weights", "--fit dawid-skene"]);
    says(&vote(&["s.parquet", "--weights", "hps=1"]), &["--weights has no effect under --rule majority"]);
    says(&vote(&["s.parquet", "--rule", "weighted", "--weights", "hps=1,clip=1"]), &["does not name pickscore"]);
    says(&vote(&["s.parquet", "--rule", "sum", "--weights", "hps=0,clip=0,pickscore=0,aesthetic=0"]), &["all 0"]);
    says(&vote(&["s.parquet", "--rule", "sum", "--fit", "dawid-skene"]), &["--fit has no effect under --rule sum"]);
    says(&vote(&["s.parquet", "--scales", "data"]), &["--scales has no effect under --rule majority"]);
    says(&vote(&["s.parquet", "--margin", "blip=1"]), &["--margin", "'blip'", "hps, clip"]);
    says(&vote(&["s.parquet", "--margin", "hps=1,hps=2"]), &["'hps' twice"]);
    for bad in [
        &["--rule", "quorum:0"][..],
        &["--rule", "median"],
        &["--margin", "hps=-1"],
        &["--margin", "hps"],
        &["--weights", "hps=nan"],
    ] {
        let run = dir.tool("vote").args(["s.parquet", "-o", "l.parquet"]).args(bad).exits(2);
        says(&run.err, &["invalid value", "--help"]);
    }
    dir.put("no-id.parquet", &without(&four(), "pair_id"));
    says(&vote(&["no-id.parquet"]), &["no-id.parquet", "'pair_id' is missing", "`score`"]);
    dir.put("no-label.parquet", &without(&four(), "label_0"));
    says(&vote(&["no-label.parquet", "--rule", "human"]), &["'label_0' is missing", "--rule human"]);
    says(&vote(&["no-label.parquet", "--ties", "human"]), &["'label_0' is missing", "--ties human"]);
    dir.put("half.parquet", &without(&without(&four(), "hps_1"), "label_0"));
    says(&vote(&["half.parquet", "--metrics", "hps"]), &["half.parquet", "no vote"]);
    says(&vote(&["half.parquet"]), &["half.parquet", "'hps_0'", "'hps_1'", "--metrics"]);
    dir.tool("vote").args(["half.parquet", "-o", "l.parquet", "-q", "--metrics", "clip,pickscore,aesthetic"]).ok();
    assert_eq!(column_i32(&dir.get("l.parquet"), "voters"), [3, 3, 3, 0]);
}

/// Every two images make a pair, so their number has an end.
#[test]
fn a_prompt_of_very_many_images_is_refused() {
    let dir = Dir::new();
    let scores: Vec<f32> = (0..10_001).map(|i| i as f32).collect();
    dir.put("images.parquet", &scored("policy", &["hps"], &[scores], |_, x| x));
    let args = ["images.parquet", "--pairs", "best-worst", "-o", "l.parquet"];
    says(&dir.tool("vote").args(args).fails(2), &["images.parquet, row 10000", "'prompt 0' has more than 10000"]);
    assert_eq!(dir.list(), ["images.parquet"]);
}

/// A label is a share from 0 to 1. Others, such as the -1 with which some data sets mark a missing one, are not votes.
#[test]
fn a_label_out_of_range_is_named() {
    let dir = Dir::new();
    let metric = [Some(0.5), Some(0.25), Some(0.5)];
    for bad in [-1.0, 2.0, 1e30, f32::INFINITY, f32::NEG_INFINITY] {
        let labels = [Some(1.0), Some(bad), Some(0.5)];
        let table = scores(&labels, &[("hps", &metric, &[Some(0.0); 3])]);
        dir.put("s.parquet", &table);
        for rule in ["human", "majority"] {
            let error = dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "--rule", rule]).fails(2);
            says(&error, &["s.parquet, row 1", "label_0", &bad.to_string(), "null"]);
        }
        // Nobody was asked where has_label is false.
        let mut columns: Vec<_> =
            table.schema().fields().iter().map(|f| f.name().clone()).zip(table.columns().to_vec()).collect();
        columns.push(("has_label".into(), floats([Some(1.0), Some(0.0), Some(1.0)])));
        dir.put("has.parquet", &RecordBatch::try_from_iter(columns).unwrap());
        dir.tool("vote").args(["has.parquet", "-o", "l.parquet", "--rule", "human", "-q"]).ok();
        assert_eq!(column_f32(&dir.get("l.parquet"), "weight"), [1.0, 0.0, 0.0]);
    }
    assert_eq!(dir.list(), ["has.parquet", "l.parquet", "s.parquet"]);
}

/// A table is what its author calls it, and a terminal shows no more than that.
#[test]
fn names_of_metrics_are_shown_escaped() {
    let dir = Dir::new();
    let metric = [Some(0.5), Some(0.25)];
    let wild = "\u{1b}]0;t\u{7}hps\n| forged |";
    dir.put("s.parquet", &scores(&[None; 2], &[(wild, &metric, &[Some(0.0); 2]), ("clip", &metric, &metric)]));
    let run = dir.tool("vote").args(["s.parquet", "-o", "l.parquet"]).ok();
    says(&run.err, &["\\u{1b}]0;t\\u{7}hps\\n| forged |"]);
    assert!(run.err.lines().all(|line| !line.chars().any(char::is_control) && !line.starts_with("| forged")));
    let error = dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "--metrics", "\u{9b}31m"]).fails(2);
    assert!(!error.chars().any(char::is_control) && error.contains("--metrics"), "{error}");
}
