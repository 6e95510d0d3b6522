//! The embedding that enters every resnet: of the timestep and, in SDXL, of sizes and pooled text.

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;

use super::config::UNetConfig;
use crate::conditioning::Conditioning;
use crate::layers::{Mlp, sinusoidal};
use crate::loader::Loader;

pub struct Embedding {
    time: Mlp,
    add: Option<Mlp>,
}

impl Embedding {
    pub fn load(p: &Loader, c: &UNetConfig) -> Result<Self> {
        let time = c.time_width();
        let add = match c.addition_embed_type {
            Some(_) => {
                let inner = c.projection_class_embeddings_input_dim;
                let inner = inner.context("projection_class_embeddings_input_dim is missing")?;
                Some(Mlp::load(p.pp("add_embedding"), inner, time)?)
            }
            None => None,
        };
        Ok(Self { time: Mlp::load(p.pp("time_embedding"), c.block_out_channels[0], time)?, add })
    }

    /// The embedding of the timesteps `t` (B) and of SDXL's conditioning, after the SiLU that every resnet begins with, in
    /// the dtype and on the device of `x`: (B, 4 * first channels).
    pub fn forward(&self, c: &UNetConfig, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        let sinusoid = |values: &[f32], width| {
            sinusoidal(values, width, c.flip_sin_to_cos, c.freq_shift, x.device())?.to_dtype(x.dtype())
        };
        let temb = self.time.forward(&sinusoid(t, c.block_out_channels[0])?)?;
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
                (temb + mlp.forward(&Tensor::cat(&[pooled, &ids], 1)?)?)?
            }
            (Some(_), None) => bail!("this UNet needs SDXL's pooled text"),
            (None, Some(_)) => bail!("this UNet does not take SDXL's pooled text"),
        };
        Ok(ops::silu(&temb)?)
    }
}
