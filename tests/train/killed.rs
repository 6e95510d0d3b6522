//! Runs that are killed or stopped, and continue.

use super::*;

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
