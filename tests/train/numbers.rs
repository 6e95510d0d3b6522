//! The numbers of PyTorch and of the parity kit, and the reference.

use super::*;

fn oracle_json() -> Value {
    serde_json::from_slice(&std::fs::read(oracle("expected.json")).unwrap()).unwrap()
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
