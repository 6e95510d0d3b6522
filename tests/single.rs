//! Models in one file, through the binaries: read as they are, written from a policy, and the same tensors on both ways.
#![cfg(feature = "nets")]

mod util;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use util::{world::*, *};

/// The final latents of two prompts.
fn latents(dir: &Dir, rest: &[&str]) -> Tensor {
    dir.write("p.txt", "fox, flat style\na red bicycle\n");
    dir.tool("sample").args(["p.txt", "-o", "out", "-q", "--steps", "3", "--dump-latents", "final"]).args(rest).ok();
    tensors(&dir.path("final"))["latents"].clone()
}

fn metadata(file: &Path) -> std::collections::HashMap<String, String> {
    nets::weights::metadata(file).unwrap()
}

#[test]
fn a_policy_becomes_one_file_that_draws_and_trains_as_its_folder_does() {
    let dir = Dir::new();
    let base = mini().display().to_string();
    dir.tool("refresh-ref").args(["--policy", &base, "--reference", &base, "-o", "one.safetensors"]).ok();
    let file = dir.path("one.safetensors");
    let all = tensors(&file);
    for name in [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ] {
        assert!(all.contains_key(name), "{name}");
    }
    assert_eq!(all["first_stage_model.encoder.mid.attn_1.q.weight"].rank(), 4);
    let said = metadata(&file);
    for (key, value) in [
        ("sai_model_spec", "1.0.1"),
        ("architecture", "stable-diffusion-v1"),
        ("implementation", "https://github.com/Stability-AI/generative-models"),
        ("title", "one"),
        ("resolution", "64x64"),
        ("prediction_type", "epsilon"),
    ] {
        assert_eq!(said[&format!("modelspec.{key}")], value);
    }

    let one = ["--base", "one.safetensors", "--base-config", &base];
    std::fs::create_dir(dir.path("tmp")).unwrap();
    let folder = latents(&dir, &["--base", &base]);
    let drawn = latents(&dir, &one);
    assert_eq!(max_abs(&drawn, &folder), 0.0);
    assert_eq!(column_text(&dir.get("out"), "model")[0], "one", "the name of the file is the model's");
    assert_eq!(max_abs(&latents(&dir, &["--base", &base, "--unet", "one.safetensors"]), &folder), 0.0);
    let mut sample = dir.tool("sample").args(["p.txt", "-o", "again", "-q", "--steps", "1"]).args(one);
    sample.command.env("TMPDIR", dir.path("tmp"));
    sample.ok();
    assert_eq!(std::fs::read_dir(dir.path("tmp")).unwrap().count(), 0, "nothing is left behind");

    // One file -> diffusers' folder -> one file.
    let policy = ["--policy", "one.safetensors", "--reference", "one.safetensors", "--base-config", &base];
    dir.tool("refresh-ref").args(policy).args(["-o", "unpacked"]).ok();
    assert_same(&weights(&dir.path("unpacked")), &weights(&mini()));
    let back =
        ["--policy", "unpacked", "--reference", "one.safetensors", "--base-config", &base, "-o", "back.safetensors"];
    dir.tool("refresh-ref").args(back).ok();
    assert_same(&tensors(&dir.path("back.safetensors")), &all);
    // Half precision for all.
    dir.tool("refresh-ref").args(policy).args(["-o", "half.safetensors", "--save-dtype", "f16"]).ok();
    assert!(tensors(&dir.path("half.safetensors")).values().all(|tensor| tensor.dtype() == DType::F16));

    // A tensor under both of its names: which one is meant?
    let mut twice = all.clone();
    let first = twice["model.diffusion_model.input_blocks.0.0.weight"].clone();
    twice.insert("model.diffusion_model.conv_in.weight".into(), first.zeros_like().unwrap());
    write_tensors(&dir.path("twice.safetensors"), &twice);
    let unpack = ["--policy", "twice.safetensors", "--reference", "one.safetensors", "--base-config", &base];
    let error = dir.tool("refresh-ref").args(unpack).args(["-o", "x"]).fails(2);
    says(&error, &["twice.safetensors", "'conv_in.weight' twice"]);

    let pairs = pairs(4);
    dir.put("pairs.parquet", &pairs);
    dir.put("labels.parquet", &labels(&pairs, |_| (1.0, 1.0)));
    let run = ["pairs.parquet", "--labels", "labels.parquet", "--max_train_steps", "1", "--train_batch_size", "2"];
    dir.tool("train").args(run).args(one).args(["-o", "from-file"]).ok();
    dir.tool("train").args(run).args(["--base", &base, "-o", "from-folder"]).ok();
    assert_same(&weights(&dir.path("from-file")), &weights(&dir.path("from-folder")));
    assert_eq!(dir.bytes("from-file/unet/config.json"), std::fs::read(mini().join("unet/config.json")).unwrap());
    dir.tool("encode").args(["pairs.parquet", "-o", "latents"]).args(one).ok();
}

/// As VAEs are published for themselves, without what their names begin with in a whole model.
#[test]
fn a_vae_in_a_file_of_its_own_takes_the_bases_place() {
    let dir = Dir::new();
    let (base, pairs) = (mini().display().to_string(), pairs(2));
    dir.tool("refresh-ref").args(["--policy", &base, "--reference", &base, "-o", "one.safetensors"]).ok();
    let all = tensors(&dir.path("one.safetensors"));
    let vae = under(&all, "first_stage_model.");
    assert!(vae.contains_key("decoder.up.0.block.0.norm1.weight"));
    write_tensors(&dir.path("vae.safetensors"), &vae);
    dir.put("pairs.parquet", &pairs);
    dir.put("labels.parquet", &labels(&pairs, |_| (1.0, 1.0)));
    let run = ["pairs.parquet", "--labels", "labels.parquet", "--base", &base, "--max_train_steps", "1"];
    dir.tool("train").args(run).args(["--train_batch_size", "2", "-o", "own"]).ok();
    dir.tool("train").args(run).args(["--train_batch_size", "2", "-o", "lone", "--vae", "vae.safetensors"]).ok();
    assert_same(&weights(&dir.path("own")), &weights(&dir.path("lone")));
}

#[test]
fn adapters_say_what_they_are_for() {
    let dir = Dir::new();
    let (base, pairs) = (mini().display().to_string(), pairs(2));
    dir.put("pairs.parquet", &pairs);
    dir.put("labels.parquet", &labels(&pairs, |_| (1.0, 1.0)));
    let run = ["pairs.parquet", "--labels", "labels.parquet", "--base", &base, "-o", "out", "--lora-rank", "2"];
    dir.tool("train").args(run).args(["--max_train_steps", "1", "--train_batch_size", "2"]).ok();
    for file in ["kohya.safetensors", "pytorch_lora_weights.safetensors"] {
        let said = metadata(&dir.path("out/lora").join(file));
        let expected = [
            ("modelspec.architecture", "stable-diffusion-v1/lora"),
            ("modelspec.implementation", "diffusers"),
            ("modelspec.prediction_type", "epsilon"),
            ("ss_network_module", "networks.lora"),
            ("ss_base_model_version", "sd_v1"),
        ];
        for (key, value) in expected {
            assert_eq!(said[key], value, "{file}");
        }
        assert!(!said.contains_key("modelspec.date"), "the same work gives the same bytes");
    }
}

#[test]
fn what_is_not_such_a_model_is_named() {
    let dir = Dir::new();
    dir.write("p.txt", "a robot\n");
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let conv = "model.diffusion_model.input_blocks.0.0.weight";
    let attends = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
    for (tensors, parts) in [
        (vec![(conv, zeros(&[8, 9, 3, 3])), (attends, zeros(&[8, 768]))], ["9 channels", "inpainting"]),
        (vec![(conv, zeros(&[8, 4, 3, 3])), (attends, zeros(&[8, 12]))], ["width 12", "--base-config"]),
        (vec![(conv, zeros(&[8, 4, 3, 3])), (attends, zeros(&[8, 1280]))], ["refiner", "--base-config"]),
        (
            vec![(conv, zeros(&[320, 4, 3, 3])), (attends, zeros(&[8, 768]))],
            ["holds no text_encoder", "cond_stage_model"],
        ),
        (
            vec![("model.diffusion_model.joint_blocks.0.x", zeros(&[1]))],
            ["transformer of Stable Diffusion 3", "--base-config"],
        ),
        (vec![("conv_in.weight", zeros(&[1]))], ["lacks Stable Diffusion's UNet", "name the folder"]),
    ] {
        let all = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        write_tensors(&dir.path("model.safetensors"), &all);
        let line = dir.tool("sample").args(["p.txt", "-o", "out", "--base", "model.safetensors"]).fails(2);
        says(&line, &["model.safetensors"]);
        says(&line, &parts);
    }
    says(
        &dir.tool("refresh-ref").args(["--policy", "x", "--reference", "y", "--base", "z", "-o", "out"]).fails(2),
        &["x", "does not exist"],
    );
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn the_files_of_the_parity_kit_draw_the_images_of_diffusers() {
    let kit = parity("");
    let told: Value = nets::json::read(&kit.join("expected/flow.json")).unwrap(); // Python writes NaN
    let expected = tensors(&kit.join("expected/flow/single.safetensors"));
    for (name, about) in told["single"].as_object().unwrap() {
        let dir = Dir::new();
        dir.write("p.json", json!([about["prompt"]]).to_string());
        write_tensors(&dir.path("noise"), &[("latents".into(), expected["noise"].clone())].into());
        let text = |key: &str| about[key].to_string().trim_matches('"').to_owned();
        let config = kit.join("models").join(text("config_from")).display().to_string();
        let file = kit.join("models/single").join(name).display().to_string();
        dir.tool("sample")
            .args(["p.json", "--base", &file, "--base-config", &config, "-o", "out", "-q", "--latents", "noise"])
            .args(["--steps", &text("steps"), "--guidance", &text("guidance"), "--scheduler", &text("scheduler")])
            .args(["--dump-latents", "final"])
            .ok();
        let far = max_abs(&tensors(&dir.path("final"))["latents"], &expected[&format!("{name}.latents")]);
        assert!(far < 1e-3, "{name}: {far}");

        // Through a folder and back.
        let dtype = ["--save-dtype", "f16"];
        let models = ["--policy", &file, "--reference", &file, "--base-config", &config];
        dir.tool("refresh-ref").args(models).args(["-o", "unpacked"]).args(dtype).ok();
        let back = ["--policy", "unpacked", "--reference", &file, "--base-config", &config, "-o", "back.safetensors"];
        dir.tool("refresh-ref").args(back).args(dtype).ok();
        if name.ends_with(".safetensors") {
            let mut before = tensors(Path::new(&file));
            before.retain(|name, _| !name.starts_with("model_ema."));
            assert_same(&tensors(&dir.path("back.safetensors")), &before);
        }
        // From the folder of diffusers, whose text encoder may lack a layer that is not used: all names are the file's.
        let policy = ["--policy", &config, "--reference", &config, "-o", "from-folder.safetensors"];
        dir.tool("refresh-ref").args(policy).args(dtype).ok();
        let (ours, theirs) = (tensors(&dir.path("from-folder.safetensors")), tensors(&dir.path("back.safetensors")));
        for (name, tensor) in &ours {
            assert_eq!(tensor.dims(), theirs[name].dims(), "{name}");
            let unused = name.contains("text_projection") || name.contains("resblocks.4.");
            let far = max_abs(&tensor.to_dtype(DType::F32).unwrap(), &theirs[name].to_dtype(DType::F32).unwrap());
            assert!(unused || far < 2e-3, "{name}: {far}");
        }
    }
}

/// README's lines, with the names that they use, in the Python that PYTHON names (python3).
#[test]
#[ignore = "needs Python with diffusers, transformers and peft"]
fn readmes_lines_draw_the_pictures_of_sample_in_diffusers() {
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let command = || std::process::Command::new(&python);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let (_, lines) = readme.split_once("```python\n").unwrap();
    let (lines, _) = lines.split_once("```").unwrap();
    let lines = lines.replace("pipelines/mini/base", &mini().display().to_string());

    let dir = Dir::new();
    let (base, pairs) = (mini().display().to_string(), pairs(4));
    dir.put("pairs.parquet", &pairs);
    dir.put("labels.parquet", &labels(&pairs, |_| (1.0, 1.0)));
    let run = [
        "pairs.parquet", "--labels", "labels.parquet", "--base", &base, "--max_train_steps", "4", "--learning_rate",
        "1e-4",
    ];
    dir.tool("train").args(run).args(["--train_batch_size", "2", "-o", "policy"]).ok();
    dir.tool("train").args(run).args(["--train_batch_size", "2", "-o", "adapters", "--lora-rank", "4", "--merge"]).ok();
    dir.write("p.txt", "fox, flat style\na red bicycle\n");
    for (unet, instead) in [("policy", "pipe.load_lora_weights"), ("adapters", "unet = ")] {
        let draw =
            ["--base", &base, "--unet", unet, "--steps", "20", "--guidance", "4", "--dump-noise", "noise.safetensors"];
        dir.tool("sample").args(["p.txt", "-o", "out.parquet"]).args(draw).ok();
        let kept: Vec<_> = lines.lines().filter(|line| !line.starts_with(instead)).collect();
        let kept = kept.join("\n").replace(if unet == "adapters" { ", unet=unet" } else { "\0" }, "");
        let script = format!(
            "from diffusers import *\nfrom safetensors.torch import load_file\nprompts = open('p.txt').read().splitlines()\n{kept}\n\
             [image.save(f'{{i}}.png') for i, image in enumerate(images)]\n"
        );
        let done = command().args(["-c", &script]).current_dir(dir.path("")).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let table = dir.get("out.parquet");
        for i in 0..2 {
            let ours = nets::image::decode(&image(&table, "image", i)).unwrap().data;
            let theirs = nets::image::decode(&dir.bytes(&format!("{i}.png"))).unwrap().data;
            let far = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(ours.len() == theirs.len() && far <= 1, "{unet}, image {i}: {far} levels off");
        }
    }
}

#[test]
fn a_model_card_says_what_the_weights_and_the_win_rates_say() {
    let dir = Dir::new();
    let (base, pairs) = (mini().display().to_string(), pairs(2));
    dir.put("pairs.parquet", &pairs);
    let vote =
        json!({ "tool": "vote", "version": "0.1.0", "args": { "rule": "majority", "metrics": ["hps", "clip"] } });
    dir.put("labels.parquet", &with_origin(&labels(&pairs, |_| (1.0, 1.0)), &vote.to_string()));
    let run =
        ["pairs.parquet", "--labels", "labels.parquet", "--base", &base, "-o", "policy", "--max_train_steps", "1"];
    dir.tool("train").args(run).args(["--train_batch_size", "2", "--beta_dpo", "1234"]).ok();
    let scores = |shift: f32| (0..40).map(|p| vec![p as f32 + shift]).collect::<Vec<_>>();
    for (model, shift) in [("policy", 0.5), ("base", 0.0)] {
        dir.put(
            &format!("{model}.parquet"),
            &scored(model, &["hps", "clip"], &scores(shift), |m, x| if m == 0 { x } else { 1.0 }),
        );
    }
    let tables = ["policy.parquet", "base.parquet", "--best-of", "1", "--json", "-o", "winrate.json"];
    dir.tool("winrate").args(tables).ok();
    dir.write("p.txt", "fox, flat style\n");
    let card =
        ["--winrates", "winrate.json", "--policy", "policy", "--card", "policy/README.md", "--base-model", "org/name"];
    dir.tool("report").args(card).ok();
    let text = String::from_utf8(dir.bytes("policy/README.md")).unwrap();
    assert!(text.starts_with("---\nbase_model: org/name\nlibrary_name: diffusers\n"), "{text}");
    says(
        &text,
        &[
            "license: other",
            "the rule `majority` over hps and clip",
            "| policy vs base | 40 | **100.0 % [91.2, 100.0]** | 0.0 % [0.0, 8.8] | 0.0 % [0.0, 8.8] | 0.0 % [0.0, 8.8] |",
            "| prompts | hps | clip | all better | all worse |",
            "| `beta_dpo` | 1234 |",
            "| `learning_rate` | 1e-8 |",
            "| `lr_scheduler` | constant_with_warmup |",
            "| `lr_warmup_steps` | 0 |",
            "| `optimizer` | adamw |",
            "| `adam_beta2` | 0.999 |",
            "| `guard` | none |",
            "| `augment` | independent-flip |",
            "- `vote` 0.1.0: rule majority",
            "subfolder=\"unet\"",
            "\"tool\": \"train\"",
        ],
    );
    let one = dir.tool("winrate").args(["policy.parquet", "base.parquet", "--best-of", "1", "--metrics", "hps"]).ok();
    assert!(!one.text().contains("these 1 rates"), "{}", one.text());
    // A checkpoint is no base.
    for line in ["sample p.txt --base policy", "encode pairs.parquet --base policy"] {
        let mut words = line.split(' ');
        let error = dir.tool(words.next().unwrap()).args(words).args(["-o", "x"]).fails(2);
        says(&error, &["--base", "policy", "text_encoder"]);
    }
    // A sheet below the card is shown, one elsewhere is not, and that is said.
    dir.tool("sample").args(["p.txt", "-o", "images.parquet", "--base", &base, "--steps", "1", "-n", "1"]).ok();
    std::fs::create_dir(dir.path("policy/a b")).unwrap();
    for (sheet, link) in [("policy/a b/sheet.png", "](a%20b/sheet.png)"), ("sheet.png", "")] {
        let run = dir.tool("report").args(card).args(["--images", "images.parquet", "--sheet", sheet]).ok();
        let text = String::from_utf8(dir.bytes("policy/README.md")).unwrap();
        assert_eq!(
            (text.contains("## Images"), run.err.contains("does not show --sheet")),
            (!link.is_empty(), link.is_empty())
        );
        says(&text, &[link]);
    }
    let weights = if dir.path("policy/unet").exists() {
        "policy/unet/diffusion_pytorch_model.safetensors"
    } else {
        "policy/pytorch_lora_weights.safetensors"
    };
    let mut bytes = dir.bytes(weights);
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    dir.write(weights, bytes);
    says(&dir.tool("report").args(card).fails(2), &[weights, "is damaged", "checksum"]);
    says(&dir.tool("report").args(["--card", "x.md", "--policy", &base]).fails(2), &["does not say how it was made"]);
}
