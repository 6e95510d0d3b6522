//! Models other than Stable Diffusion 1: the parity kit's SDXL and Stable Diffusion 2.1.

use super::*;

#[test]
#[ignore = "needs ../shared/parity/given"]
fn sdxl_gives_the_numbers_of_the_parity_kit() {
    let (kit, dir) = (parity(""), Dir::new());
    let expected: Value = serde_json::from_slice(&std::fs::read(kit.join("expected/dpo_sdxl.json")).unwrap()).unwrap();
    let model = |name: &str| kit.join("models").join(name).display().to_string();
    let (base, policy) = (model("sdxl"), model("sdxl_policy"));
    let replay = kit.join("replay_dpo_sdxl.safetensors").display().to_string();
    for case in expected["cases"].as_array().unwrap() {
        let beta = case["beta"].as_f64().unwrap();
        let rest = format!(
            "--base {base} --policy {policy} --replay {replay} --steps 1 --beta {beta} --dump-gradients g{beta} \
             --train_batch_size 3"
        );
        train(&dir, "out", &rest).ok();
        let line = log(&dir.path("out")).remove(0);
        near(line["loss"].as_f64().unwrap(), case["loss"].as_f64().unwrap(), 5e-4);
        for (z, expected) in numbers(&line["z"]).iter().zip(numbers(&case["inside"])) {
            near(*z, expected, 2e-3);
        }
    }
    let theirs = tensors(&kit.join("expected/dpo_sdxl_grads.safetensors"));
    let ours = tensors(&dir.path("g5000")).into_iter().filter(|(n, _)| theirs.contains_key(n)).collect();
    println!("worst gradient {:.1e}", same_gradients(&ours, &theirs));
    // The sizes of the images matter, image by image. Without them, images are as large as their latents.
    let mut all = tensors(Path::new(&replay));
    let errors = |all: &Tensors| {
        let all: Vec<_> = all.clone().into_iter().collect();
        let prompts = r#"["a photo of a cat", "", "an oil painting of mountains at dawn"]"#;
        safetensors(&dir.path("replay"), &all, Some([("prompts".to_owned(), prompts.to_owned())].into()));
        train(&dir, "out", &format!("--base {base} --replay replay --steps 1 --lr 0")).ok();
        let line = log(&dir.path("out")).remove(0);
        [line["policy_winner_mse"].clone(), line["policy_loser_mse"].clone()]
    };
    let whole_images = errors(&all);
    let ids = all.remove("0.time_ids").unwrap();
    assert_eq!(whole_images, errors(&all));
    let whole = values(&ids);
    let cropped = whole.chunks(6).enumerate().flat_map(|(i, row)| match i {
        0..3 => row.to_vec(),
        _ => vec![768.0, 512.0, 64.0, 0.0, 64.0, 64.0],
    });
    let cropped = candle_core::Tensor::from_vec(cropped.collect::<Vec<f32>>(), (6, 6), ids.device()).unwrap();
    all.insert("0.time_ids".into(), cropped);
    let cropped = errors(&all);
    assert!(cropped[0] == whole_images[0] && cropped[1] != whole_images[1]);
    let rest = format!("--base {base} --replay {replay} --steps 1 --train_batch_size 2");
    says(&train(&dir, "x", &rest).fails(2), &["--train-batch-size 2", "has 3 pairs"]);
}

/// Training from pairs and from the cache, with real sizes and crops, differs only by the cache's half precision.
#[test]
#[ignore = "needs ../shared/parity/given"]
fn the_kits_models_train_from_pairs_and_from_the_cache() {
    for name in ["sdxl", "sd21", "sd21_base"] {
        let (dir, base) = (world(), parity(&format!("models/{name}")).display().to_string());
        let rest = format!("--base {base} --resolution 64 --train_batch_size 2 --augment none");
        train(&dir, "a", &format!("--steps 2 {rest}")).ok();
        let args = ["pairs.parquet", "-o", "cache", "--resolution", "64", "-q", "--base", &base];
        dir.tool("encode").args(args).ok();
        train(&dir, "b", &format!("cache --steps 2 {rest}")).ok();
        for (a, b) in log(&dir.path("a")).iter().zip(log(&dir.path("b"))) {
            for key in ["policy_winner_mse", "policy_loser_mse"] {
                near(b[key].as_f64().unwrap(), a[key].as_f64().unwrap(), 2e-3 * a[key].as_f64().unwrap());
            }
        }
        assert!(weights(Path::new(&base)).keys().eq(weights(&dir.path("a")).keys()), "{name}");
        // For a v-prediction model, --error epsilon makes the error smaller by alpha_t^2.
        let (v, epsilon) = (log(&dir.path("a")), {
            train(&dir, "c", &format!("--steps 1 --error epsilon {rest}")).ok();
            log(&dir.path("c"))
        });
        let of = |line: &Value| line["policy_winner_mse"].as_f64().unwrap();
        assert_eq!(of(&v[0]) > of(&epsilon[0]), name == "sd21", "{name}");
        assert_eq!(of(&v[0]) == of(&epsilon[0]), name != "sd21", "{name}");
    }
}

/// The layout in which mhdang/dpo-sd1.5-text2image-v1 is published.
#[test]
fn a_folder_that_holds_only_a_unet_is_a_policy() {
    let dir = world();
    copy(&oracle("policy"), &dir.path("published"));
    train(&dir, "a", "--steps 1 --policy published --reference published").ok();
    assert_eq!(log(&dir.path("a"))[0]["mean_abs_z"], 0.0);
    train(&dir, "b", "--steps 1 --policy published/unet").ok();
    assert!(log(&dir.path("b"))[0]["mean_abs_z"].as_f64().unwrap() > 0.0);
}
