//! Odd model folders, through the binaries: keys of configurations that are obeyed or refused, numbers out of bounds, files that
//! are not what their names say.
#![cfg(feature = "nets")]

mod util;

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::{Value, json};
use util::{world::*, *};

/// A base in which some keys of a configuration are changed; `null` removes a key.
fn base_with(dir: &Dir, file: &str, changes: &Value) -> PathBuf {
    let base = dir.path("changed");
    let _ = std::fs::remove_dir_all(&base);
    copy(&oracle("base"), &base);
    change(&base.join(file), changes);
    base
}

fn change(file: &Path, changes: &Value) {
    let mut config: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
            value => config[key] = value.clone(),
        }
    }
    std::fs::write(file, config.to_string()).unwrap();
}

fn sample(dir: &Dir, base: &Path, rest: &str) -> Tool {
    dir.write("p.txt", "a red bicycle\n");
    let args = ["p.txt", "-o", "out", "-q", "--steps", "4", "--dump-latents", "final", "--base"];
    dir.tool("sample").args(args).args([base]).args(rest.split_whitespace())
}

fn latents(dir: &Dir, base: &Path, rest: &str) -> Tensor {
    sample(dir, base, rest).ok();
    tensors(&dir.path("final"))["latents"].clone()
}

#[test]
fn schedulers_of_2022_are_repaired_as_by_diffusers() {
    let dir = Dir::new();
    let file = "scheduler/scheduler_config.json";
    let whole = json!({ "_class_name": "DDIMScheduler", "clip_sample": false, "steps_offset": 1 });
    let right = latents(&dir, &base_with(&dir, file, &whole), "");
    let pndm = latents(&dir, &base_with(&dir, file, &whole), "--scheduler pndm");
    for (changes, repaired) in [
        (json!({ "clip_sample": true }), "clip_sample"),
        (json!({ "clip_sample": null }), "clip_sample"),
        (json!({ "clip_sample": null, "steps_offset": null }), "steps_offset"),
        (json!({ "steps_offset": 0 }), "steps_offset"),
    ] {
        let base = base_with(&dir, file, &whole);
        change(&base.join(file), &changes);
        assert!(max_abs(&latents(&dir, &base, ""), &right) < 1e-6, "{changes}");
        assert!(max_abs(&latents(&dir, &base, "--scheduler pndm"), &pndm) < 1e-6, "{changes}");
        says(&sample(&dir, &base, "").run().err, &["warning: ", "scheduler_config.json", repaired]);
    }
}

#[test]
fn a_key_that_is_not_obeyed_is_refused_by_name() {
    let dir = Dir::new();
    let (unet, vae, text, scheduler) =
        ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json");
    for (file, key, value, rest) in [
        (unet, "time_cond_proj_dim", json!(32), ""),
        (unet, "timestep_post_act", json!("silu"), ""),
        (unet, "resnet_skip_time_act", json!(true), ""),
        (unet, "only_cross_attention", json!([true, false]), ""),
        (unet, "mid_block_scale_factor", json!(2), ""),
        (unet, "downsample_padding", json!(0), ""),
        (unet, "downsample_padding", json!(1_000_000_000), ""),
        (unet, "dropout", json!(0.1), ""),
        (unet, "encoder_hid_dim_type", json!("text_proj"), ""),
        (unet, "attention_type", json!("gated"), ""),
        (unet, "layers_per_block", json!(1_000_000_000), ""),
        (unet, "layers_per_block", json!([1, 2]), ""),
        (unet, "transformer_layers_per_block", json!(1_000_000_000), ""),
        (unet, "sample_size", json!(2_147_483_648_u64), ""),
        (unet, "sample_size", json!(0), ""),
        (unet, "norm_eps", json!(-1), ""),
        (unet, "out_channels", json!(8), ""),
        (unet, "in_channels", json!(9), ""),
        (unet, "time_embedding_dim", json!(1), ""),
        (vae, "mid_block_add_attention", json!(false), ""),
        (vae, "act_fn", json!("gelu"), ""),
        (vae, "scaling_factor", json!(0), ""),
        (vae, "out_channels", json!(4), ""),
        (vae, "layers_per_block", json!(1_000_000_000), ""),
        (text, "hidden_act", json!("relu"), ""),
        (text, "num_hidden_layers", json!(1_000_000_000), ""),
        (text, "model_type", json!("t5"), ""),
        (text, "quantization_config", json!({ "bits": 4 }), ""),
        (scheduler, "num_train_timesteps", json!(1_000_000_000), ""),
        (scheduler, "beta_end", json!(1.5), ""),
        (scheduler, "prediction_type", json!("sample"), ""),
        (scheduler, "beta_schedule", json!("squaredcos_cap_v2"), ""),
        (scheduler, "thresholding", json!(true), ""),
        (scheduler, "lambda_min_clipped", json!(-5.1), "--scheduler dpmpp"),
        (scheduler, "solver_order", json!(3), "--scheduler dpmpp"),
        (scheduler, "sigma_max", json!(10), "--scheduler euler"),
        (scheduler, "variance_type", json!("learned"), ""),
    ] {
        let base = base_with(&dir, file, &json!({ key: value }));
        let error = sample(&dir, &base, rest).fails(2);
        let shown = if value.is_array() { value.to_string() } else { value.to_string().trim_matches('"').to_owned() };
        says(&error, &[file.rsplit('/').next().unwrap(), key, &shown]);
        assert!(!dir.path("out").exists() && !dir.path("out.partial").exists(), "{key}");
    }
    let flow = json!({ "_class_name": "FlowMatchEulerDiscreteScheduler" });
    says(&sample(&dir, &base_with(&dir, scheduler, &flow), "").fails(2), &["FlowMatchEulerDiscreteScheduler"]);
}

#[test]
fn neutral_keys_pass_and_unknown_ones_are_warned_of() {
    let dir = Dir::new();
    let right = latents(&dir, &oracle("base"), "");
    let base = base_with(
        &dir,
        "unet/config.json",
        &json!({ "dropout": 0.0, "mid_block_scale_factor": 1.0, "only_cross_attention": [false, false], "sample_size": [8, 8],
            "upcast_attention": true, "_name_or_path": "x", "conv_in_kernel": 3, "a_key_of_the_future": [1] }),
    );
    let keys = json!({ "transformers_version": "5.0.0", "dtype": "float16", "attention_dropout": 0.1, "top_k": 50 });
    change(&base.join("text_encoder/config.json"), &keys);
    change(&base.join("vae/config.json"), &json!({ "sample_size": 512, "mid_block_add_attention": true }));
    change(
        &base.join("scheduler/scheduler_config.json"),
        &json!({ "solver_type": "bh2", "variance_type": "fixed_small" }),
    );
    let run = sample(&dir, &base, "").run();
    says(&run.err, &["warning: ", "unet/config.json", "a_key_of_the_future", "[1]"]);
    assert_eq!(run.err.lines().count(), 1, "{}", run.err);
    assert_eq!(max_abs(&tensors(&dir.path("final"))["latents"], &right), 0.0);
}

/// transformers 5 writes `processor_config.json` and reads it first.
#[test]
fn a_scorers_preprocessing_is_done_or_refused() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &read_parquet(&mini().join("../pairs.parquet")).slice(0, 2));
    let (old, new) = ("model/preprocessor_config.json", "model/processor_config.json");
    let score = |changes: &[(&str, Value)]| {
        let _ = std::fs::remove_dir_all(dir.path("model"));
        copy(&mini().join("../scorers/clip"), &dir.path("model"));
        for (file, config) in changes {
            dir.write(file, config.to_string());
        }
        let rest = ["score", "pairs.parquet", "--metrics", "pickscore", "--model", "pickscore=model", "-o", "o", "-q"];
        dir.tool(rest[0]).args(&rest[1..])
    };
    let scores = |changes: &[(&str, Value)]| {
        score(changes).ok();
        let scores = column_f32(&dir.get("o"), "pickscore_0");
        std::fs::remove_file(dir.path("o")).unwrap();
        scores
    };
    let half = json!({ "size": 64, "crop_size": 64, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5] });
    let nested = json!({ "processor_class": "CLIPProcessor", "image_processor": {
        "size": { "shortest_edge": 64 }, "crop_size": { "height": 64, "width": 64 }, "resample": 3,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_processor_type": "CLIPImageProcessor" } });
    let usual = scores(&[]);
    assert_ne!(scores(&[(old, half.clone())]), usual);
    assert_eq!(scores(&[(new, nested.clone())]), scores(&[(old, half)]));
    for (key, value) in [
        ("resample", json!(2)),
        ("do_center_crop", json!(false)),
        ("rescale_factor", json!(1)),
        ("image_std", json!([0, 1, 1])),
        ("size", json!({ "height": 64, "width": 64 })),
        ("crop_size", json!(1_000_000_000)),
        ("image_processor_type", json!("SiglipImageProcessor")),
    ] {
        let mut config = nested.clone();
        config["image_processor"][key] = value;
        says(&score(&[(new, config)]).fails(2), &["processor_config.json", key]);
    }
    for (key, value) in [
        ("patch_size", json!(0)),
        ("patch_size", json!(65)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_channels", json!(4)),
    ] {
        let file = mini().join("../scorers/clip/config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        config["vision_config"][key] = value;
        says(&score(&[("model/config.json", config)]).fails(2), &[key]);
    }
}

#[test]
fn weights_have_variants_and_what_is_none_is_named() {
    let dir = Dir::new();
    let right = latents(&dir, &oracle("base"), "");
    let base = dir.path("changed");
    copy(&oracle("base"), &base);
    let unet = base.join("unet");
    let whole = unet.join("diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&whole).unwrap();
    let list = |file: &str| json!({ "weight_map": { "a": file } }).to_string();
    // Names of variants, whole and in shards; a content other than the name says.
    for (name, index) in [
        ("diffusion_pytorch_model.fp16.safetensors", ""),
        ("diffusion_pytorch_model.bf16.safetensors", ""),
        ("diffusion_pytorch_model.bin", ""),
        (
            "diffusion_pytorch_model.bf16-00001-of-00001.safetensors",
            "diffusion_pytorch_model.safetensors.index.bf16.json",
        ),
    ] {
        std::fs::remove_file(&whole).ok();
        std::fs::write(unet.join(name), &bytes).unwrap();
        if !index.is_empty() {
            std::fs::write(unet.join(index), list(name)).unwrap();
        }
        assert_eq!(max_abs(&latents(&dir, &base, ""), &right), 0.0, "{name}");
        std::fs::remove_file(unet.join(name)).unwrap();
        let _ = std::fs::remove_file(unet.join(index));
    }
    std::fs::write(unet.join("diffusion_pytorch_model.non_ema.safetensors"), &bytes).unwrap();
    says(&sample(&dir, &base, "").fails(2), &["diffusion_pytorch_model.non_ema.safetensors"]);
    std::fs::remove_file(unet.join("diffusion_pytorch_model.non_ema.safetensors")).unwrap();
    for name in ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"] {
        for (content, what) in [
            ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
            ("/annex/objects/SHA256E-s1--0\n", "git-annex"),
            ("<!DOCTYPE html>\n<html>", "web page"),
            ("GGUF\x03\0\0\0", "GGUF"),
        ] {
            std::fs::write(unet.join(name), content).unwrap();
            says(&sample(&dir, &base, "").fails(2), &[name, what]);
        }
        std::fs::remove_file(unet.join(name)).unwrap();
    }
    // An index leads to no file outside its folder.
    std::fs::write(base.join("away.safetensors"), &bytes).unwrap();
    for file in ["../away.safetensors", &base.join("away.safetensors").display().to_string()] {
        std::fs::write(unet.join("diffusion_pytorch_model.safetensors.index.json"), list(file)).unwrap();
        says(&sample(&dir, &base, "").fails(2), &["index.json", "away.safetensors", "its folder"]);
    }
    // A model in one file, and the weight file of a folder.
    says(&sample(&dir, &base.join("away.safetensors"), "").fails(2), &["away.safetensors", "name the folder"]);
    let file = oracle("policy").join("unet/diffusion_pytorch_model.safetensors");
    let policy = latents(&dir, &oracle("base"), &format!("--unet {}", oracle("policy").display()));
    let rest = format!("--unet {}", file.display());
    assert_eq!(max_abs(&latents(&dir, &oracle("base"), &rest), &policy), 0.0);
}

#[test]
fn a_unet_with_more_tensors_than_its_configuration_is_refused() {
    let dir = Dir::new();
    let base = base_with(&dir, "unet/config.json", &json!({}));
    let mut all = weights(&base);
    all.insert("time_embedding.cond_proj.weight".into(), all["conv_in.weight"].clone());
    write_tensors(&base.join("unet/diffusion_pytorch_model.safetensors"), &all);
    says(&sample(&dir, &base, "").fails(2), &["time_embedding.cond_proj.weight", "config"]);
}

#[test]
fn absurd_sizes_and_noise_that_is_none_are_refused() {
    let dir = Dir::new();
    let base = oracle("base");
    says(&sample(&dir, &base, "--height 4294967296").fails(2), &["--height 4294967296", "pixels"]);
    says(&sample(&dir, &base, "--width 1048576 --height 1048576").fails(2), &["--width 1048576", "pixels"]);
    let noise = latents(&dir, &base, "");
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = values(&noise);
        values[3] = bad;
        let noise = Tensor::from_vec(values, noise.dims(), noise.device()).unwrap();
        write_tensors(&dir.path("noise"), &[("latents".into(), noise)].into());
        std::fs::remove_file(dir.path("out")).ok();
        says(&sample(&dir, &base, "--latents noise").fails(2), &["noise", "latents", "value 3"]);
        assert!(!dir.path("out").exists());
    }
    dir.put("pairs", &pairs(2));
    let args = ["pairs", "-o", "cache", "--resolution", "4294967296", "--base"];
    says(&dir.tool("encode").args(args).args([&base]).fails(2), &["--resolution 4294967296"]);
}
