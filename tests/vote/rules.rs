//! The rules, ties, scales and voters.

use super::*;

#[test]
fn rules_and_tie_policies() {
    for (args, target) in [
        (&["--ties", "abstain"][..], [1.0, 0.0, 0.5, 0.5]),
        (&["--ties", "second"], [1.0, 0.0, 0.0, 0.0]),
        (&["--ties", "first"], [1.0, 0.0, 1.0, 1.0]),
        (&["--ties", "human"], [1.0, 0.0, 1.0, 0.5]),
        (&["--rule", "single:hps"], [1.0, 0.0, 1.0, 0.5]),
        (&["--rule", "single:hps", "--ties", "first"], [1.0, 0.0, 1.0, 1.0]),
        (&["--rule", "single:aesthetic"], [0.0, 1.0, 0.0, 0.5]),
        (&["--rule", "human"], [0.0, 0.0, 1.0, 0.5]),
        (&["--rule", "human", "--ties", "first"], [0.0, 0.0, 1.0, 0.5]),
        (&["--metrics", "hps,clip,aesthetic"], [1.0, 0.0, 1.0, 0.5]),
        (&["--rule", "sum"], [1.0, 0.0, 0.0, 0.5]),
        (&["--rule", "sum", "--weights", "hps=9,clip=9,pickscore=0,aesthetic=1"], [1.0, 0.0, 1.0, 0.5]),
        (&["--rule", "unanimous"], [0.5, 0.5, 0.5, 0.5]),
        (&["--rule", "unanimous", "--metrics", "hps,clip,pickscore"], [1.0, 0.0, 0.5, 0.5]),
        (&["--rule", "unanimous", "--metrics", "hps,clip,pickscore", "--ties", "second"], [1.0, 0.0, 0.0, 0.0]),
        (&["--rule", "quorum:2"], [1.0, 0.0, 0.5, 0.5]),
        (&["--rule", "quorum:3"], [1.0, 0.0, 0.5, 0.5]),
        (&["--rule", "quorum:4"], [0.5, 0.5, 0.5, 0.5]),
        (&["--rule", "weighted", "--weights", "hps=1,clip=1,pickscore=1,aesthetic=4"], [0.0, 1.0, 0.0, 0.5]),
        // 0.1 + 0.2 - 0.3 is 6e-17 in binary, and a tie.
        (&["--rule", "weighted", "--weights", "hps=0.1,clip=0.2,pickscore=0,aesthetic=0.3"], [0.5, 0.5, 0.5, 0.5]),
        (&["--margin", "aesthetic=0.5"], [1.0, 0.0, 1.0, 0.5]),
        (&["--margin", "aesthetic=0.49"], [1.0, 0.0, 0.5, 0.5]),
        (&["--rule", "sum", "--margin", "aesthetic=0.5,pickscore=1"], [1.0, 0.0, 1.0, 0.5]),
        (&["--human-voter"], [1.0, 0.0, 1.0, 0.5]),
        (&["--rule", "quorum:3", "--human-voter"], [1.0, 0.0, 1.0, 0.5]),
        (&["--rule", "single:human", "--human-voter"], [0.0, 0.0, 1.0, 0.5]),
    ] {
        let labels = vote(&four(), args);
        assert_eq!(column_f32(&labels, "target"), target, "{args:?}");
        let weight = target.map(|t| if t == 0.5 { 0.0 } else { 1.0 });
        assert_eq!(column_f32(&labels, "weight"), weight, "{args:?}");
        assert_eq!(column_f32(&labels, "label_0"), target, "{args:?}");
    }
}

#[test]
fn soft_labels_are_shares_of_the_votes() {
    let soft = |args: &[&str]| {
        let labels = vote(&four(), &[&["--rule", "soft"], args].concat());
        assert_eq!(column_f32(&labels, "target"), column_f32(&labels, "label_0"));
        (column_f32(&labels, "target"), column_f32(&labels, "weight"))
    };
    assert_eq!(soft(&[]), (vec![0.75, 0.25, 0.5, 0.5], vec![1.0, 1.0, 0.0, 0.0]));
    assert_eq!(soft(&["--ties", "soft"]), (vec![0.75, 0.25, 0.5, 0.5], vec![1.0; 4]));
    assert_eq!(soft(&["--ties", "second"]).0, [0.75, 0.25, 0.0, 0.0]);
    let weights = ["--weights", "hps=1,clip=1,pickscore=1,aesthetic=5"];
    assert_eq!(soft(&weights).0, [0.375, 0.625, 0.25, 0.5]);
    // A soft tie under a hard rule: half of each, and learned from.
    let labels = vote(&four(), &["--ties", "soft"]);
    assert_eq!(column_f32(&labels, "target"), [1.0, 0.0, 0.5, 0.5]);
    assert_eq!(column_f32(&labels, "weight"), [1.0; 4]);
}

/// Differences of raw scores, of z-scores, and of shares of the range, written out again here.
#[test]
fn sums_are_sums() {
    let table = many(3000, 11);
    let metrics = ["hps", "clip", "pickscore", "aesthetic"];
    let sides = metrics.map(|m| ["0", "1"].map(|side| column_f32_or_null(&table, &format!("{m}_{side}"))));
    let target = |scale: &dyn Fn(&[f64]) -> f64| -> Vec<f32> {
        let scales = sides.each_ref().map(|[a, b]| {
            let all: Vec<f64> = a.iter().chain(b).flatten().map(|&x| f64::from(x)).collect();
            scale(&all)
        });
        let sum = |i: usize| -> f64 {
            let d = |m: usize| Some((f64::from(sides[m][0][i]?) - f64::from(sides[m][1][i]?)) / scales[m]);
            (0..4).filter_map(d).sum()
        };
        let sign = |x: f64| if x.abs() < 1e-9 { 0.5 } else { f32::from(u8::from(x > 0.0)) };
        (0..3000).map(|i| sign(sum(i))).collect()
    };
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let sd = |x: &[f64]| (x.iter().map(|v| (v - mean(x)).powi(2)).sum::<f64>() / x.len() as f64).sqrt();
    let range = |x: &[f64]| x.iter().fold(f64::MIN, |a, &b| a.max(b)) - x.iter().fold(f64::MAX, |a, &b| a.min(b));
    assert_eq!(column_f32(&vote(&table, &["--rule", "sum"]), "target"), target(&|_| 1.0));
    assert_eq!(column_f32(&vote(&table, &["--rule", "zsum"]), "target"), target(&sd));
    assert_eq!(column_f32(&vote(&table, &["--rule", "minmax"]), "target"), target(&range));
    assert_ne!(target(&sd), target(&|_| 1.0));
}

#[test]
fn scales_are_of_the_whole_table_or_of_a_file() {
    let dir = Dir::new();
    dir.put("a.parquet", &many(1700, 12));
    dir.put("b.parquet", &many(2300, 13));
    let both = ["a.parquet", "b.parquet", "--rule", "zsum", "-q"];
    dir.tool("vote").args(both).args(["-o", "whole.parquet"]).ok();
    for shard in ["0/2", "1/2"] {
        dir.tool("vote").args(both).args(["-o", "parts", "--shard", shard]).ok();
    }
    let target = |name: &str| column_f32(&dir.get(name), "target");
    assert_eq!(target("whole.parquet"), target("parts"));
    // What another vote printed is a file of scales.
    let summary = dir.tool("vote").args(["a.parquet", "b.parquet", "-o", "x.parquet", "--json", "-q"]).ok();
    dir.write("scales.json", &summary.out);
    dir.tool("vote").args(both).args(["-o", "file.parquet", "--scales", "scales.json"]).ok();
    assert_eq!(target("whole.parquet"), target("file.parquet"));
    // From a pipe only with a file.
    let piped = |args: &[&str]| dir.tool("vote").args(["-", "-o", "-", "-q"]).args(args).stdin(stream(&many(1700, 12)));
    let error = piped(&["--rule", "minmax"]).fails(2);
    says(&error, &["--rule minmax", "first pass", "standard input can be read only once", "--scales"]);
    let whole = piped(&["--rule", "zsum", "--scales", "scales.json"]).ok().table();
    assert_eq!(column_f32(&whole, "target"), target("whole.parquet")[..1700]);
    for (text, parts) in [
        (r#"{"hps": {"sd": 1, "min": 0, "max": 1}}"#, ["bad.json", "clip"]),
        (r#"{"hps": {"sd": 0, "min": 0, "max": 1}}"#, ["hps", "no spread"]),
        ("hps=1", ["bad.json", "not JSON"]),
    ] {
        dir.write("bad.json", text);
        says(&dir.tool("vote").args(both).args(["-o", "y.parquet", "--scales", "bad.json"]).fails(2), &parts);
    }
}

#[test]
fn a_random_metric_belongs_to_its_pair() {
    // Three metrics for image 0, one for image 1.
    let (up, down) = (vec![Some(1.0); 4000], vec![Some(0.0); 4000]);
    let table =
        scores(&vec![None; 4000], &[("a", &up, &down), ("b", &up, &down), ("c", &up, &down), ("d", &down, &up)]);
    let target = |args: &[&str]| column_f32(&vote(&table, &[&["--rule", "random"], args].concat()), "target");
    let share = target(&[]).iter().sum::<f32>() / 4000.0;
    assert!((share - 0.75).abs() < 0.03, "{share}");
    assert_eq!(target(&[]), target(&["--threads", "1"]));
    assert_ne!(target(&[]), target(&["--seed", "1"]));
    // A metric that did not score the pair is not drawn.
    let none = vec![None; 4000];
    let table =
        scores(&vec![None; 4000], &[("a", &none, &down), ("b", &none, &down), ("c", &none, &down), ("d", &down, &up)]);
    assert_eq!(column_f32(&vote(&table, &["--rule", "random"]), "target"), [0.0; 4000]);
}

#[test]
fn people_may_vote_too() {
    let labels = vote(&four(), &["--human-voter"]);
    assert_eq!(column_i8(&labels, "vote_human"), [-1, -1, 1, 0]);
    assert_eq!(column_i32(&labels, "votes"), [1, -3, 1, 0]);
    assert_eq!(column_i32(&labels, "voters"), [5, 5, 5, 0]);
    let dir = Dir::new();
    dir.put("s.parquet", &four());
    let json = dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "--human-voter", "--json"]).ok().json();
    assert_eq!(json["voters"].as_object().unwrap().len(), 5);
    assert_eq!(json["agreement"].as_array().unwrap().len(), 10);
    dir.put("no-label.parquet", &without(&four(), "label_0"));
    let error = dir.tool("vote").args(["no-label.parquet", "-o", "x.parquet", "--human-voter"]).fails(2);
    says(&error, &["'label_0' is missing", "--human-voter"]);
}

#[test]
fn a_null_score_is_not_a_vote() {
    let n = |x: [Option<f32>; 3]| x;
    let table = scores(
        &[None, None, None],
        &[
            ("hps", &n([None, None, Some(0.1)]), &n([Some(0.1), None, Some(0.2)])),
            ("clip", &n([Some(0.2), None, Some(0.2)]), &n([Some(0.1), Some(0.3), None])),
        ],
    );
    // The second pair has nothing to go by, and so no tie policy decides it.
    let labels = vote(&table, &["--ties", "first"]);
    assert_eq!(column_i8(&labels, "vote_hps"), [0, 0, -1]);
    assert_eq!(column_i32(&labels, "voters"), [1, 0, 1]);
    assert_eq!(column_f32(&labels, "target"), [1.0, 0.5, 0.0]);
    assert_eq!(column_f32(&labels, "weight"), [1.0, 0.0, 1.0]);
    let dir = Dir::new();
    dir.put("s.parquet", &table);
    let json = dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "--json"]).ok().json();
    assert_eq!(json["null_scores"], 4);
    assert_eq!(json["nothing"], 1);
    assert_eq!(json["tied"], 0);
}

#[test]
fn a_missing_human_label_abstains() {
    let zero = [Some(0.1), Some(0.1), Some(0.1)];
    let one = [Some(0.2), Some(0.2), Some(0.2)];
    let table = scores(&[None, Some(f32::NAN), Some(1.0)], &[("hps", &zero, &one)]);
    assert_eq!(column_f32(&vote(&table, &["--rule", "human"]), "target"), [0.5, 0.5, 1.0]);
    assert_eq!(column_f32(&vote(&table, &["--rule", "human"]), "weight"), [0.0, 0.0, 1.0]);
    let dir = Dir::new();
    dir.put("s.parquet", &table);
    let json = dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "--rule", "human", "--json"]).ok().json();
    assert_eq!((&json["nothing"], &json["tied"]), (&2.into(), &0.into()));
    assert_eq!(json["voters"]["human"]["null"], 2);
}

#[test]
fn swapping_the_images_negates_every_vote() {
    let table = many(3000, 2);
    let get = |name: &str| column_f32_or_null(&table, name);
    let flipped: Vec<_> = get("label_0").into_iter().map(|l| l.map(|l| 1.0 - l)).collect();
    let sides = ["hps", "clip", "pickscore", "aesthetic"].map(|m| (m, get(&format!("{m}_1")), get(&format!("{m}_0"))));
    let swapped = scores(&flipped, &sides.each_ref().map(|(m, zero, one)| (*m, &zero[..], &one[..])));
    for (there, back) in [
        (&["--ties", "abstain"][..], &["--ties", "abstain"][..]),
        (&["--ties", "first"], &["--ties", "second"]),
        (&["--ties", "human"], &["--ties", "human"]),
        (&["--rule", "human"], &["--rule", "human"]),
        (&["--rule", "single:clip"], &["--rule", "single:clip"]),
        (&["--rule", "sum"], &["--rule", "sum"]),
        (&["--rule", "zsum"], &["--rule", "zsum"]),
        (&["--rule", "minmax", "--ties", "first"], &["--rule", "minmax", "--ties", "second"]),
        (&["--rule", "soft", "--ties", "soft"], &["--rule", "soft", "--ties", "soft"]),
        (&["--rule", "unanimous"], &["--rule", "unanimous"]),
        (&["--rule", "quorum:2", "--human-voter"], &["--rule", "quorum:2", "--human-voter"]),
        (&["--margin", "clip=0.3,hps=0.25"], &["--margin", "clip=0.3,hps=0.25"]),
    ] {
        let (a, b) = (vote(&table, there), vote(&swapped, back));
        for m in ["vote_hps", "vote_clip", "vote_pickscore", "vote_aesthetic"] {
            let negated: Vec<_> = column_i8(&b, m).iter().map(|v| -v).collect();
            assert_eq!(column_i8(&a, m), negated, "{there:?}");
        }
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        let (target, mirrored) = (column_f32(&a, "label_0"), column_f32(&b, "label_1"));
        assert!(target.iter().zip(&mirrored).all(near), "{there:?}");
        assert_eq!(column_f32(&a, "weight"), column_f32(&b, "weight"), "{there:?}");
    }
}

#[test]
fn a_random_tie_belongs_to_its_pair() {
    let tied = |ids: Vec<String>| {
        let n = ids.len();
        let (up, down) = (vec![Some(1.0); n], vec![Some(0.0); n]);
        let table = scores(&vec![None; n], &[("hps", &up, &down), ("clip", &down, &up)]);
        let mut columns = table.columns().to_vec();
        columns[0] = texts(ids);
        RecordBatch::try_new(table.schema(), columns).unwrap()
    };
    let ids: Vec<_> = (0..1000).map(|i| format!("pair {i}")).collect();
    let args = ["--ties", "random"];
    let there = column_f32(&vote(&tied(ids.clone()), &args), "target");
    let mut back = column_f32(&vote(&tied(ids.iter().rev().cloned().collect()), &args), "target");
    back.reverse();
    assert_eq!(there, back);
    let heads = there.iter().filter(|&&t| t == 1.0).count();
    assert!((430..570).contains(&heads) && there.iter().all(|&t| t != 0.5), "{heads} of 1000");
    assert_ne!(there, column_f32(&vote(&tied(ids), &["--ties", "random", "--seed", "1"]), "target"));
}
