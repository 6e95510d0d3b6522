//! Layers without history, whose gradients are functions of their own: for backward passes that are written by hand. What is added
//! to the result of a layer is added with its bias, and gradients of parameters go straight to their sums: see
//! [`super::accumulate`]. On the CPU the same functions are made of the kernels there, so that a pass can be compared with candle's.

use candle_core::{DType, Result, Tensor, Var};

#[cfg(feature = "cudnn")]
use super::conv_cudnn;
use super::{
    accumulate::sum_of,
    activation::Geglu,
    arithmetic::add_in_place,
    attention::{Attention, Mask},
    conv::Conv,
    conv2d as conv2d_with_history,
    kernel::{Kernel, Op},
    linear as linear_with_history,
    linear::Linear,
    shape::Upsample,
};
#[cfg(feature = "cuda")]
use super::{
    arithmetic::{add_columns, add_on_gpu},
    attention_cuda,
    cuda::{self, Number, launch, of_type},
    linear_cuda,
    narrow::narrow,
};

/// The gradient of the first operand of `kernel`, plus `more`. Those of the other operands, which are parameters, are added to their
/// sums.
pub(crate) fn backward<K: Kernel<N>, const N: usize>(
    kernel: &K,
    operands: [&Tensor; N],
    gy: &Tensor,
    more: Option<&Tensor>,
) -> Result<Tensor> {
    // Only the CPU asks whether the gradient is wanted.
    let x = operands[0].detach();
    let x = if x.device().is_cpu() { Var::from_tensor(&x)?.into_inner() } else { x };
    let mut these: [&Tensor; N] = operands;
    these[0] = &x;
    match (Op::backward(kernel, these, gy)?.into_iter().next().flatten(), more) {
        (Some(gx), Some(more)) => gx + more,
        (Some(gx), None) => Ok(gx),
        (None, _) => candle_core::bail!("{} passes no gradient on", <K as Kernel<N>>::NAME),
    }
}

/// What is added to the result of a layer besides its bias.
#[derive(Clone, Copy, Default)]
pub struct Plus<'a> {
    /// To all pixels of a channel, (B, C).
    pub image: Option<&'a Tensor>,
    /// To every number.
    pub all: Option<&'a Tensor>,
}

impl Plus<'_> {
    /// y + bias + these, where a channel has `pixels` numbers in a row; `y`, which nobody else holds, is changed.
    #[cfg(feature = "cuda")]
    fn finish(self, y: Tensor, bias: &Tensor, pixels: usize) -> Result<Tensor> {
        fn of<T: Number>([y, image, all]: [&Tensor; 3], bias: &Tensor, pixels: usize, with: [i32; 2]) -> Result<()> {
            cuda::with_views::<T, 3, _>([y, image, all], |device, [y, image, all]| {
                let n = y.len();
                if n > i32::MAX as usize {
                    candle_core::bail!("a layer's result has {n} numbers, more than its kernel can count")
                }
                cuda::with_views::<f32, 1, _>([&bias.to_dtype(DType::F32)?], |_, [b]| {
                    let (name, grid) = (T::kernel("finish"), cuda::grid(n));
                    let (n, pixels, channels) = (n as u32, pixels as u32, b.len() as u32);
                    launch!(device, name, grid, y, b, image, all, n, pixels, channels, with[0], with[1])
                })
            })
        }
        let with = [self.image.is_some().into(), self.all.is_some().into()];
        let (image, all) = (self.image.unwrap_or(&y), self.all.unwrap_or(&y));
        if all.shape() != y.shape() || self.image.is_some_and(|i| i.elem_count() * pixels != y.elem_count()) {
            candle_core::bail!("what is added to a result of shape {:?} has another", y.shape())
        }
        of_type!(y.dtype(), of([&y, image, all], bias, pixels, with))?;
        Ok(y)
    }

    fn compose(self, y: Tensor) -> Result<Tensor> {
        let y = match self.image {
            Some(image) => y.broadcast_add(&image.unsqueeze(2)?.unsqueeze(3)?)?,
            None => y,
        };
        self.all.map_or(Ok(y.clone()), |all| &y + all)
    }
}

/// See [`super::conv2d`].
pub fn conv2d(x: &Tensor, [weight, bias]: [&Tensor; 2], stride: usize, padding: usize, plus: Plus) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if cuda::fused(x) {
        let w = narrow(weight, x.dtype())?;
        let y = conv_cudnn::forward(&Conv { stride, padding, weight: weight.id() }, x, &w, None)?.tensor();
        let pixels = y.dim(2)? * y.dim(3)?;
        return plus.finish(y, bias, pixels);
    }
    plus.compose(conv2d_with_history(x, &weight.detach(), &bias.detach(), stride, padding)?)
}

/// The gradient of `x`, if it is wanted, from that of the result. That of the weight is added to its sum.
pub fn conv2d_grad(
    x: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    gy: &Tensor,
    wanted: bool,
) -> Result<Option<Tensor>> {
    let conv = Conv { stride, padding, weight: weight.id() };
    #[cfg(feature = "cudnn")]
    if cuda::fused(x) {
        let w = narrow(weight, x.dtype())?;
        if let Some(sum) = sum_of(weight)? {
            add_on_gpu(&sum, &conv_cudnn::weight_gradient(&conv, x, &w, gy)?)?;
        }
        return wanted.then(|| conv_cudnn::input_gradient(&conv, x, &w, gy)).transpose();
    }
    let bias = Tensor::zeros(weight.dim(0)?, DType::F32, x.device())?;
    backward(&conv, [x, weight, &bias], gy, None).map(|gx| wanted.then_some(gx))
}

/// See [`super::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, plus: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::fused(x) {
        let w = narrow(weight, x.dtype())?;
        return match (bias, plus) {
            (Some(bias), Some(_)) => {
                Plus { all: plus, image: None }.finish(linear_cuda::forward(x, &w, None)?.tensor(), bias, 1)
            }
            (None, Some(plus)) => linear_cuda::forward(x, &w, None)?.tensor() + plus,
            (bias, None) => Ok(linear_cuda::forward(x, &w, bias)?.tensor()),
        };
    }
    let bias = bias.map(Tensor::detach);
    Plus { all: plus, image: None }.compose(linear_with_history(x, &weight.detach(), bias.as_ref())?)
}

/// The gradient of `x` plus `more`, if it is wanted, from that of the result; `more`, which nobody else holds, may be changed. That of
/// the weight is added to its sum.
pub fn linear_grad(
    x: &Tensor,
    weight: &Tensor,
    gy: &Tensor,
    wanted: bool,
    more: Option<Tensor>,
) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    if cuda::fused(x) {
        if let Some(sum) = sum_of(weight)? {
            linear_cuda::add_weight_gradient(x, gy, &sum)?;
        }
        let w = narrow(weight, x.dtype())?;
        return wanted.then(|| linear_cuda::input_gradient(x, &w, gy, more)).transpose();
    }
    let none = Tensor::zeros(0, DType::F32, x.device())?;
    backward(&Linear, [x, weight, &none], gy, more.as_ref()).map(|gx| wanted.then_some(gx))
}

/// The sums over the pixels of each channel of each image: `x` (B, C, H, W) -> (B, C), f32.
pub fn image_sums(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    #[cfg(feature = "cuda")]
    if cuda::fused(x) {
        fn of<T: Number>(x: &Tensor, [planes, pixels]: [usize; 2]) -> Result<Tensor> {
            cuda::with_views::<T, 1, _>([x], |device, [x]| {
                let sums = cuda::room::<f32>(device, planes)?;
                let (name, grid) = (T::kernel("channel_sums"), (planes as u32, if pixels > 256 { 256 } else { 64 }));
                launch!(device, name, grid, x, sums.as_view(), 1i32, planes as i32, pixels as i32)?;
                Ok(cuda::tensor(sums, device, planes))
            })
        }
        return of_type!(x.dtype(), of(x, [b * c, h * w]))?.reshape((b, c));
    }
    x.to_dtype(DType::F32)?.reshape((b, c, h * w))?.sum(2)
}

/// `n` channels of `x` (B, C, H, W), from the channel `from` on, in memory of their own.
pub fn channels(x: &Tensor, from: usize, n: usize) -> Result<Tensor> {
    let some = x.narrow(1, from, n)?;
    #[cfg(feature = "cuda")]
    if cuda::fused(x) {
        fn of<T: Number>(x: &Tensor, some: &Tensor, from: usize) -> Result<Tensor> {
            cuda::with_views::<T, 1, _>([x], |device, [x_]| {
                let (n, images) = (some.elem_count(), x.dim(0)?.max(1));
                let (own, each) = (n / images, x.elem_count() / images);
                let (y, from) = (cuda::room::<T>(device, n)?, from * each / x.dim(1)?);
                launch!(device, T::kernel("part"), cuda::grid(n), x_, y.as_view(), n, own, each, from)?;
                Ok(cuda::tensor(y, device, some.shape()))
            })
        }
        return of_type!(x.dtype(), of(x, &some, from));
    }
    some.contiguous()
}

/// Adds the sums over all but the last dimension of `gy` to the sum of the gradients of each of these parameters.
pub fn add_rows(gy: &Tensor, parameters: &[&Tensor]) -> Result<()> {
    let n = gy.dim(gy.rank() - 1)?;
    #[cfg(feature = "cuda")]
    if cuda::fused(gy) {
        fn of<T: Number>(gy: &Tensor, n: usize, parameter: &Tensor) -> Result<()> {
            cuda::with_views::<T, 1, _>([gy], |device, [gy]| {
                let rows = gy.len() / n.max(1);
                add_columns::<T>(device, gy, [rows, n], &[parameter])
            })
        }
        return parameters.iter().try_for_each(|parameter| of_type!(gy.dtype(), of(gy, n, parameter)));
    }
    let sums = gy.to_dtype(DType::F32)?.reshape(((), n))?.sum(0)?;
    for parameter in parameters {
        if let Some(sum) = sum_of(parameter)? {
            add_in_place(&sum, &sums)?;
        }
    }
    Ok(())
}

/// The gradients of q, k and v. See [`super::attention`].
pub fn attention_grad(operands: [&Tensor; 3], heads: usize, go: &Tensor) -> Result<[Tensor; 3]> {
    let grads = match () {
        #[cfg(feature = "cuda")]
        () if cuda::fused(go) => attention_cuda::backward(operands, go, heads, Mask::None)?,
        () => {
            let tracked = |x: &Tensor| Ok::<_, candle_core::Error>(Var::from_tensor(&x.detach())?.into_inner());
            let (q, k, v) = (tracked(operands[0])?, tracked(operands[1])?, tracked(operands[2])?);
            Op::backward(&Attention { heads, mask: Mask::None }, [&q, &k, &v], go)?
        }
    };
    match grads {
        [Some(q), Some(k), Some(v)] => Ok([q, k, v]),
        _ => candle_core::bail!("attention passes no gradient on"),
    }
}

/// The gradient of `x`. See [`super::geglu`].
pub fn geglu_grad(x: &Tensor, gy: &Tensor) -> Result<Tensor> {
    backward(&Geglu, [x], gy, None)
}

/// The gradient of `x`. See [`super::upsample_nearest`].
pub fn upsample_grad(x: &Tensor, h: usize, w: usize, gy: &Tensor) -> Result<Tensor> {
    backward(&Upsample { h, w }, [x], gy, None)
}
