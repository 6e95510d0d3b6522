//! Layers under the names of diffusers and transformers. Each loads itself by path and has one `forward`.

use std::cell::RefCell;

use anyhow::Result;
use candle_core::{Device, Result as Candle, Tensor};

use ops::hand::{self, Plus};

use crate::{loader::Loader, lora::Adapter};

/// y = x W^T + b, and what an adapter adds.
pub struct Linear {
    weight: Tensor, // (out, in), or (out, in, 1, 1) if it is stored as a 1x1 convolution
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    pub fn load(p: Loader, inner: usize, out: usize) -> Result<Self> {
        Self::with(p, &[out, inner], true)
    }

    /// Loads `weight` alone.
    pub fn load_no_bias(p: Loader, inner: usize, out: usize) -> Result<Self> {
        Self::with(p, &[out, inner], false)
    }

    /// Loads a 1x1 convolution that is used on tokens. The tensor keeps its four dimensions, so that it is written as it was
    /// read.
    pub fn load_1x1(p: Loader, inner: usize, out: usize) -> Result<Self> {
        Self::with(p, &[out, inner, 1, 1], true)
    }

    /// Loads a convolution whose kernel and stride are `side`, for patches of which each is one row (C, side, side). The tensor
    /// keeps its four dimensions.
    pub fn load_patches(p: Loader, channels: usize, side: usize, out: usize) -> Result<Self> {
        p.refuse_adapter()?;
        Self::with(p, &[out, channels, side, side], true)
    }

    fn with(p: Loader, weight: &[usize], bias: bool) -> Result<Self> {
        Ok(Self {
            weight: p.get("weight", weight)?,
            bias: bias.then(|| p.get("bias", &weight[..1])).transpose()?,
            adapter: p.adapter(weight)?,
        })
    }

    /// x (.., in) -> (.., out)
    pub fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        let (weight, bias) = (&self.weight, self.bias.as_ref());
        match &self.adapter {
            Some(Adapter { a, b, scale }) => ops::linear_adapted(x, weight, bias, [a, b], *scale),
            None => ops::linear(x, weight, bias),
        }
    }

    pub fn is_adapted(&self) -> bool {
        self.adapter.is_some()
    }

    /// The same without history, plus `plus`, of a layer without adapter.
    pub fn plain(&self, x: &Tensor, plus: Option<&Tensor>) -> Candle<Tensor> {
        hand::linear(x, &self.weight, self.bias.as_ref(), plus)
    }

    /// The gradient of `x` plus `more`, if it is wanted, from that of the result. Those of the weights are added to their sums.
    pub fn grad(&self, x: &Tensor, gy: &Tensor, wanted: bool, more: Option<Tensor>) -> Candle<Option<Tensor>> {
        if let Some(bias) = &self.bias {
            hand::add_rows(gy, &[bias])?;
        }
        hand::linear_grad(x, &self.weight, gy, wanted, more)
    }
}

/// y = x W^T + b of a network that is never trained.
pub struct Frozen {
    weight: Tensor, // (in, out)
    bias: Tensor,   // (out)
}

impl Frozen {
    pub fn load(p: Loader, inner: usize, out: usize) -> Result<Self> {
        Ok(Self { weight: ops::freeze(&p.get("weight", &[out, inner])?)?, bias: p.get("bias", &[out])? })
    }

    /// x (.., in) -> (.., out)
    pub fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        ops::linear_frozen(x, &self.weight, Some(&self.bias))
    }
}

pub struct Conv2d {
    weight: Tensor, // (out, in, k, k)
    bias: Tensor,
    stride: usize,
    padding: usize,
}

impl Conv2d {
    /// `k`: side of the kernel.
    pub fn load(p: Loader, inner: usize, out: usize, k: usize, stride: usize, padding: usize) -> Result<Self> {
        p.refuse_adapter()?;
        Ok(Self { weight: p.get("weight", &[out, inner, k, k])?, bias: p.get("bias", &[out])?, stride, padding })
    }

    /// x (B, in, H, W) -> (B, out, H', W')
    pub fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        ops::conv2d(x, &self.weight, &self.bias, self.stride, self.padding)
    }

    /// The same without history, with what is added to it.
    pub fn plain(&self, x: &Tensor, plus: Plus) -> Candle<Tensor> {
        hand::conv2d(x, [&self.weight, &self.bias], self.stride, self.padding, plus)
    }

    /// The gradient of `x`, if it is wanted, from that of the result. That of the weight is added to its sum, that of the bias is not.
    fn grad_without_bias(&self, x: &Tensor, gy: &Tensor, wanted: bool) -> Candle<Option<Tensor>> {
        hand::conv2d_grad(x, &self.weight, self.stride, self.padding, gy, wanted)
    }

    /// The gradient of `x`, if it is wanted, from that of the result. Those of weight and bias are added to their sums.
    pub fn grad(&self, x: &Tensor, gy: &Tensor, wanted: bool) -> Candle<Option<Tensor>> {
        hand::add_rows(&hand::image_sums(gy)?, &[&self.bias])?;
        self.grad_without_bias(x, gy, wanted)
    }
}

/// Normalisation over groups of channels.
pub struct GroupNorm {
    weight: Tensor, // (channels)
    bias: Tensor,   // (channels)
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub fn load(p: Loader, channels: usize, groups: usize, eps: f64) -> Result<Self> {
        anyhow::ensure!(
            groups > 0 && channels.is_multiple_of(groups),
            "{channels} channels do not divide into norm_num_groups = {groups}; the config contradicts itself"
        );
        Ok(Self { weight: p.get("weight", &[channels])?, bias: p.get("bias", &[channels])?, groups, eps })
    }

    /// x (B, channels, ..); `then` is applied to the result.
    pub fn forward(&self, x: &Tensor, then: ops::Activation) -> Candle<Tensor> {
        ops::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, then)
    }

    /// The same without history.
    pub fn plain(&self, x: &Tensor, then: ops::Activation) -> Candle<Tensor> {
        ops::group_norm(x, &self.weight.detach(), &self.bias.detach(), self.groups, self.eps, then)
    }

    /// The gradient of `x` plus `more`, from that of the result. Those of weight and bias are added to their sums.
    pub fn grad(&self, x: &Tensor, then: ops::Activation, gy: &Tensor, more: Option<&Tensor>) -> Candle<Tensor> {
        ops::group_norm_grad([x, &self.weight, &self.bias], self.groups, self.eps, then, gy, more)
    }
}

/// Normalisation over the last dimension.
pub struct LayerNorm {
    weight: Tensor, // (width)
    bias: Tensor,   // (width)
    eps: f64,
}

impl LayerNorm {
    pub fn load(p: Loader, width: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: p.get("weight", &[width])?, bias: p.get("bias", &[width])?, eps })
    }

    /// x (.., width)
    pub fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }

    /// The same without history.
    pub fn plain(&self, x: &Tensor) -> Candle<Tensor> {
        ops::layer_norm(x, &self.weight.detach(), &self.bias.detach(), self.eps)
    }

    /// The gradient of `x` plus `more`, from that of the result. Those of weight and bias are added to their sums.
    pub fn grad(&self, x: &Tensor, gy: &Tensor, more: Option<&Tensor>) -> Candle<Tensor> {
        ops::layer_norm_grad([x, &self.weight, &self.bias], self.eps, gy, more)
    }
}

/// Division by the root mean square over the last dimension.
pub struct RmsNorm {
    weight: Tensor, // (width)
    eps: f64,
}

impl RmsNorm {
    pub fn load(p: Loader, width: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: p.get("weight", &[width])?, eps })
    }

    /// x (.., width)
    pub fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        ops::rms_norm(x, &self.weight, self.eps)
    }
}

/// Twice norm, SiLU and convolution, beside a shortcut. In the UNet the timestep is added between the two.
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// `time_width`: the width of the timestep embedding; `None` in the VAE.
    pub fn load(
        p: Loader,
        inner: usize,
        out: usize,
        groups: usize,
        eps: f64,
        time_width: Option<usize>,
    ) -> Result<Self> {
        Ok(Self {
            norm1: GroupNorm::load(p.pp("norm1"), inner, groups, eps)?,
            conv1: Conv2d::load(p.pp("conv1"), inner, out, 3, 1, 1)?,
            time_emb_proj: time_width.map(|w| Linear::load(p.pp("time_emb_proj"), w, out)).transpose()?,
            norm2: GroupNorm::load(p.pp("norm2"), out, groups, eps)?,
            conv2: Conv2d::load(p.pp("conv2"), out, out, 3, 1, 1)?,
            conv_shortcut: match inner == out {
                true => None,
                false => Some(Conv2d::load(p.pp("conv_shortcut"), inner, out, 1, 1, 0)?),
            },
        })
    }

    /// x (B, in, H, W) -> (B, out, H, W). `temb` (B, time_width): the timestep embedding after SiLU.
    pub fn forward(&self, x: &Tensor, temb: Option<&Tensor>) -> Candle<Tensor> {
        let mut h = self.conv1.forward(&self.norm1.forward(x, ops::Activation::Silu)?)?;
        if let (Some(proj), Some(temb)) = (&self.time_emb_proj, temb) {
            let t = proj.forward(temb)?; // (B, out)
            h = h.broadcast_add(&t.unsqueeze(2)?.unsqueeze(3)?)?;
        }
        let h = self.conv2.forward(&self.norm2.forward(&h, ops::Activation::Silu)?)?;
        match &self.conv_shortcut {
            Some(conv) => conv.forward(x)? + h,
            None => x + h,
        }
    }

    pub fn is_adapted(&self) -> bool {
        self.time_emb_proj.as_ref().is_some_and(Linear::is_adapted)
    }

    /// The first half of the pass, without history: what the second norm gets, (B, out, H, W).
    pub fn half(&self, x: &Tensor, temb: Option<&Tensor>) -> Candle<Tensor> {
        let t = match (&self.time_emb_proj, temb) {
            (Some(proj), Some(temb)) => Some(proj.plain(temb, None)?), // (B, out)
            _ => None,
        };
        self.conv1.plain(&self.norm1.plain(x, SILU)?, Plus { image: t.as_ref(), all: None })
    }

    /// The second half, from what [`Self::half`] returns.
    pub fn finish(&self, x: &Tensor, h: &Tensor) -> Candle<Tensor> {
        let shortcut = self.conv_shortcut.as_ref().map(|conv| conv.plain(x, Plus::default())).transpose()?;
        self.conv2.plain(&self.norm2.plain(h, SILU)?, Plus { image: None, all: Some(shortcut.as_ref().unwrap_or(x)) })
    }

    /// The gradients of `x` and, plus `by_temb`, of `temb`, from that of the result. Those of the weights are added to their sums.
    pub fn grad(
        &self,
        x: &Tensor,
        h: &Tensor,
        temb: Option<&Tensor>,
        gy: &Tensor,
        by_temb: Option<Tensor>,
    ) -> Candle<(Tensor, Option<Tensor>)> {
        let sums = hand::image_sums(gy)?;
        hand::add_rows(&sums, &[&self.conv2.bias])?;
        let gn = wanted(self.conv2.grad_without_bias(&self.norm2.plain(h, SILU)?, gy, true)?)?;
        let gh = self.norm2.grad(h, SILU, &gn, None)?;
        drop(gn);

        let by_image = hand::image_sums(&gh)?; // (B, out)
        hand::add_rows(&by_image, &[&self.conv1.bias])?;
        let by_temb = match (&self.time_emb_proj, temb) {
            (Some(proj), Some(temb)) => proj.grad(temb, &by_image.to_dtype(temb.dtype())?, true, by_temb)?,
            _ => by_temb,
        };
        let gn = wanted(self.conv1.grad_without_bias(&self.norm1.plain(x, SILU)?, &gh, true)?)?;
        drop(gh);
        let beside = match &self.conv_shortcut {
            None => gy.clone(),
            Some(conv) => {
                hand::add_rows(&sums, &[&conv.bias])?;
                wanted(conv.grad_without_bias(x, gy, true)?)?
            }
        };
        Ok((self.norm1.grad(x, SILU, &gn, Some(&beside))?, by_temb))
    }
}

const SILU: ops::Activation = ops::Activation::Silu;

/// A gradient that was asked for.
pub(crate) fn wanted(gradient: Option<Tensor>) -> Candle<Tensor> {
    gradient.ok_or_else(|| candle_core::Error::Msg("a layer passes no gradient on".into()))
}

/// Two linear layers with a SiLU between them: what embeds a number or the pooled text.
pub struct Mlp(Linear, Linear);

impl Mlp {
    pub fn load(p: Loader, inner: usize, width: usize) -> Result<Self> {
        Ok(Self(Linear::load(p.pp("linear_1"), inner, width)?, Linear::load(p.pp("linear_2"), width, width)?))
    }

    pub fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        self.1.forward(&ops::silu(&self.0.forward(x)?)?)
    }
}

/// The sinusoidal embedding of each of B values, (B, width), in f32 as in diffusers: sines and then cosines, with `flip`
/// cosines first. On a GPU those of the last values are kept: several passes of a step have the same.
pub(crate) fn sinusoidal(values: &[f32], width: usize, flip: bool, shift: f64, device: &Device) -> Candle<Tensor> {
    type Kept = (Vec<f32>, (usize, bool, f64), Tensor);
    thread_local! {
        static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(vec![]) };
    }
    const MOST: usize = 2; // times, and SDXL's sizes
    if device.is_cpu() {
        return computed(values, width, flip, shift, device);
    }
    KEPT.with_borrow_mut(|kept| {
        let how = (width, flip, shift);
        let known = |(v, h, x): &Kept| (v == values && *h == how && x.device().same_device(device)).then(|| x.clone());
        if let Some(known) = kept.iter().find_map(known) {
            return Ok(known);
        }
        let new = computed(values, width, flip, shift, device)?;
        kept.drain(..kept.len().saturating_sub(MOST - 1));
        kept.push((values.to_vec(), how, new.clone()));
        Ok(new)
    })
}

fn computed(values: &[f32], width: usize, flip: bool, shift: f64, device: &Device) -> Candle<Tensor> {
    let half = width / 2;
    let frequency = |i: usize| (-(10000f64.ln() as f32) * i as f32 / (half as f64 - shift) as f32).exp();
    let mut out = Vec::with_capacity(values.len() * width);
    for &value in values {
        let angles = (0..half).map(|i| value * frequency(i));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(|a| a.sin_cos()).unzip();
        let (first, second) = if flip { (cos, sin) } else { (sin, cos) };
        out.extend(first);
        out.extend(second);
        out.resize(out.len() + width % 2, 0.0);
    }
    Tensor::from_vec(out, (values.len(), width), device)
}
