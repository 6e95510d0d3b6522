//! What is refused: flags that cannot work or would have no effect, models that do not fit, and folders that hold another run;
//! and the flags of other programs.

use super::*;

/// Trains without `-q`.
fn loud(dir: &Dir, out: &str, rest: &str) -> Tool {
    let base = oracle("base").display().to_string();
    let usual = ["pairs.parquet", "--labels", "labels.parquet", "--resolution", "16", "--train_batch_size", "4"];
    let given: Vec<_> = rest.split_whitespace().collect();
    let tool = dir.tool("train").args(usual).args(["--lr", "1e-4", "-o", out]).args(&given);
    if given.contains(&"--base") { tool } else { tool.args(["--base", &base]) }
}

#[test]
fn flags_without_effect_are_refused() {
    let dir = world();
    for (rest, flag) in [
        ("--checkpoints_total_limit 0", "--checkpoints-total-limit"),
        ("--max_grad_norm 0", "above 0, or inf"),
        ("--max_grad_norm nan", "--max-grad-norm"),
        ("--lora-rank 2 --lora-alpha nan", "--lora-alpha"),
        ("--label_smoothing 0.5", "below 0.5"),
        ("--spike 1", "above 1"),
        ("--proportion_empty_prompts 1.1", "from 0 to 1"),
        ("--lora-targets to_q", "--lora-rank"),
        ("--timesteps some", "--timesteps"),
        ("--no_hflip --augment none", "--augment"),
        ("--unet_init a --policy b", "--policy"),
    ] {
        says(&train(&dir, "out", rest).exits(2).err, &[flag]);
    }
    for (rest, parts) in [
        ("--guard sdpo --loss sft", &["--guard", "--loss sft"][..]),
        ("--guard sdpo:0.5 --sft", &["--guard", "--loss sft"]),
        ("--reference_weights file --lora-rank 2", &["--reference-weights file", "--lora-rank"]),
        ("--lora-rank 100000000", &["rank 100000000", "layer 'down_blocks.", "--lora-rank"]),
        ("--num_train_epochs 3", &["--num_train_epochs is not a flag", "--max-train-steps"]),
        ("--use_8bit_adam", &["--use_8bit_adam", "--moments bf16"]),
        ("--choice_model hps", &["--choice_model", "`vote --rule single:METRIC`"]),
        (
            "--dataset_name yuvalkirstain/pickapic_v2",
            &["--dataset-name yuvalkirstain/pickapic_v2", "`score`", "`vote`"],
        ),
        ("--mixed_precision fp16", &["--mixed-precision fp16", "bf16"]),
        ("--mixed_precision bf16", &["--mixed-precision bf16", "--device cuda"]),
        ("--resume_from_checkpoint absent", &["absent is not a whole checkpoint"]),
    ] {
        let rest = if rest.contains("dataset_name") { rest.to_owned() } else { format!("pairs.parquet {rest}") };
        let run = dir.tool("train").args(rest.split(' ')).args(["--labels", "labels.parquet", "--resolution", "16"]);
        says(&run.args(["-q", "-o", "out", "--base"]).args([oracle("base")]).fails(2), parts);
        assert!(!dir.path("out").exists(), "{rest}");
    }
    train(&dir, "out", "--steps 1 --max_grad_norm inf").ok();
    let error = train(&dir, "-", "--steps 1").fails(2);
    says(&error, &["a checkpoint is a folder; name one with -o"]);
    assert!(!dir.path("-").exists());
}

#[test]
fn published_flags_mean_what_they_meant() {
    let dir = world();
    let policy = oracle("policy").display().to_string();
    train(&dir, "a", &format!("--steps 2 --augment none --policy {policy} --reference {policy}")).ok();
    train(&dir, "b", &format!("--steps 2 --no_hflip --unet_init {policy}")).ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));

    let base = fixture("sample/sdxl").display().to_string();
    let of = |out: &str, rest: &str| {
        let run = loud(&dir, out, &format!("--base {base} --steps 1 {rest}")).ok();
        let file = dir.path(out).join("unet/diffusion_pytorch_model.safetensors");
        let origin: Value = serde_json::from_str(&nets::weights::metadata(&file).unwrap()["origin"]).unwrap();
        (run.err, origin["args"]["optimizer"].to_string(), origin["args"]["max_grad_norm"].to_string())
    };
    let (notes, optimizer, norm) = of("c", "--sdxl");
    says(&notes, &["--sdxl: Adafactor with gradients clipped at 1", "--optimizer adamw"]);
    assert!(optimizer.contains("adafactor") && norm == "\"1\"", "{optimizer} {norm}");
    let (notes, optimizer, norm) = of("d", "--sdxl --use_adafactor");
    assert!(!notes.contains("--sdxl:") && optimizer.contains("adafactor") && norm == "\"inf\"", "{optimizer} {norm}");
    assert!(of("e", "--sdxl --optimizer adamw").1.contains("adamw"));
    assert!(of("f", "").1.contains("adamw"));
}

#[test]
fn a_run_from_the_start_is_not_mixed_with_an_earlier_one() {
    let dir = world();
    let rest = "--steps 5 --checkpointing_steps 2";
    train(&dir, "out", rest).ok();
    let before = tree(&dir.path("out"));
    let error = train_into(&dir, "out", rest).fails(2);
    says(&error, &["out/checkpoint-4 belongs to an earlier run", "--resume-from-checkpoint latest", "-o"]);
    assert!(tree(&dir.path("out")) == before);
    // Also where the run was too short for a checkpoint, and where only a part of it is left.
    train(&dir, "short", "--steps 2").ok();
    for left in ["state", "unet"] {
        let before = tree(&dir.path("short"));
        says(
            &train_into(&dir, "short", "--steps 2 --lr 1e-5").fails(2),
            &["short/", "belongs to an earlier run", "-o"],
        );
        assert!(tree(&dir.path("short")) == before);
        std::fs::remove_dir_all(dir.path("short").join(left)).unwrap();
    }
    train_into(&dir, "short", "--steps 2").ok(); // with its log alone
    train(&dir, "out", &format!("{rest} --dry-run")).ok();
    assert!(tree(&dir.path("out")) == before);
    // A finished run says so, and fewer steps than it has are refused.
    let notes = loud(&dir, "out", "--steps 5 --lr_scheduler constant --resume latest").ok().err;
    says(&notes, &["out has finished all 5 steps of --max-train-steps: there is nothing to do"]);
    says(
        &train(&dir, "out", "--steps 3 --resume latest").fails(2),
        &["out has finished 5 steps", "--max-train-steps is 3"],
    );
}

#[test]
fn a_stopped_run_says_how_to_continue() {
    let dir = world();
    for (resume, advice) in [("", "--resume-from-checkpoint latest"), ("--resume latest", "the same command")] {
        let out = if resume.is_empty() { "a" } else { "b" };
        let mut tool = train(&dir, out, &format!("--steps 4000 --train_batch_size 2 --drift_every 0 {resume}"));
        let child = tool.command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        wait_for("some steps", || log_lines(&dir.path(out)) >= 2);
        let kill = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(kill.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(143));
        says(&String::from_utf8(output.stderr).unwrap(), &[advice, "what was finished is kept"]);
    }
}

#[test]
fn models_that_do_not_fit_are_named() {
    let dir = world();
    let mini = mini().display().to_string();
    let rest = format!("--policy {mini} --reference {mini}");
    let error = train(&dir, "out", &rest).fails(2);
    says(&error, &[&mini, "the denoiser attends to states of width", "the text encoder makes"]);
    let replay = |change: &dyn Fn(&mut Tensors)| {
        let mut all = tensors(&oracle("replay.safetensors"));
        change(&mut all);
        let all: Vec<_> = all.into_iter().collect();
        let meta = [("prompts".to_owned(), r#"["a", "b"]"#.to_owned())].into();
        safetensors(&dir.path("replay"), &all, Some(meta));
        let mut tool = train(&dir, "out", "--replay replay --steps 5 --lr 1e-6");
        tool.command.env("RUST_BACKTRACE", "1"); // which candle's errors bring along
        let error = tool.fails(2);
        assert!(!error.contains("candle_core::"), "{error}");
        error
    };
    let three = |all: &mut Tensors, of: &str| {
        for what in ["latents", "noise"] {
            let narrow = |(n, t): (&String, &candle_core::Tensor)| (n.clone(), t.narrow(1, 0, 3).unwrap());
            let ours: Vec<_> = all.iter().filter(|(n, _)| n.starts_with(of) && n.ends_with(what)).map(narrow).collect();
            all.extend(ours);
        }
    };
    says(&replay(&|all| three(all, "")), &["the denoiser takes latents of 4 channels, but these have 3"]);
    says(&replay(&|all| three(all, "0.")), &["the denoiser takes latents of 4 channels, but these have 3"]);
    assert!(!dir.path("out").exists());
    says(&replay(&|all| three(all, "1.")), &["replay: step 1 has latents of 3 channels, step 0 of 4"]);
    let times = |numbers: &[i64], dims: &[usize]| {
        candle_core::Tensor::from_slice(numbers, dims, &candle_core::Device::Cpu).unwrap()
    };
    let with = |tensor: candle_core::Tensor| replay(&|all| drop(all.insert("0.timesteps".into(), tensor.clone())));
    says(&with(times(&[5, 5, 5, 5], &[4, 1])), &["'0.timesteps' has shape [4, 1]", "one timestep per image"]);
    says(&with(times(&[5, -1, 5, 5], &[4])), &["step 0: timestep -1 is out of range", "1000"]);
    says(&with(times(&[5, 1000, 5, 5], &[4])), &["step 0: timestep 1000 is out of range"]);
    dir.write("replay", "no tensors");
    let mut tool = train(&dir, "x", "--replay replay");
    tool.command.env("RUST_BACKTRACE", "1");
    assert!(!tool.fails(2).contains("candle_core::"));
}

/// A start that holds no numbers would be trained for hours.
#[test]
fn weights_that_are_no_numbers_are_named() {
    let dir = world();
    let file = "bad/unet/diffusion_pytorch_model.safetensors";
    for (start, value) in [
        ("--policy bad", f32::NAN),
        ("--policy bad --lora_rank 2", f32::NEG_INFINITY),
        ("--reference bad", f32::INFINITY),
    ] {
        copy(&oracle("policy"), &dir.path("bad"));
        let mut all = tensors(&dir.path(file));
        all.insert("conv_out.bias".into(), candle_core::Tensor::full(value, 4, &candle_core::Device::Cpu).unwrap());
        write_tensors(&dir.path(file), &all);
        says(&train(&dir, "out", start).fails(2), &[file, "'conv_out.bias'", "NaN or infinity"]);
    }
}

#[test]
fn adapters_are_not_a_whole_unet() {
    let dir = world();
    train(&dir, "adapters", "--steps 1 --lora-rank 2").ok();
    let base = oracle("base").display().to_string();
    let parts = &["adapters but not a whole denoiser", "merged"];
    says(&train(&dir, "x", "--policy adapters").fails(2), &["adapters holds adapters", parts[1]]);
    says(&train(&dir, "x", "--reference adapters/lora").fails(2), parts);
    let refresh = ["--policy", "adapters", "--reference", &base, "-o", "x"];
    says(&dir.tool("refresh-ref").args(refresh).fails(2), parts);
    dir.write("prompts.txt", "a cat\n");
    let sample = ["prompts.txt", "--base", &base, "--unet", "adapters", "-o", "x.parquet"];
    says(&dir.tool("sample").args(sample).fails(2), parts);
    assert!(!dir.path("x").exists() && !dir.path("x.parquet").exists());
}

/// A base whose scheduler says `trailing` is trained as SDXL Turbo, unless the flags say otherwise.
#[test]
fn timesteps_are_chosen_and_reported() {
    let dir = world();
    copy(&oracle("base"), &dir.path("base"));
    let file = "base/scheduler/scheduler_config.json";
    let mut config: Value = serde_json::from_slice(&dir.bytes(file)).unwrap();
    config["timestep_spacing"] = "trailing".into();
    dir.write(file, config.to_string());
    let notes = |out: &str, rest: &str| loud(&dir, out, &format!("--steps 2 {rest}")).ok().err;
    says(&notes("auto", "--base base"), &["4 of 1000 timesteps are trained, [249, 499, 749, 999]", "--timesteps all"]);
    assert!(!notes("all", "--base base --timesteps all").contains("timesteps are trained"));
    assert!(!notes("plain", "").contains("timesteps are trained"));
    says(&notes("turbo", "--timesteps turbo"), &["4 of 1000 timesteps are trained"]);
    assert_same(&weights(&dir.path("all")), &weights(&dir.path("plain")));
    assert_same(&weights(&dir.path("auto")), &weights(&dir.path("turbo")));
    assert!(differ(&weights(&dir.path("auto")), &weights(&dir.path("all"))));
    let error = train(&dir, "plain", "--steps 4 --timesteps turbo --lr_scheduler constant_with_warmup --resume latest")
        .fails(2);
    says(&error, &["plain was made with another timesteps"]);
}

#[test]
fn an_input_is_not_replaced() {
    let dir = world();
    copy(&oracle("base"), &dir.path("base"));
    copy(&oracle("policy"), &dir.path("policy"));
    let before = [tree(&dir.path("base")), tree(&dir.path("policy")), tree(&dir.path("."))];
    for (out, rest) in [
        ("base", "--base base"),
        ("policy", "--policy policy"),
        ("policy", "--policy policy/unet"),
        ("policy", "--reference policy"),
        ("new", "--dump-gradients labels.parquet"),
        ("new", "--dump-gradients pairs.parquet"),
    ] {
        says(&train_into(&dir, out, &format!("{rest} --max_train_steps 1")).fails(2), &["also an input"]);
    }
    assert!(before == [tree(&dir.path("base")), tree(&dir.path("policy")), tree(&dir.path("."))]);
}

#[test]
fn bad_input_is_one_sentence_and_nothing_is_written() {
    let dir = world();
    let good = pairs(24);
    let bad = |name: &str, table: &arrow::array::RecordBatch| dir.put(name, table);
    bad("no-caption.parquet", &without(&good, "caption"));
    bad("none.parquet", &good.slice(0, 0));
    let whole = dir.bytes("pairs.parquet");
    dir.write("cut.parquet", &whole[..whole.len() - 100]);
    let captions = column_text(&good, "caption");
    let null = arrow::array::StringArray::from_iter((0..24).map(|i| (i != 7).then_some(&captions[i])));
    bad("null.parquet", &with(&good, "caption", std::sync::Arc::new(null)));
    let jpgs: Vec<_> = (0..24).map(|i| image(&good, "jpg_1", i)).collect();
    let jpg = |at: usize, bytes: Option<&'static [u8]>| {
        images(&(0..24).map(|i| if i == at { bytes } else { Some(&jpgs[i][..]) }).collect::<Vec<_>>())
    };
    bad("text.parquet", &with(&good, "jpg_1", jpg(11, Some(b"not an image"))));
    bad("hole.parquet", &with(&good, "jpg_1", jpg(12, None)));
    dir.write("plain", "a file");
    let before = dir.list();
    for (rest, parts) in [
        ("no-caption.parquet", &["no-caption.parquet: column 'caption' is missing (found: image_0_uid"][..]),
        ("none.parquet", &["none.parquet has no rows"]),
        ("cut.parquet", &["cut.parquet is not a whole table"]),
        ("absent.parquet", &["absent.parquet", "No such file"]),
        ("null.parquet", &["null.parquet, row 7", "'caption' is null"]),
        ("text.parquet --steps 20", &["text.parquet, row 11"]),
        ("hole.parquet --steps 20", &["hole.parquet, row 12", "'jpg_1' is null"]),
        ("--labels pairs.parquet", &["pairs.parquet: column 'pair_id' is missing", "`vote`"]),
        ("--resolution 15", &["--resolution 15", "multiple", "VAE"]),
        ("--resolution 0", &["--resolution 0"]),
        ("--base absent", &["--base absent", "no such model"]),
        ("--policy absent", &["absent does not exist", "unet/config.json"]),
        ("--reference plain", &["plain is a text", "download the file again"]),
        ("--dtype f16", &["--dtype f16", "bf16"]),
    ] {
        says(&train(&dir, "out", rest).fails(2), parts);
        assert_eq!(dir.list().iter().filter(|n| *n != "out").cloned().collect::<Vec<_>>(), before, "{rest}");
        if !rest.contains("--steps 20") {
            assert!(!dir.path("out").exists(), "{rest}");
        }
        let _ = std::fs::remove_dir_all(dir.path("out"));
    }
    for (rest, flag) in [
        ("--beta 0", "--beta-dpo"),
        ("--lr nan", "--learning-rate"),
        ("--steps 0", "--max-train-steps"),
        ("--adam_beta2 1", "--adam-beta2"),
    ] {
        says(&train(&dir, "out", rest).exits(2).err, &[flag]);
        assert!(!dir.path("out").exists(), "{rest}");
    }
    says(&train(&dir, "plain/out", "").fails(2), &["cannot write in plain/out", "plain is not a folder"]);
    says(&train(&dir, "plain", "").fails(2), &["plain is not a folder"]);
    assert_eq!(dir.bytes("plain"), b"a file");
    let base = oracle("base").display().to_string();
    says(&dir.tool("train").args(["--base", &base, "-o", "out"]).fails(2), &["--labels is missing"]);
    let error = dir.tool("train").args(["--base", &base, "-o", "out", "--labels", "labels.parquet"]).fails(2);
    says(&error, &["DATA is missing"]);
}

#[test]
#[cfg(not(feature = "mpi"))]
fn one_of_several_processes_is_refused_by_a_build_without_mpi() {
    let dir = world();
    for (launcher, vars) in [
        ("mpirun", &[("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "0")][..]),
        ("srun", &[("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "0"), ("PMIX_RANK", "0")]),
    ] {
        let mut tool = train(&dir, "out", "--steps 1");
        tool.command.envs(vars.iter().copied());
        says(&tool.fails(2), &[launcher, "2 processes", "--features mpi"]);
        assert!(!dir.path("out").exists());
    }
    // A single process in a batch script of many tasks runs alone.
    let mut tool = train(&dir, "out", "--steps 1");
    tool.command.envs([("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]);
    tool.ok();
}

#[test]
fn an_incomplete_model_is_named() {
    let dir = world();
    let broken = |change: &dyn Fn(&Dir)| {
        copy(&oracle("base"), &dir.path("base"));
        change(&dir);
        let error = train(&dir, "out", "--base base --steps 1").fails(2);
        assert!(!dir.path("out").exists());
        std::fs::remove_dir_all(dir.path("base")).unwrap();
        error
    };
    for part in [
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json", "tokenizer/merges.txt",
    ] {
        let error = broken(&|dir| std::fs::remove_file(dir.path("base").join(part)).unwrap());
        let folder = part.split('/').next().unwrap();
        says(&error, &[folder]);
    }
    let file = "base/unet/diffusion_pytorch_model.safetensors";
    let edit = |change: &dyn Fn(&mut Tensors)| {
        broken(&|dir| {
            let mut all = tensors(&dir.path(file));
            change(&mut all);
            write_tensors(&dir.path(file), &all);
        })
    };
    let name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    says(&edit(&|all| drop(all.remove(name))), &[file, name, "is missing"]);
    let error = edit(&|all| drop(all.insert(name.into(), all[name].narrow(0, 0, 4).unwrap())));
    says(&error, &[name, "has shape [4, 8], expected [12, 8]"]);
    let error = broken(&|dir| drop(dir.write(file, &dir.bytes(file)[..5000])));
    says(&error, &[file, "is not a whole safetensors file"]);
    // A policy of another architecture.
    let error = train(&dir, "out", &format!("--policy {}", mini().display())).fails(2);
    says(&error, &["policy and reference differ in architecture", "conv_in"]);
}

#[test]
fn an_incomplete_replay_file_is_refused() {
    let dir = world();
    let edit = |change: &dyn Fn(&mut Tensors)| {
        let mut all = tensors(&oracle("replay.safetensors"));
        change(&mut all);
        let all: Vec<_> = all.into_iter().collect();
        let meta = [("prompts".to_owned(), r#"["a", "b"]"#.to_owned())].into();
        safetensors(&dir.path("replay"), &all, Some(meta));
        train(&dir, "out", "--replay replay --steps 5 --lr 1e-6")
    };
    edit(&|_| ()).ok();
    std::fs::remove_dir_all(dir.path("out")).unwrap();
    says(&edit(&|all| drop(all.remove("0.noise"))).fails(2), &["replay: tensor '0.noise' is missing"]);
    let error = edit(&|all| drop(all.insert("0.latents".into(), all["0.latents"].narrow(0, 0, 3).unwrap()))).fails(2);
    says(&error, &["step 0 has latents [3, 4, 8, 8]", "for 2 captions"]);
    let late = candle_core::Tensor::new(&[1000i64; 4], &candle_core::Device::Cpu).unwrap();
    says(&edit(&|all| drop(all.insert("0.timesteps".into(), late.clone()))).fails(2), &["timestep", "1000"]);
    assert!(!dir.path("out").exists());
    // A file that is too short is refused before the first step.
    let error = edit(&|all| drop(all.remove("4.timesteps"))).fails(2);
    says(&error, &["tensor '4.timesteps' is missing", "the inputs of 4 of the 5 steps", "0.latents to 4.timesteps"]);
    assert!(!dir.path("out").exists());
    safetensors(&dir.path("replay"), &[], None);
    says(&train(&dir, "x", "--replay replay").fails(2), &["replay: the metadata key 'prompts' is missing"]);
    dir.write("replay", "no tensors");
    says(&train(&dir, "x", "--replay replay").fails(2), &["replay is not a whole safetensors file"]);
    let error = train(&dir, "x", "--replay replay --on-spike rollback").fails(2);
    says(&error, &["--replay", "--on-spike rollback"]);
    let error = train(&dir, "x", "--replay replay --gradient_accumulation_steps 2").fails(2);
    says(&error, &["--replay", "--gradient-accumulation-steps"]);
    let run = train(&dir, "x", "--replay replay --labels labels.parquet").exits(2);
    says(&run.err, &["--replay", "--labels"]);
    assert!(!dir.path("x").exists());
}
