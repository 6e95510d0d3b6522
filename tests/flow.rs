//! Stable Diffusion 3, 3.5 and FLUX: transformers that follow a flow, against diffusers, transformers and peft.
#![cfg(feature = "nets")]

mod util;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use nets::{
    conditioning::Conditioning, denoiser::Denoiser, prompt::PromptEncoder, tokenizer::unigram::Unigram, vae::Vae,
};
use serde_json::Value;
use util::{world::*, *};

fn kit(name: &str) -> std::path::PathBuf {
    parity("expected/flow").join(name)
}

fn about() -> Value {
    // Python writes infinities, which JSON does not have.
    let text = std::fs::read_to_string(parity("expected/flow.json")).unwrap();
    serde_json::from_str(&text.replace("-Infinity", "0").replace("Infinity", "0").replace("NaN", "0")).unwrap()
}

fn model(name: &str) -> std::path::PathBuf {
    parity("models").join(name)
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn close(ours: &Tensor, theirs: &Tensor, tolerance: f32, what: &str) {
    let far = max_abs(ours, theirs);
    println!("{what}: {far:.1e}");
    assert!(far <= tolerance, "{what}: off by {far}");
}

fn encoder(name: &str) -> PromptEncoder {
    PromptEncoder::open(&model(name), DType::F32, &Device::Cpu).unwrap()
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn prompts_are_read_as_by_the_pipelines() {
    let (about, want) = (about(), tensors(&kit("text.safetensors")));
    let prompts = strings(&about["text"]["prompts"]);
    let t5 = Unigram::from_folder(&model("sd3/tokenizer_3")).unwrap();
    for row in about["text"]["t5_ids"].as_array().unwrap() {
        let ids: Vec<u32> = numbers(&row[1]).into_iter().map(|id| id as u32).collect();
        let ours = t5.encode(row[0].as_str().unwrap(), ids.len()).unwrap();
        assert_eq!(ours, ids, "{}", row[0]);
    }
    for (i, row) in want["sd3.t5_ids_256"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap().iter().enumerate() {
        assert_eq!(&t5.encode(&prompts[i], 256).unwrap(), row);
    }
    let sd3 = encoder("sd3").encode(&prompts).unwrap();
    close(&sd3.states, &want["sd3.prompt_embeds"], 5e-5, "sd3 states");
    close(&sd3.pooled.unwrap(), &want["sd3.pooled"], 5e-5, "sd3 pooled");
    let flux = encoder("flux");
    close(&flux.encode(&prompts[..2]).unwrap().states, &want["flux.prompt_embeds"], 5e-5, "flux states");
    close(&flux.encode(&prompts).unwrap().pooled.unwrap(), &want["flux.pooled"], 5e-5, "flux pooled");
    // Without T5 its rows are zeros.
    let dir = Dir::new();
    copy(&model("sd3"), &dir.path("sd3"));
    std::fs::remove_dir_all(dir.path("sd3/text_encoder_3")).unwrap();
    let short = PromptEncoder::open(&dir.path("sd3"), DType::F32, &Device::Cpu).unwrap().encode(&prompts).unwrap();
    let rows = |x: &Tensor, from: usize, n: usize| x.narrow(1, from, n).unwrap();
    assert_eq!(max_abs(&rows(&short.states, 0, 77), &rows(&sd3.states, 0, 77)), 0.0);
    assert_eq!(values(&rows(&short.states, 77, 256)), vec![0.0; values(&rows(&sd3.states, 77, 256)).len()]);
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn transformers_predict_as_diffusers() {
    let prompts = strings(&about()["forward"]["prompts"]);
    for name in ["sd3", "sd35", "flux"] {
        let want = tensors(&kit(&format!("forward_{name}.safetensors")));
        let transformer = Denoiser::open(&model(name).join("transformer"), DType::F32, &Device::Cpu).unwrap();
        let text = encoder(name).encode(&prompts).unwrap();
        for case in 0.. {
            let Some(sample) = want.get(&format!("{case}.sample")) else { break };
            let b = sample.dim(0).unwrap();
            let first = |x: &Tensor| x.narrow(0, 0, b).unwrap();
            let t = values(&want[&format!("{case}.timestep")]);
            let guidance = want.get(&format!("{case}.guidance")).map(values).unwrap_or_default();
            let conditioning = Conditioning {
                guidance,
                ..Conditioning::of_text(first(&text.states), text.pooled.as_ref().map(first))
            };
            let out = transformer.predict(sample, &t, &conditioning).unwrap();
            close(&out, &want[&format!("{case}.out")], 2e-5, &format!("{name} {case}"));
        }
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn vaes_of_sixteen_channels() {
    for name in ["sd3", "flux"] {
        let want = tensors(&kit(&format!("vae_{name}.safetensors")));
        let vae = Vae::open(&model(name).join("vae"), DType::F32, &Device::Cpu).unwrap();
        let posterior = vae.encode(&want["pixels"]).unwrap();
        close(&posterior.mean, &want["mean"], 5e-5, "mean");
        close(&posterior.logvar, &want["logvar"], 5e-5, "logvar");
        close(&vae.to_latents(&posterior.sample(&want["eps"]).unwrap()).unwrap(), &want["latents"], 5e-5, "latents");
        close(&vae.decode(&want["latents"]).unwrap(), &want["decoded"], 5e-5, "decoded");
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn samplers_end_where_the_pipelines_end() {
    let (about, dir) = (about(), Dir::new());
    let noise = tensors(&kit("sample_noise.safetensors"));
    write_tensors(&dir.path("noise"), &[("latents".into(), noise.values().next().unwrap().clone())].into());
    for (case, settings) in about["sample"].as_object().unwrap() {
        let (name, what) = case.split_once('_').unwrap();
        let base = dir.path(name);
        let _ = std::fs::remove_dir_all(&base);
        copy(&model(name), &base);
        if what == "not5" {
            std::fs::remove_dir_all(base.join("text_encoder_3")).unwrap();
        }
        let mut config = settings["config"].clone();
        config["_class_name"] = settings["scheduler"].clone();
        std::fs::write(base.join("scheduler/scheduler_config.json"), config.to_string()).unwrap();
        dir.write("prompts.json", settings["prompts"].to_string());
        let (steps, guidance) = (settings["steps"].to_string(), settings["guidance"].to_string());
        let args =
            ["prompts.json", "-o", "out.parquet", "-q", "--base", name, "--steps", &steps, "--guidance", &guidance];
        let _ = std::fs::remove_file(dir.path("out.parquet"));
        dir.tool("sample").args(args).args(["--latents", "noise", "--dump-latents", "final"]).ok();
        let want = tensors(&kit(&format!("sample_{case}.safetensors")));
        close(&tensors(&dir.path("final"))["latents"], &want["latents"], 1e-3, case);
    }
}

/// Trains one step of the kit's replay file. Returns the line of the log and the gradients.
fn step(dir: &Dir, name: &str, rest: &str) -> (Value, Tensors) {
    let (base, replay) = (model(name), parity(&format!("replay_dpo_{name}.safetensors")));
    let _ = std::fs::remove_dir_all(dir.path("out"));
    let args = ["-o", "out", "-q", "--steps", "1", "--lr", "1e-9", "--dump-gradients", "g"];
    let train = dir.tool("train").args(args).arg("--base").arg(base).arg("--replay").arg(replay);
    train.args(rest.split_whitespace()).ok();
    (log(&dir.path("out")).remove(0), tensors(&dir.path("g")))
}

/// Compares every gradient to 2e-3 of its length, except those that are rounding alone.
#[track_caller]
fn same_gradients(ours: &Tensors, theirs: &Tensors) {
    let largest = theirs.values().flat_map(values).fold(0.0, |m: f32, v| m.max(v.abs()));
    let sizeable = theirs.iter().filter(|(_, t)| values(t).iter().any(|v| v.abs() > 1e-6 * largest));
    let (worst, name) = sizeable.map(|(n, t)| (relative(&ours[n], t), n)).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!("worst gradient {worst:.1e} {name}");
    assert!(worst < 2e-3, "{name} is off by {worst}");
}

fn check_case(case: &Value, line: &Value) {
    let beta = case["beta"].as_f64().unwrap();
    near(line["loss"].as_f64().unwrap(), case["loss"].as_f64().unwrap(), 1e-6 * beta);
    for (z, theirs) in numbers(&line["z"]).iter().zip(numbers(&case["inside"])) {
        near(*z, theirs, 1.5e-6 * beta);
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn dpo_gives_the_gradients_of_the_peers() {
    let (about, dir) = (about(), Dir::new());
    for name in ["sd3", "sd35", "flux"] {
        let about = &about["dpo"]["models"][name];
        let policy = about["policy"].as_str();
        for case in about["cases"].as_array().unwrap() {
            let policy = parity(policy.unwrap()).display().to_string();
            let weight = case["weight"].as_str().unwrap();
            for extra in ["", "--gradient-checkpointing", "--reference-weights file"] {
                let rest = format!("--policy {policy} --beta {} --flow-weight {weight} {extra}", case["beta"]);
                let (line, gradients) = step(&dir, name, &rest);
                check_case(case, &line);
                if case["beta"] != 1000.0 {
                    continue;
                }
                let middle = if weight == "constant" { "" } else { "_w" };
                let theirs = tensors(&kit(&format!("dpo_{name}{middle}_grads.safetensors")));
                if middle.is_empty() {
                    assert!(gradients.keys().eq(theirs.keys()), "other tensors");
                }
                same_gradients(&gradients, &theirs);
            }
        }
        let targets = strings(&about["target_modules"]).join(",");
        let adapter = parity(about["adapter"].as_str().unwrap()).display().to_string();
        for case in about["lora_cases"].as_array().unwrap() {
            let weight = case["weight"].as_str().unwrap();
            for extra in ["", "--gradient-checkpointing=off"] {
                let rest = format!(
                    "--policy {adapter} --lora-rank {} --lora-alpha {} --lora-targets {targets} --beta {} --flow-weight {weight} {extra}",
                    about["rank"], about["alpha"], case["beta"]
                );
                let (line, gradients) = step(&dir, name, &rest);
                check_case(case, &line);
                if case["beta"] != 1000.0 {
                    continue;
                }
                let middle = if weight == "constant" { "" } else { "_w" };
                let theirs = under(&tensors(&kit(&format!("lora_{name}{middle}_grads.safetensors"))), "transformer.");
                if middle.is_empty() {
                    assert!(gradients.keys().eq(theirs.keys()), "other tensors");
                }
                same_gradients(&gradients, &theirs);
            }
        }
    }
}

// What tests/oracle/flow.py made, which the repository carries.

fn small(name: &str) -> std::path::PathBuf {
    fixture("flow").join(name)
}

fn expected() -> (Tensors, Value) {
    let json = std::fs::read(small("expected.json")).unwrap();
    (tensors(&small("expected.safetensors")), serde_json::from_slice(&json).unwrap())
}

fn read_prompts(name: &str) -> Conditioning {
    let prompts = strings(&expected().1["prompts"]);
    PromptEncoder::open(&small(name), DType::F32, &Device::Cpu).unwrap().encode(&prompts).unwrap()
}

#[test]
fn small_transformers_and_their_text() {
    let (want, _) = expected();
    for (name, guidance) in [("sd3", vec![]), ("flux", vec![2.5; 3])] {
        let text = read_prompts(name);
        close(&text.states.narrow(1, 0, 40).unwrap(), &want[&format!("{name}.states")], 5e-5, "states");
        close(text.pooled.as_ref().unwrap(), &want[&format!("{name}.pooled")], 5e-5, "pooled");
        let transformer = Denoiser::open(&small(name).join("transformer"), DType::F32, &Device::Cpu).unwrap();
        let at = |what: &str| want[&format!("{name}.{what}")].clone();
        let conditioning = Conditioning { guidance, ..text };
        let out = transformer.predict(&at("sample"), &values(&at("timestep")), &conditioning).unwrap();
        close(&out, &at("out"), 2e-5, name);
        // An image does not depend on the others of its batch, to the bit.
        let one = |x: &Tensor| x.narrow(0, 1, 1).unwrap().contiguous().unwrap();
        let alone = Conditioning {
            states: one(&conditioning.states),
            pooled: conditioning.pooled.as_ref().map(one),
            sizes: vec![],
            guidance: conditioning.guidance[..conditioning.guidance.len().min(1)].to_vec(),
        };
        let alone = transformer.predict(&one(&at("sample")), &values(&at("timestep"))[1..2], &alone).unwrap();
        assert_eq!(max_abs(&alone, &one(&out)), 0.0);
    }
}

/// `sample` with the small models.
fn sample(dir: &Dir, rest: &str) -> Tool {
    dir.tool("sample").args(["prompts.txt", "-q", "--steps", "4"]).args(rest.split_whitespace())
}

fn with_prompts() -> Dir {
    let dir = Dir::new();
    let prompts = strings(&expected().1["prompts"]);
    dir.write("prompts.txt", prompts[..2].join("\n"));
    dir
}

#[test]
fn small_models_draw_what_the_pipelines_draw() {
    let ((want, _), dir) = (expected(), with_prompts());
    for (name, scheduler, end) in
        [("sd3", "", "latents"), ("sd3", "--scheduler flow-heun", "heun"), ("flux", "--scheduler flow", "latents")]
    {
        let noise = want[&format!("{name}.noise")].clone();
        write_tensors(&dir.path("noise"), &[("latents".into(), noise)].into());
        let base = small(name).display().to_string();
        let rest = format!("--base {base} -o out --latents noise --dump-latents final --guidance 3 {scheduler}");
        let _ = std::fs::remove_file(dir.path("out"));
        sample(&dir, &rest).ok();
        close(&tensors(&dir.path("final"))["latents"], &want[&format!("{name}.{end}")], 1e-4, &format!("{name} {end}"));
    }
}

/// The one file of a model draws what its folder draws: with the folder's other networks, as a policy, and with text encoders of its
/// own where the folder has configurations alone.
#[test]
fn transformers_in_one_file_have_their_first_names() {
    let dir = with_prompts();
    for (name, parts, some) in [
        (
            "sd3",
            &["transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"][..],
            [
                "model.diffusion_model.joint_blocks.0.x_block.attn2.qkv.weight",
                "first_stage_model.encoder.conv_in.weight",
            ],
        ),
        (
            "flux",
            &["transformer", "text_encoder", "text_encoder_2"],
            ["double_blocks.0.img_attn.norm.query_norm.scale", "single_blocks.0.linear1.weight"],
        ),
    ] {
        let base = small(name).display().to_string();
        dir.tool("refresh-ref").args(["--policy", &base, "--reference", &base, "-q", "-o", "one.safetensors"]).ok();
        let mut all = tensors(&dir.path("one.safetensors"));
        for tensor in some {
            assert!(all.contains_key(tensor), "{name}: {tensor} is missing");
        }
        let draw = |rest: &str| {
            let _ = std::fs::remove_file(dir.path("out"));
            sample(&dir, &format!("{rest} -o out --dump-latents final")).ok();
            tensors(&dir.path("final"))["latents"].clone()
        };
        let want = draw(&format!("--base {base}"));
        let same = |rest: &str| assert_eq!(max_abs(&draw(rest), &want), 0.0, "{name}: {rest}");
        same(&format!("--base one.safetensors --base-config {base}"));
        same(&format!("--base {base} --unet one.safetensors"));

        // Everything in the file. T5 is the last of the encoders.
        copy(&small(name), &dir.path("described"));
        for part in parts {
            let (at, first) = (dir.path("described").join(part), part.starts_with("text_encoder"));
            let weights = if first { "model.safetensors" } else { "diffusion_pytorch_model.safetensors" };
            if first {
                let encoder = match *part {
                    "text_encoder" => "clip_l",
                    "text_encoder_2" if name == "sd3" => "clip_g",
                    _ => "t5xxl",
                };
                let named = tensors(&at.join(weights)).into_iter();
                all.extend(named.map(|(n, t)| (format!("text_encoders.{encoder}.transformer.{n}"), t)));
            }
            std::fs::remove_file(at.join(weights)).unwrap();
        }
        write_tensors(&dir.path("all.safetensors"), &all);
        same("--base all.safetensors --base-config described");
        std::fs::remove_dir_all(dir.path("described")).unwrap();
    }
    let line = sample(&dir, "--base one.safetensors -o out2").fails(2);
    says(&line, &["one.safetensors", "config.json", "--base-config"]);
}

#[test]
fn pictures_do_not_depend_on_batch_threads_or_shards() {
    let dir = with_prompts();
    for name in ["sd3", "flux"] {
        let base = small(name).display().to_string();
        let size = "--height 16 --width 12 -n 3";
        let draw = |out: &str, rest: &str| sample(&dir, &format!("--base {base} -o {out} {size} {rest}")).ok();
        draw("whole", "--threads 2");
        draw("other", "--threads 1 --batch 1");
        draw("parts", "--shard 0/2");
        draw("parts", "--shard 1/2 --batch 2");
        let images = |name: &str| tree_of(&dir, name);
        assert_eq!(images("whole"), images("other"), "{name}");
        assert_eq!(images("whole"), images("parts"), "{name}");
        for made in ["whole", "other"] {
            std::fs::remove_file(dir.path(made)).unwrap();
        }
        std::fs::remove_dir_all(dir.path("parts")).unwrap();
    }
}

/// The pictures of a table.
fn tree_of(dir: &Dir, name: &str) -> Vec<Vec<u8>> {
    use arrow::array::AsArray;
    let table = dir.get(name);
    let images = column(&table, "image").as_binary::<i32>();
    images.iter().map(|image| image.unwrap().to_vec()).collect()
}

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

// Training.

fn train(dir: &Dir, out: &str, rest: &str) -> Tool {
    if !rest.contains("--resume") {
        let _ = std::fs::remove_dir_all(dir.path(out));
    }
    let base = small("sd3").display().to_string();
    let mut args = vec!["-o", out, "-q", "--lr_scheduler", "constant", "--checkpointing_steps", "0"];
    args.extend(["--base", &base].into_iter().filter(|_| !rest.contains("--base")));
    dir.tool("train").args(rest.split_whitespace()).args(args)
}

/// 24 pairs of the mini world at 16 pixels, their labels and a cache of `encode`.
fn world(name: &str) -> Dir {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(24));
    dir.put("labels.parquet", &labels(&pairs(24), some));
    let args = ["pairs.parquet", "-o", "cache", "--resolution", "16", "-q"];
    dir.tool("encode").args(args).arg("--base").arg(small(name)).ok();
    dir
}

const DATA: &str = "cache --labels labels.parquet --resolution 16 --train_batch_size 4";

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
