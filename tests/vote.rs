//! `vote`, through the binary.

#[path = "vote/images.rs"]
mod images;
#[path = "vote/learned.rs"]
mod learned;
#[path = "vote/refused.rs"]
mod refused;
#[path = "vote/rules.rs"]
mod rules;
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
