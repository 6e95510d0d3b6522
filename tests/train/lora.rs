//! Adapters: what is trained, what is written, and the numbers of peft (`tests/oracle/lora.py`).

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
        let base = base[name].to_dtype(candle_core::DType::F32).unwrap();
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
