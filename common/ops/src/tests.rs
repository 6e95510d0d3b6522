//! Kernels against compositions of candle's operations: values and gradients.

use candle_core::{Device, Tensor, Var};

pub fn var(shape: &[usize], seed: u64) -> Var {
    let n = shape.iter().product();
    // A small linear congruential generator: any numbers between -1 and 1 will do.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let data: Vec<f32> = (0..n)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0
        })
        .collect();
    Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
}

pub fn close(a: &Tensor, b: &Tensor, what: &str) {
    let scale = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().max(1e-3);
    let gap = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(gap <= 2e-5 * scale, "{what}: {gap} of {scale}");
}

/// Same values and same gradients of every variable, under a random weighting of the output.
pub fn same(vars: &[&Var], ours: &Tensor, theirs: &Tensor) {
    close(ours, theirs, "forward");
    let weight = var(ours.dims(), 77);
    let grads = |y: &Tensor| (y * weight.as_tensor().detach()).unwrap().sum_all().unwrap().backward().unwrap();
    let (a, b) = (grads(ours), grads(theirs));
    for (i, v) in vars.iter().enumerate() {
        close(a.get(v).unwrap(), b.get(v).unwrap(), &format!("gradient {i}"));
    }
}
