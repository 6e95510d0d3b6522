//! The networks against diffusers and transformers: outputs of the small model that `tests/oracle/dpo.py` made, computed
//! there in f64.
#![cfg(feature = "nets")]

mod util;

use candle_core::{DType, Device, Tensor};
use nets::{conditioning::Widths, denoiser::Denoiser, prompt::PromptEncoder, vae::Vae};
use util::{test_device, world::*};

/// `TEST_DEVICE`, or the CPU.
fn device() -> Device {
    nets::device::open(test_device().as_deref().unwrap_or("cpu").parse().unwrap()).unwrap()
}

fn here(x: &Tensor) -> Tensor {
    x.to_device(&device()).unwrap()
}

fn prompts() -> Vec<String> {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(oracle("expected.json")).unwrap()).unwrap();
    json["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect()
}

#[test]
fn text_encoder() {
    let expected = tensors(&oracle("expected.safetensors"));
    let text = PromptEncoder::open(&oracle("base"), DType::F32, &device()).unwrap();
    let states = text.encode(&[prompts(), vec![String::new()]].concat()).unwrap().states;
    assert!(max_abs(&states, &expected["text.states"]) < 5e-5);
}

#[test]
fn two_text_encoders() {
    let expected = tensors(&fixture("sample/expected.safetensors"));
    let text = PromptEncoder::open(&fixture("sample/sdxl"), DType::F32, &device()).unwrap();
    let told = text.encode(&["a red bicycle", "PORTRAIT of a robot! 3d style!", ""]).unwrap();
    assert!(max_abs(&told.states, &expected["sdxl.states"]) < 5e-5);
    let pooled = told.pooled.unwrap();
    assert!(max_abs(&pooled, &expected["sdxl.pooled"]) < 5e-5);
    assert_eq!((text.tokens(), text.widths()), (16, Widths { states: 20, pooled: Some(16) }));
    // Without a negative prompt SDXL is told zeros, with an empty one what it says of "".
    let empty = text.negative(Some("")).unwrap();
    // On a GPU one prompt and three are other matrix products.
    let rounding = if device().is_cpu() { 0.0 } else { 5e-6 };
    assert!(max_abs(&empty.states, &told.states.narrow(0, 2, 1).unwrap()) <= rounding);
    let zeros = text.negative(None).unwrap();
    assert_eq!((zeros.states.dims(), max_abs(&zeros.states, &(&zeros.states * 0.0).unwrap())), (&[1, 16, 20][..], 0.0));
    assert_eq!(max_abs(&zeros.pooled.unwrap(), &(pooled.narrow(0, 0, 1).unwrap() * 0.0).unwrap()), 0.0);
}

#[test]
fn unet() {
    let expected = tensors(&oracle("expected.safetensors"));
    let text = PromptEncoder::open(&oracle("base"), DType::F32, &device()).unwrap();
    let unet = Denoiser::open(&oracle("policy/unet"), DType::F32, &device()).unwrap();
    let timesteps = values(&expected["unet.timestep"]);
    let conditioning = text.encode(&prompts()).unwrap();
    let out = unet.predict(&here(&expected["unet.sample"]), &timesteps, &conditioning).unwrap();
    assert!(max_abs(&out, &expected["unet.out"]) < 5e-5);
}

#[test]
fn vae() {
    let expected = tensors(&oracle("expected.safetensors"));
    let vae = Vae::open(&oracle("base/vae"), DType::F32, &device()).unwrap();
    let posterior = vae.encode(&here(&expected["vae.image"])).unwrap();
    assert!(max_abs(&posterior.mean, &expected["vae.mean"]) < 5e-5);
    assert!(max_abs(&posterior.logvar, &expected["vae.logvar"]) < 5e-5);
    let scaled = vae.to_latents(&here(&expected["vae.mean"])).unwrap();
    assert!(max_abs(&vae.decode(&scaled).unwrap(), &expected["vae.decoded"]) < 5e-5);
}
