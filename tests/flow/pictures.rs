//! The small models: what they predict and draw.

use super::*;

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
