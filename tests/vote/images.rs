//! Pairs of the images of one prompt.

use super::*;

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
