//! Training the small models.

use std::path::Path;

use super::*;

fn transformer(out: &Path) -> Tensors {
    tensors(&out.join("transformer/diffusion_pytorch_model.safetensors"))
}

#[test]
fn gradients_of_a_small_transformer_equal_those_of_torch() {
    let ((want, about), dir) = (expected(), Dir::new());
    copy(&small("sd3/transformer"), &dir.path("policy"));
    let file = dir.path("policy/diffusion_pytorch_model.safetensors");
    let larger = |(name, t): (String, Tensor)| {
        let t = t.to_dtype(DType::F32).unwrap();
        let fixed = name == "pos_embed.pos_embed";
        (name, if fixed { t } else { (t * (17.0 / 16.0)).unwrap() })
    };
    write_tensors(&file, &tensors(&file).into_iter().map(larger).collect());
    let replay = small("replay.safetensors").display().to_string();
    for extra in ["", "--gradient-checkpointing", "--reference-weights file"] {
        let rest =
            format!("--replay {replay} --policy policy --steps 1 --beta {} --dump-gradients g {extra}", about["beta"]);
        train(&dir, "out", &rest).ok();
        let line = log(&dir.path("out")).remove(0);
        near(line["loss"].as_f64().unwrap(), about["loss"].as_f64().unwrap(), 1e-4);
        for (z, theirs) in numbers(&line["z"]).iter().zip(numbers(&about["z"])) {
            near(*z, theirs, 1.5e-4);
        }
        let (ours, theirs) = (tensors(&dir.path("g")), under(&want, "grad."));
        assert!(ours.keys().eq(theirs.keys()), "other tensors");
        same_gradients(&ours, &theirs);
    }
    // (1 - sigma)^2 makes the errors smaller, and with them the margins.
    let rest = format!(
        "--replay {replay} --policy policy --steps 1 --beta {} --flow-weight one-minus-sigma-sq",
        about["beta"]
    );
    train(&dir, "weighted", &rest).ok();
    let z = numbers(&log(&dir.path("weighted"))[0]["z"]);
    for ((z, whole), sigma) in z.iter().zip(numbers(&about["z"])).zip([0.875, 0.25]) {
        near(*z, whole * (1.0f64 - sigma).powi(2), 2e-4);
    }
}

/// The model learns what labels prefer: pairs that it was not trained on get a smaller loss.
#[test]
fn training_lowers_the_loss_of_pairs_that_were_held_out() {
    let dir = world("sd3");
    // Dark pictures win over bright ones, in all pairs.
    let brightness = |table: &arrow::array::RecordBatch, name: &str, row: usize| -> f64 {
        let rgb = nets::image::decode(&image(table, name, row)).unwrap();
        rgb.data.iter().map(|v| f64::from(*v)).sum::<f64>() / rgb.data.len() as f64
    };
    let all = pairs(24);
    let darker = |i: usize| f32::from(brightness(&all, "jpg_0", i) < brightness(&all, "jpg_1", i));
    dir.put("labels.parquet", &labels(&all, |i| (darker(i), if i % 4 == 3 { 0.0 } else { 1.0 })));
    dir.put("held.parquet", &labels(&all, |i| (darker(i), if i % 4 == 3 { 1.0 } else { 0.0 })));
    let rest = "cache --resolution 16 --proportion_empty_prompts 0 --beta 20 --augment none";
    train(&dir, "out", &format!("{rest} --labels labels.parquet --train_batch_size 6 --steps 60 --lr 1e-3")).ok();
    // One step at a learning rate of nearly nothing measures the six pairs that were held out.
    let measure = |policy: &str| {
        train(&dir, "m", &format!("{rest} --labels held.parquet --train_batch_size 6 --steps 6 --lr 1e-12 {policy}"))
            .ok();
        let lines = log(&dir.path("m"));
        lines.iter().map(|line| line["loss"].as_f64().unwrap()).sum::<f64>() / lines.len() as f64
    };
    let (before, after) = (measure(""), measure("--policy out"));
    println!("held-out loss {before} -> {after}");
    near(before, std::f64::consts::LN_2, 1e-6);
    assert!(after < before - 0.02, "{after} is not below {before}");
}

#[test]
fn a_flow_is_trained_to_the_same_bytes_however_it_is_cut() {
    let dir = world("sd3");
    for rest in ["--refresh-every 2", "--reference-weights file --refresh-every 2", "--lora-rank 2 --save-dtype bf16"] {
        let rest = format!("{DATA} --lr 1e-3 --beta 50 {rest}");
        let _ = std::fs::remove_dir_all(dir.path("b"));
        train(&dir, "whole", &format!("{rest} --steps 4")).ok();
        train(&dir, "threads", &format!("{rest} --steps 4 --threads 1 --dataloader_num_workers 0")).ok();
        train(&dir, "a", &format!("{rest} --steps 2")).ok();
        train(&dir, "b", &format!("{rest} --steps 4 --resume a")).ok();
        let published = |out: &str| {
            let mut all = tree(&dir.path(out));
            all.retain(|name, _| name.starts_with("transformer") || name.starts_with("lora"));
            assert!(!all.is_empty());
            all
        };
        assert_eq!(published("whole"), published("threads"), "{rest}");
        assert_eq!(published("whole"), published("b"), "{rest}");
        assert!(published("whole") != published("a"));
    }
}

#[test]
fn checkpoints_of_a_transformer_have_diffusers_layout() {
    let dir = world("sd3");
    let rest = format!("{DATA} --lr 1e-3 --steps 2");
    train(&dir, "out", &rest).ok();
    let (base, ours) =
        (tensors(&small("sd3/transformer/diffusion_pytorch_model.safetensors")), transformer(&dir.path("out")));
    assert!(base.keys().eq(ours.keys()));
    let table = "pos_embed.pos_embed";
    assert_eq!(values(&base[table]), values(&ours[table]));
    assert!(!dir.path("out/unet").exists());
    assert_eq!(dir.bytes("out/transformer/config.json"), std::fs::read(small("sd3/transformer/config.json")).unwrap());
    // It goes on, draws, and becomes a reference.
    train(&dir, "next", &format!("{rest} --policy out --reference out/transformer")).ok();
    dir.write("prompts.txt", "a red bicycle\n");
    let base = small("sd3").display().to_string();
    for (out, rest) in [("a", ""), ("b", "--unet out"), ("c", "--transformer out/transformer"), ("d", "--unet ema")] {
        if out == "d" {
            let args = ["--policy", "out", "--reference", &base, "--rate", "0.5", "-o", "ema", "-q"];
            dir.tool("refresh-ref").args(args).ok();
            let (half, whole) = (transformer(&dir.path("ema")), transformer(&dir.path("out")));
            assert!(half.keys().eq(whole.keys()) && differ(&half, &whole));
        }
        sample(&dir, &format!("--base {base} -o {out} --height 12 --width 12 {rest}")).ok();
    }
    let pictures = |name: &str| tree_of(&dir, name);
    assert!(pictures("a") != pictures("b") && pictures("b") == pictures("c") && pictures("d") != pictures("b"));
    let origin = dir.get("b").schema().metadata()["origin"].clone();
    says(&origin, &["\"transformer\"", "\"text_encoder_3\"", "\"scheduler\":\"flow\""]);
    // Adapters, alone and merged.
    train(&dir, "lora", &format!("{rest} --lora-rank 2 --merge")).ok();
    let adapters = tensors(&dir.path("lora/lora/pytorch_lora_weights.safetensors"));
    assert!(adapters.keys().all(|name| name.starts_with("transformer.transformer_blocks.")));
    assert!(!dir.path("lora/lora/kohya.safetensors").exists());
    assert!(transformer(&dir.path("lora")).keys().eq(ours.keys()));
}

#[test]
fn flux_trains_its_adapters() {
    let dir = world("flux");
    let base = small("flux").display().to_string();
    let rest = format!("{DATA} --base {base} --lr 1e-3 --lora-rank 2 --beta 50");
    train(&dir, "a", &format!("{rest} --steps 3")).ok();
    train(&dir, "b", &format!("{rest} --steps 3 --guidance-scale 1")).ok();
    let lines = |out: &str| {
        log(&dir.path(out)).into_iter().map(|l| l["policy_winner_mse"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    assert!(lines("a").iter().zip(lines("b")).all(|(a, b)| *a != b), "guidance changes nothing");
    assert!(lines("a").iter().all(|v| v.is_finite()));
    let adapters = tensors(&dir.path("a/lora/pytorch_lora_weights.safetensors"));
    assert!(adapters.keys().any(|name| name.starts_with("transformer.single_transformer_blocks.")));
}
