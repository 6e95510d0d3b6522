//! Long runs: spikes, dry runs, event files, reading ahead, and published launch lines.

use super::*;

/// 60 pairs, one per step. The label of the pair at step 28 has so much weight that its loss is a spike.
fn spiked() -> Dir {
    let (dir, pairs) = (Dir::new(), pairs(60));
    let heavy = pipe::seed::draws(0, "epoch", "", 0).permutation(60)[27] as usize;
    dir.put("pairs.parquet", &pairs);
    dir.put("labels.parquet", &labels(&pairs, |i| (1.0, if i == heavy { 1000.0 } else { 1.0 })));
    dir
}

#[test]
fn a_spike_stops_the_run_or_is_skipped() {
    let dir = spiked();
    let policy = oracle("policy").display().to_string();
    let rest = format!("--policy {policy} --steps 32 --lr 1e-6 --loss sft --train_batch_size 1");
    let kept = format!("{rest} --checkpointing_steps 10");
    let error = train(&dir, "stop", &kept).fails(2);
    says(&error, &["step 28: the loss is ", "its running mean", "the last checkpoint is kept", "--on-spike rollback"]);
    assert!(dir.path("stop/checkpoint-20/unet/config.json").exists() && !dir.path("stop/unet").exists());
    train(&dir, "ignore", &format!("{kept} --on-spike ignore")).ok();
    // Back to step 20, past the pairs of steps 21 to 28; the steps are numbered on.
    train(&dir, "back", &format!("{kept} --on-spike rollback")).ok();
    let lines = log(&dir.path("back"));
    assert_eq!(lines.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=32).collect::<Vec<_>>());
    assert!(lines.iter().all(|l| l["loss"].as_f64().unwrap() < 20.0));
    // A reference that was refreshed after the checkpoint is as it was before, and is refreshed again after step 25.
    train(&dir, "refreshed", &format!("{kept} --on-spike rollback --refresh-every 25")).ok();
    let refreshed = log(&dir.path("refreshed"));
    assert!(refreshed[24]["refreshed"] == true);
    let same = |i: usize| lines[i]["reference_winner_mse"] == refreshed[i]["reference_winner_mse"];
    assert!((0..25).all(same) && !(25..32).any(same));
    // A checkpoint stores what was skipped.
    train(&dir, "again", &format!("{kept} --on-spike rollback --resume back/checkpoint-30")).ok();
    assert_same(&weights(&dir.path("back")), &weights(&dir.path("again")));
    let error = train(&dir, "none", &format!("{rest} --on-spike rollback")).fails(2);
    says(&error, &["there is no checkpoint in none"]);
}

#[test]
fn a_dry_run_reports_and_writes_nothing() {
    let dir = world();
    let run = train(&dir, "out", "--dry-run --gradient_accumulation_steps 3 --scale_lr --lr 1e-8 --steps 100").ok();
    let numbers = weights(&oracle("base")).values().map(|t| t.elem_count()).sum::<usize>();
    says(
        run.text(),
        &[
            &format!("{numbers} parameters are trained"),
            "12 pairs per step: 4 at once, 3 times",
            "1.200e-7",
            "steps per hour",
            // Weights and two moments, at the end alone.
            &format!("disk: {:.2} MB per checkpoint, 1 at once", (12 * numbers) as f64 / 1e6),
        ],
    );
    assert!(!dir.path("out").exists());
    // A refreshed reference too, in state/; and what is published in half precision is kept there in f32.
    let more = "--dry-run --json --refresh-every 5 --save-dtype f16 --steps 10 --checkpointing_steps 2 --checkpoints-total-limit 1";
    let run = train(&dir, "out", more).ok().json();
    assert_eq!(run["checkpoint_bytes"], (2 + 8 + 4 + 4) * numbers);
    assert_eq!(run["checkpoints_at_once"], 2);
    // A small network takes four pairs at a time.
    let run = train(&dir, "out", "--dry-run --train_batch_size 10").ok();
    says(run.text(), &["10 pairs per step: 4 at once, 3 times"]);
    // Nothing is written, so that no output needs to be named.
    let base = oracle("base").display().to_string();
    let args =
        ["pairs.parquet", "--labels", "labels.parquet", "--resolution", "16", "--dry-run", "-q", "--base", &base];
    let run = dir.tool("train").args(args).ok();
    says(run.text(), &["1 pair per step, all at once", "moments: 0.", " for 2000 steps"]);
    says(&dir.tool("train").args(args).args(["--resume", "latest"]).fails(2), &["latest", "-o"]);
    train(&dir, "whole", "--steps 3").ok();
    train(&dir, "whole", "--steps 5 --dry-run --resume latest").ok();
    let error = train(&dir, "whole", "--steps 4 --dry-run --resume latest").fails(2);
    says(&error, &["--dry-run takes 2 steps", "--max-train-steps is 4 and 3 are finished"]);
    let run = train(&dir, "out", "--dry-run --json --lora-rank 2 --use_adafactor").ok();
    let report = run.json();
    assert!(report["trained_parameters"].as_u64().unwrap() < numbers as u64 / 2);
    assert!(report["peak_memory_mib"].as_f64().unwrap() > 1.0 && report["steps_per_hour"].as_f64().unwrap() > 0.0);
}

#[test]
fn event_files_hold_the_numbers_of_the_log() {
    let dir = world();
    train(&dir, "out", "--steps 3 --report_to tensorboard").ok();
    let files: Vec<_> = tree(&dir.path("out/tensorboard")).into_iter().collect();
    assert_eq!(files.len(), 1);
    let (name, bytes) = &files[0];
    assert!(name.to_string_lossy().starts_with("events.out.tfevents."));
    // Frames: length, checksum, data, checksum. Two at the beginning and one per step.
    let (mut frames, mut rest) = (vec![], &bytes[..]);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        frames.push(&rest[12..12 + length]);
        rest = &rest[16 + length..];
    }
    assert_eq!(frames.len(), 5);
    assert!(frames[0].windows(13).any(|w| w == b"brain.Event:2"));
    for (frame, line) in frames[2..].iter().zip(log(&dir.path("out"))) {
        // Value { tag = "grad_norm", simple_value }
        let at = frame.windows(9).position(|w| w == b"grad_norm").unwrap() + 9;
        let number = f32::from_le_bytes(frame[at + 1..at + 5].try_into().unwrap());
        assert_eq!(number, line["grad_norm"].as_f64().unwrap() as f32);
    }
}

#[test]
fn reading_ahead_changes_nothing() {
    let dir = world();
    let rest = "--steps 6 --train_batch_size 2 --gradient_accumulation_steps 2";
    for (out, workers) in [("none", 0), ("one", 1), ("three", 3)] {
        train(&dir, out, &format!("{rest} --dataloader_num_workers {workers} --threads 1")).ok();
        assert_same(&weights(&dir.path("none")), &weights(&dir.path(out)));
    }
}

/// launchers/sd15.sh and sdxl.sh of Diffusion-DPO, with other paths.
#[test]
fn published_launch_lines_can_be_pasted() {
    let dir = world();
    let base = oracle("base").display().to_string();
    let line = format!(
        "--pretrained_model_name_or_path={base} --dataset_name=pairs.parquet --train_batch_size=1 \
         --dataloader_num_workers=16 --gradient_accumulation_steps=2 --max_train_steps=2 \
         --lr_scheduler=constant_with_warmup --lr_warmup_steps=1 --learning_rate=1e-8 --scale_lr --cache_dir=cache/ \
         --checkpointing_steps 500 --beta_dpo 5000 --output_dir=tmp-sd15"
    );
    let ours = ["--labels", "labels.parquet", "--resolution", "16"];
    let run = dir.tool("train").args(line.split_whitespace().chain(ours)).ok();
    says(&run.err, &["20 pairs are used", "--cache-dir has no effect"]);
    assert!(dir.path("tmp-sd15/unet/config.json").exists());
    let sdxl = format!("{line} -q --sdxl --pretrained_vae_model_name_or_path={base}/vae --mixed_precision no");
    let error = dir.tool("train").args(sdxl.split_whitespace().chain(ours)).fails(2);
    says(&error, &["--sdxl", "text_encoder_2"]);
}

/// N steps are k steps, a stop and N - k steps, for everything that can be trained.
#[test]
fn a_resumed_run_from_the_cache_is_the_same() {
    let dir = world();
    let args = ["pairs.parquet", "-o", "cache", "--resolution", "16", "--augment", "pair-flip", "-q", "--base"];
    dir.tool("encode").args(args).args([oracle("base")]).ok();
    for rest in [
        "", "--use_adafactor --reference-mode ema:0.1", "--lora-rank 2 --refresh-every 2",
        "--guard sdpo --moments bf16",
    ] {
        let (kind, published) = match rest.contains("lora") {
            true => ("lora", "lora/pytorch_lora_weights.safetensors"),
            false => ("unet", "unet/diffusion_pytorch_model.safetensors"),
        };
        let [whole, a, b] = ["whole", "a", "b"].map(|name| format!("{name}-{kind}"));
        train(&dir, &whole, &format!("cache --steps 5 {rest}")).ok();
        train(&dir, &a, &format!("cache --steps 3 {rest}")).ok();
        train(&dir, &b, &format!("cache --steps 5 --resume {a} {rest}")).ok();
        let of = |out: &str| tensors(&dir.path(out).join(published));
        assert_same(&of(&whole), &of(&b));
        assert!(differ(&of(&whole), &of(&a)));
        let state = |out: &str| dir.bytes(&format!("{out}/state/optimizer.safetensors"));
        assert!(state(&whole) == state(&b), "{rest}");
    }
    says(&train_into(&dir, "whole-lora", "").fails(2), &["whole-lora holds adapters of another run", "-o"]);
    says(
        &train_into(&dir, "whole-unet", "--lora-rank 2").fails(2),
        &["whole-unet holds a whole denoiser of another run"],
    );
}

#[test]
fn a_run_says_how_it_ended_and_what_it_never_did() {
    let dir = world();
    let args = ["pairs.parquet", "--labels", "labels.parquet", "--resolution", "16", "--lr", "1e-4"];
    let run = |out: &str, rest: &str| {
        let tool = dir.tool("train").args(args).args(["-o", out, "--base"]).args([oracle("base")]);
        tool.args(rest.split(' ')).ok()
    };
    let never = "the run ends after 4: the reference stays as it is";
    let done = run("a", "--steps 4 --refresh-every 4");
    says(&done.err, &["a holds the policy after 4 steps: the last loss is ", " s\n", never]);
    assert!(!done.err.contains("mean squared errors") && done.out.is_empty(), "{}", done.err);
    assert!(!run("b", "--steps 4 --refresh-every 3").err.contains("stays as it is"));
    let summary = run("c", "--steps 4 --refresh-every 3 --json").json();
    assert_eq!((&summary["output"], &summary["steps"]), (&"c".into(), &4.into()));
    assert_eq!(summary["loss"], log(&dir.path("c"))[3]["loss"]);
    // The policy equals the reference in step 1 and after the refresh: neither image is favoured.
    let accuracies: Vec<_> = log(&dir.path("c")).iter().map(|line| line["implicit_acc"].as_f64().unwrap()).collect();
    assert_eq!([accuracies[0], accuracies[3]], [0.5, 0.5]);
    // Nothing was left to do.
    let again = run("c", "--steps 4 --refresh-every 3 --resume --json").json();
    assert!(again["loss"].is_null());
}
