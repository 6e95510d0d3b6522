//! The embedding that enters every resnet: of the timestep and, in SDXL, of sizes and pooled text.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Result as Candle, Tensor};

use super::config::UNetConfig;
use crate::{conditioning::Conditioning, layers::Linear, loader::Loader};

type Mlp = (Linear, Linear);

pub struct Embedding {
    time: Mlp,
    add: Option<Mlp>,
}

impl Embedding {
    pub fn load(p: &Loader, c: &UNetConfig) -> Result<Self> {
        let time = c.time_width();
        let two = |p: Loader, inner| -> Result<Mlp> {
            Ok((Linear::load(p.pp("linear_1"), inner, time)?, Linear::load(p.pp("linear_2"), time, time)?))
        };
        let add = match c.addition_embed_type {
            Some(_) => {
                let inner = c.projection_class_embeddings_input_dim;
                Some(two(p.pp("add_embedding"), inner.context("projection_class_embeddings_input_dim is missing")?)?)
            }
            None => None,
        };
        Ok(Self { time: two(p.pp("time_embedding"), c.block_out_channels[0])?, add })
    }

    /// The embedding of the timesteps `t` (B) and of SDXL's conditioning, after the SiLU that every resnet begins with, in
    /// the dtype and on the device of `x`: (B, 4 * first channels).
    pub fn forward(&self, c: &UNetConfig, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        let run = |(one, two): &Mlp, x: &Tensor| two.forward(&ops::silu(&one.forward(x)?)?);
        let sinusoid = |values: &[f32], width| {
            sinusoidal(values, width, c.flip_sin_to_cos, c.freq_shift, x.device())?.to_dtype(x.dtype())
        };
        let temb = run(&self.time, &sinusoid(t, c.block_out_channels[0])?)?;
        let temb = match (&self.add, &conditioning.pooled) {
            (None, None) => temb,
            (Some(mlp), Some(pooled)) => {
                let sizes = &conditioning.sizes;
                ensure!(
                    sizes.len() == t.len(),
                    "this UNet needs SDXL's sizes of {} images, not {}",
                    t.len(),
                    sizes.len()
                );
                let ids: Vec<f32> = sizes.iter().flat_map(|s| s.0).collect();
                let ids = sinusoid(&ids, c.addition_time_embed_dim.unwrap_or(256))?.reshape((t.len(), ()))?;
                (temb + run(mlp, &Tensor::cat(&[pooled, &ids], 1)?)?)?
            }
            (Some(_), None) => bail!("this UNet needs SDXL's pooled text"),
            (None, Some(_)) => bail!("this UNet does not take SDXL's pooled text"),
        };
        Ok(ops::silu(&temb)?)
    }
}

/// The sinusoidal embedding of each of B values, (B, width), in f32 as in diffusers: sines and then cosines, with `flip`
/// cosines first.
pub(crate) fn sinusoidal(values: &[f32], width: usize, flip: bool, shift: f64, device: &Device) -> Candle<Tensor> {
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
