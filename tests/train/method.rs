//! The losses, the moves of the reference, and the optimisers.

use super::*;

/// The log line and the gradient of one step on the oracle's replay file.
fn step(dir: &Dir, rest: &str) -> (Value, Tensors) {
    let (replay, policy) = (oracle("replay.safetensors"), oracle("policy"));
    let rest =
        format!("--replay {} --policy {} --steps 1 --dump-gradients g {rest}", replay.display(), policy.display());
    train(dir, "out", &rest).ok();
    (log(&dir.path("out")).remove(0), tensors(&dir.path("g")))
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap()
}

#[test]
fn each_loss_is_minimised_under_its_name() {
    let dir = Dir::new();
    let (dpo, _) = step(&dir, "--beta 300");
    let z = numbers(&dpo["z"]);
    let mean = |f: &dyn Fn(f64) -> f64| z.iter().map(|&z| f(z)).sum::<f64>() / z.len() as f64;
    let log_sigmoid = |z: f64| -(1.0 + (-z).exp()).ln();
    near(number(&dpo, "loss"), mean(&|z| -log_sigmoid(z)), 1e-9);
    let (line, gradients) = step(&dir, "--beta 300 --loss ipo");
    assert_eq!(line["z"], dpo["z"]);
    near(number(&line, "loss"), mean(&|z| (z - 0.5) * (z - 0.5)), 1e-9);
    let (line, _) = step(&dir, "--beta 300 --label-smoothing 0.1");
    near(number(&line, "loss"), mean(&|z| -0.9 * log_sigmoid(z) - 0.1 * log_sigmoid(-z)), 1e-9);
    let (line, sft) = step(&dir, "--sft");
    near(number(&line, "loss"), number(&line, "policy_winner_mse"), 1e-12);
    assert!(differ(&gradients, &sft));
    // Its other name.
    assert_same(&sft, &step(&dir, "--loss sft").1);
    says(&train(&dir, "x", "--loss ipo --sft").exits(2).err, &["--loss", "--sft"]);
}

#[test]
fn the_losses_of_2025_and_2026_are_those_of_their_papers() {
    let dir = Dir::new();
    let (dpo, _) = step(&dir, "--beta 300");
    let z = numbers(&dpo["z"]);
    let mean = |f: &dyn Fn(f64) -> f64| z.iter().map(|&z| f(z)).sum::<f64>() / z.len() as f64;
    let p = |z: f64| 1.0 / (1.0 + (-z).exp());
    let q = 0.95; // 1 - alpha
    let divergence = |z: f64| p(z) * (p(z) / q).ln() + p(-z) * (p(-z) / (1.0 - q)).ln();
    for (loss, expected) in [
        ("poly:0.7", mean(&|z| -p(z).ln() + 0.7 * p(-z))),
        ("poly:-0.5", mean(&|z| -p(z).ln() - 0.5 * p(-z))),
        ("sce", mean(&|z| -p(z).ln() + 3.0 * p(-z))),
        ("dmpo:0.05", mean(&divergence)),
        ("dpo --scale-margin 10", mean(&|z| -p(10.0 * z).ln())), // every label of a replay is certain
    ] {
        let (line, _) = step(&dir, &format!("--beta 300 --loss {loss}"));
        near(number(&line, "loss"), expected, 1e-9);
    }
    // The weight of a pair lies between ETA and 1 - ETA: with ETA 0.5 it is one half for all.
    let (line, linear) = step(&dir, "--beta 300 --loss linear:0.5");
    let difference = number(&line, "policy_winner_mse") - number(&line, "policy_loser_mse");
    near(number(&line, "loss"), 0.5 * difference, 1e-9);
    assert!(differ(&linear, &step(&dir, "--beta 300 --loss linear:0.001").1));
}

/// The anchor's loss and gradient are added to the others, in proportion to its weight; at the base they are 0.
#[test]
fn an_anchor_holds_the_policy_near_the_base() {
    let dir = world();
    let [(none, g_0), (one, g_1), (two, g_2)] = ["", "--anchor 0.1", "--anchor 0.2"].map(|rest| step(&dir, rest));
    let added = [&one, &two].map(|line| number(line, "loss") - number(&none, "loss"));
    assert!(added[0] > 0.0, "{added:?}");
    near(added[1], 2.0 * added[0], 1e-9);
    assert_eq!((&one["z"], &one["policy_winner_mse"]), (&none["z"], &none["policy_winner_mse"]));
    let sums = |name: &String| -> [f64; 2] {
        let [a, b, c] = [&g_0, &g_1, &g_2].map(|g| values(&g[name]));
        let of = |x: &[f32]| x.iter().zip(&a).map(|(x, a)| f64::from(x - a).powi(2)).sum();
        [of(&b), of(&c)]
    };
    let [once, twice] = g_0.keys().map(sums).fold([0.0; 2], |all, some| [all[0] + some[0], all[1] + some[1]]);
    assert!(once > 0.0 && (twice / once - 4.0).abs() < 1e-3, "{once} {twice}");

    let rest = "--refresh-every 2 --drift-every 1 --lr 1e-3";
    train(&dir, "free", &format!("--steps 6 {rest}")).ok();
    train(&dir, "held", &format!("--steps 6 {rest} --anchor 1")).ok();
    let (free, held) = (log(&dir.path("free")), log(&dir.path("held")));
    assert_eq!(free[0]["loss"], held[0]["loss"]);
    assert!(number(&held[5], "drift") < number(&free[5], "drift"), "{} {}", held[5], free[5]);
    train(&dir, "a", &format!("--steps 3 {rest} --anchor 1")).ok();
    train(&dir, "b", &format!("--steps 6 {rest} --anchor 1 --resume a")).ok();
    assert_same(&weights(&dir.path("held")), &weights(&dir.path("b")));
    // Adapters are held as well.
    train(&dir, "lora", "--steps 2 --lora-rank 2 --anchor 1").ok();
    says(&train(&dir, "x", "--anchor 0").exits(2).err, &["--anchor", "above 0"]);
}

/// The weights follow the margins of earlier steps: 1 until each tenth of the schedule has been seen. They survive a stop.
#[test]
fn timesteps_are_weighted_by_their_margins() {
    let dir = world();
    let rest = "--train_batch_size 8 --lr 1e-3";
    train(&dir, "plain", &format!("--steps 14 {rest}")).ok();
    train(&dir, "whole", &format!("--steps 14 {rest} --timestep-weights")).ok();
    let (plain, whole) = (log(&dir.path("plain")), log(&dir.path("whole")));
    assert_eq!(plain[1]["loss"], whole[1]["loss"]);
    assert_ne!(plain[13]["loss"], whole[13]["loss"]);
    train(&dir, "a", &format!("--steps 9 {rest} --timestep-weights")).ok();
    train(&dir, "b", &format!("--steps 14 {rest} --timestep-weights --resume a")).ok();
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("b")));
}

/// With one pair and a guard that removes the loser's part, the gradient is that of the winner's error, as with --sft.
#[test]
fn the_guard_takes_the_loser_out() {
    let dir = Dir::new();
    let winner_and_loser = candle_core::Tensor::new(&[0u32, 2], &candle_core::Device::Cpu).unwrap();
    let all = tensors(&oracle("replay.safetensors"));
    let one: Vec<_> = all.iter().map(|(n, t)| (n.clone(), t.index_select(&winner_and_loser, 0).unwrap())).collect();
    safetensors(&dir.path("replay"), &one, Some([("prompts".to_owned(), r#"["a"]"#.to_owned())].into()));
    let gradient = |rest: &str| {
        let policy = oracle("policy").display().to_string();
        train(&dir, "out", &format!("--replay replay --policy {policy} --steps 1 --dump-gradients g {rest}")).ok();
        tensors(&dir.path("g"))
    };
    let plain = gradient("--beta 300");
    let (none, some, sft) =
        (gradient("--beta 300 --guard sdpo:1"), gradient("--beta 300 --guard sdpo:0.5"), gradient("--sft"));
    let length = |t: &Tensors| t.values().flat_map(values).map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let dot = |a: &Tensors, b: &Tensors| -> f64 {
        let products =
            |n: &String| values(&a[n]).into_iter().zip(values(&b[n])).map(|(a, b)| f64::from(a) * f64::from(b));
        a.keys().flat_map(products).sum()
    };
    let cosine = |a: &Tensors, b: &Tensors| dot(a, b) / length(a) / length(b);
    assert!((cosine(&none, &sft) - 1.0).abs() < 1e-6, "{}", cosine(&none, &sft));
    assert!(cosine(&plain, &sft) < 0.99 && differ(&plain, &some) && differ(&none, &some));
    // A step along the guarded gradient takes the winner down more than one along the plain one.
    assert!(dot(&some, &sft) > dot(&plain, &sft));
}

#[test]
fn an_average_inside_equals_averages_between_runs() {
    let dir = world();
    let rest = "--reference-mode ema:0.3";
    train(&dir, "whole", &format!("--steps 3 {rest}")).ok();
    let base = oracle("base").display().to_string();
    let mut reference = base.clone();
    train(&dir, "p1", "--steps 1").ok();
    for step in 1..3 {
        let (policy, next) = (format!("p{step}"), format!("r{step}"));
        let args = ["--policy", &policy, "--reference", &reference, "-o", &next, "--rate", "0.3"];
        dir.tool("refresh-ref").args(args).ok();
        train(&dir, &format!("p{}", step + 1), &format!("--steps {} --resume {policy} --reference {next}", step + 1))
            .ok();
        reference = next;
    }
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("p3")));
    train(&dir, "frozen", "--steps 3").ok();
    assert!(differ(&weights(&dir.path("whole")), &weights(&dir.path("frozen"))));
    // The average survives a stop.
    train(&dir, "long", &format!("--steps 6 {rest}")).ok();
    train(&dir, "b", &format!("--steps 6 --resume whole {rest}")).ok();
    assert_same(&weights(&dir.path("long")), &weights(&dir.path("b")));
    let reference = |out: &str| under(&tensors(&dir.path(&format!("{out}/state/optimizer.safetensors"))), "reference.");
    assert_same(&reference("long"), &reference("b"));
    for (a, b) in log(&dir.path("long"))[3..].iter().zip(log(&dir.path("b"))) {
        assert_eq!((&a["loss"], &a["drift"], &a["drift_reference"]), (&b["loss"], &b["drift"], &b["drift_reference"]));
    }
    says(&train(&dir, "x", "--reference-mode ema:2").exits(2).err, &["ema:RATE", "share"]);
    says(&train(&dir, "x", "--reference-mode hard:2 --refresh-every 2").exits(2).err, &["--refresh-every"]);
}

#[test]
fn drift_is_measured_from_base_and_reference() {
    let dir = world();
    train(&dir, "out", "--steps 4 --reference-mode hard:2 --drift-every 1").ok();
    let lines = log(&dir.path("out"));
    let of = |key: &str| lines.iter().map(|l| number(l, key)).collect::<Vec<_>>();
    let (base, reference) = (of("drift"), of("drift_reference"));
    assert_eq!(base[0], reference[0]);
    assert_eq!((reference[1], reference[3]), (0.0, 0.0));
    assert!(base.windows(2).all(|w| w[0] < w[1]) && 0.0 < reference[2] && reference[2] < base[2]);
}

#[test]
fn runs_of_other_optimisers_resume_exactly() {
    let dir = world();
    for rest in ["--use_adafactor", "--moments bf16"] {
        train(&dir, "whole", &format!("--steps 6 --refresh-every 2 {rest}")).ok();
        train(&dir, "a", &format!("--steps 3 --refresh-every 2 {rest}")).ok();
        train(&dir, "b", &format!("--steps 6 --refresh-every 2 --resume a {rest}")).ok();
        assert_same(&weights(&dir.path("whole")), &weights(&dir.path("b")));
        // Other moments than AdamW's in f32 are refused.
        train(&dir, "adamw", "--steps 6 --refresh-every 2").ok();
        assert!(differ(&weights(&dir.path("whole")), &weights(&dir.path("adamw"))));
        let bytes = |out: &str| dir.bytes(&format!("{out}/state/optimizer.safetensors")).len();
        assert!(bytes("whole") < bytes("adamw"));
        let error = train(&dir, "x", "--steps 6 --refresh-every 2 --resume a").fails(2);
        says(&error, &["a was made with another --"]);
    }
    assert_same(&weights(&dir.path("a")), &{
        train(&dir, "c", "--steps 3 --refresh-every 2 --moments bf16 --threads 1").ok();
        weights(&dir.path("c"))
    });
    says(&train(&dir, "x", "--use_adafactor --moments bf16").fails(2), &["bf16", "AdamW"]);
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn adafactor_gives_the_numbers_of_the_parity_kit() {
    let (kit, dir) = (parity(""), Dir::new());
    let model = |name: &str| kit.join("models").join(name).display().to_string();
    let replay = kit.join("replay_adamw_sd15.safetensors").display().to_string();
    let (base, policy) = (model("sd15"), model("sd15_policy"));
    let rest = format!(
        "--base {base} --policy {policy} --replay {replay} --steps 3 --lr 2e-5 --beta 2000 --optimizer adafactor"
    );
    train(&dir, "out", &rest).ok();
    let (ours, theirs) = (weights(&dir.path("out")), tensors(&kit.join("expected/train_adafactor_step3.safetensors")));
    let ours = ours.into_iter().filter(|(n, _)| theirs.contains_key(n)).collect();
    let (max, mean) = distance(&ours, &theirs);
    println!("three Adafactor steps: at most {max:.1e}, on average {mean:.1e}");
    assert!(max <= 2.0 * 2e-5 && mean <= 1e-6, "after three Adafactor steps off by {max}, on average {mean}");
}

#[test]
fn gradients_are_of_the_first_step_of_a_call() {
    let dir = world();
    train(&dir, "whole", "--steps 4 --dump-gradients first").ok();
    train(&dir, "a", "--steps 2").ok();
    train(&dir, "b", "--steps 4 --resume a --dump-gradients third").ok();
    train(&dir, "c", "--steps 3 --resume a --dump-gradients again").ok();
    assert_same(&tensors(&dir.path("third")), &tensors(&dir.path("again")));
    assert!(differ(&tensors(&dir.path("third")), &tensors(&dir.path("first"))));
    says(&train(&dir, "x", "--dump-gradients pairs.parquet/g").fails(2), &["pairs.parquet is not a folder"]);
    assert!(!dir.path("x").exists());
}

#[test]
fn settings_that_cannot_work_are_warned_about() {
    let dir = world();
    let base = oracle("base").display().to_string();
    let run = |out: &str, rest: &[&str]| {
        let args = ["pairs.parquet", "--labels", "labels.parquet", "--resolution", "16", "-o", out, "--base", &base];
        dir.tool("train").args(args.iter().chain(rest)).ok().err
    };
    let notes = run("a", &["--steps", "1", "--lr", "1e-8"]);
    says(&notes, &["warning: all steps together"]);
    let notes = run("a", &["--dry-run"]);
    says(&notes, &["beta 5000", "is 2500 without the 1/2", "summed over the 256 numbers"]);
    let notes = run("b", &["--steps", "16", "--lr", "2e-3", "--beta", "1e6", "--lr_scheduler", "constant"]);
    says(&notes, &["warning: of 1 pairs,", "--beta-dpo"]);
    assert!(!notes.contains("all steps together"));
}

#[test]
fn a_loss_outside_its_range_or_with_a_flag_that_it_ignores_is_refused() {
    let dir = world();
    for (rest, parts) in [
        ("--loss poly:-2", ["--loss poly:-2", "from -1 on"]),
        ("--loss linear:0.6", ["--loss linear:0.6", "between 0 and 0.5"]),
        ("--loss dmpo:0", ["--loss dmpo:0", "above 0"]),
        ("--loss poly", ["poly:A", "--loss"]),
        ("--loss sft --scale-margin 10", ["--scale-margin", "sft"]),
        ("--loss linear:0.1 --scale-margin 10", ["--scale-margin", "linear:0.1"]),
        ("--scale-margin 0", ["--scale-margin", "above 0"]),
    ] {
        says(&train(&dir, "out", &format!("--steps 1 {rest}")).exits(2).err, &parts);
    }
}
