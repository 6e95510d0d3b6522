//! The models, pictures and gradients of the parity kit.

use nets::{tokenizer::unigram::Unigram, vae::Vae};

use super::*;

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
