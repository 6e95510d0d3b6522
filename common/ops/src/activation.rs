//! Activations, element by element, and GEGLU.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{D, DType, Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{self, Number, launch, of_type};
use super::kernel::{Gradient, Kernel, Operand, apply1, has_passes};
use super::{arithmetic::CHUNK, math};

/// x sigmoid(x), of any shape.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply1(Pointwise::Silu, x)
}

/// x Phi(x), of any shape: the exact form by erf, which diffusers and open_clip mean by "gelu".
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply1(Pointwise::Gelu, x)
}

/// The approximation of GELU by tanh, of any shape: T5's and the diffusion transformers'.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    apply1(Pointwise::GeluTanh, x)
}

/// x sigmoid(1.702 x), of any shape: OpenAI CLIP's approximation of GELU.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    apply1(Pointwise::QuickGelu, x)
}

/// diffusers' GEGLU: `x` (..., 2F), hidden before gate -> hidden * gelu(gate), (..., F).
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    if x.dim(D::Minus1)? % 2 != 0 {
        bail!("geglu: the last dimension of {:?} is odd", x.shape())
    }
    let wide = if has_passes::<Geglu, 1>(x) { x.clone() } else { x.to_dtype(DType::F32)? };
    apply1(Geglu, &wide)?.to_dtype(x.dtype())
}

#[derive(Clone, Copy)]
enum Pointwise {
    Silu,
    Gelu,
    GeluTanh,
    QuickGelu,
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn forward(op: Pointwise, y: &mut [f32], x: &[f32]) {
    match op {
        Pointwise::Silu => y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::silu(x)),
        Pointwise::Gelu => y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::gelu(x)),
        Pointwise::GeluTanh => y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::gelu_tanh(x)),
        Pointwise::QuickGelu => y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::quick_gelu(x)),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn backward(op: Pointwise, gx: &mut [f32], x: &[f32], gy: &[f32]) {
    let all = gx.iter_mut().zip(x.iter().zip(gy));
    match op {
        Pointwise::Silu => all.for_each(|(gx, (&x, &gy))| *gx = gy * math::silu_grad(x)),
        Pointwise::Gelu => all.for_each(|(gx, (&x, &gy))| *gx = gy * math::gelu_grad(x)),
        Pointwise::GeluTanh => all.for_each(|(gx, (&x, &gy))| *gx = gy * math::gelu_tanh_grad(x)),
        Pointwise::QuickGelu => all.for_each(|(gx, (&x, &gy))| *gx = gy * math::quick_gelu_grad(x)),
    }
}

impl Kernel<1> for Pointwise {
    const NAME: &'static str = "activation";

    fn forward(&self, [x]: [Operand; 1]) -> Vec<f32> {
        let mut y = vec![0f32; x.values.len()];
        y.par_chunks_mut(CHUNK).zip(x.values.par_chunks(CHUNK)).for_each(|(y, x)| forward(*self, y, x));
        y
    }

    fn backward(&self, [x]: [Operand; 1], gy: &[f32], [gx]: [&mut Gradient; 1]) -> Result<()> {
        gx.set(|| {
            let mut gx = vec![0f32; gy.len()];
            let operands = x.values.par_chunks(CHUNK).zip(gy.par_chunks(CHUNK));
            gx.par_chunks_mut(CHUNK).zip(operands).for_each(|(gx, (x, gy))| backward(*self, gx, x, gy));
            gx
        });
        Ok(())
    }

    fn composed(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        match self {
            Pointwise::Silu => x.silu(),
            Pointwise::Gelu => x.gelu_erf(),
            Pointwise::GeluTanh => x.gelu(),
            // sigmoid(z) = (1 + tanh(z / 2)) / 2, which candle can differentiate.
            Pointwise::QuickGelu => x * x.affine(0.851, 0.0)?.tanh()?.affine(0.5, 0.5)?,
        }
    }
}

pub(crate) struct Geglu;

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

impl Kernel<1> for Geglu {
    const NAME: &'static str = "geglu";
    const CUDA: &'static [DType] = &[DType::F32, DType::BF16];

    fn shape(&self, [x]: [&[usize]; 1]) -> Vec<usize> {
        let mut shape = x.to_vec();
        shape[x.len() - 1] /= 2;
        shape
    }

    fn forward(&self, [x]: [Operand; 1]) -> Vec<f32> {
        let width = (x.dims[x.dims.len() - 1] / 2).max(1);
        let mut y = vec![0f32; x.values.len() / 2];
        let rows = y.par_chunks_mut(width).zip(x.values.par_chunks(2 * width));
        rows.with_min_len(16).for_each(|(y, x)| geglu_row(y, x));
        y
    }

    fn backward(&self, [x]: [Operand; 1], gy: &[f32], [gx]: [&mut Gradient; 1]) -> Result<()> {
        let width = (x.dims[x.dims.len() - 1] / 2).max(1);
        gx.set(|| {
            let mut gx = vec![0f32; x.values.len()];
            let operands = x.values.par_chunks(2 * width).zip(gy.par_chunks(width));
            let rows = gx.par_chunks_mut(2 * width).zip(operands).with_min_len(16);
            rows.for_each(|(gx, (x, gy))| geglu_row_grad(gx, x, gy));
            gx
        });
        Ok(())
    }

    fn composed(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let width = x.dim(D::Minus1)? / 2;
        x.narrow(D::Minus1, 0, width)? * x.narrow(D::Minus1, width, width)?.contiguous()?.gelu_erf()?
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, [x]: [cuda::Operand; 1]) -> Result<CudaStorage> {
        fn of<T: Number>(x: cuda::Operand) -> Result<CudaStorage> {
            let (device, width) = (cuda::device(x), x.1.dims()[x.1.dims().len() - 1] / 2);
            let x = cuda::view::<T>(x)?;
            let n = x.len() / 2;
            let y = cuda::room::<T>(device, n)?;
            launch!(device, T::kernel("geglu"), cuda::grid(n), x, y.as_view(), n, width)?;
            Ok(cuda::storage(y, device))
        }
        of_type!(cuda::dtype(x), of(x))
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(&self, [x]: [&Tensor; 1], gy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        fn of<T: Number>(x: &Tensor, gy: &Tensor) -> Result<Tensor> {
            let (shape, width) = (x.shape(), x.dim(D::Minus1)? / 2);
            cuda::with_views::<T, 2, _>([x, gy], |device, [x, gy]| {
                let (gx, n) = (cuda::room::<T>(device, x.len())?, gy.len());
                launch!(device, T::kernel("geglu_grad"), cuda::grid(n), x, gy, gx.as_view(), n, width)?;
                Ok(cuda::tensor(gx, device, shape))
            })
        }
        Ok([Some(of_type!(x.dtype(), of(x, gy))?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    #[test]
    fn activations_equal_candles() {
        let x = var(&[5, 33], 1);
        let wide = (x.as_tensor() * 4.0).unwrap();
        for activation in [Pointwise::Silu, Pointwise::Gelu, Pointwise::GeluTanh, Pointwise::QuickGelu] {
            same(&[&x], &apply1(activation, &wide).unwrap(), &activation.composed([&wide]).unwrap());
        }
    }

    #[test]
    fn geglu_equals_its_composition() {
        let x = var(&[3, 7, 20], 5);
        let wide = (x.as_tensor() * 3.0).unwrap();
        same(&[&x], &geglu(&wide).unwrap(), &Geglu.composed([&wide]).unwrap());
        assert!(geglu(&var(&[3, 7], 1)).is_err());
    }
}
