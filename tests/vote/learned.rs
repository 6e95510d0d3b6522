//! Weights that are learned: of voters, and of pairs by the models that drew them.

use super::*;

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
    says(
        &dir.tool("vote").args(args).ok().err,
        &["model 0", "quality", "preferred", "1 scored pair not in pairs.parquet: weight 1"],
    );
    assert_eq!(run.json()["arena_unknown"], serde_json::json!({"absent": 1, "without_models": 0}));
    // Pairs whose models are not named, and fewer pairs.
    let unnamed = columns.iter().map(|(name, column)| match &**name {
        "model_1" => {
            (&**name, texts((0..n).map(|i| if i < 3 { String::new() } else { format!("model {}", drawn[i][1]) })))
        }
        _ => (&**name, column.clone()),
    });
    dir.put("unnamed.parquet", &self::table(unnamed.collect()).slice(0, n - 40));
    let unnamed = dir.tool("vote").args(["s.parquet", "-o", "u.parquet", "--arena", "unnamed.parquet"]).ok();
    says(
        &unnamed.err,
        &[
            "40 scored pairs not in unnamed.parquet: weight 1",
            "3 scored pairs without both models in unnamed.parquet: weight 1",
        ],
    );
    assert_eq!(column_f32(&dir.get("u.parquet"), "weight")[..3], [1.0; 3]);
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
    says(&error, &["twice.parquet, row ", "appears twice"]);
    dir.put("nobody.parquet", &without(&pairs, "model_1"));
    let error = dir.tool("vote").args(["s.parquet", "-o", "x.parquet", "--arena", "nobody.parquet"]).fails(2);
    says(&error, &["nobody.parquet", "'model_1' is missing"]);
    dir.put("others.parquet", &pairs.slice(0, 0));
    let error = dir.tool("vote").args(["s.parquet", "-o", "x.parquet", "--arena", "others.parquet"]).fails(2);
    says(&error, &["others.parquet"]);
}
