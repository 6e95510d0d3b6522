//! Activations, elementwise, and GEGLU.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{has_kernel, math, values, with_values};

/// x sigmoid(x)
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if has_kernel(x) { x.contiguous()?.apply_op1(Pointwise::Silu) } else { x.silu() }
}

/// x Phi(x), the exact (erf) form, as diffusers and open_clip mean by "gelu".
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if has_kernel(x) { x.contiguous()?.apply_op1(Pointwise::Gelu) } else { x.gelu_erf() }
}

/// x sigmoid(1.702 x), OpenAI CLIP's approximation.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    if has_kernel(x) {
        return x.contiguous()?.apply_op1(Pointwise::QuickGelu);
    }
    // sigmoid(z) = (1 + tanh(z / 2)) / 2, which candle can differentiate
    x * x.affine(0.851, 0.0)?.tanh()?.affine(0.5, 0.5)?
}

/// `x` (..., 2F), hidden before gate -> hidden * gelu(gate), (..., F). diffusers' GEGLU.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.contiguous()?.apply_op1(Geglu)?.to_dtype(x.dtype())
}

/// Elements a task works on.
const CHUNK: usize = 1 << 14;

#[derive(Clone, Copy)]
enum Pointwise {
    Silu,
    Gelu,
    QuickGelu,
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn forward(op: Pointwise, y: &mut [f32], x: &[f32]) {
    match op {
        Pointwise::Silu => y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::silu(x)),
        Pointwise::Gelu => y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::gelu(x)),
        Pointwise::QuickGelu => y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::quick_gelu(x)),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn backward(op: Pointwise, gx: &mut [f32], x: &[f32], gy: &[f32]) {
    let all = gx.iter_mut().zip(x.iter().zip(gy));
    match op {
        Pointwise::Silu => all.for_each(|(gx, (&x, &gy))| *gx = gy * math::silu_grad(x)),
        Pointwise::Gelu => all.for_each(|(gx, (&x, &gy))| *gx = gy * math::gelu_grad(x)),
        Pointwise::QuickGelu => all.for_each(|(gx, (&x, &gy))| *gx = gy * math::quick_gelu_grad(x)),
    }
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| forward(*self, y, x));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let gx = with_values([x, gy], |[x, gy]| {
            let mut gx = vec![0f32; x.len()];
            let operands = x.par_chunks(CHUNK).zip(gy.par_chunks(CHUNK));
            gx.par_chunks_mut(CHUNK).zip(operands).for_each(|(gx, (x, gy))| backward(*self, gx, x, gy));
            gx
        })?;
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }
}

struct Geglu;

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn geglu_row(y: &mut [f32], x: &[f32]) {
    let (hidden, gate) = x.split_at(y.len());
    y.iter_mut().zip(hidden.iter().zip(gate)).for_each(|(y, (&h, &g))| *y = h * math::gelu(g));
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn geglu_row_grad(gx: &mut [f32], x: &[f32], gy: &[f32]) {
    let (hidden, gate) = x.split_at(gy.len());
    let (gh, gg) = gx.split_at_mut(gy.len());
    gh.iter_mut().zip(gate.iter().zip(gy)).for_each(|(gh, (&g, &gy))| *gh = gy * math::gelu(g));
    let operands = hidden.iter().zip(gate).zip(gy);
    gg.iter_mut().zip(operands).for_each(|(gg, ((&h, &g), &gy))| *gg = gy * h * math::gelu_grad(g));
}

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let mut dims = layout.dims().to_vec();
        let width = dims.pop().unwrap_or(0) / 2;
        dims.push(width);
        let mut y = vec![0f32; x.len() / 2];
        let rows = y.par_chunks_mut(width.max(1)).zip(x.par_chunks(2 * width.max(1)));
        rows.with_min_len(16).for_each(|(y, x)| geglu_row(y, x));
        Ok((CpuStorage::F32(y), dims.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let width = dims.pop().unwrap_or(0) / 2;
        dims.push(width);
        Ok((cuda::geglu((x, layout))?, dims.into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::geglu_grad(x, gy).map(Some);
        }
        let width = gy.dim(D::Minus1)?.max(1);
        let gx = with_values([x, gy], |[x, gy]| {
            let mut gx = vec![0f32; x.len()];
            let operands = x.par_chunks(2 * width).zip(gy.par_chunks(width));
            let rows = gx.par_chunks_mut(2 * width).zip(operands).with_min_len(16);
            rows.for_each(|(gx, (x, gy))| geglu_row_grad(gx, x, gy));
            gx
        })?;
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{same, var};
    use super::*;

    #[test]
    fn activations_equal_candles() {
        let x = var(&[5, 33], 1);
        let wide = (x.as_tensor() * 4.0).unwrap();
        same(&[&x], &silu(&wide).unwrap(), &wide.silu().unwrap());
        same(&[&x], &gelu(&wide).unwrap(), &wide.gelu_erf().unwrap());
        let composed = (&wide * (((&wide * 0.851).unwrap().tanh().unwrap() * 0.5).unwrap() + 0.5).unwrap()).unwrap();
        same(&[&x], &quick_gelu(&wide).unwrap(), &composed);
    }

    #[test]
    fn geglu_equals_its_definition() {
        let x = var(&[3, 7, 20], 5);
        let wide = (x.as_tensor() * 3.0).unwrap();
        let composed = (wide.narrow(2, 0, 10).unwrap() * wide.narrow(2, 10, 10).unwrap().gelu_erf().unwrap()).unwrap();
        same(&[&x], &geglu(&wide).unwrap(), &composed);
    }
}
