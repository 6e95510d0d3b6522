//! `train`, through the binary. Bytes are compared between two runs that the test makes, numbers with those of
//! `tests/oracle/dpo.py` and of the parity kit.
#![cfg(feature = "nets")]

#[path = "train/damage.rs"]
mod damage;
#[path = "train/lora.rs"]
mod lora;
#[path = "train/memory.rs"]
mod memory;
#[path = "train/method.rs"]
mod method;
#[path = "train/models.rs"]
mod models;
#[path = "train/refused.rs"]
mod refused;
#[path = "train/runs.rs"]
mod runs;
mod util;

use std::path::Path;

use arrow::compute::concat_batches;
use serde_json::Value;
use util::{world::*, *};

/// A folder with 24 pairs and labels for them.
fn world() -> Dir {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(24));
    dir.put("labels.parquet", &labels(&pairs(24), some));
    dir
}

/// Trains the small model on them. `rest` replaces the default flags that follow it. Unless it continues a run, what is in `out` is
/// removed before.
fn train(dir: &Dir, out: &str, rest: &str) -> Tool {
    if !rest.contains("--resume") && !rest.contains("--dry-run") {
        let _ = std::fs::remove_dir_all(dir.path(out));
    }
    train_into(dir, out, rest)
}

fn train_into(dir: &Dir, out: &str, rest: &str) -> Tool {
    let rest: Vec<_> = rest.split_whitespace().collect();
    let mut args: Vec<&str> = vec!["-o", out, "-q"];
    if !rest.contains(&"--replay") {
        let data = rest.first().is_none_or(|a| a.starts_with("--"));
        args.extend(if data { &["pairs.parquet"][..] } else { &[] });
        let defaults = [("--labels", "labels.parquet"), ("--resolution", "16"), ("--train_batch_size", "4")];
        args.extend(defaults.iter().filter(|(flag, _)| !rest.contains(flag)).flat_map(|(flag, value)| [*flag, *value]));
    }
    let base = oracle("base").display().to_string();
    let usual =
        [("--base", &base[..]), ("--lr", "1e-4"), ("--lr_scheduler", "constant"), ("--checkpointing_steps", "0")];
    args.extend(usual.iter().filter(|(flag, _)| !rest.contains(flag)).flat_map(|(flag, value)| [*flag, *value]));
    dir.tool("train").args(rest.iter().chain(&args))
}

fn oracle_json() -> Value {
    serde_json::from_slice(&std::fs::read(oracle("expected.json")).unwrap()).unwrap()
}

/// Compares every gradient to 2e-3 of its length, except those that are rounding alone.
#[track_caller]
fn same_gradients(ours: &Tensors, theirs: &Tensors) -> f64 {
    let largest = theirs.values().flat_map(values).fold(0.0, |m: f32, v| m.max(v.abs()));
    assert!(ours.keys().eq(theirs.keys()), "other tensors");
    let sizeable = theirs.iter().filter(|(_, t)| values(t).iter().any(|v| v.abs() > 1e-6 * largest));
    let (worst, name) = sizeable.map(|(n, t)| (relative(&ours[n], t), n)).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert!(worst < 2e-3, "{name} is off by {worst}");
    worst
}

#[test]
fn replay_gives_the_numbers_of_pytorch() {
    let (dir, expected) = (Dir::new(), oracle_json());
    let replay = oracle("replay.safetensors").display().to_string();
    let policy = oracle("policy").display().to_string();
    let rest = format!(
        "--replay {replay} --policy {policy} --steps 5 --lr 2e-5 --beta_dpo 2000 --refresh-every 3 --dump-gradients g"
    );
    train(&dir, "out", &rest).ok();
    let lines = log(&dir.path("out"));
    for (i, (ours, theirs)) in lines.iter().zip(expected["log"].as_array().unwrap()).enumerate() {
        let tolerance = if i == 0 { 1.0 } else { 10.0 }; // the weights have moved by then, to f32 rounding
        near(ours["loss"].as_f64().unwrap(), theirs["loss"].as_f64().unwrap(), 5e-4 * tolerance);
        assert_eq!(ours["implicit_acc"], theirs["implicit_acc"]);
        for (z, expected) in numbers(&ours["z"]).iter().zip(numbers(&theirs["z"])) {
            near(*z, expected, 2e-3 * tolerance);
        }
        for key in ["policy_winner_mse", "policy_loser_mse", "reference_winner_mse", "reference_loser_mse"] {
            near(ours[key].as_f64().unwrap(), theirs[key].as_f64().unwrap(), 2e-6 * tolerance);
        }
        let (norm, expected) = (ours["grad_norm"].as_f64().unwrap(), theirs["grad_norm"].as_f64().unwrap());
        near(norm, expected, 2e-3 * expected);
    }
    assert_eq!(lines.len(), 5);
    // After the refresh that follows step 3, policy and reference are equal to the last bit.
    assert!(numbers(&lines[3]["z"]).iter().all(|z| *z == 0.0));
    assert_eq!(lines[3]["loss"].as_f64().unwrap(), std::f64::consts::LN_2);
    assert_eq!(lines.iter().map(|l| l["refreshed"] == true).collect::<Vec<_>>(), [false, false, true, false, false]);

    let theirs = tensors(&oracle("expected.safetensors"));
    same_gradients(&tensors(&dir.path("g")), &under(&theirs, "grad."));
    let (max, mean) = distance(&weights(&dir.path("out")), &under(&theirs, "step5."));
    assert!(max <= 2.0 * 2e-5 && mean <= 1e-6, "after five AdamW steps off by {max}, on average {mean}");
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn replay_gives_the_numbers_of_the_parity_kit() {
    let (kit, dir) = (parity(""), Dir::new());
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(kit.join(name)).unwrap()).unwrap() };
    let (base, policy) = (kit.join("models/sd15"), kit.join("models/sd15_policy"));
    let models = format!("--base {} --policy {}", base.display(), policy.display());
    let replay = kit.join("replay_dpo_sd15.safetensors").display().to_string();
    for case in read("expected/dpo_sd15.json")["cases"].as_array().unwrap() {
        let beta = case["beta"].as_f64().unwrap();
        train(&dir, "one", &format!("{models} --replay {replay} --steps 1 --beta {beta} --dump-gradients g{beta}"))
            .ok();
        let line = log(&dir.path("one")).remove(0);
        near(line["loss"].as_f64().unwrap(), case["loss"].as_f64().unwrap(), 5e-4);
        near(line["implicit_acc"].as_f64().unwrap(), case["implicit_acc"].as_f64().unwrap(), 1e-6);
        for (z, expected) in numbers(&line["z"]).iter().zip(numbers(&case["inside"])) {
            near(*z, expected, 2e-3);
        }
        let both = |a: &str, b: &str| (line[a].as_f64().unwrap() + line[b].as_f64().unwrap()) / 2.0;
        near(both("policy_winner_mse", "policy_loser_mse"), case["raw_model_loss"].as_f64().unwrap(), 1e-6);
        near(both("reference_winner_mse", "reference_loser_mse"), case["raw_ref_loss"].as_f64().unwrap(), 1e-6);
    }
    let worst =
        same_gradients(&tensors(&dir.path("g5000")), &tensors(&kit.join("expected/dpo_sd15_grads.safetensors")));

    let replay = kit.join("replay_adamw_sd15.safetensors").display().to_string();
    let rest = format!("{models} --replay {replay} --steps 5 --lr 2e-5 --beta 2000 --refresh-every 3");
    train(&dir, "five", &rest).ok();
    let theirs = tensors(&kit.join("expected/train_adamw_step5.safetensors"));
    let (max, mean) = distance(&weights(&dir.path("five")), &theirs);
    assert!(max <= 2.0 * 2e-5 && mean <= 1e-6, "after five AdamW steps off by {max}, on average {mean}");
    println!("worst gradient {worst:.1e}; five AdamW steps: at most {max:.1e}, on average {mean:.1e}");
}

#[test]
fn refreshing_inside_equals_refreshing_between_two_runs() {
    let dir = world();
    train(&dir, "whole", "--steps 6 --refresh-every 3").ok();
    train(&dir, "a", "--steps 3").ok();
    let base = oracle("base").display().to_string();
    dir.tool("refresh-ref").args(["--policy", "a", "--reference", &base, "-o", "r"]).ok();
    train(&dir, "b", "--steps 6 --resume_from_checkpoint a --reference r").ok();
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("b")));
    // The reference matters: without the refresh the weights differ.
    train(&dir, "frozen", "--steps 6").ok();
    assert!(differ(&weights(&dir.path("whole")), &weights(&dir.path("frozen"))));

    let lines = log(&dir.path("whole"));
    assert_eq!(lines[3]["loss"].as_f64().unwrap(), std::f64::consts::LN_2);
    assert_eq!(lines[3]["mean_abs_z"], 0.0);
    // As long as policy and reference are equal, so are their predictions.
    assert_eq!((&lines[0]["norm_ratio"], &lines[3]["norm_ratio"]), (&1.0.into(), &1.0.into()));
    let ratio = lines[2]["norm_ratio"].as_f64().unwrap();
    assert!(ratio != 1.0 && (0.5..2.0).contains(&ratio), "{ratio}");
    assert!(lines[2]["mean_abs_z"].as_f64().unwrap() > 0.0 && lines[4]["mean_abs_z"].as_f64().unwrap() > 0.0);
    // A schedule that ends needs its length in the first half.
    train(&dir, "whole", "--steps 6 --refresh-every 3 --lr_scheduler cosine --lr_warmup_steps 2").ok();
    train(&dir, "a", "--steps 3 --lr_scheduler cosine --lr_warmup_steps 2 --lr_total_steps 6").ok();
    dir.tool("refresh-ref").args(["--policy", "a", "--reference", &base, "-o", "r"]).ok();
    train(&dir, "b", "--steps 6 --resume a --reference r --lr_scheduler cosine --lr_warmup_steps 2").ok();
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("b")));
}

#[test]
fn a_step_never_moves_the_reference() {
    let dir = world();
    let before = tree(&oracle("base"));
    train(&dir, "out", "--steps 4").ok();
    assert!(tree(&oracle("base")) == before);
    // A frozen reference is not stored in state/, and its errors are those of a run whose policy does not move.
    assert!(!tensors(&dir.path("out/state/optimizer.safetensors")).keys().any(|n| n.starts_with("reference.")));
    train(&dir, "still", "--steps 4 --lr 0").ok();
    for (moving, still) in log(&dir.path("out")).iter().zip(log(&dir.path("still"))) {
        assert_eq!(moving["reference_winner_mse"], still["reference_winner_mse"]);
        assert_eq!(moving["reference_loser_mse"], still["reference_loser_mse"]);
        assert_eq!(still["mean_abs_z"], 0.0);
    }
    // A refreshed reference is the policy of that step, not a later one.
    train(&dir, "r", "--steps 5 --refresh-every 2").ok();
    train(&dir, "four", "--steps 4 --refresh-every 2").ok();
    let state = tensors(&dir.path("r/state/optimizer.safetensors"));
    assert_same(&under(&state, "reference."), &weights(&dir.path("four")));
}

#[test]
fn a_killed_run_continues_to_the_same_tensors() {
    let dir = world();
    let rest = "--steps 60 --refresh-every 25 --drift_every 0 --train_batch_size 2";
    train(&dir, "whole", rest).ok();
    // Between checkpoints.
    let kept = format!("{rest} --checkpointing_steps 10");
    let mut child = spawn(train(&dir, "killed", &kept));
    wait_for("a checkpoint and some steps", || log_lines(&dir.path("killed")) >= 34);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.path("killed/unet").exists());
    train(&dir, "killed", &format!("{kept} --resume_from_checkpoint latest")).ok();
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("killed")));
    let steps: Vec<_> = log(&dir.path("killed")).iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=60).collect::<Vec<_>>());
    for (a, b) in log(&dir.path("whole")).iter().zip(log(&dir.path("killed"))) {
        assert_eq!((&a["loss"], &a["grad_norm"]), (&b["loss"], &b["grad_norm"]));
    }
    // --checkpoints-total-limit keeps only the newest.
    train(&dir, "few", &format!("{kept} --checkpoints_total_limit 2")).ok();
    let left: Vec<_> = tree(&dir.path("few")).into_keys().filter(|p| p.ends_with("config.json")).collect();
    let left: Vec<_> = left.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    assert_eq!(left, ["checkpoint-40/unet/config.json", "checkpoint-50/unet/config.json", "unet/config.json"]);
}

/// The checkpoint of a stop stands between those that were asked for, and takes the place of none.
#[test]
fn a_stopped_run_ends_with_the_checkpoints_of_one_that_was_not() {
    let dir = world();
    let rest = "--steps 30 --drift_every 0 --train_batch_size 2 --checkpointing_steps 10 --checkpoints_total_limit 1";
    let mut child = spawn(train(&dir, "out", rest));
    wait_for("steps after the last checkpoint", || log_lines(&dir.path("out")) >= 21);
    assert!(std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let checkpoints = || {
        let names = std::fs::read_dir(dir.path("out")).unwrap().map(|entry| entry.unwrap().file_name());
        let steps = names.filter_map(|name| name.to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok());
        std::collections::BTreeSet::from_iter(steps)
    };
    let stopped = checkpoints();
    assert!(stopped.len() == 2 && stopped.first() == Some(&20), "{stopped:?}");
    train(&dir, "out", &format!("{rest} --resume latest")).ok();
    assert_eq!(checkpoints(), stopped);
    // The next regular one takes both places.
    train(&dir, "out", &format!("{} --resume latest", rest.replace("--steps 30", "--steps 41"))).ok();
    assert_eq!(checkpoints(), [40].into());
}

fn log_lines(out: &Path) -> usize {
    std::fs::read_to_string(out.join("log.jsonl")).map_or(0, |text| text.lines().count())
}

#[test]
fn a_run_killed_inside_a_checkpoint_continues_to_the_same_tensors() {
    let dir = world();
    let rest = "--steps 9 --refresh-every 4 --checkpointing_steps 3";
    train(&dir, "whole", rest).ok();
    let whole = weights(&dir.path("whole"));
    let remove = |path: &str| {
        let path = dir.path(path);
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    };
    let rename = |from: &str, to: &str| {
        std::fs::create_dir_all(dir.path(to).parent().unwrap()).unwrap();
        std::fs::rename(dir.path(from), dir.path(to)).unwrap();
    };
    // What a kill leaves at each point of writing checkpoint-6.
    let points: [(&str, &dyn Fn()); 5] = [
        ("new weights half written", &|| {
            remove("x/checkpoint-6/state");
            rename("x/checkpoint-6/unet/diffusion_pytorch_model.safetensors", "x/checkpoint-6/unet.partial/w");
            let half = dir.bytes("x/checkpoint-6/unet.partial/w");
            dir.write(
                "x/checkpoint-6/unet.partial/diffusion_pytorch_model.safetensors.partial",
                &half[..half.len() / 2],
            );
            remove("x/checkpoint-6/unet");
        }),
        ("state half written", &|| {
            rename("x/checkpoint-6/unet", "x/checkpoint-6/unet.partial");
            rename("x/checkpoint-6/state/optimizer.safetensors", "x/checkpoint-6/state/optimizer.safetensors.partial");
        }),
        ("state there, weights waiting", &|| rename("x/checkpoint-6/unet", "x/checkpoint-6/unet.partial")),
        ("config renamed, weights waiting", &|| {
            let weights = "diffusion_pytorch_model.safetensors";
            rename(&format!("x/checkpoint-6/unet/{weights}"), &format!("x/checkpoint-6/unet.partial/{weights}"));
        }),
        ("all renamed", &|| std::fs::create_dir(dir.path("x/checkpoint-6/unet.partial")).unwrap()),
    ];
    for (point, leave) in points {
        copy(&dir.path("whole"), &dir.path("x"));
        // Leftovers of an earlier kill, and files of another program.
        std::fs::create_dir_all(dir.path("x/checkpoint-5/unet.partial")).unwrap();
        std::fs::create_dir_all(dir.path("x/unet.partial")).unwrap();
        std::fs::create_dir_all(dir.path("x/checkpoint-1/unet")).unwrap();
        std::fs::create_dir_all(dir.path("x/checkpoint-2")).unwrap();
        dir.write("x/checkpoint-2/optimizer.bin", "of accelerate");
        for name in ["x/unet", "x/state"] {
            remove(name);
        }
        leave();
        train(&dir, "x", &format!("{rest} --resume latest")).ok();
        assert_eq!(log_lines(&dir.path("x")), 9, "{point}");
        assert!(!dir.path("x/checkpoint-5").exists() && !dir.path("x/unet.partial").exists(), "{point}");
        assert!(
            dir.path("x/checkpoint-1/unet").is_dir() && dir.path("x/checkpoint-2/optimizer.bin").is_file(),
            "{point}"
        );
        assert_same(&whole, &weights(&dir.path("x")));
        remove("x");
    }
}

/// A finished run that is continued overwrites its own folder. If it is killed between state/ and unet/, no step is lost.
#[test]
fn the_last_checkpoint_is_never_of_two_steps() {
    let dir = world();
    train(&dir, "short", "--steps 3").ok();
    train(&dir, "long", "--steps 6").ok();
    copy(&dir.path("short"), &dir.path("x"));
    // The state of step 6 beside the weights of step 3, without the new weights, is not a checkpoint.
    copy(&dir.path("long/state"), &dir.path("x/state"));
    let error = train(&dir, "y", "--steps 9 --resume_from_checkpoint x").fails(2);
    says(&error, &["x is not a whole checkpoint", "x/unet do not belong to its state/"]);
    // With the new weights waiting, it is the checkpoint of step 6.
    copy(&dir.path("long/unet"), &dir.path("x/unet.partial"));
    train(&dir, "y", "--steps 9 --resume_from_checkpoint x").ok();
    train(&dir, "whole", "--steps 9").ok();
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("y")));
    assert_same(&weights(&dir.path("long")), &weights(&dir.path("x")));
}

#[test]
fn latest_continues_the_same_run_only() {
    let dir = world();
    train(&dir, "out", "--steps 4 --checkpointing_steps 2 --resume_from_checkpoint latest").ok();
    // A finished run has nothing to do and changes nothing.
    let before = weights(&dir.path("out"));
    train(&dir, "out", "--steps 4 --checkpointing_steps 2 --resume_from_checkpoint latest").ok();
    assert_same(&before, &weights(&dir.path("out")));
    for (change, what) in [
        ("--lr 1e-5", "learning_rate"),
        ("--beta 100", "beta_dpo"),
        ("--refresh-every 2", "reference_mode"),
        ("--seed 1", "seed"),
        ("--train_batch_size 2", "effective_batch"),
        ("--lr_scheduler linear", "lr_scheduler"),
    ] {
        let error = train(&dir, "out", &format!("--steps 8 --resume latest {change}")).fails(2);
        says(&error, &["out was made with another ", what, "--resume-from-checkpoint"]);
    }
    dir.put("labels.parquet", &labels(&pairs(24), |_| (1.0, 1.0)));
    says(&train(&dir, "out", "--steps 8 --resume latest").fails(2), &["another input table"]);
    says(&train(&dir, "x", "--steps 8 --resume out").fails(2), &["out was made with another --labels", "--policy"]);
    says(&train(&dir, "x", "--steps 8 --resume pairs.parquet").fails(2), &["pairs.parquet is not a whole checkpoint"]);
    assert_same(&before, &weights(&dir.path("out")));
}

#[test]
fn sigterm_saves_and_the_run_continues() {
    let dir = world();
    let rest = "--steps 40 --refresh-every 7 --train_batch_size 2";
    train(&dir, "whole", rest).ok();
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut child = spawn(train(&dir, signal, rest));
        wait_for("some steps", || log_lines(&dir.path(signal)) >= 9);
        let kill = std::process::Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let stopped = log_lines(&dir.path(signal));
        assert!((9..40).contains(&stopped));
        assert!(dir.path(&format!("{signal}/checkpoint-{stopped}/unet/config.json")).exists());
        train(&dir, signal, &format!("{rest} --resume_from_checkpoint latest")).ok();
        assert_same(&weights(&dir.path("whole")), &weights(&dir.path(signal)));
    }
}

/// A reference that the command line names and the run refreshes: after a kill, the same command continues with the
/// refreshed one.
#[test]
fn a_refreshed_reference_outlives_a_kill() {
    let dir = world();
    let reference = oracle("policy").display().to_string();
    let rest = format!("--steps 7 --refresh-every 3 --reference {reference}");
    train(&dir, "whole", &rest).ok();
    train(&dir, "x", &format!("{rest} --checkpointing_steps 5")).ok();
    for name in ["x/unet", "x/state"] {
        std::fs::remove_dir_all(dir.path(name)).unwrap();
    }
    train(&dir, "x", &format!("{rest} --resume latest")).ok();
    assert_same(&weights(&dir.path("whole")), &weights(&dir.path("x")));
    // A reference that the state does not hold must be named again.
    train(&dir, "a", &format!("--steps 2 --reference {reference}")).ok();
    says(&train(&dir, "b", "--steps 4 --resume a").fails(2), &["--reference", "name that reference"]);
}

#[test]
fn threads_change_nothing() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(12));
    dir.put("labels.parquet", &labels(&pairs(12), some));
    let base = mini().display().to_string();
    for (out, threads) in [("one", "1"), ("two", "2")] {
        let rest = format!(
            "--base {base} --resolution 64 --steps 2 --beta 2000 --train_batch_size 2 --gradient_accumulation_steps 4 --threads {threads}"
        );
        train(&dir, out, &rest).ok();
    }
    assert_same(&weights(&dir.path("one")), &weights(&dir.path("two")));
    assert_eq!(log(&dir.path("one"))[1]["loss"], log(&dir.path("two"))[1]["loss"]);
}

#[test]
fn the_split_of_a_batch_changes_rounding_only() {
    let dir = world();
    let batch = |out: &str, b: usize, k: usize| {
        let rest =
            format!("--train_batch_size {b} --gradient_accumulation_steps {k} --steps 1 --dump-gradients {out}.g");
        train(&dir, out, &rest).ok();
        (log(&dir.path(out)).remove(0), tensors(&dir.path(&format!("{out}.g"))))
    };
    let (line, whole) = batch("one", 4, 1);
    for (out, b, k) in [("two", 2, 2), ("three", 1, 4)] {
        let (other, gradients) = batch(out, b, k);
        near(other["grad_norm"].as_f64().unwrap(), line["grad_norm"].as_f64().unwrap(), 1e-2);
        for key in ["loss", "policy_winner_mse", "policy_loser_mse"] {
            near(other[key].as_f64().unwrap(), line[key].as_f64().unwrap(), 1e-6);
        }
        assert!(same_gradients(&gradients, &whole) < 1e-4);
    }
}

/// A small network takes at most four pairs at a time, and sums of gradients are added pair by pair.
#[test]
fn batches_of_four_and_more_are_the_same_to_the_last_bit() {
    let dir = world();
    for (out, b, k) in [("one", 16, 1), ("two", 8, 2), ("three", 4, 4)] {
        train(&dir, out, &format!("--train_batch_size {b} --gradient_accumulation_steps {k} --steps 3")).ok();
        assert_same(&weights(&dir.path(out)), &weights(&dir.path("one")));
        assert_eq!(log(&dir.path(out))[2]["loss"], log(&dir.path("one"))[2]["loss"]);
    }
}

#[test]
fn swapping_the_images_and_the_label_changes_nothing() {
    let dir = world();
    train(&dir, "a", "--steps 6 --refresh-every 4").ok();
    let turned = swapped(&pairs(24));
    dir.put("pairs.parquet", &turned);
    dir.put("labels.parquet", &labels(&turned, |i| (1.0 - some(i).0, some(i).1)));
    train(&dir, "b", "--steps 6 --refresh-every 4").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));
    // Swapping the label alone changes the weights.
    dir.put("labels.parquet", &labels(&turned, some));
    train(&dir, "c", "--steps 6 --refresh-every 4").ok();
    assert!(differ(&weights(&dir.path("a")), &weights(&dir.path("c"))));
}

#[test]
fn abstaining_pairs_change_nothing() {
    let dir = world();
    train(&dir, "a", "--steps 10").ok();
    // First without labels of weight 0, then without their pairs.
    let all = labels(&pairs(24), some);
    let used: Vec<_> = (0..24).filter(|i| some(*i).1 > 0.0).collect();
    let only = |t: &arrow::array::RecordBatch| {
        concat_batches(&t.schema(), &used.iter().map(|&i| t.slice(i, 1)).collect::<Vec<_>>()).unwrap()
    };
    dir.put("labels.parquet", &only(&all));
    train(&dir, "b", "--steps 10").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));
    dir.put("pairs.parquet", &only(&pairs(24)));
    train(&dir, "c", "--steps 10").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("c")));
    // They are counted.
    dir.put("labels.parquet", &all);
    dir.put("pairs.parquet", &pairs(24));
    let args = ["pairs.parquet", "--labels", "labels.parquet", "--resolution", "16", "-o", "d", "--steps", "1"];
    let run = dir.tool("train").args(args).args(["--base".into(), oracle("base")]).ok();
    says(&run.err, &["20 pairs are used; 4 abstain and 0 have no label"]);
    dir.put("labels.parquet", &labels(&pairs(24), |_| (0.5, 0.0)));
    says(&train(&dir, "e", "").fails(2), &["labels.parquet", "24 abstain", "nothing to train on"]);
    dir.put("labels.parquet", &labels(&swapped(&pairs(24)), some));
    says(&train(&dir, "e", "").fails(2), &["0 abstain, 24 have none", "are these the labels of these pairs?"]);
    assert!(!dir.path("e").exists());
}

#[test]
fn every_tensor_has_a_gradient_and_the_checkpoint_is_complete() {
    let dir = world();
    train(&dir, "out", "--steps 3 --dump-gradients g").ok();
    let (base, ours) = (weights(&oracle("base")), weights(&dir.path("out")));
    let gradients = tensors(&dir.path("g"));
    assert!(gradients.keys().eq(base.keys()));
    // In the first step the policy equals the reference: z is 0, but no gradient is.
    assert!(gradients.iter().all(|(n, g)| g.dims() == base[n].dims() && values(g).iter().any(|v| *v != 0.0)));
    // Names and shapes are those of the base's file, in f32, and the config is unchanged.
    assert!(ours.keys().eq(base.keys()) && ours.iter().all(|(n, t)| t.dims() == base[n].dims()));
    assert!(ours.values().all(|t| t.dtype() == candle_core::DType::F32));
    assert_eq!(std::fs::read(oracle("base/unet/config.json")).unwrap(), dir.bytes("out/unet/config.json"));
    let metadata = nets::weights::metadata(&dir.path("out/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let origin: Value = serde_json::from_str(&metadata["origin"]).unwrap();
    assert_eq!((&origin["tool"], &origin["args"]["step"]), (&"train".into(), &3.into()));
    assert!(!metadata["origin"].contains(env!("CARGO_MANIFEST_DIR")));
    // Published weights may be rounded; a resumption continues from unrounded ones.
    train(&dir, "half", "--steps 3 --save-dtype f16").ok();
    copy(&dir.path("out"), &dir.path("large"));
    let file = dir.path("large/unet/diffusion_pytorch_model.safetensors");
    let mut large = tensors(&file);
    let bias = large["conv_in.bias"].ones_like().unwrap();
    large.insert("conv_in.bias".into(), (bias * 1e5).unwrap());
    write_tensors(&file, &large);
    let error =
        dir.tool("refresh-ref").args("--policy large --reference large --save-dtype f16 -o x".split(' ')).fails(2);
    says(&error, &["x/unet/", "'conv_in.bias' does not fit f16"]);
    let half = weights(&dir.path("half"));
    assert!(half.values().all(|t| t.dtype() == candle_core::DType::F16));
    let (max, _) = distance(&half, &ours);
    assert!(max > 0.0 && max < 2e-3, "{max}");
    train(&dir, "a", "--steps 6").ok();
    train(&dir, "b", "--steps 6 --resume half").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));
}

#[test]
fn from_the_cache_of_encode_as_from_pairs() {
    let dir = world();
    let encode = |out: &str, rest: &[&str]| {
        let args = ["pairs.parquet", "-o", out, "--resolution", "16", "-q", "--base"];
        dir.tool("encode").args(args).args([oracle("base")]).args(rest).ok();
    };
    encode("cache", &[]);
    encode("flips", &["--augment", "independent-flip"]);
    for (cache, rest) in [("cache", "--augment none"), ("flips", ""), ("flips", "--augment pair-flip")] {
        train(&dir, "a", &format!("--steps 3 {rest}")).ok();
        train(&dir, "b", &format!("{cache} --steps 3 {rest}")).ok();
        for (a, b) in log(&dir.path("a")).iter().zip(log(&dir.path("b"))) {
            for key in ["policy_winner_mse", "policy_loser_mse", "reference_winner_mse"] {
                near(b[key].as_f64().unwrap(), a[key].as_f64().unwrap(), 2e-3);
            }
        }
        assert_eq!(log(&dir.path("a"))[0]["loss"], log(&dir.path("b"))[0]["loss"]);
        assert!(differ(&weights(&dir.path("a")), &weights(&dir.path("b"))), "the cache was not used");
    }
    // Where the cache has no mirrored images, none are used, and a note says so if they were asked for.
    let args = ["cache", "--labels", "labels.parquet", "-o", "c", "--steps", "2", "--resolution", "16", "--base"];
    for (rest, noted) in
        [(&["--dry-run"][..], true), (&["--augment", "pair-flip", "--dry-run"], true), (&["-o", "e"], false)]
    {
        let run = dir.tool("train").args(args).args([oracle("base")]).args(rest).ok();
        assert_eq!(run.err.contains("the cache holds no mirrored images"), noted, "{}", run.err);
    }
    says(&train(&dir, "d", "cache --resolution 32").fails(2), &["holds images of 16 pixels", "--resolution"]);
    // A cache that was made with another model is refused.
    let error = train(&dir, "d", &format!("cache --base {}", mini().display())).fails(2);
    says(&error, &["the cache was made with another vae"]);
}

#[test]
fn from_parts_as_from_whole_tables() {
    let dir = world();
    let encode = |args: &[&str]| {
        let usual = ["pairs.parquet", "--resolution", "16", "-q", "--base"];
        dir.tool("encode").args(usual).args([oracle("base")]).args(args).ok();
    };
    encode(&["-o", "cache"]);
    std::fs::create_dir(dir.path("labels")).unwrap();
    for (i, (from, n)) in [(0, 5), (5, 11), (16, 8)].into_iter().enumerate() {
        encode(&["-o", "parts", "--shard", &format!("{i}/3")]);
        dir.put(&format!("labels/part-{i:05}-of-00003.parquet"), &dir.get("labels.parquet").slice(from, n));
    }
    train(&dir, "a", "cache --steps 3").ok();
    train(&dir, "b", "parts --steps 3 --labels labels").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));
    // Every part of the labels is part of the identity of a run.
    dir.put("labels/part-00002-of-00003.parquet", &labels(&pairs(24), |_| (1.0, 1.0)).slice(16, 8));
    let error = train(&dir, "b", "parts --steps 4 --labels labels --resume_from_checkpoint b").fails(2);
    says(&error, &["another --labels"]);
}

/// A labels table can come straight from `vote`, and the run knows it again.
#[test]
fn labels_come_from_a_pipe() {
    let dir = world();
    let ids = labels(&pairs(24), some);
    let score = |k: usize| floats((0..24).map(|i| Some(if i % 5 == 4 { 0.5 } else { ((i + k) % 2) as f32 })));
    let keys = ["pair_id", "caption", "image_0_uid", "image_1_uid"].map(|name| (name, column(&ids, name).clone()));
    let scores = [("label_0", floats(vec![None; 24])), ("hps_0", score(0)), ("hps_1", score(1))];
    dir.put("scores.parquet", &util::table(keys.into_iter().chain(scores).collect()));
    let vote = |out: &str| dir.tool("vote").args(["scores.parquet", "--metrics", "hps", "-q", "-o", out]).ok().out;
    vote("labels.parquet");
    let piped = vote("-");
    train(&dir, "file", "--steps 3").ok();
    train(&dir, "pipe", "--steps 3 --labels -").stdin(piped.clone()).ok();
    assert_same(&weights(&dir.path("file")), &weights(&dir.path("pipe")));
    train(&dir, "pipe", "--steps 4 --labels - --resume latest").stdin(piped).ok();
    dir.put("scores.parquet", &with(&dir.get("scores.parquet"), "hps_0", floats(vec![Some(0.7); 24])));
    let error = train(&dir, "pipe", "--steps 5 --labels - --resume pipe").stdin(vote("-")).fails(2);
    says(&error, &["another --labels"]);
    // The pairs themselves are visited in random order.
    let error = train(&dir, "x", "- --steps 3").fails(2);
    says(&error, &["DATA", "standard input", "Parquet"]);
}

#[test]
fn from_an_images_table_as_from_pairs() {
    let dir = world();
    let table = pairs(24);
    let side = |k: usize| {
        util::table(vec![
            ("image_uid", column(&table, &format!("image_{k}_uid")).clone()),
            ("image", column(&table, &format!("jpg_{k}")).clone()),
        ])
    };
    let both = concat_batches(&side(0).schema(), &[side(1), side(0)]).unwrap();
    dir.put("images.parquet", &both);
    train(&dir, "a", "--steps 3").ok();
    train(&dir, "b", "images.parquet --steps 3").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));
    dir.put("images.parquet", &both.slice(0, 30));
    let error = train(&dir, "c", "images.parquet --steps 3").fails(2);
    says(&error, &["labels.parquet, row 6", "is not in the data"]);
}

#[test]
fn a_caption_of_ten_thousand_characters() {
    let dir = world();
    let long: Vec<_> = column_text(&pairs(24), "caption").iter().map(|c| c.repeat(10_000 / c.len() + 1)).collect();
    assert!(long.iter().all(|c| c.len() >= 10_000));
    let table = with(&pairs(24), "caption", texts(long));
    dir.put("pairs.parquet", &table);
    dir.put("labels.parquet", &labels(&table, some));
    train(&dir, "out", "--steps 1").ok();
}

#[test]
fn a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint() {
    let dir = world();
    train(&dir, "out", "--steps 2 --checkpointing_steps 1").ok();
    let kept = weights(&dir.path("out"));
    let error = train(&dir, "out", "--steps 9 --checkpointing_steps 1 --lr 1e30 --resume out").fails(2);
    says(&error, &["step ", "the last checkpoint is kept, out/checkpoint-", "--learning-rate"]);
    let error = train(&dir, "none", "--steps 9 --lr 1e30").fails(2);
    says(&error, &["there is no checkpoint in none yet", "--learning-rate"]);
    assert_same(&kept, &weights(&dir.path("out")));
    let finite = |t: &Tensors| t.values().all(|t| values(t).iter().all(|v| v.is_finite()));
    for (name, _) in tree(&dir.path("out")) {
        if name.ends_with("diffusion_pytorch_model.safetensors") {
            assert!(finite(&tensors(&dir.path("out").join(&name))), "{}", name.display());
        }
    }
}

fn safetensors(
    path: &Path,
    all: &[(String, candle_core::Tensor)],
    meta: Option<std::collections::HashMap<String, String>>,
) {
    let tensors: std::collections::HashMap<_, _> = all.iter().cloned().collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
    let Some(meta) = meta else { return };
    // The same file with metadata: a longer header before the same data.
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["__metadata__"] = serde_json::to_value(meta).unwrap();
    let header = serde_json::to_vec(&header).unwrap();
    let out = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat();
    std::fs::write(path, out).unwrap();
}
