//! What is shown: text, JSON and the other layouts, and the marks in them.

use super::*;

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
