//! Settings that trade memory for time change only rounding, or nothing at all.

use super::*;

#[test]
fn gradient_checkpointing_changes_rounding_only() {
    let policy = oracle("policy").display().to_string();
    checkpointing_changes_rounding_only(&[("sd", &format!("--policy {policy}")), ("lora", "--lora_rank 3")]);
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn gradient_checkpointing_changes_rounding_only_in_sdxl() {
    let base = parity("models/sdxl").display().to_string();
    checkpointing_changes_rounding_only(&[("sdxl", &format!("--base {base} --resolution 64"))]);
}

fn checkpointing_changes_rounding_only(runs: &[(&str, &str)]) {
    let dir = world();
    for (name, rest) in runs {
        let gradients = |flag: &str| {
            let rest = format!(
                "--steps 1 --train_batch_size 2 --gradient_accumulation_steps 2 {flag} {rest} --dump-gradients {name}.g"
            );
            train(&dir, name, &rest).ok();
            let line = log(&dir.path(name)).remove(0);
            std::fs::remove_dir_all(dir.path(name)).unwrap();
            (line["loss"].clone(), tensors(&dir.path(&format!("{name}.g"))))
        };
        let (loss, kept) = gradients("--gradient_checkpointing=off");
        let (again, twice) = gradients("--gradient_checkpointing");
        assert_eq!(loss, again, "{name}");
        assert!(same_gradients(&twice, &kept) < 1e-4, "{name}");
    }
}

#[test]
fn a_reference_in_its_file_gives_the_same_bits() {
    let dir = world();
    for (out, place) in [("memory", "memory"), ("file", "file")] {
        let rest = format!("--steps 7 --refresh-every 3 --checkpointing_steps 5 --reference_weights {place}");
        train(&dir, out, &rest).ok();
    }
    assert_same(&weights(&dir.path("memory")), &weights(&dir.path("file")));
    let state = |out: &str| tensors(&dir.path(&format!("{out}/state/optimizer.safetensors")));
    assert_same(&state("memory"), &state("file"));
    assert!(!tree(&dir.path("file")).keys().any(|p| p.to_string_lossy().contains("reference-")));
    // A refreshed reference continues from the state.
    for name in ["file/unet", "file/state"] {
        std::fs::remove_dir_all(dir.path(name)).unwrap();
    }
    train(&dir, "file", "--steps 7 --refresh-every 3 --checkpointing_steps 5 --reference_weights file --resume latest")
        .ok();
    assert_same(&weights(&dir.path("memory")), &weights(&dir.path("file")));
    let error = train(&dir, "x", "--steps 2 --reference_weights file --reference_mode ema:0.1").fails(2);
    says(&error, &["--reference-weights file", "moving average"]);
}
