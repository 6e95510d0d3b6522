//! The networks against diffusers and transformers: outputs of the small model that `tests/oracle/dpo.py` made, computed
//! there in f64.
#![cfg(feature = "nets")]

mod util;

use candle_core::{DType, Device};
use nets::{prompt::PromptEncoder, unet::UNet, vae::Vae};
use util::world::*;

const CPU: Device = Device::Cpu;

fn prompts() -> Vec<String> {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(oracle("expected.json")).unwrap()).unwrap();
    json["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect()
}

#[test]
fn text_encoder() {
    let expected = tensors(&oracle("expected.safetensors"));
    let text = PromptEncoder::open(&oracle("base"), DType::F32, &CPU).unwrap();
    let states = text.encode(&[prompts(), vec![String::new()]].concat()).unwrap().states;
    assert!(max_abs(&states, &expected["text.states"]) < 5e-5);
}

#[test]
fn unet() {
    let expected = tensors(&oracle("expected.safetensors"));
    let text = PromptEncoder::open(&oracle("base"), DType::F32, &CPU).unwrap();
    let unet = UNet::open(&oracle("policy/unet"), DType::F32, &CPU).unwrap();
    let timesteps = values(&expected["unet.timestep"]);
    let states = text.encode(&prompts()).unwrap().states;
    let out = unet.forward(&expected["unet.sample"], &timesteps, &states, None).unwrap();
    assert!(max_abs(&out, &expected["unet.out"]) < 5e-5);
}

#[test]
fn vae() {
    let expected = tensors(&oracle("expected.safetensors"));
    let vae = Vae::open(&oracle("base/vae"), DType::F32, &CPU).unwrap();
    let posterior = vae.encode(&expected["vae.image"]).unwrap();
    assert!(max_abs(&posterior.mean, &expected["vae.mean"]) < 5e-5);
    assert!(max_abs(&posterior.logvar, &expected["vae.logvar"]) < 5e-5);
    let scaled = (&expected["vae.mean"] * vae.config.scaling_factor).unwrap();
    assert!(max_abs(&vae.decode(&scaled).unwrap(), &expected["vae.decoded"]) < 5e-5);
}
