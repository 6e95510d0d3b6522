//! Every operation on a GPU against the CPU's kernel, which other tests hold against torch: values and gradients, in f32 and in
//! bf16. Needs a GPU: `make test-cuda`.
#![cfg(feature = "cuda")]

mod util;

use candle_core::{DType, Device, Result, Tensor, Var};
use nets::{
    optim::{AdafactorConfig, AdamWConfig, Optimizer, UpdateRule},
    params::{Grads, Params},
};
use ops::{Activation, Mask};
use util::{noise, world::relative};

fn gpu() -> Device {
    nets::device::open(pipe::device::Device::Cuda(0)).expect("this test needs a CUDA device")
}

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut next = noise(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| 2.0 * next() - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The result of `f`, and the gradient of a random weighting of it by every operand. The first `data` operands have the type
/// `dtype`; the others are f32 weights, which the operation converts itself.
fn value_and_gradients(
    operands: &[Tensor],
    device: &Device,
    dtype: DType,
    data: usize,
    f: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> = operands.iter().map(|x| Var::from_tensor(&x.to_device(device)?)).collect::<Result<_>>()?;
    let cast: Vec<Tensor> = vars
        .iter()
        .enumerate()
        .map(|(i, v)| if i < data { v.to_dtype(dtype) } else { Ok(v.as_tensor().clone()) })
        .collect::<Result<_>>()?;
    let y = f(&cast)?.to_dtype(DType::F32)?;
    let weight = random(y.dims(), 99).to_device(device)?;
    let store = (&y * weight)?.sum_all()?.backward()?;
    let gradients = vars.iter().map(|v| Ok(store.get(v).expect("no gradient").clone()));
    std::iter::once(Ok(y)).chain(gradients).map(|x: Result<Tensor>| x?.to_device(&Device::Cpu)).collect()
}

#[track_caller]
fn same(what: &str, shapes: &[&[usize]], data: usize, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let operands: Vec<_> = shapes.iter().enumerate().map(|(i, shape)| random(shape, 1 + i as u64)).collect();
    let cpu = value_and_gradients(&operands, &Device::Cpu, DType::F32, data, &f).unwrap();
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 3e-2)] {
        let gpu = value_and_gradients(&operands, &gpu(), dtype, data, &f)
            .unwrap_or_else(|e| panic!("{what}, {dtype:?}: {e}"));
        for (i, (ours, theirs)) in gpu.iter().zip(&cpu).enumerate() {
            let apart = relative(ours, theirs);
            println!("{what} {shapes:?}, {dtype:?}, {}: {apart:.1e}", if i == 0 { "value" } else { "gradient" });
            assert!(apart < tolerance, "{what} {shapes:?}, {dtype:?}, result {i}: {apart}");
        }
    }
}

#[test]
fn convolutions() {
    for (c, o, k, h, w, stride, padding) in [
        (8, 16, 3, 9, 11, 1, 1),
        (8, 16, 3, 10, 12, 2, 1),
        (8, 4, 3, 9, 11, 2, 0),
        (6, 10, 1, 7, 5, 1, 0),
        (320, 320, 3, 32, 32, 1, 1),
    ] {
        let shapes: &[&[usize]] = &[&[2, c, h, w], &[o, c, k, k], &[o]];
        same("conv2d", shapes, 1, |x| ops::conv2d(&x[0], &x[1], &x[2], stride, padding));
    }
}

#[test]
fn linear_maps() {
    for rows in [1, 77, 1024] {
        same("linear", &[&[2, rows, 96], &[40, 96], &[40]], 1, |x| ops::linear(&x[0], &x[1], Some(&x[2])));
        same("linear without bias", &[&[2, rows, 96], &[40, 96]], 1, |x| ops::linear(&x[0], &x[1], None));
    }
    same("linear of a 1x1 convolution", &[&[2, 9, 24], &[40, 24, 1, 1], &[40]], 1, |x| {
        ops::linear(&x[0], &x[1], Some(&x[2]))
    });
}

#[test]
fn attention() {
    for (n, m, width, heads, mask) in [
        (70, 33, 32, 2, Mask::None),
        (20, 20, 24, 3, Mask::Causal),
        (1024, 1024, 320, 8, Mask::None),
        (4096, 4096, 64, 8, Mask::None),
    ] {
        let batch = if n > 1024 { 1 } else { 2 };
        let shapes: &[&[usize]] = &[&[batch, n, width], &[batch, m, width], &[batch, m, width]];
        same("attention", shapes, 3, |x| ops::attention(&x[0], &x[1], &x[2], heads, mask));
        // Large scores, of which bf16 would keep too few digits.
        same("attention of large queries", shapes, 3, |x| ops::attention(&(&x[0] * 8.0)?, &x[1], &x[2], heads, mask));
    }
}

#[test]
fn norms_and_activations() {
    for then in [Activation::None, Activation::Silu] {
        same("group_norm", &[&[2, 32, 9, 11], &[32], &[32]], 1, |x| {
            ops::group_norm(&x[0], &x[1], &x[2], 8, 1e-5, then)
        });
    }
    same("layer_norm", &[&[2, 33, 40], &[40], &[40]], 1, |x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5));
    same("silu", &[&[3, 50]], 1, |x| ops::silu(&x[0]));
    same("gelu", &[&[3, 50]], 1, |x| ops::gelu(&x[0]));
    same("quick_gelu", &[&[3, 50]], 1, |x| ops::quick_gelu(&x[0]));
    same("geglu", &[&[2, 7, 50]], 1, |x| ops::geglu(&x[0]));
}

#[test]
fn moving_pixels() {
    same("to_tokens", &[&[2, 5, 3, 7]], 1, |x| ops::to_tokens(&x[0]));
    same("from_tokens", &[&[2, 21, 5]], 1, |x| ops::from_tokens(&x[0], 3, 7));
    for (h, w) in [(6, 10), (5, 9)] {
        same("upsample_nearest", &[&[2, 4, 3, 5]], 1, |x| ops::upsample_nearest(&x[0], h, w));
    }
    same("pad_bottom_right", &[&[2, 4, 3, 5]], 1, |x| ops::pad_bottom_right(&x[0]));
}

#[test]
fn frozen_linear_maps() {
    let (x, w, b) = (random(&[2, 9, 24], 1), random(&[40, 24], 2), random(&[40], 3));
    let on = |device: &Device| {
        let [x, w, b] = [&x, &w, &b].map(|t| t.to_device(device).unwrap());
        ops::linear_frozen(&x, &ops::freeze(&w).unwrap(), Some(&b)).unwrap()
    };
    assert!(relative(&on(&gpu()), &on(&Device::Cpu)) < 1e-5);
}

#[test]
fn optimisers() {
    let adamw = UpdateRule::AdamW(AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 });
    for rule in [adamw, UpdateRule::Adafactor(AdafactorConfig { weight_decay: 0.01 })] {
        let after = |device: &Device| {
            let named =
                |n: &str, shape: &[usize], seed| (n.to_string(), random(shape, seed).to_device(device).unwrap());
            let shapes: [(&str, &[usize]); 3] = [("matrix", &[12, 8]), ("vector", &[9]), ("kernel", &[6, 5, 3, 3])];
            let params: Params =
                shapes.iter().map(|(n, s)| named(n, s, 5)).map(|(n, t)| (n, Var::from_tensor(&t).unwrap())).collect();
            let mut optimizer = Optimizer::new(&params, rule, DType::F32).unwrap();
            for t in 1..=3 {
                let grads: Grads = shapes.iter().map(|(n, s)| named(n, s, 10 + t)).collect();
                optimizer.step(&params, &grads, t, 0.1).unwrap();
            }
            params.into_values().map(|v| v.as_detached_tensor()).collect::<Vec<_>>()
        };
        for (ours, theirs) in after(&gpu()).iter().zip(after(&Device::Cpu)) {
            assert!(relative(ours, &theirs) < 1e-5, "{rule:?}");
        }
    }
}
