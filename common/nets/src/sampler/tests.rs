//! The walks against diffusers' schedulers, on the formula that `tests/oracle/samplers.py` puts in the UNet's place.

use std::collections::BTreeMap;

use candle_core::Device;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;

#[derive(Deserialize)]
struct Expected {
    configs: BTreeMap<String, Value>,
    noise: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    config: String,
    scheduler: String,
    steps: usize,
    init_noise_sigma: f64,
    timesteps: Vec<f32>,
    end: Vec<f32>,
}

fn method(name: &str) -> Method {
    match name {
        "ddim" => Method::Ddim,
        "pndm" => Method::Pndm,
        "dpmpp" => Method::Dpmpp,
        _ => Method::Euler,
    }
}

fn schedule(config: &Value) -> Schedule {
    Schedule::new(serde_json::from_value(config.clone()).unwrap()).unwrap()
}

fn answer(x: &Tensor, t: f32) -> Tensor {
    ((x + f64::from(t / 100.0)).unwrap().sin().unwrap() - (x / 4.0).unwrap()).unwrap()
}

fn walk(sampler: &mut dyn Sampler, noise: &[f32]) -> Vec<f32> {
    let noise = Tensor::from_vec(noise.to_vec(), (1, noise.len()), &Device::Cpu).unwrap();
    let mut x = (noise * sampler.initial_sigma()).unwrap();
    for (i, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
        let said = answer(&sampler.input(i, &x).unwrap(), t);
        x = sampler.step(i, &x, &said).unwrap();
    }
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_walk_ends_where_diffusers_ends() {
    let text = include_str!("../../../../tests/fixtures/samplers.json");
    let expected: Expected = serde_json::from_str(text).unwrap();
    for case in &expected.cases {
        let what = format!("{} {} {}", case.config, case.scheduler, case.steps);
        let schedule = schedule(&expected.configs[&case.config]);
        let mut sampler = method(&case.scheduler).begin(&schedule, case.steps).expect(&what);
        assert_eq!(sampler.timesteps(), case.timesteps, "{what}");
        let far = (sampler.initial_sigma() / case.init_noise_sigma - 1.0).abs();
        assert!(far < 1e-6, "{what}: initial sigma off by {far}");
        let end = walk(sampler.as_mut(), &expected.noise);
        let size = case.end.iter().fold(1f32, |a, v| a.max(v.abs()));
        let far = end.iter().zip(&case.end).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        // x begins as large as the first sigma (4096 where no signal is left), and f32 rounds it there.
        let allowed = 2e-4 * size + 4e-7 * case.init_noise_sigma as f32;
        assert!(far < allowed, "{what}: ends at {end:?}, diffusers at {:?}", case.end);
    }
}

#[test]
fn what_a_sampler_does_not_know_is_refused_in_words() {
    let sd = json!({ "steps_offset": 1, "skip_prk_steps": true });
    for (setting, value, method, steps, says) in [
        ("use_karras_sigmas", json!(true), Method::Euler, 5, "use_karras_sigmas is not supported"),
        ("use_karras_sigmas", json!(true), Method::Dpmpp, 5, "use_karras_sigmas is not supported"),
        ("algorithm_type", json!("sde-dpmsolver++"), Method::Dpmpp, 5, "algorithm_type"),
        ("solver_type", json!("heun"), Method::Dpmpp, 5, "solver_type"),
        ("solver_order", json!(3), Method::Dpmpp, 5, "solver_order"),
        ("thresholding", json!(true), Method::Ddim, 5, "thresholding"),
        ("interpolation_type", json!("log_linear"), Method::Euler, 5, "interpolation_type"),
        ("timestep_type", json!("continuous"), Method::Euler, 5, "timestep_type"),
        ("rescale_betas_zero_snr", json!(true), Method::Pndm, 5, "zero terminal SNR"),
        ("skip_prk_steps", json!(false), Method::Pndm, 3, "needs 4 steps, not 3"),
        ("clip_sample", json!(false), Method::Ddim, 0, "0 sampling steps"),
        ("clip_sample", json!(false), Method::Ddim, 1001, "1001 sampling steps do not fit 1000"),
        ("clip_sample", json!(false), Method::Ddim, 1000, "steps_offset 1 reach beyond the last of 1000"),
        ("clip_sample", json!(false), Method::Dpmpp, 1000, "1000 sampling steps and the end"),
    ] {
        let mut config = sd.clone();
        config[setting] = value;
        let error = method.begin(&schedule(&config), steps).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "{setting}: {error}");
    }
    // Without a signal at the first timestep, eps says nothing of the image.
    let blind = json!({ "rescale_betas_zero_snr": true, "timestep_spacing": "trailing" });
    let error = Method::Ddim.begin(&schedule(&blind), 5).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("epsilon says nothing of timestep 999"), "{error}");
    // Other samplers' settings are none of this one's business.
    assert!(Method::Ddim.begin(&schedule(&json!({ "use_karras_sigmas": true, "solver_order": 3 })), 5).is_ok());
}
