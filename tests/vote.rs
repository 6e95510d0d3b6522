//! `vote`, through the binary.

#[path = "vote/refused.rs"]
mod refused;
mod util;

use arrow::{array::RecordBatch, compute::concat_batches};
use util::*;

/// Four pairs under four metrics: 3 to 1, 1 to 3, 2 to 2, and all equal.
fn four() -> RecordBatch {
    let n = |x: [f32; 4]| x.map(Some);
    let label_0 = [Some(0.0), Some(0.0), Some(1.0), Some(0.5)];
    scores(
        &label_0,
        &[
            ("hps", &n([0.3, 0.1, 0.3, 0.2]), &n([0.2, 0.2, 0.2, 0.2])),
            ("clip", &n([0.4, 0.1, 0.4, 0.3]), &n([0.3, 0.2, 0.3, 0.3])),
            ("pickscore", &n([22.0, 20.0, 20.0, 21.0]), &n([21.0, 21.0, 21.0, 21.0])),
            ("aesthetic", &n([5.0, 6.0, 5.0, 5.5]), &n([5.5, 5.5, 5.5, 5.5])),
        ],
    )
}

/// Many pairs with coarse scores, so that ties and equal scores are common, and with some nulls.
fn many(n: usize, seed: u64) -> RecordBatch {
    let mut next = noise(seed);
    let mut column = |levels: f32, null: f32| -> Vec<Option<f32>> {
        (0..n).map(|_| (next(), next())).map(|(x, y)| (y >= null).then(|| (x * levels).floor() / levels)).collect()
    };
    let labels = column(3.0, 0.1).into_iter().map(|x| x.map(|x| (x * 3.0).round() / 2.0)).collect::<Vec<_>>();
    let (a, b, c, d) = (column(4.0, 0.05), column(4.0, 0.0), column(9.0, 0.0), column(9.0, 0.0));
    let (e, f, g, h) = (column(99.0, 0.0), column(99.0, 0.3), column(5.0, 0.0), column(5.0, 0.0));
    scores(&labels, &[("hps", &a, &b), ("clip", &c, &d), ("pickscore", &e, &f), ("aesthetic", &g, &h)])
}

fn vote(table: &RecordBatch, args: &[&str]) -> RecordBatch {
    let dir = Dir::new();
    dir.put("scores.parquet", table);
    dir.tool("vote").args(["scores.parquet", "-o", "labels.parquet", "-q"]).args(args).ok();
    dir.get("labels.parquet")
}

#[test]
fn labels_table_is_complete() {
    let labels = vote(&four(), &[]);
    let names: Vec<_> = labels.schema().fields().iter().map(|f| f.name().clone()).collect();
    let keys = ["pair_id", "caption", "image_0_uid", "image_1_uid"];
    let votes = ["vote_hps", "vote_clip", "vote_pickscore", "vote_aesthetic"];
    let result = ["votes", "voters", "target", "weight", "label_0", "label_1"];
    assert_eq!(names, [&keys[..], &votes, &result].concat());
    assert_eq!(column_text(&labels, "pair_id"), ["p0", "p1", "p2", "p3"]);
    assert_eq!(column_text(&labels, "caption")[2], "caption 2");
    assert_eq!(column_text(&labels, "image_1_uid")[3], "b3");
    assert_eq!(column_i8(&labels, "vote_hps"), [1, -1, 1, 0]);
    assert_eq!(column_i8(&labels, "vote_aesthetic"), [-1, 1, -1, 0]);
    assert_eq!(column_i32(&labels, "votes"), [2, -2, 0, 0]);
    assert_eq!(column_i32(&labels, "voters"), [4, 4, 4, 0]);
    assert_eq!(column_f32(&labels, "target"), [1.0, 0.0, 0.5, 0.5]);
    assert_eq!(column_f32(&labels, "weight"), [1.0, 1.0, 0.0, 0.0]);
    assert_eq!(column_f32(&labels, "label_0"), [1.0, 0.0, 0.5, 0.5]);
    assert_eq!(column_f32(&labels, "label_1"), [0.0, 1.0, 0.5, 0.5]);
}

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

/// Four voters that are right in 85, 75, 65 and 60 % of pairs, by themselves; nobody knows the truth but this test.
fn known(n: usize) -> (Vec<f32>, RecordBatch) {
    let mut next = noise(21);
    let truth: Vec<f32> = (0..n).map(|_| f32::from(u8::from(next() < 0.5))).collect();
    let names = ["a", "b", "c", "d"];
    let votes = [0.85, 0.75, 0.65, 0.6]
        .map(|p| -> Vec<Option<f32>> { truth.iter().map(|&t| Some(if next() < p { t } else { 1.0 - t })).collect() });
    let others = votes.each_ref().map(|v| v.iter().map(|x| x.map(|x| 1.0 - x)).collect::<Vec<_>>());
    let metrics: Vec<_> = (0..4).map(|m| (names[m], &votes[m][..], &others[m][..])).collect();
    (truth, scores(&vec![None; n], &metrics))
}

#[test]
fn fitted_weights_know_the_good_voters() {
    let dir = Dir::new();
    let (truth, table) = known(8000);
    dir.put("s.parquet", &table);
    let args = ["s.parquet", "-o", "l.parquet", "--rule", "weighted", "--fit", "dawid-skene"];
    let run = dir.tool("vote").args(args).args(["--json"]).ok();
    let fit = &run.json()["fit"];
    for (voter, known) in [("a", 0.85), ("b", 0.75), ("c", 0.65), ("d", 0.6)] {
        let found = fit["accuracy"][voter].as_f64().unwrap();
        assert!((found - known).abs() < 0.03, "{voter}: {found}, known {known}");
        let weight = fit["weights"][voter].as_f64().unwrap();
        assert!((weight - (found / (1.0 - found)).ln()).abs() < 1e-9, "{voter}: {weight}");
    }
    let right = |labels: &RecordBatch| -> f32 {
        let hit = |(t, target): (&f32, f32)| if target == 0.5 { 0.5 } else { f32::from(u8::from(*t == target)) };
        truth.iter().zip(column_f32(labels, "target")).map(hit).sum::<f32>() / truth.len() as f32
    };
    let (fitted, majority) = (right(&dir.get("l.parquet")), right(&vote(&table, &[])));
    assert!(fitted > majority + 0.01, "{fitted}, majority {majority}");
    says(&dir.tool("vote").args(args).ok().err, &["fitted voter", "no sign that voters err together"]);
    let error =
        dir.tool("vote").args(["-", "-o", "-", "--rule", "weighted", "--fit", "dawid-skene"]).stdin(stream(&table));
    says(&error.fails(2), &["--fit", "first pass", "standard input can be read only once"]);
    let error = dir.tool("vote").args(args).args(["--metrics", "a,b"]).fails(2);
    says(&error, &["--fit needs 3 to 16 voters"]);
}

/// The models' qualities are found from the preferences, and an expected victory over a weak model weighs more than an upset.
#[test]
fn pairs_weigh_what_their_models_let_one_expect() {
    const QUALITY: [f64; 3] = [0.6, 0.0, -0.6];
    let (n, mut next) = (9000, noise(5));
    let drawn: Vec<[usize; 2]> = (0..n).map(|_| [(); 2].map(|()| (3.0 * next()) as usize % 3)).collect();
    // The sum of twelve uniform numbers is as good as normal. An image's quality has the variance 1/2.
    let mut image =
        |model: usize| QUALITY[model] + ((0..12).map(|_| f64::from(next())).sum::<f64>() - 6.0) / 2f64.sqrt();
    let scored: Vec<[Option<f32>; 2]> = drawn.iter().map(|pair| pair.map(|model| Some(image(model) as f32))).collect();
    let side = |k: usize| scored.iter().map(|s| s[k]).collect::<Vec<_>>();
    let dir = Dir::new();
    let table = scores(&vec![None; n], &[("hps", &side(0), &side(1))]);
    dir.put("s.parquet", &table);
    let names =
        |k: usize| texts((0..n).map(|i| if i == 7 { "another".into() } else { format!("model {}", drawn[i][k]) }));
    let keys = without(&without(&table, "hps_0"), "hps_1");
    let mut columns: Vec<_> =
        keys.schema().fields().iter().map(|f| (f.name().clone(), column(&keys, f.name()).clone())).collect();
    columns.extend([("model_0".to_owned(), names(0)), ("model_1".to_owned(), names(1))]);
    // The last pair is not in the table: its models are not known.
    let pairs = self::table(columns.iter().map(|(name, c)| (name.as_str(), c.clone())).collect()).slice(0, n - 1);
    dir.put("pairs.parquet", &pairs);
    let args = ["s.parquet", "-o", "l.parquet", "--arena", "pairs.parquet"];
    let run = dir.tool("vote").args(args).args(["--json"]).ok();
    let found = [0, 1, 2].map(|k| run.json()["arena"][format!("model {k}")]["quality"].as_f64().unwrap());
    for (found, known) in found.iter().zip(QUALITY) {
        assert!((found - known).abs() < 0.06, "{found}, known {known}");
    }
    let labels = dir.get("l.parquet");
    let (target, weight) = (column_f32(&labels, "target"), column_f32(&labels, "weight"));
    assert_eq!(target, column_f32(&vote(&table, &[]), "target"));
    let mean = weight[..n - 1].iter().map(|w| f64::from(*w)).sum::<f64>() / (n - 1) as f64;
    assert!((mean - 1.0).abs() < 1e-3, "{mean}");
    assert_eq!(weight[n - 1], 1.0);
    let of = |winner: usize, loser: usize| {
        let won =
            |i: &usize| if target[*i] == 1.0 { drawn[*i] == [winner, loser] } else { drawn[*i] == [loser, winner] };
        weight[(0..n - 1).filter(|i| *i != 7).find(won).unwrap()]
    };
    assert!(of(0, 2) > of(0, 1) && of(0, 1) > of(1, 1) && of(1, 1) > of(2, 1) && of(2, 1) > of(2, 0), "{weight:?}");
    assert_eq!(of(0, 0), of(2, 2));
    // With m = 1.2 and 0 the expected gaps are 1.417 and 0.798.
    assert!((of(0, 2) / of(1, 1) - 1.417 / 0.798).abs() < 0.06, "{} {}", of(0, 2), of(1, 1));
    says(&dir.tool("vote").args(args).ok().err, &["model 0", "quality", "preferred"]);
    // The weights are the same in parts, and a pipe cannot be read twice.
    dir.tool("vote").args(["s.parquet", "-o", "parts", "--shard", "0/2", "--arena", "pairs.parquet"]).ok();
    dir.tool("vote").args(["s.parquet", "-o", "parts", "--shard", "1/2", "--arena", "pairs.parquet"]).ok();
    assert_eq!(column_f32(&dir.get("parts/part-00001-of-00002.parquet"), "weight"), weight[n / 2..]);
    let error = dir.tool("vote").args(["-", "-o", "-", "--arena", "pairs.parquet"]).stdin(stream(&table)).fails(2);
    says(&error, &["--arena learns", "standard input can be read only once"]);
    let mut exchanged = columns.clone();
    let last = exchanged.len() - 1;
    (exchanged[last - 1].1, exchanged[last].1) = (columns[last].1.clone(), columns[last - 1].1.clone());
    let exchanged = self::table(exchanged.iter().map(|(name, c)| (name.as_str(), c.clone())).collect());
    dir.put("twice.parquet", &arrow::compute::concat_batches(&pairs.schema(), [&pairs, &exchanged]).unwrap());
    let error = dir.tool("vote").args(["s.parquet", "-o", "x.parquet", "--arena", "twice.parquet"]).fails(2);
    says(&error, &["twice.parquet, row ", "stands twice"]);
    dir.put("nobody.parquet", &without(&pairs, "model_1"));
    let error = dir.tool("vote").args(["s.parquet", "-o", "x.parquet", "--arena", "nobody.parquet"]).fails(2);
    says(&error, &["nobody.parquet", "'model_1' is missing"]);
    dir.put("others.parquet", &pairs.slice(0, 0));
    let error = dir.tool("vote").args(["s.parquet", "-o", "x.parquet", "--arena", "others.parquet"]).fails(2);
    says(&error, &["others.parquet"]);
}

/// Scored images of three prompts: scores that rank them 0 > 1 > 2, a circle, and a single image.
fn three_prompts() -> RecordBatch {
    let ranks = [
        [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]],
        // Each metric turns the order by one: 0 > 1 > 2, 1 > 2 > 0, 2 > 0 > 1.
        [[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [2.0, 1.0, 3.0]],
    ];
    let k: Vec<Vec<f32>> = vec![vec![0.0; 3], vec![0.0; 3], vec![0.0]];
    let table = scored("policy", &["a", "b", "c"], &k, |_, x| x);
    let mut columns = table.columns().to_vec();
    for (m, name) in ["a", "b", "c"].iter().enumerate() {
        let values = (0..7).map(|row| Some(if row < 6 { ranks[row / 3][m][row % 3] } else { 0.5 }));
        columns[table.schema().index_of(name).unwrap()] = floats(values);
    }
    RecordBatch::try_new(table.schema(), columns).unwrap()
}

#[test]
fn images_of_a_prompt_become_pairs() {
    let dir = Dir::new();
    dir.put("images.parquet", &three_prompts());
    let run = dir.tool("vote").args(["images.parquet", "-o", "all.parquet", "--pairs", "all", "--json"]).ok();
    let all = dir.get("all.parquet");
    let pairs =
        |p: usize| ["0 1", "0 2", "1 2"].map(|k| format!("policy-{p}-{}", k.replace(' ', &format!(" policy-{p}-"))));
    assert_eq!(uids(&all), [pairs(0), pairs(1)].concat());
    assert_eq!(column_text(&all, "caption")[3], "prompt 1");
    // 0 > 1, 0 > 2, 1 > 2; then 0 > 1, 2 > 0, 1 > 2.
    assert_eq!(column_f32(&all, "target"), [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]);
    assert_eq!(column_i32(&all, "votes"), [3, 3, 3, 1, -1, 1]);
    let prompts = &run.json()["prompts"];
    assert_eq!(
        (&prompts["prompts"], &prompts["cycles"], &prompts["winners"], &prompts["alone"]),
        (&3.into(), &1.into(), &1.into(), &1.into())
    );
    let mut ids = column_text(&all, "pair_id");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);

    // In a circle all are alike: the first stands as best, the last as worst, and the label says what the votes of this pair say.
    let run = dir.tool("vote").args(["images.parquet", "-o", "two.parquet", "--pairs", "best-worst", "--json"]).ok();
    let two = dir.get("two.parquet");
    assert_eq!(uids(&two), ["policy-0-0 policy-0-2", "policy-1-0 policy-1-2"]);
    assert_eq!(column_f32(&two, "target"), [1.0, 0.0]);
    assert_eq!((&run.json()["rows"], &run.json()["prompts"]["reversed"]), (&2.into(), &1.into()));
    let origin: serde_json::Value = serde_json::from_str(&two.schema().metadata()["origin"]).unwrap();
    assert_eq!(origin["args"]["pairs"], "best-worst");
    says(
        &dir.tool("vote").args(["images.parquet", "-o", "two.parquet", "--pairs", "all"]).ok().err,
        &["1 whose preferences form a cycle"],
    );
    // Under the first prompt each image dominates the next; under the second none dominates any, so there is one front and no pair.
    let args = ["-o", "front.parquet", "--pairs", "pareto", "--json"];
    for (order, pair, target) in [([0, 1, 2], "policy-0-0 policy-0-2", 1.0), ([2, 1, 0], "policy-0-2 policy-0-0", 0.0)]
    {
        let rows = order.into_iter().chain(3..7).collect::<arrow::array::UInt32Array>();
        dir.put("turned.parquet", &arrow::compute::take_record_batch(&three_prompts(), &rows).unwrap());
        let run = dir.tool("vote").arg("turned.parquet").args(args).ok();
        let front = dir.get("front.parquet");
        assert_eq!((uids(&front), column_f32(&front, "target")), (vec![pair.to_owned()], vec![target]));
        assert_eq!((&run.json()["rows"], &run.json()["prompts"]["one_front"]), (&1.into(), &1.into()));
    }
    for other in ["--rule soft", "--weights hps=1", "--fit dawid-skene", "--scales data", "--ties human"] {
        let error = dir.tool("vote").arg("turned.parquet").args(args).args(other.split(' ')).fails(2);
        says(&error, &["--pairs pareto decides by itself", other.split(' ').next().unwrap()]);
    }
    // No rule decides, and none is named.
    let origin: serde_json::Value =
        serde_json::from_str(&dir.get("front.parquet").schema().metadata()["origin"]).unwrap();
    assert_eq!((origin["args"].get("rule"), &origin["args"]["pairs"]), (None, &"pareto".into()));
    let run = dir.tool("vote").args(["turned.parquet", "-o", "front.parquet", "--pairs", "pareto"]).ok();
    assert!(run.err.starts_with("Pareto fronts: ") && !run.err.contains("majority"), "{}", run.err);
    // A pipe, other rules.
    let piped = dir
        .tool("vote")
        .args(["-", "-o", "-", "--pairs", "all", "-q", "--rule", "soft"])
        .stdin(stream(&three_prompts()));
    assert_eq!(column_f32(&piped.ok().table(), "target")[..3], [1.0, 1.0, 1.0]);
}

fn uids(pairs: &RecordBatch) -> Vec<String> {
    let (zero, one) = (column_text(pairs, "image_0_uid"), column_text(pairs, "image_1_uid"));
    zero.iter().zip(one).map(|(zero, one)| format!("{zero} {one}")).collect()
}

#[test]
fn votes_and_voters_are_the_sums_of_their_columns() {
    let labels = vote(&many(500, 1), &["--metrics", "clip,hps,pickscore"]);
    let [clip, hps, pickscore] = ["vote_clip", "vote_hps", "vote_pickscore"].map(|m| column_i8(&labels, m));
    let rows: Vec<_> = clip.iter().zip(&hps).zip(&pickscore).map(|((a, b), c)| [*a, *b, *c].map(i32::from)).collect();
    assert_eq!(column_i32(&labels, "votes"), rows.iter().map(|s| s.iter().sum()).collect::<Vec<i32>>());
    assert_eq!(
        column_i32(&labels, "voters"),
        rows.iter().map(|s| s.iter().map(|v| v.abs()).sum()).collect::<Vec<i32>>()
    );
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
fn shards_put_together_are_the_whole() {
    let dir = Dir::new();
    dir.put("a.parquet", &many(1700, 3));
    dir.put("b.parquet", &many(2300, 4));
    let args = ["a.parquet", "b.parquet", "--ties", "random", "--seed", "7", "-q"];
    dir.tool("vote").args(args).args(["-o", "whole.parquet"]).ok();
    for shard in ["0/3", "2/3", "1/3"] {
        dir.tool("vote").args(args).args(["-o", "parts", "--shard", shard]).ok();
    }
    // A part's summary is that of its own rows; everything else is the same.
    let (whole, parts) = (dir.get("whole.parquet"), dir.get("parts"));
    assert_eq!(columns(&whole), columns(&parts));
    assert_eq!(whole.schema().fields(), parts.schema().fields());
    assert_eq!(whole.schema().metadata()["origin"], parts.schema().metadata()["origin"]);
    assert!(dir.path("parts/part-00001-of-00003.parquet").exists());
    // A folder of parts is a table like any other.
    std::fs::create_dir(dir.path("scores")).unwrap();
    dir.put("scores/part-00000-of-00002.parquet", &many(1700, 3));
    dir.put("scores/part-00001-of-00002.parquet", &many(2300, 4));
    dir.tool("vote").args(["scores", "--ties", "random", "--seed", "7", "-q", "-o", "again.parquet"]).ok();
    assert_eq!(dir.get("whole.parquet"), dir.get("again.parquet"));
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

#[test]
fn different_metrics_stand_side_by_side() {
    let dir = Dir::new();
    let both = many(2500, 5);
    dir.put("both.parquet", &both);
    let hps = ["clip_0", "clip_1", "pickscore_0", "pickscore_1", "aesthetic_0", "aesthetic_1"];
    dir.put("hps.parquet", &hps.iter().fold(both.clone(), |t, c| without(&t, c)));
    let rest = without(&without(&without(&both, "hps_0"), "hps_1"), "label_0");
    // In two files, so that batches end at different rows.
    dir.put("rest-0.parquet", &rest.slice(0, 1111));
    dir.put("rest-1.parquet", &rest.slice(1111, 1389));
    dir.tool("vote").args(["both.parquet", "-o", "one.parquet", "-q"]).ok();
    dir.tool("vote").args(["hps.parquet", "rest-0.parquet", "rest-1.parquet", "-o", "two.parquet", "-q"]).ok();
    assert_eq!(columns(&dir.get("one.parquet")), columns(&dir.get("two.parquet")));
    // Labels may come from the second table.
    let args = ["rest-0.parquet", "rest-1.parquet", "hps.parquet", "--ties", "human", "-q"];
    dir.tool("vote").args(args).args(["-o", "three.parquet"]).ok();
    dir.tool("vote").args(["both.parquet", "--ties", "human", "-o", "four.parquet", "-q"]).ok();
    let target = |name| column_f32(&dir.get(name), "target");
    assert_eq!(target("three.parquet"), target("four.parquet"));
    for shard in ["0/2", "1/2"] {
        dir.tool("vote").args(args).args(["-o", "parts", "--shard", shard]).ok();
    }
    assert_eq!(columns(&dir.get("three.parquet")), columns(&dir.get("parts")));
}

fn columns(table: &RecordBatch) -> Vec<arrow::array::ArrayRef> {
    table.columns().to_vec()
}

#[test]
fn pipes_and_files_give_the_same_table() {
    let dir = Dir::new();
    let table = many(5000, 7);
    dir.put("scores.parquet", &table);
    dir.tool("vote").args(["scores.parquet", "-o", "labels.parquet", "-q"]).ok();
    let piped = dir.tool("vote").args(["-", "-o", "-", "-q"]).stdin(stream(&table)).ok();
    assert_eq!(columns(&dir.get("labels.parquet")), columns(&piped.table()));
    assert_eq!(dir.get("labels.parquet").schema().fields(), piped.table().schema().fields());
    assert_eq!(piped.err, "");
    // With the labels on standard output, the summary goes to standard error.
    let run = dir.tool("vote").args(["scores.parquet", "-o", "-", "--json"]).ok();
    assert_eq!(columns(&run.table()), columns(&piped.table()));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&run.err).unwrap()["rows"], 5000);
}

#[test]
fn same_work_same_bytes_and_its_origin() {
    let dir = Dir::new();
    dir.put(
        "s.parquet",
        &with_origin(&many(1500, 8), r#"{"tool":"score","version":"0","args":{},"models":{"hps":"abc"}}"#),
    );
    dir.tool("vote").args(["s.parquet", "-o", "a.parquet", "-q"]).ok();
    dir.tool("vote").args(["s.parquet", "-o", "b.parquet", "--threads", "2", "--seed", "9"]).ok();
    assert_eq!(dir.bytes("a.parquet"), dir.bytes("b.parquet"));
    let origin =
        |name| -> serde_json::Value { serde_json::from_str(&dir.get(name).schema().metadata()["origin"]).unwrap() };
    let a = origin("a.parquet");
    assert_eq!(a["tool"], "vote");
    assert_eq!(a["args"]["rule"], "majority");
    assert_eq!(a["args"]["ties"], "abstain");
    assert_eq!(a["args"]["metrics"][3], "aesthetic");
    assert!(a["args"].get("seed").is_none());
    assert_eq!(a["inputs"][0]["origin"]["models"]["hps"], "abc");
    assert_eq!(a["inputs"][0]["sha256"].as_str().unwrap().len(), 64);
    dir.tool("vote").args(["s.parquet", "-o", "c.parquet", "--ties", "random", "--seed", "9"]).ok();
    assert_eq!(origin("c.parquet")["args"]["seed"], 9);
}

#[test]
fn summary_counts() {
    let dir = Dir::new();
    dir.put("s.parquet", &four());
    let json = dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "--json", "--ties", "second"]).ok().json();
    assert_eq!(json["rows"], 4);
    assert_eq!(json["votes"], serde_json::json!({"image_0": 1, "image_1": 3, "even": 0, "abstained": 0}));
    assert_eq!((&json["tied"], &json["tied_share"]), (&2.into(), &0.5.into()));
    assert_eq!(json["voters"]["hps"]["image_0"], 2);
    assert_eq!(json["voters"]["hps"]["equal"], 1);
    assert_eq!(json["voters"]["human"]["image_1"], 2);
    let mean = json["voters"]["aesthetic"]["mean"].as_f64().unwrap();
    assert!((mean - 43.5 / 8.0).abs() < 1e-6, "{mean}");
    let between = |a: &str, b: &str| {
        let all = json["agreement"].as_array().unwrap();
        all.iter().find(|x| x["a"] == a && x["b"] == b).unwrap().clone()
    };
    assert_eq!(between("hps", "clip")["share"], 1.0);
    assert_eq!(between("hps", "aesthetic")["share"], 0.0);
    // hps 1 -1 1, pickscore 1 -1 -1: 2 of 3 agree; chance 2/3*1/3 + 1/3*2/3 = 4/9; kappa (2/3 - 4/9)/(5/9) = 0.4
    // sklearn.metrics.cohen_kappa_score([1, -1, 1], [1, -1, -1])
    let kappa = between("hps", "pickscore")["kappa"].as_f64().unwrap();
    assert!((kappa - 0.4).abs() < 1e-12, "{kappa}");
    // A human tie is left out.
    assert_eq!(between("hps", "human")["pairs"], 3);
    // 3 to 1, 1 to 3: each of the three could have made it a tie, the one nothing else.
    let voters = ["hps", "clip", "pickscore", "aesthetic"].map(|m| json["voters"][m].clone());
    assert_eq!(
        voters.each_ref().map(|v| (v["sided"].as_u64(), v["decided"].as_u64())),
        [(Some(2), Some(2)), (Some(2), Some(2)), (Some(2), Some(2)), (Some(0), Some(0))]
    );
    // People said image 1 twice where S is 1 and -1.
    assert_eq!(
        (&json["agreement_with_people"]["pairs"], &json["agreement_with_people"]["agree"]),
        (&2.into(), &1.into())
    );
    assert_eq!((&json["voters"]["aesthetic"]["min"], &json["voters"]["aesthetic"]["max"]), (&5.0.into(), &6.0.into()));
    // The table keeps the summary.
    let kept: serde_json::Value = serde_json::from_str(&dir.get("l.parquet").schema().metadata()["summary"]).unwrap();
    assert_eq!(kept, json);
    let text = dir.tool("vote").args(["s.parquet", "-o", "l.parquet"]).ok();
    says(&text.err, &["4 pairs", "abstained", "50.0 %", "66.7 % (0.40)", "aesthetic"]);
    assert_eq!(text.out, b"");
}

/// `score`, `vote` and `winrate` print the sample's: numpy.std([1, 2, 3, 4], ddof=1).
#[test]
fn the_standard_deviation_is_the_samples() {
    let dir = Dir::new();
    dir.put("s.parquet", &scores(&[None, None], &[("hps", &[Some(1.0), Some(2.0)], &[Some(3.0), Some(4.0)])]));
    let json = dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "--json"]).ok().json();
    let sd = json["voters"]["hps"]["sd"].as_f64().unwrap();
    assert!((sd - 1.290_994_448_7).abs() < 1e-9, "{sd}");
    assert_eq!(json["voters"]["hps"]["mean"], 2.5);
}

/// What pandas' `to_csv` and a spreadsheet write is a table too.
#[test]
fn csv_is_a_table() {
    let dir = Dir::new();
    dir.put("s.parquet", &four());
    let names: Vec<_> = four().schema().fields().iter().map(|f| f.name().clone()).collect();
    for (name, delimiter) in [("s.csv", ","), ("s.tsv", "\t"), ("semicolons", ";")] {
        let mut text = format!("\u{feff}{}\r\n", names.join(delimiter));
        for i in 0..4 {
            let field = |name: &String| match name.as_str() {
                "pair_id" | "caption" | "image_0_uid" | "image_1_uid" => column_text(&four(), name)[i].clone(),
                _ => column_f32(&four(), name)[i].to_string(),
            };
            text += &(names.iter().map(field).collect::<Vec<_>>().join(delimiter) + "\r\n");
        }
        dir.write(name, text);
        dir.tool("vote").args(["s.parquet", "-o", "l.parquet", "-q", "--rule", "soft"]).ok();
        dir.tool("vote").args([name, "-o", "m.parquet", "-q", "--rule", "soft"]).ok();
        assert_eq!(dir.get("l.parquet").columns(), dir.get("m.parquet").columns(), "{name}");
    }
    let fails = |text: &str| {
        dir.write("x.csv", text);
        dir.tool("vote").args(["x.csv", "-o", "x.parquet"]).fails(2)
    };
    says(
        &fails("pair_id,hps_0,hps_1\n007,1\n"),
        &["x.csv", "'caption' is missing, and so are 'image_0_uid', 'image_1_uid'"],
    );
    says(&fails("pair_id,hps_0\n7,1,2\n"), &["x.csv: line 2: 3 fields"]);
    says(&fails("pair_id,a,a\n7,1,2\n"), &["x.csv", "'a'"]);
    says(&fails("id;x\n7;1\n"), &["x.csv is not a table", "CSV"]);
    dir.write("p.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
    says(&dir.tool("vote").args(["p.png", "-o", "x.parquet"]).fails(2), &["p.png is an image", "`pairs --images"]);
}

/// The pairs of a prompt with many images come in several batches, before and after which there are other prompts.
#[test]
fn a_prompt_of_many_images() {
    let dir = Dir::new();
    let score = |i: i32| match i {
        7 => 2000.0,
        500 => -1.0,
        i => (i * 37 % 701) as f32,
    };
    let (few, many) = (vec![1.0, 3.0, 2.0], (0..700).map(score).collect::<Vec<f32>>());
    dir.put("images.parquet", &scored("policy", &["hps"], &[few.clone(), many.clone(), few], |_, x| x));
    let vote =
        |pairs: &str| dir.tool("vote").args(["images.parquet", "--pairs", pairs, "-o", "l.parquet", "--json"]).ok();
    let printed = vote("best-worst").json();
    let labels = dir.get("l.parquet");
    let pairs = ["policy-0-0 policy-0-1", "policy-1-7 policy-1-500", "policy-2-0 policy-2-1"];
    assert_eq!(uids(&labels), pairs);
    assert_eq!(column_f32(&labels, "target"), [0.0, 1.0, 0.0]);
    assert_eq!((&printed["rows"], &printed["prompts"]["winners"]), (&3.into(), &3.into()));
    assert_eq!(printed["prompts"]["cycles"], 0);
    vote("all");
    let all = dir.get("l.parquet");
    let expected = (0..700).flat_map(|i| (i + 1..700).map(move |j| (i, j)));
    let targets = expected.clone().map(|(i, j)| f32::from(many[i] > many[j]));
    assert_eq!(column_f32(&all, "target")[3..3 + 700 * 699 / 2], targets.collect::<Vec<_>>());
    let expected = expected.map(|(i, j)| format!("policy-1-{i} policy-1-{j}"));
    assert!(uids(&all)[3..3 + 700 * 699 / 2].iter().cloned().eq(expected));
    assert_eq!(all.num_rows(), 3 + 700 * 699 / 2 + 3);
}
