//! What is refused, in one sentence.

use super::*;

#[test]
fn bad_input_is_one_sentence_and_nothing_is_written() {
    let dir = world();
    dir.write("empty.txt", "");
    dir.write("blank.txt", "\n\n");
    dir.put("other.parquet", &table(vec![("text", texts(["a"]))]));
    dir.write("plain", "a file");
    let before = dir.list();
    for (prompts, rest, parts) in [
        ("empty.txt", "", &["empty.txt is empty"][..]),
        ("blank.txt", "", &["blank.txt has no prompts"]),
        ("absent.txt", "", &["absent.txt"]),
        ("other.parquet", "", &["other.parquet: column 'prompt' is missing"]),
        ("prompts.txt", "--steps 0", &["0 sampling steps"]),
        ("prompts.txt", "--steps 1001", &["1001 sampling steps do not fit 1000"]),
        ("prompts.txt", "--height 15", &["--height 15 is not a multiple of the VAE's 2"]),
        ("prompts.txt", "--base absent", &["absent"]),
        ("prompts.txt", "--unet absent", &["absent does not exist"]),
        ("prompts.txt", "--unet plain", &["plain"]),
        ("prompts.txt", "--guidance 1 --negative grey", &["--negative", "--guidance above 1, not 1"]),
        ("prompts.txt", "--time-ids 8,8,0,0,8,8", &["--time-ids is for SDXL"]),
        (
            "prompts.txt",
            "--scheduler dpmpp --steps 1000",
            &["scheduler_config.json", "1000 sampling steps and the end"],
        ),
        ("prompts.txt", "--dtype bf16", &["f32"]),
    ] {
        says(&sample(&dir, prompts, "out.parquet", rest).fails(2), parts);
        assert_eq!(dir.list(), before, "{prompts} {rest}");
    }
    for (rest, flag) in [("-n 0", "--images-per-prompt"), ("--batch 0", "--batch"), ("--guidance nan", "--guidance")] {
        says(&sample(&dir, "prompts.txt", "out.parquet", rest).exits(2).err, &[flag]);
        assert_eq!(dir.list(), before, "{rest}");
    }
    says(&sample(&dir, "prompts.txt", "plain/out", "").fails(2), &["plain/out"]);
    let error = sample(&dir, "prompts.txt", "out.parquet", &format!("--unet {}", mini().display())).fails(2);
    says(&error, &["64", "8", "text encoder"]);
    assert_eq!(dir.list(), before);
    // A caption of 10,000 characters.
    dir.write("long.txt", "a very red bicycle ".repeat(600));
    sample(&dir, "long.txt", "long.parquet", "").ok();
}

/// What came out of a training that diverged, or was damaged since, draws nothing.
#[test]
fn damaged_weights_draw_nothing() {
    let dir = world();
    copy(&oracle("policy"), &dir.path("policy"));
    let file = "policy/unet/diffusion_pytorch_model.safetensors";
    let whole = tensors(&dir.path(file));
    let mut bad = whole.clone();
    bad.insert("conv_out.bias".into(), Tensor::full(f32::NAN, 4, &candle_core::Device::Cpu).unwrap());
    write_tensors(&dir.path(file), &bad);
    says(&sample(&dir, "prompts.txt", "out", "--unet policy").fails(2), &[file, "'conv_out.bias'", "NaN"]);
    write_tensors(&dir.path(file), &whole);
    dir.tool("refresh-ref").args(["--policy", "policy", "--reference", "policy", "-o", "made"]).ok();
    let file = "made/unet/diffusion_pytorch_model.safetensors";
    let mut bytes = dir.bytes(file);
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    dir.write(file, bytes);
    says(&sample(&dir, "prompts.txt", "out", "--unet made").fails(2), &[file, "is damaged", "checksum"]);
    assert_eq!(dir.list(), ["made", "policy", "prompts.txt"]);
}

/// A named pipe in the place of a file would be waited for without end.
#[test]
fn a_model_lies_in_files() {
    let dir = world();
    for (name, file) in
        [("a", "scheduler/scheduler_config.json"), ("b", "text_encoder/config.json"), ("c", "vae/config.json")]
    {
        copy(&oracle("base"), &dir.path(name));
        let path = dir.path(&format!("{name}/{file}"));
        let _ = std::fs::remove_file(&path);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = sample(&dir, "prompts.txt", "out", &format!("--base {name}")).fails(2);
        says(&error, &[&format!("{name}/{file}"), "a named pipe"]);
    }
}

#[test]
fn outputs_in_the_place_of_inputs_are_refused() {
    let dir = world();
    let before = dir.bytes("prompts.txt");
    for rest in ["--dump-latents prompts.txt", "--dump-latents ./out", "--latents out"] {
        dir.write("out", "x");
        says(&sample(&dir, "prompts.txt", "out", rest).fails(2), &["name another"]);
    }
    assert!(dir.bytes("prompts.txt") == before && dir.bytes("out") == b"x");
}

#[test]
fn an_unknown_way_of_a_gpu_is_refused() {
    let dir = Dir::new();
    dir.write("p.txt", "a fox\n");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sample"));
    command.arg(dir.path("p.txt")).arg("--base").arg(oracle("base")).arg("-o").arg(dir.path("x"));
    let output = command.args(["--device", "cuda"]).env("BDPO_GPU", "fast").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    says(&String::from_utf8(output.stderr).unwrap(), &["BDPO_GPU", "fast", "`composed`"]);
}
