//! Several policies that differ in their seeds: pooled rates.

use super::*;

/// Two training seeds of a model count as one model, and a single table of the other stands for all its seeds.
#[test]
fn seeds_are_pooled() {
    let dir = dir();
    // Ahead on every prompt; `policy` itself is on two of four.
    dir.put(
        "better.parquet",
        &two("policy", &base().iter().map(|p| p.iter().map(|x| x + 1.0).collect()).collect::<Vec<_>>()),
    );
    let args = ["policy.parquet", "better.parquet", "base.parquet", "--best-of", "2", "--seeds", "--metrics", "hps"];
    let run = dir.tool("winrate").args(args).ok();
    let text = run.text();
    assert!(text.contains("policy  base         2  4"), "{text}");
    let json = dir.tool("winrate").args(args).args(["--json", "-q"]).ok().json();
    let cell = &json["seeds"][0]["metrics"]["hps"];
    assert_eq!(cell["rates"], serde_json::json!([0.5, 1.0]));
    assert_eq!(cell["rate"], 0.75);
    // Two seeds so far apart say next to nothing of a third: 12.7 times their standard error.
    assert_eq!((&cell["low"], &cell["high"]), (&0.0.into(), &1.0.into()));
    assert_eq!(json["comparisons"], serde_json::json!([]));
    let one = dir.tool("winrate").args(["policy.parquet", "better.parquet", "--best-of", "2", "--seeds"]).fails(2);
    assert!(one.contains("all tables are of one model, 'policy'"), "{one}");
    // One seed tells of prompts only: Wilson's interval of 2 of 4.
    let one = dir.tool("winrate").args(BOTH).args(["--seeds", "--json", "-q"]).ok().json();
    near(&one["seeds"][0]["metrics"]["hps"]["low"], &0.150_038_99.into(), 1e-6, "low");
}

/// Three seeds of `policy`, each a little other, and three of `base`.
fn three_seeds() -> (Dir, Vec<String>) {
    let (dir, mut names, mut noise) = (Dir::new(), vec![], noise(5));
    for (model, lift) in [("policy", 0.1), ("base", 0.0)] {
        for seed in 0..3 {
            let scores: Vec<_> = (0..40).map(|_| vec![lift + noise(), lift + noise()]).collect();
            dir.put(&format!("{model}-{seed}.parquet"), &two(model, &scores));
            names.push(format!("{model}-{seed}.parquet"));
        }
    }
    names.extend(["--best-of", "2", "--seeds", "-q"].map(String::from));
    (dir, names)
}

/// scipy.stats.t and numpy on the rates and differences that the tables themselves give.
#[test]
fn seeds_give_students_interval_and_the_prompts() {
    let (dir, args) = three_seeds();
    let json = dir.tool("winrate").args(&args).args(["--json"]).ok().json();
    let cell = &json["seeds"][0]["metrics"]["hps"];
    let best = |name: &str| -> Vec<f32> {
        let scores = column_f32(&dir.get(name), "hps");
        scores.chunks(2).map(|k| k[0].max(k[1])).collect()
    };
    let won: Vec<Vec<f64>> = (0..3)
        .map(|s| {
            let (a, b) = (best(&format!("policy-{s}.parquet")), best(&format!("base-{s}.parquet")));
            a.iter().zip(b).map(|(a, b)| f64::from(u8::from(*a > b))).collect()
        })
        .collect();
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let cov = |x: &[f64], y: &[f64]| {
        let (a, b) = (mean(x), mean(y));
        x.iter().zip(y).map(|(x, y)| (x - a) * (y - b)).sum::<f64>() / (x.len() - 1) as f64
    };
    let rates: Vec<f64> = won.iter().map(|w| mean(w)).collect();
    let shared = (cov(&won[0], &won[1]) + cov(&won[0], &won[2]) + cov(&won[1], &won[2])) / 3.0;
    let half =
        (4.302652730_f64.powi(2) * cov(&rates, &rates) / 3.0 + 1.959964_f64.powi(2) * shared.max(0.0) / 40.0).sqrt();
    near(&cell["rate"], &mean(&rates).into(), 1e-12, "rate");
    let (low, high) = ((mean(&rates) - half).max(0.0), (mean(&rates) + half).min(1.0));
    // clip is -hps, so that both are better where the best of hps and the worst are.
    let joint: Vec<f64> = (0..3)
        .map(|s| {
            let of = |model: &str| column_f32(&dir.get(&format!("{model}-{s}.parquet")), "hps");
            let (a, b) = (of("policy"), of("base"));
            let both = a.chunks(2).zip(b.chunks(2));
            both.filter(|(a, b)| a[0].max(a[1]) > b[0].max(b[1]) && a[0].min(a[1]) < b[0].min(b[1])).count() as f64
                / 40.0
        })
        .collect();
    let ours = &json["seeds"][0]["joint"]["domination"];
    assert_eq!(ours["rates"], json!(joint));
    near(&ours["rate"], &mean(&joint).into(), 1e-12, "joint domination");
    // Wilson's interval of 120 decisions is the least that is told; here it is narrower.
    near(&cell["low"], &low.into(), 1e-6, "low");
    near(&cell["high"], &high.into(), 1e-6, "high");
    assert!(cell["change_sd_low"].as_f64() < cell["change_sd"].as_f64());
}

/// Rows stand in another order where a table was made in other parts: a prompt is found by its name.
#[test]
fn seeds_may_hold_their_prompts_in_another_order() {
    let (dir, args) = three_seeds();
    let plain = dir.tool("winrate").args(&args).ok();
    for (name, step) in [("policy-1.parquet", 7), ("policy-2.parquet", 11), ("base-0.parquet", 3)] {
        let table = dir.get(name);
        let order: arrow::array::UInt32Array =
            (0..40).flat_map(|p| [2 * (step * p % 40), 2 * (step * p % 40) + 1]).collect();
        dir.put(name, &arrow::compute::take_record_batch(&table, &order).unwrap());
    }
    assert_eq!(dir.tool("winrate").args(&args).ok().text(), plain.text());
    // A prompt less in one of the seeds, and another prompt in its place.
    let table = dir.get("policy-2.parquet");
    dir.put("policy-2.parquet", &table.slice(0, 78));
    let error = dir.tool("winrate").args(&args).fails(2);
    says(&error, &["(set ", "is in policy-0.parquet but not in policy-2.parquet"]);
}

/// The same table twice, by its name, by a link or as a copy, is one seed.
#[test]
fn a_seed_that_is_named_twice_is_refused() {
    let (dir, args) = three_seeds();
    std::os::unix::fs::symlink(dir.path("policy-0.parquet"), dir.path("link.parquet")).unwrap();
    // A copy whose rows stand in another order.
    let order: arrow::array::UInt32Array = (0..80).map(|row| (row + 2) % 80).collect();
    dir.put("copy.parquet", &arrow::compute::take_record_batch(&dir.get("policy-0.parquet"), &order).unwrap());
    for again in ["policy-0.parquet", "link.parquet", "copy.parquet"] {
        let args = args.iter().map(|arg| if arg == "policy-2.parquet" { again } else { arg });
        let error = dir.tool("winrate").args(args).fails(2);
        says(&error, &[&format!("policy-0.parquet and {again} hold the same scores of 'policy'"), "count twice"]);
    }
}

#[test]
fn seeds_that_cannot_be_paired_are_refused() {
    let (dir, args) = three_seeds();
    let left_out = |which: &[usize]| -> Vec<String> {
        args.iter().enumerate().filter(|(i, _)| !which.contains(i)).map(|(_, arg)| arg.clone()).collect()
    };
    let error = dir.tool("winrate").args(left_out(&[5])).fails(2);
    says(&error, &["policy has 3 tables and base has 2", "cannot be paired", "name as many of both"]);
    // One table of either is compared with every seed of the other.
    for single in [&[4, 5][..], &[1, 2]] {
        let json = dir.tool("winrate").args(left_out(single)).args(["--json"]).ok().json();
        assert_eq!(json["seeds"][0]["seeds"], 3);
        assert_eq!(json["seeds"][0]["metrics"]["hps"]["rates"].as_array().unwrap().len(), 3);
    }
}

#[test]
fn seeds_as_csv_have_one_number_per_line_and_mark_held_out_judges() {
    let (dir, args) = three_seeds();
    let csv = dir.tool("winrate").args(&args).args(["--format", "csv", "--held-out", "clip"]).ok();
    let lines: Vec<_> = csv.text().lines().collect();
    assert_eq!(lines[0], "figure,model,against,metric,seeds,n,rate,low,high");
    let json = dir.tool("winrate").args(&args).args(["--json"]).ok().json();
    let cell =
        |metric: &str, names: [&str; 3]| names.map(|n| json["seeds"][0]["metrics"][metric][n].to_string()).join(",");
    let joint = |what: &str| ["rate", "low", "high"].map(|n| json["seeds"][0]["joint"][what][n].to_string()).join(",");
    let rate = ["rate", "low", "high"];
    let change = ["change_sd", "change_sd_low", "change_sd_high"];
    assert_eq!(
        lines[1..],
        [
            format!("rate,policy,base,hps,3,40,{}", cell("hps", rate)),
            format!("rate,policy,base,clip (held out),3,40,{}", cell("clip", rate)),
            format!("change_sd,policy,base,hps,3,40,{}", cell("hps", change)),
            format!("change_sd,policy,base,clip (held out),3,40,{}", cell("clip", change)),
            format!("joint_domination,policy,base,,3,40,{}", joint("domination")),
            format!("joint_collapse,policy,base,,3,40,{}", joint("collapse")),
        ]
    );
    let text = dir.tool("winrate").args(&args).args(["--held-out", "clip"]).ok();
    assert_eq!(text.text().matches("clip (held out)").count(), 2, "{}", text.text());
}
