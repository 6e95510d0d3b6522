//! Adapters: what is trained, what is written, and the numbers of peft (`tests/oracle/lora.py`).

use candle_core::{DType, Device, Tensor};
use nets::image::decode;

use super::*;

const ADAPTERS: &str = "lora/pytorch_lora_weights.safetensors";

fn fixture(name: &str) -> std::path::PathBuf {
    oracle("..").join("lora").join(name)
}

fn adapters(out: &Path) -> Tensors {
    tensors(&out.join(ADAPTERS))
}

#[test]
fn gradients_equal_those_of_peft() {
    let dir = Dir::new();
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap();
    let (policy, replay) = (fixture(""), oracle("replay.safetensors"));
    let rest = format!(
        "--replay {} --policy {} --steps 1 --beta 300 --lora-rank 2 --lora-alpha 3 --dump-gradients g \
         --lora-targets to_q,to_k,to_v,to_out.0,ff.net.2,proj_in",
        replay.display(),
        policy.display()
    );
    train(&dir, "out", &rest).ok();
    let line = log(&dir.path("out")).remove(0);
    near(line["loss"].as_f64().unwrap(), expected["loss"].as_f64().unwrap(), 1e-5);
    for (z, expected) in numbers(&line["z"]).iter().zip(numbers(&expected["z"])) {
        near(*z, expected, 1e-3);
    }
    let theirs = under(&tensors(&fixture("expected.safetensors")), "grad.");
    let worst = same_gradients(&tensors(&dir.path("g")), &theirs);
    println!("worst gradient {worst:.1e}");
}

#[test]
fn only_adapters_are_trained_and_a_resumed_run_is_the_same() {
    let dir = world();
    for rest in ["", "--refresh-every 2", "--reference-mode ema:0.2 --use_adafactor --save-dtype f16"] {
        let rest = format!("--lora-rank 2 {rest}");
        train(&dir, "whole", &format!("--steps 6 {rest}")).ok();
        train(&dir, "a", &format!("--steps 3 {rest}")).ok();
        train(&dir, "b", &format!("--steps 6 --resume a {rest}")).ok();
        assert_same(&adapters(&dir.path("whole")), &adapters(&dir.path("b")));
        assert!(differ(&adapters(&dir.path("whole")), &adapters(&dir.path("a"))));
        assert!(!dir.path("whole/unet").exists());
    }
    // The first step starts from the base.
    let line = log(&dir.path("whole")).remove(0);
    assert_eq!((&line["loss"], &line["mean_abs_z"]), (&std::f64::consts::LN_2.into(), &0.0.into()));
    let names: Vec<_> = adapters(&dir.path("whole")).into_keys().collect();
    assert!(
        names
            .iter()
            .all(|n| n.starts_with("unet.") && [".lora_A.weight", ".lora_B.weight"].iter().any(|e| n.ends_with(e)))
    );
    // to_q, to_k, to_v, to_out.0 of two attentions in four transformers.
    assert_eq!(names.len(), 2 * 4 * 2 * 4);
    let error =
        train(&dir, "x", "--steps 6 --resume a --lora-rank 4 --reference-mode ema:0.2 --use_adafactor").fails(2);
    says(&error, &["a was made with another --lora-rank"]);
}

#[test]
fn the_next_round_starts_from_adapters() {
    let dir = world();
    let rest = "--lora-rank 2";
    train(&dir, "whole", &format!("--steps 6 --refresh-every 3 {rest}")).ok();
    train(&dir, "a", &format!("--steps 3 {rest}")).ok();
    train(&dir, "b", &format!("--steps 6 --resume a --reference a {rest}")).ok();
    assert_same(&adapters(&dir.path("whole")), &adapters(&dir.path("b")));
    // Policy and reference may both start from adapters; if they are the same, z is 0.
    train(&dir, "c", &format!("--steps 1 --policy a --reference a {rest}")).ok();
    assert_eq!(log(&dir.path("c"))[0]["mean_abs_z"], 0.0);
    let error = train(&dir, "x", &format!("--steps 1 --policy a {rest} --lora-alpha 5")).fails(2);
    says(&error, &["rank 2 and alpha 2", "--lora-alpha"]);
    let other = oracle("policy").display().to_string();
    says(&train(&dir, "x", &format!("--reference {other} {rest}")).fails(2), &["--lora-rank", "is another UNet"]);
    says(&train(&dir, "x", "--lora-rank 2 --lora-targets to_nothing").fails(2), &["no linear layer 'to_nothing'"]);
    says(&train(&dir, "x", "--lora-rank 2 --lora-targets conv1").fails(2), &["conv1' is not a linear layer"]);
}

#[test]
fn merged_weights_draw_the_same_images_as_base_and_adapters() {
    let dir = world();
    train(&dir, "out", "--steps 4 --lr 1e-2 --lora-rank 2 --lora-alpha 4 --merge").ok();
    let (base, merged, added) = (weights(&oracle("base")), weights(&dir.path("out")), adapters(&dir.path("out")));
    assert!(base.keys().eq(merged.keys()));
    let adapted =
        added.keys().filter_map(|n| n.strip_prefix("unet.")?.strip_suffix(".lora_A.weight")).collect::<Vec<_>>();
    for (name, weight) in &merged {
        let module = name.strip_suffix(".weight").filter(|m| adapted.contains(m));
        let base = base[name].to_dtype(DType::F32).unwrap();
        let expected = module.map_or(base.clone(), |m| {
            let of = |which: &str| added[&format!("unet.{m}.lora_{which}.weight")].clone();
            (base + (of("B").matmul(&of("A")).unwrap() * 2.0).unwrap()).unwrap()
        });
        assert!(max_abs(weight, &expected) < 1e-6, "{name}");
        assert_eq!(module.is_some(), max_abs(weight, &expected) > 0.0 || module.is_some());
    }
    assert!(adapted.iter().all(|m| {
        added[&format!("unet.{m}.lora_B.weight")].abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0
    }));
    // The file with kohya's names holds the same numbers.
    let kohya = tensors(&dir.path("out/lora/kohya.safetensors"));
    for module in adapted {
        let flat = format!("lora_unet_{}", module.replace('.', "_"));
        let same = |kohya_name: &str, peft: &str| {
            assert_eq!(
                values(&kohya[&format!("{flat}.{kohya_name}")]),
                values(&added[&format!("unet.{module}.{peft}")])
            );
        };
        same("lora_down.weight", "lora_A.weight");
        same("lora_up.weight", "lora_B.weight");
        assert_eq!(values(&kohya[&format!("{flat}.alpha")]), [4.0]);
    }
    // A step from the merged weights starts where the adapters ended.
    let policy = "--steps 1 --lr 0";
    train(&dir, "a", &format!("{policy} --policy out/lora --lora-rank 2 --lora-alpha 4")).ok();
    train(&dir, "b", &format!("{policy} --policy out/unet")).ok();
    let of = |out: &str| log(&dir.path(out))[0]["policy_winner_mse"].as_f64().unwrap();
    near(of("a"), of("b"), 1e-6);
    assert!((of("a") - log(&dir.path("a"))[0]["reference_winner_mse"].as_f64().unwrap()).abs() > 1e-5);
}

/// A checkpoint with a merged UNet is complete only with that UNet.
#[test]
fn a_run_killed_before_the_merged_unet_is_renamed_continues() {
    let dir = world();
    let rest = "--steps 4 --lora-rank 2 --merge --checkpointing_steps 2";
    train(&dir, "whole", rest).ok();
    let unet = |out: &str| weights(&dir.path(out));
    for (name, waits) in [("waiting", true), ("gone", false)] {
        copy(&dir.path("whole"), &dir.path(name));
        for part in ["lora", "state", "unet"] {
            std::fs::remove_dir_all(dir.path(name).join(part)).unwrap();
        }
        let checkpoint = dir.path(name).join("checkpoint-2");
        match waits {
            true => std::fs::rename(checkpoint.join("unet"), checkpoint.join("unet.partial")).unwrap(),
            false => std::fs::remove_dir_all(checkpoint.join("unet")).unwrap(),
        }
        let error = train(&dir, "x", &format!("{rest} --resume {name}/checkpoint-2"));
        match waits {
            true => drop(error.ok()),
            false => {
                says(
                    &error.fails(2),
                    &["checkpoint-2 is not a whole checkpoint", "checkpoint-2/unet/", "does not exist"],
                );
                says(
                    &train(&dir, name, &format!("{rest} --resume latest")).fails(2),
                    &["gone/checkpoint-2", "no other"],
                );
                continue;
            }
        }
        train(&dir, name, &format!("{rest} --resume latest")).ok();
        assert_same(&unet("whole"), &unet(name));
        let steps = log(&dir.path(name)).len();
        assert_eq!(steps, 4);
    }
    assert_same(&unet("whole/checkpoint-2"), &unet("waiting/checkpoint-2"));
}

/// The leftovers of a kill between state/ and lora/.
#[test]
fn a_run_killed_inside_a_checkpoint_continues() {
    let dir = world();
    let rest = "--steps 4 --lora-rank 2 --checkpointing_steps 2";
    train(&dir, "whole", rest).ok();
    let mut killed = vec![];
    for name in ["all waiting", "one waiting"] {
        copy(&dir.path("whole"), &dir.path(name));
        for part in ["lora", "state"] {
            std::fs::remove_dir_all(dir.path(name).join(part)).unwrap();
        }
        let checkpoint = dir.path(name).join("checkpoint-2");
        std::fs::rename(checkpoint.join("lora"), checkpoint.join("lora.partial")).unwrap();
        if name == "one waiting" {
            std::fs::create_dir(checkpoint.join("lora")).unwrap();
            let kohya = |folder: &str| checkpoint.join(folder).join("kohya.safetensors");
            std::fs::rename(kohya("lora.partial"), kohya("lora")).unwrap();
        }
        train(&dir, name, &format!("{rest} --resume latest")).ok();
        killed.push(adapters(&dir.path(name)));
    }
    for adapters_of in killed {
        assert_same(&adapters(&dir.path("whole")), &adapters_of);
    }
    assert_eq!(log(&dir.path("all waiting")).len(), 4);
}

/// The pictures of a line of `sample`.
fn drawn(dir: &Dir, line: &str) -> Vec<Vec<u8>> {
    let words = format!("p.txt {line} --steps 2 -n 2 --seed 5 -q -o drawn");
    dir.tool("sample").args(words.split_whitespace()).ok();
    let table = dir.get("drawn");
    (0..table.num_rows()).map(|row| decode(&image(&table, "image", row)).unwrap().data).collect()
}

#[test]
fn sample_draws_with_adapters_under_every_name() {
    let dir = world();
    dir.write("p.txt", "a fox\na cat\n");
    train(&dir, "out", "--steps 4 --lr 1e-2 --lora-rank 2 --lora-alpha 4 --merge").ok();
    let base = format!("--base {}", oracle("base").display());
    let merged = drawn(&dir, &format!("{base} --unet out"));
    for lora in ["out", "out/lora", "out/lora/pytorch_lora_weights.safetensors", "out/lora/kohya.safetensors"] {
        assert!(drawn(&dir, &format!("{base} --lora {lora}")) == merged, "{lora}");
    }
    // What is merged is not added again: by the same adapters, by those of another step of the same run, and where the merged
    // weights were moved to one file. A negative scale takes them out again.
    let again = "--steps 4 --lr 1e-2 --lora-rank 2 --lora-alpha 4 --merge --checkpointing_steps 2";
    train(&dir, "out", again).ok();
    let words = format!("--policy out --reference {} -o moved.safetensors", oracle("base").display());
    dir.tool("refresh-ref").args(words.split_whitespace()).ok();
    for (unet, lora) in
        [("out", "out"), ("out/unet", "out/checkpoint-2/lora/kohya.safetensors"), ("moved.safetensors", "out")]
    {
        let words = format!("p.txt {base} --unet {unet} --lora {lora} -o x");
        let error = dir.tool("sample").args(words.split_whitespace()).fails(2);
        says(&error, &[&format!("--unet {unet} holds the adapters of --lora already")]);
        assert!(!dir.path("x").exists());
    }
    drawn(&dir, &format!("{base} --unet out --lora out --lora-scale -1"));
    let plain = drawn(&dir, &base);
    assert!(plain != merged && drawn(&dir, &format!("{base} --lora out --lora-scale 0")) == plain);
    // diffusers' older names.
    let peft = adapters(&dir.path("out"));
    let old = |name: &String| {
        let (module, end) = name.split_once(".lora_").unwrap();
        let (block, layer) = module.rsplit_once("attn").unwrap();
        let (number, layer) = layer.split_once('.').unwrap();
        let layer = layer.strip_suffix(".0").unwrap_or(layer);
        let end = if end.starts_with('A') { "down" } else { "up" };
        format!("{block}attn{number}.processor.{layer}_lora.{end}.weight")
    };
    // alpha is the rank where a file does not say it.
    let twice = |name: &String, t: &Tensor| if name.contains("lora_B") { (t * 2.0).unwrap() } else { t.clone() };
    let older: Tensors = peft.iter().map(|(n, t)| (old(n), twice(n, t))).collect();
    let newer: Tensors = peft.iter().map(|(n, t)| (n.clone(), twice(n, t))).collect();
    write_tensors(&dir.path("older.safetensors"), &older);
    write_tensors(&dir.path("newer.safetensors"), &newer);
    let (older, newer) =
        ["older", "newer"].map(|name| drawn(&dir, &format!("{base} --lora {name}.safetensors"))).into();
    assert!(older == merged && newer == merged);
    // rsLoRA divides alpha by the root of the rank: with rank 2, alpha 4 / sqrt(2).
    let rs = "{\"unet.lora_alpha\": 4.0, \"unet.r\": 2, \"unet.use_rslora\": true}";
    let metadata = [("lora_adapter_metadata".to_owned(), rs.to_owned())].into();
    nets::write::tensors(&dir.path("rs.safetensors"), &peft, metadata).unwrap();
    let by_root = drawn(&dir, &format!("{base} --lora rs.safetensors"));
    assert!(by_root != merged && by_root == drawn(&dir, &format!("{base} --lora out --lora-scale 1.4142135623730951")));
}

#[test]
fn adapters_of_the_text_encoder_and_of_convolutions_are_added_too() {
    let dir = world();
    dir.write("p.txt", "a fox\n");
    copy(&oracle("base"), &dir.path("changed"));
    let random = |dims: &[usize], seed: u64| {
        let mut next = noise(seed);
        Tensor::from_vec((0..dims.iter().product()).map(|_| next() - 0.5).collect::<Vec<f32>>(), dims, &Device::Cpu)
            .unwrap()
    };
    let mut lora = Tensors::new();
    // Each adapter, and the same change in the weights of a copy.
    for (file, module, kohya) in [
        (
            "text_encoder/model.safetensors", "text_model.encoder.layers.0.mlp.fc1",
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
        ),
        ("unet/diffusion_pytorch_model.safetensors", "conv_in", "lora_unet_conv_in"),
    ] {
        let path = dir.path(&format!("changed/{file}"));
        let mut all = tensors(&path);
        let name = format!("{module}.weight");
        let weight = all[&name].to_dtype(DType::F32).unwrap();
        let dims = weight.dims().to_vec();
        let (a, b) = (
            random(&[&[2, dims[1]], &dims[2..]].concat(), 1),
            random(&[&[dims[0], 2][..], &vec![1; dims.len() - 2]].concat(), 2),
        );
        let product = b.flatten_from(1).unwrap().matmul(&a.flatten_from(1).unwrap()).unwrap();
        let delta = (product * 0.25).unwrap().reshape(&dims[..]).unwrap(); // alpha 1, rank 2, scale 0.5
        all.insert(name, (weight + delta).unwrap());
        write_tensors(&path, &all);
        lora.insert(format!("{kohya}.lora_down.weight"), a);
        lora.insert(format!("{kohya}.lora_up.weight"), b);
        lora.insert(format!("{kohya}.alpha"), Tensor::new(1f32, &Device::Cpu).unwrap());
    }
    write_tensors(&dir.path("style.safetensors"), &lora);
    let base = format!("--base {}", oracle("base").display());
    let with = drawn(&dir, &format!("{base} --lora style.safetensors --lora-scale 0.5"));
    let origin = dir.tool("check").arg("drawn").ok();
    says(origin.text(), &["lora_scale 0.5", "lora "]);
    let changed = drawn(&dir, "--base changed");
    let apart = with.iter().flatten().zip(changed.iter().flatten()).map(|(p, q)| p.abs_diff(*q)).max();
    assert!(apart <= Some(1) && with != drawn(&dir, &base), "{apart:?}");

    let refused = |change: &dyn Fn(&mut Tensors), parts: &[&str]| {
        let mut other = lora.clone();
        change(&mut other);
        write_tensors(&dir.path("other.safetensors"), &other);
        let words = format!("p.txt {base} --lora other.safetensors -o x");
        says(&dir.tool("sample").args(words.split_whitespace()).fails(2), &[&["other.safetensors"], parts].concat());
    };
    let one = || random(&[2, 2], 3);
    refused(&|all| drop(all.insert("lora_unet_nowhere.lora_up.weight".into(), one())), &["lora_unet_nowhere"]);
    refused(&|all| drop(all.insert("lora_unet_conv_in.hada_w1_a".into(), one())), &["hada_w1_a", "LoHa"]);
    refused(&|all| drop(all.remove("lora_unet_conv_in.lora_up.weight")), &["only a part", "conv_in"]);
    refused(
        &|all| drop(all.insert("lora_unet_conv_in.lora_up.weight".into(), random(&[3, 2, 1, 1], 4))),
        &["conv_in.weight", "do not fit"],
    );
    refused(&|all| all.clear(), &["no adapters"]);
    let nan = |dims: &[usize]| (random(dims, 1) * f64::NAN).unwrap();
    refused(
        &|all| drop(all.insert("lora_unet_conv_in.lora_up.weight".into(), nan(&[8, 2, 1, 1]))),
        &["conv_in.lora_up", "NaN"],
    );
    refused(
        &|all| drop(all.insert("lora_unet_conv_in.lora_down.weight".into(), random(&[4], 1))),
        &["conv_in.lora_down", "matrix"],
    );
    refused(&|all| drop(all.insert("unet.conv_in.lora_A.weight".into(), random(&[2, 4, 3, 3], 1))), &["only a part"]);
    let words = format!("p.txt {base} --lora nowhere -o x");
    says(&dir.tool("sample").args(words.split_whitespace()).fails(2), &["--lora nowhere", "there are no adapters"]);
}
