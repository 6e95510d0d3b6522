//! What `sample` and `train` refuse of a flow, and what they say.

use super::*;

#[test]
fn what_a_flow_does_not_have_is_refused() {
    let dir = with_prompts();
    let (sd3, flux) = (small("sd3").display().to_string(), small("flux").display().to_string());
    let ddpm = oracle("base").display().to_string();
    for (rest, parts) in [
        (format!("--base {sd3} --scheduler ddim"), &["ddim", "flow-heun", "scheduler_config.json"][..]),
        (format!("--base {sd3} --karras"), &["Karras"]),
        (format!("--base {sd3} --spacing trailing"), &["spacing"]),
        (format!("--base {ddpm} --scheduler flow"), &["flow", "DDPM"]),
        (format!("--base {sd3} --height 14 --width 16"), &["--height 14", "4"]),
        (format!("--base {sd3} --height 64 --width 64"), &["32 x 32", "7 x 7"]),
        (format!("--base {sd3} --time-ids 8,8,0,0,8,8"), &["--time-ids", "SDXL"]),
        (format!("--base {flux} --negative blurry"), &["--negative"]),
    ] {
        says(&sample(&dir, &format!("{rest} -o out")).fails(2), parts);
    }
    // The noise of a flow is a transformer's.
    copy(&oracle("base"), &dir.path("base"));
    std::fs::copy(small("sd3/scheduler/scheduler_config.json"), dir.path("base/scheduler/scheduler_config.json"))
        .unwrap();
    says(&sample(&dir, "--base base -o out").fails(2), &["FlowMatchEulerDiscreteScheduler", "base"]);
    for (file, key, value, parts) in [
        ("transformer/config.json", "patch_size", "4", &["patch_size", "4"][..]),
        ("transformer/config.json", "qk_norm", "\"layer_norm\"", &["qk_norm", "layer_norm"]),
        ("transformer/config.json", "_class_name", "\"PixArtTransformer2DModel\"", &["PixArtTransformer2DModel"]),
        ("transformer/config.json", "dual_attention_layers", "[5]", &["dual_attention_layers", "5"]),
        ("scheduler/scheduler_config.json", "use_karras_sigmas", "true", &["use_karras_sigmas"]),
        ("scheduler/scheduler_config.json", "shift_terminal", "0.1", &["shift_terminal", "0.1"]),
        ("text_encoder_3/config.json", "feed_forward_proj", "\"relu\"", &["feed_forward_proj", "relu"]),
    ] {
        let _ = std::fs::remove_dir_all(dir.path("changed"));
        copy(&small("sd3"), &dir.path("changed"));
        let path = dir.path("changed").join(file);
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = serde_json::from_str(value).unwrap();
        std::fs::write(&path, config.to_string()).unwrap();
        says(&sample(&dir, "--base changed -o out --height 12 --width 12").fails(2), parts);
    }
}

#[test]
fn flags_of_a_flow_are_for_flows() {
    let dir = world("sd3");
    for (rest, parts) in [
        ("--timesteps turbo", &["--timesteps turbo", "--weighting-scheme"][..]),
        ("--error epsilon", &["--error epsilon", "one-minus-sigma-sq"]),
        ("--weighting-scheme none --logit-mean 1", &["--logit-mean", "logit_normal", "none"]),
        ("--guidance-scale 3", &["--guidance-scale", "FLUX"]),
        ("--resolution 14", &["--resolution"]),
    ] {
        let data = if rest.contains("resolution") { "pairs.parquet --labels labels.parquet" } else { DATA };
        says(&train(&dir, "x", &format!("{data} --steps 1 {rest}")).fails(2), parts);
    }
    let base = oracle("base").display().to_string();
    for flag in ["--flow-weight constant", "--weighting-scheme mode", "--logit-std 2"] {
        let rest = format!("pairs.parquet --labels labels.parquet --resolution 16 --steps 1 --base {base} {flag}");
        says(&train(&dir, "x", &rest).fails(2), &[flag.split(' ').next().unwrap(), "DDPM"]);
    }
    // The scheme and its numbers decide which times are drawn, and stand in the origin.
    for scheme in ["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"] {
        train(&dir, scheme, &format!("{DATA} --steps 1 --weighting-scheme {scheme}")).ok();
        let file = dir.path(scheme).join("transformer/diffusion_pytorch_model.safetensors");
        let origin = nets::weights::metadata(&file).unwrap()["origin"].clone();
        says(&origin, &[&format!("\"weighting_scheme\":\"{scheme}\""), "\"flow_weight\":\"constant\""]);
    }
}

/// A run that no memory holds is refused before it is loaded: a file with a hole of a terabyte stands for its weights.
#[test]
fn a_dry_run_says_what_is_too_much() {
    let dir = world("sd3");
    copy(&small("sd3"), &dir.path("huge"));
    let n = 1u64 << 38;
    let header = format!(r#"{{"x":{{"dtype":"F32","shape":[{n}],"data_offsets":[0,{}]}}}}"#, 4 * n);
    let file = dir.path("huge/transformer/diffusion_pytorch_model.safetensors");
    std::fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let whole = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    whole.set_len(8 + header.len() as u64 + 4 * n).unwrap();
    let said = train(&dir, "x", &format!("{DATA} --base huge --steps 2 --dry-run")).fails(2);
    says(&said, &["274877906944 weights", "4096.0 GiB", "moments 2048.0 GiB", "--lora-rank", "--use-adafactor"]);
    assert!(!dir.path("x").exists());
    let said = train(&dir, "x", &format!("{DATA} --base huge --steps 2 --dry-run --use-adafactor")).fails(2);
    says(&said, &["2048.0 GiB", "moments 0.0 GiB"]);
}
