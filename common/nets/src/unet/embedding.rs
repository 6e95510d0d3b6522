//! What every resnet is told: the timestep and, in SDXL, sizes and pooled text.

use anyhow::{Context, Result, bail};
use candle_core::{Device, Result as Candle, Tensor};

use super::{Added, config::UNetConfig};
use crate::{layers::Linear, loader::Loader};

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

    /// The timesteps (B), and SDXL's sizes and pooled text, as one vector an image, (B, 4 * first channels), with the SiLU that
    /// every resnet begins with.
    ///
    /// # Errors
    /// SDXL's conditioning is missing where the config asks for it, or given where it does not.
    pub fn forward(&self, c: &UNetConfig, x: &Tensor, timesteps: &[f32], added: Option<&Added>) -> Result<Tensor> {
        let run = |(one, two): &Mlp, x: &Tensor| two.forward(&ops::silu(&one.forward(x)?)?);
        let sinusoid = |values: &[f32], width| {
            sinusoidal(values, width, c.flip_sin_to_cos, c.freq_shift, x.device())?.to_dtype(x.dtype())
        };
        let temb = run(&self.time, &sinusoid(timesteps, c.block_out_channels[0])?)?;
        let temb = match (&self.add, added) {
            (None, None) => temb,
            (Some(mlp), Some(added)) => {
                let ids = added.time_ids.flatten_all()?.to_vec1::<f32>()?;
                let ids = sinusoid(&ids, c.addition_time_embed_dim.unwrap_or(256))?.reshape((timesteps.len(), ()))?;
                (temb + run(mlp, &Tensor::cat(&[&added.text_embeds, &ids], 1)?)?)?
            }
            (Some(_), None) => bail!("this UNet needs SDXL's pooled text and time ids"),
            (None, Some(_)) => bail!("this UNet has no place for SDXL's pooled text and time ids"),
        };
        Ok(ops::silu(&temb)?)
    }
}

/// Sinusoidal embedding of each value, (B, width): sines then cosines, or the other way round (`flip`), in f32 as diffusers.
fn sinusoidal(values: &[f32], width: usize, flip: bool, shift: f64, device: &Device) -> Candle<Tensor> {
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
