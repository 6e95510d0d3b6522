//! The networks against the Python peers' answers (diffusers, transformers) on tiny models in the published layouts.
//!
//! The models and answers are in the parity kit, which lies beside the repository because it is large. These tests are ignored unless
//! asked for; `make test` asks for them if the kit is there. `tests/nets.rs` checks the same claims on small files of the repository.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use nets::{
    conditioning::{Conditioning, TimeIds},
    denoiser::Denoiser,
    process::Process,
    prompt::PromptEncoder,
    text::TextModel,
    vae::Vae,
};

fn kit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/parity/given")
}

type Named = BTreeMap<String, Tensor>;

fn read(path: &Path) -> Named {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

#[track_caller]
fn close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let gap = (got - want).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    println!("{what}: {gap:e}");
    assert!(gap <= tolerance, "{what}: off by {gap}");
}

fn rows(ids: &Tensor) -> Vec<Vec<u32>> {
    ids.to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn text_encoders_of_the_parity_kit() {
    let kit = kit();
    // SD 2.1's two models have one text encoder.
    for (model, folder, answers) in [
        ("sd15", "text_encoder", "sd15"),
        ("sd21_base", "text_encoder", "sd21_base"),
        ("sd21", "text_encoder", "sd21_base"),
    ] {
        let want = read(&kit.join(format!("expected/text_{answers}.safetensors")));
        let text = TextModel::open(&kit.join("models").join(model).join(folder), DType::F32, &Device::Cpu).unwrap();
        let got = text.forward(&rows(&want["ids"])).unwrap();
        close(&got.last, &want["last_hidden_state"], 5e-5, &format!("{model} last"));
        close(&got.penultimate, &want["penultimate"], 5e-5, &format!("{model} penultimate"));
        close(&got.pooled, &want["pooled"], 5e-5, &format!("{model} pooled"));
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn prompt_encoders_of_the_parity_kit() {
    let kit = kit();
    let prompts = std::fs::read_to_string(kit.join("expected/text_encoder_prompts.json")).unwrap();
    let prompts: Vec<String> = serde_json::from_str(&prompts).unwrap();
    for model in ["sd15", "sd21_base", "sdxl"] {
        let want = read(&kit.join(format!("expected/text_{model}.safetensors")));
        let text = PromptEncoder::open(&kit.join("models").join(model), DType::F32, &Device::Cpu).unwrap();
        let got = text.encode(&prompts).unwrap();
        close(&got.states, &want["context"], 5e-5, &format!("{model} states"));
        assert_eq!(got.pooled.is_some(), model == "sdxl");
        if let Some(pooled) = got.pooled {
            close(&pooled, &want["pooled_context"], 5e-5, &format!("{model} pooled"));
        }
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn unets_of_the_parity_kit() {
    let kit = kit();
    for model in ["sd15", "sd21_base", "sd21", "sdxl"] {
        let want = read(&kit.join(format!("expected/unet_{model}.safetensors")));
        let unet = Denoiser::open(&kit.join("models").join(model).join("unet"), DType::F32, &Device::Cpu).unwrap();
        for case in 0..5 {
            let at = |name: &str| want[&format!("{case}.{name}")].clone();
            let t: Vec<f32> = at("timestep").to_dtype(DType::F32).unwrap().to_vec1().unwrap();
            let pooled = want.get("text_embeds").or(want.get("pooled")).cloned();
            let ids = want.get(&format!("{case}.time_ids")).or(want.get("time_ids")).map(|ids| ids.to_vec2().unwrap());
            let sizes = ids.unwrap_or_default().into_iter().map(|row: Vec<f32>| TimeIds(row.try_into().unwrap()));
            let conditioning = Conditioning::of_text(want["context"].clone(), pooled).with_sizes(sizes.collect());
            let got = unet.predict(&at("sample"), &t, &conditioning).unwrap();
            close(&got, &at("out"), 5e-5, &format!("{model} case {case}"));
        }
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn vaes_of_the_parity_kit() {
    let kit = kit();
    for model in ["sd15", "sdxl"] {
        let want = read(&kit.join(format!("expected/vae_{model}.safetensors")));
        let vae = Vae::open(&kit.join("models").join(model).join("vae"), DType::F32, &Device::Cpu).unwrap();
        let posterior = vae.encode(&want["pixels"]).unwrap();
        close(&posterior.mean, &want["mean"], 5e-5, "mean");
        close(&posterior.logvar, &want["logvar"], 5e-5, "logvar");
        let latents = vae.to_latents(&posterior.sample(&want["eps"]).unwrap()).unwrap();
        close(&latents, &want["latents"], 5e-5, "latents");
        close(&vae.decode(&want["latents"]).unwrap(), &want["decoded"], 5e-5, "decoded");
        let z = vae.to_latents(&want["z"]).unwrap();
        close(&vae.decode(&z).unwrap(), &want["decoded_z"], 1e-4, "decoded_z");
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn schedules_of_the_parity_kit() {
    let kit = kit();
    let process = Process::open(&kit.join("models/sd15")).unwrap();
    let want = read(&kit.join("expected/dpo_sd15.safetensors"));
    let t: Vec<f32> = want["timesteps"].to_dtype(DType::F32).unwrap().to_vec1().unwrap();
    let noisy = process.add_noise(&want["latents"], &want["noise"], &t).unwrap();
    close(&noisy, &want["noisy"], 1e-6, "noisy latents");
}
