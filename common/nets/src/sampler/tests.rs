//! Our samplers against diffusers' schedulers. A formula of `tests/oracle/samplers.py` takes the denoiser's place.

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

fn process(config: &Value) -> Process {
    Process::Ddpm(Ddpm::new(serde_json::from_value(config.clone()).unwrap()).unwrap())
}

fn begin(scheduler: Scheduler, config: &Value, steps: usize) -> Result<Box<dyn Sampler>> {
    Sampling { scheduler: Some(scheduler), steps, karras: false, spacing: None }.sampler(&process(config), [8, 8])
}

fn answer(x: &Tensor, t: f32) -> Tensor {
    ((x + f64::from(t / 100.0)).unwrap().sin().unwrap() - (x / 4.0).unwrap()).unwrap()
}

/// Where a sampler ends that begins with this noise.
fn sampled(sampler: &mut dyn Sampler, noise: &[f32]) -> Vec<f32> {
    let start = Tensor::from_vec(noise.to_vec(), (1, 1, 1, noise.len()), &Device::Cpu).unwrap();
    let mut x = (&start * sampler.initial_sigma()).unwrap();
    let timesteps = sampler.timesteps().to_vec();
    let steps = (0..timesteps.len()).map(|i| (&start * (i + 1) as f64).unwrap().cos().unwrap()).collect::<Vec<_>>();
    let given = GivenNoise { latents: start, steps: Some(Tensor::stack(&steps, 0).unwrap()) };
    let noise = Noise::new(vec![0], 0..1, Some(&given)).unwrap();
    for (i, t) in timesteps.into_iter().enumerate() {
        let prediction = answer(&sampler.input(i, &x).unwrap(), t);
        x = sampler.step(i, &x, &prediction, &noise).unwrap();
    }
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_sampler_ends_where_diffusers_ends() {
    let text = include_str!("../../../../tests/fixtures/samplers.json");
    let expected: Expected = serde_json::from_str(text).unwrap();
    for case in &expected.cases {
        let what = format!("{} {} {}", case.config, case.scheduler, case.steps);
        let scheduler = case.scheduler.parse().unwrap();
        let mut sampler = begin(scheduler, &expected.configs[&case.config], case.steps).expect(&what);
        assert_eq!(sampler.timesteps(), case.timesteps, "{what}");
        let far = (sampler.initial_sigma() / case.init_noise_sigma - 1.0).abs();
        assert!(far < 1e-6, "{what}: initial sigma off by {far}");
        let end = sampled(sampler.as_mut(), &expected.noise);
        let size = case.end.iter().fold(1f32, |a, v| a.max(v.abs()));
        let far = end.iter().zip(&case.end).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        // x begins as large as the first sigma (4096 where no signal is left), and f32 rounds it there.
        let allowed = 2e-4 * size + 4e-7 * case.init_noise_sigma as f32;
        assert!(far < allowed, "{what}: ends at {end:?}, diffusers at {:?}", case.end);
    }
}

/// `tests/oracle/karras.py`
#[test]
fn karras_sigmas_and_added_noise_lead_where_the_formulas_lead() {
    #[derive(Deserialize)]
    struct Set {
        karras: bool,
        spacing: Spacing,
        #[serde(flatten)]
        case: Case,
    }
    #[derive(Deserialize)]
    struct Sets {
        configs: BTreeMap<String, Value>,
        noise: Vec<f32>,
        cases: Vec<Set>,
    }
    let sets: Sets = serde_json::from_str(include_str!("../../../../tests/fixtures/karras.json")).unwrap();
    for Set { karras, spacing, case } in &sets.cases {
        let what = format!("{} {} {} {spacing} {karras}", case.config, case.scheduler, case.steps);
        let scheduler = case.scheduler.parse().unwrap();
        let sampling =
            Sampling { scheduler: Some(scheduler), steps: case.steps, karras: *karras, spacing: Some(*spacing) };
        let mut sampler = sampling.sampler(&process(&sets.configs[&case.config]), [8, 8]).expect(&what);
        assert!((sampler.initial_sigma() / case.init_noise_sigma - 1.0).abs() < 1e-5, "{what}");
        let far = sampler.timesteps().iter().zip(&case.timesteps).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        assert!(far < 2e-3 && sampler.timesteps().len() == case.timesteps.len(), "{what}: timesteps off by {far}");
        let end = sampled(sampler.as_mut(), &sets.noise);
        let far = end.iter().zip(&case.end).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        let size = case.end.iter().fold(1f32, |a, v| a.max(v.abs()));
        assert!(far < 5e-4 + 5e-6 * size, "{what}: ends at {end:?}, the formulas at {:?}", case.end);
    }
}

#[test]
fn unsupported_settings_are_refused() {
    let sd = json!({ "steps_offset": 1, "skip_prk_steps": true });
    for (setting, value, scheduler, steps, says) in [
        ("use_beta_sigmas", json!(true), Scheduler::Euler, 5, "use_beta_sigmas = true is not supported"),
        ("use_exponential_sigmas", json!(true), Scheduler::Dpmpp, 5, "use_exponential_sigmas"),
        ("algorithm_type", json!("sde-dpmsolver++"), Scheduler::Dpmpp, 5, "algorithm_type"),
        ("solver_type", json!("heun"), Scheduler::Dpmpp, 5, "solver_type"),
        ("solver_order", json!(3), Scheduler::Dpmpp, 5, "solver_order"),
        ("thresholding", json!(true), Scheduler::Ddim, 5, "thresholding"),
        ("interpolation_type", json!("log_linear"), Scheduler::Euler, 5, "interpolation_type"),
        ("timestep_type", json!("continuous"), Scheduler::Euler, 5, "timestep_type"),
        ("rescale_betas_zero_snr", json!(true), Scheduler::Pndm, 5, "zero terminal SNR"),
        ("skip_prk_steps", json!(false), Scheduler::Pndm, 3, "needs 4 steps, not 3"),
        ("clip_sample", json!(false), Scheduler::Ddim, 0, "0 sampling steps"),
        ("clip_sample", json!(false), Scheduler::Ddim, 1001, "1001 sampling steps do not fit 1000"),
        ("clip_sample", json!(false), Scheduler::Ddim, 1000, "steps_offset 1 reach beyond the last of 1000"),
        ("clip_sample", json!(false), Scheduler::Dpmpp, 1000, "1000 sampling steps and the end"),
    ] {
        let mut config = sd.clone();
        config[setting] = value;
        let error = begin(scheduler, &config, steps).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "{setting}: {error}");
    }
    // Without a signal at the first timestep, eps says nothing of the image.
    let blind = json!({ "rescale_betas_zero_snr": true, "timestep_spacing": "trailing" });
    let error = begin(Scheduler::Ddim, &blind, 5).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("timestep 999"), "{error}");
    // A sampler ignores the settings of others.
    assert!(begin(Scheduler::Ddim, &json!({ "use_karras_sigmas": true, "solver_order": 3 }), 5).is_ok());
    let karras = Sampling { scheduler: Some(Scheduler::Pndm), steps: 5, karras: true, spacing: None };
    let error = karras.sampler(&process(&sd), [8, 8]).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("pndm has no Karras sigmas"), "{error}");
}
