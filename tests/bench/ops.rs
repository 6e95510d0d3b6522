//! Times every operation of a Stable Diffusion 1.5 training step, forward and backward, as `peer_ops.py` asks for them.
//!
//!   ops 2 5 "conv 2 320 320 32" "linear 2 1024 320 2560" "attention 2 1024 77 8 40"     threads, repetitions, operations

use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, Var};
use nets::{
    device,
    optim::{AdamWConfig, Optimizer, UpdateRule},
    params::{self, Grads, Params},
};
use ops::{Activation, Mask};

/// What is timed: the operation on its inputs.
type Op = Box<dyn Fn(&[Var]) -> candle_core::Result<Tensor>>;

#[global_allocator]
static POOL: ops::Pool = ops::Pool;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut number =
        || args.next().context("threads and repetitions are missing")?.parse::<usize>().context("no number");
    let (threads, repetitions) = (number()?, number()?);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let ops: Vec<String> = args.collect();
    device::on_workers(|| {
        for op in &ops {
            let (forward, backward) = time(op, repetitions).with_context(|| op.clone())?;
            println!("{op}\t{forward}\t{backward}");
        }
        Ok(())
    })
}

fn var(shape: &[usize]) -> Result<Var> {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 7919 % 1009) as f32 / 1009.0) - 0.5).collect();
    Ok(Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?)
}

/// Milliseconds of one forward and one backward pass, medians.
fn time(op: &str, repetitions: usize) -> Result<(f64, f64)> {
    let mut words = op.split(' ');
    let name = words.next().unwrap_or_default();
    let n: Vec<usize> = words.map(str::parse).collect::<Result<_, _>>()?;
    let (vars, f): (Vec<Var>, Op) = match (name, &n[..]) {
        ("conv", &[b, c, o, side]) => (
            vec![var(&[o, c, 3, 3])?, var(&[o])?, var(&[b, c, side, side])?],
            Box::new(|v| ops::conv2d(&v[2], &v[0], &v[1], 1, 1)),
        ),
        ("linear", &[b, rows, inner, out]) => (
            vec![var(&[out, inner])?, var(&[out])?, var(&[b, rows, inner])?],
            Box::new(|v| ops::linear(&v[2], &v[0], Some(&v[1]))),
        ),
        ("attention", &[b, n, m, heads, d]) => (
            vec![var(&[b, n, heads * d])?, var(&[b, m, heads * d])?, var(&[b, m, heads * d])?],
            Box::new(move |v| ops::attention(&v[0], &v[1], &v[2], heads, Mask::None)),
        ),
        ("group_norm", &[b, c, side]) => (
            vec![var(&[c])?, var(&[c])?, var(&[b, c, side, side])?],
            Box::new(|v| ops::group_norm(&v[2], &v[0], &v[1], 32, 1e-5, Activation::Silu)),
        ),
        ("layer_norm", &[b, rows, c]) => (
            vec![var(&[c])?, var(&[c])?, var(&[b, rows, c])?],
            Box::new(|v| ops::layer_norm(&v[2], &v[0], &v[1], 1e-5)),
        ),
        ("geglu", &[b, rows, width]) => (vec![var(&[b, rows, 2 * width])?], Box::new(|v| ops::geglu(&v[0]))),
        ("adamw", &[millions]) => return adamw(millions * 1_000_000, repetitions),
        _ => bail!("no such operation"),
    };
    // Parameters are summed in place, as in training; the last operand is the input.
    let params: Params =
        vars.iter().take(vars.len().min(2)).enumerate().map(|(i, v)| (i.to_string(), v.clone())).collect();
    let params = if name == "attention" || name == "geglu" { Params::new() } else { params };
    let mut grads = Grads::new();
    let seed = var(f(&vars)?.dims())?.as_detached_tensor();
    let (mut forward, mut backward) = (vec![], vec![]);
    for _ in 0..repetitions + 1 {
        let began = Instant::now();
        let y = f(&vars)?;
        forward.push(began.elapsed().as_secs_f64() * 1e3);
        let loss = (y * &seed)?.sum_all()?;
        let began = Instant::now();
        let store = params::accumulate(&params, &mut grads, || loss.backward())?;
        backward.push(began.elapsed().as_secs_f64() * 1e3);
        drop(store);
    }
    Ok((median(forward), median(backward)))
}

fn adamw(n: usize, repetitions: usize) -> Result<(f64, f64)> {
    let params = Params::from([("p".to_string(), var(&[n])?)]);
    let grads = Grads::from([("p".to_string(), var(&[n])?.as_detached_tensor())]);
    let rule = UpdateRule::AdamW(AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2 });
    let mut optimizer = Optimizer::new(&params, rule, DType::F32)?;
    let mut times = vec![];
    for t in 0..repetitions + 1 {
        let began = Instant::now();
        optimizer.step(&params, &grads, t as u64 + 1, 1e-8)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok((median(times), 0.0))
}

/// Without the first, which warms up.
fn median(mut times: Vec<f64>) -> f64 {
    times.remove(0);
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
