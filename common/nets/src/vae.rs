//! AutoencoderKL: images to latents and back.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Result as Candle, Tensor};
use ops::{Activation, Mask};

use crate::config::Rule::{Flag, Free, List, Number, Only, Whole, Words};
use crate::config::{self, Rules, WIDTH};
use crate::layers::{Conv2d, GroupNorm, Linear, ResnetBlock};
use crate::loader::Loader;
use crate::weights::{Shapes, Weights};

/// Levels of the VAE: with 8, a latent stands for 128 pixels a side, four times as many as in any published one.
const LEVELS: usize = 8;

/// The arguments of diffusers' AutoencoderKL.
const KEYS: Rules = &[
    ("in_channels out_channels", Only(&["3"])),
    ("latent_channels norm_num_groups", WIDTH),
    ("block_out_channels", List(LEVELS, &WIDTH)),
    ("layers_per_block", Whole(1, 16)), // 2 in every published VAE
    ("scaling_factor", Number(1e-6, 1e6)),
    ("shift_factor", Number(-1e6, 1e6)),
    ("latents_mean", List(1 << 16, &Number(-1e6, 1e6))),
    ("latents_std", List(1 << 16, &Number(1e-6, 1e6))),
    ("force_upcast use_quant_conv use_post_quant_conv", Flag),
    ("act_fn", Only(&["\"silu\"", "\"swish\""])),
    ("down_block_types", List(LEVELS, &Words(&["DownEncoderBlock2D"]))),
    ("up_block_types", List(LEVELS, &Words(&["UpDecoderBlock2D"]))),
    ("mid_block_add_attention", Only(&["true"])),
    ("sample_size", Free), // of the tiles that large images are cut into, which is not done here
];

crate::json::defaults! {
    /// `vae/config.json`. A missing key takes diffusers' default.
    #[derive(Clone, Debug)]
    pub struct VaeConfig {
        pub latent_channels: usize = 4,
        pub block_out_channels: Vec<usize> = vec![64],
        pub layers_per_block: usize = 1,
        pub norm_num_groups: usize = 32,
        pub scaling_factor: f64 = 0.18215,
        shift_factor: Option<f64> = None,
        latents_mean: Option<Vec<f32>> = None,
        latents_std: Option<Vec<f32>> = None,
        force_upcast: bool = true,
        use_quant_conv: bool = true,
        use_post_quant_conv: bool = true,
        down_block_types: Option<Vec<String>> = None,
        up_block_types: Option<Vec<String>> = None,
    }
}

impl VaeConfig {
    pub fn read(file: &Path) -> Result<Self> {
        let config: Self = config::read(file, &[KEYS])?;
        config.check().with_context(|| format!("{} cannot be used", file.display()))?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        for types in [&self.down_block_types, &self.up_block_types].into_iter().flatten() {
            ensure!(types.len() == levels, "it names {} types of blocks for {levels} blocks", types.len());
        }
        for (key, given) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let fits = given.as_ref().is_none_or(|g| g.len() == self.latent_channels);
            ensure!(fits, "{key} does not have one number for each of {} latent_channels", self.latent_channels);
        }
        Ok(())
    }

    /// Pixels per latent on each side: 8 in Stable Diffusion, 4 in the mini world.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// The epsilon of every norm in the VAE.
const EPS: f64 = 1e-6;

/// Self-attention of all pixels in the middle block, with one head.
struct MidAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl MidAttention {
    fn load(p: Loader, width: usize, groups: usize) -> Result<Self> {
        // Files from 2022 call them query, key, value and proj_attn.
        let linear = |new: &str, old: &str| {
            let name = if p.pp(new).has("weight") { new } else { old };
            Linear::load(p.pp(name), width, width)
        };
        Ok(Self {
            group_norm: GroupNorm::load(p.pp("group_norm"), width, groups, EPS)?,
            to_q: linear("to_q", "query")?,
            to_k: linear("to_k", "key")?,
            to_v: linear("to_v", "value")?,
            to_out: linear("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let t = ops::to_tokens(&self.group_norm.forward(x, Activation::None)?)?; // (B, H * W, C)
        let (q, k, v) = (self.to_q.forward(&t)?, self.to_k.forward(&t)?, self.to_v.forward(&t)?);
        x + ops::from_tokens(&self.to_out.forward(&ops::attention(&q, &k, &v, 1, Mask::None)?)?, h, w)?
    }
}

struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: MidAttention,
}

impl MidBlock {
    fn load(p: Loader, width: usize, groups: usize) -> Result<Self> {
        let resnet = |i| ResnetBlock::load(p.pp("resnets").pp(i), width, width, groups, EPS, None);
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: MidAttention::load(p.pp("attentions.0"), width, groups)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Candle<Tensor> {
        let h = self.attention.forward(&self.resnets[0].forward(x, None)?)?;
        self.resnets[1].forward(&h, None)
    }
}

/// Resnets, and then a convolution that halves the size or follows its doubling.
struct Level {
    resnets: Vec<ResnetBlock>,
    resample: Option<Conv2d>,
}

struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Option<Conv2d>,
}

struct Decoder {
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

pub struct Vae {
    pub config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    device: Device,
    dtype: DType,
}

/// The Gaussian that the encoder predicts for B images; both (B, C, h, w), unscaled, logvar clamped to [-30, 20].
pub struct Posterior {
    pub mean: Tensor,
    pub logvar: Tensor,
}

impl Posterior {
    /// mean + exp(logvar / 2) * eps, `eps` standard normal of the same shape.
    pub fn sample(&self, eps: &Tensor) -> Candle<Tensor> {
        &self.mean + ((&self.logvar * 0.5)?.exp()? * eps)?
    }
}

impl Vae {
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config = VaeConfig::read(&folder.join("config.json"))?;
        // SDXL's VAE overflows in half precision.
        let dtype = if config.force_upcast && dtype == DType::F16 { DType::F32 } else { dtype };
        let weights = Weights::open(folder)?;
        let p = Loader::frozen(&weights, dtype, device);
        Self::load(p, config, dtype, device)
            .with_context(|| format!("{} does not fit its config.json", folder.display()))
    }

    fn load(p: Loader, c: VaeConfig, dtype: DType, device: &Device) -> Result<Self> {
        let widths = &c.block_out_channels;
        let (n, groups, latent) = (widths.len(), c.norm_num_groups, c.latent_channels);
        let (first, last) = (widths[0], widths[n - 1]);
        let level = |p: Loader, inner: usize, out: usize, layers: usize| -> Result<Vec<ResnetBlock>> {
            let inner_of = |j| if j == 0 { inner } else { out };
            (0..layers).map(|j| ResnetBlock::load(p.pp("resnets").pp(j), inner_of(j), out, groups, EPS, None)).collect()
        };

        let e = p.pp("encoder");
        let mut down_blocks = vec![];
        for (i, &out) in widths.iter().enumerate() {
            let p = e.pp("down_blocks").pp(i);
            let resnets = level(p.clone(), if i == 0 { first } else { widths[i - 1] }, out, c.layers_per_block)?;
            let halve = |p| Conv2d::load(p, out, out, 3, 2, 0);
            let resample = if i + 1 < n { Some(halve(p.pp("downsamplers.0.conv"))?) } else { None };
            down_blocks.push(Level { resnets, resample });
        }
        let quant = |name: &str, on: bool, width: usize| match on {
            true => Conv2d::load(p.pp(name), width, width, 1, 1, 0).map(Some),
            false => Ok(None),
        };
        let encoder = Encoder {
            conv_in: Conv2d::load(e.pp("conv_in"), 3, first, 3, 1, 1)?,
            down_blocks,
            mid_block: MidBlock::load(e.pp("mid_block"), last, groups)?,
            conv_norm_out: GroupNorm::load(e.pp("conv_norm_out"), last, groups, EPS)?,
            conv_out: Conv2d::load(e.pp("conv_out"), last, 2 * latent, 3, 1, 1)?,
            quant_conv: quant("quant_conv", c.use_quant_conv, 2 * latent)?,
        };

        let d = p.pp("decoder");
        let mut up_blocks = vec![];
        for i in 0..n {
            let p = d.pp("up_blocks").pp(i);
            let out = widths[n - 1 - i];
            let resnets = level(p.clone(), if i == 0 { last } else { widths[n - i] }, out, c.layers_per_block + 1)?;
            let grow = |p| Conv2d::load(p, out, out, 3, 1, 1);
            let resample = if i + 1 < n { Some(grow(p.pp("upsamplers.0.conv"))?) } else { None };
            up_blocks.push(Level { resnets, resample });
        }
        let decoder = Decoder {
            post_quant_conv: quant("post_quant_conv", c.use_post_quant_conv, latent)?,
            conv_in: Conv2d::load(d.pp("conv_in"), latent, last, 3, 1, 1)?,
            mid_block: MidBlock::load(d.pp("mid_block"), last, groups)?,
            up_blocks,
            conv_norm_out: GroupNorm::load(d.pp("conv_norm_out"), first, groups, EPS)?,
            conv_out: Conv2d::load(d.pp("conv_out"), first, 3, 3, 1, 1)?,
        };
        Ok(Self { config: c, encoder, decoder, device: device.clone(), dtype })
    }

    /// A sample of the posterior (B, C, h, w) -> latents as the denoiser sees them: centred, and scaled to about unit variance.
    pub fn to_latents(&self, z: &Tensor) -> Candle<Tensor> {
        let (mean, std) = self.centre(z)?;
        z.broadcast_sub(&mean)?.broadcast_div(&std)? * self.config.scaling_factor
    }

    /// The inverse of [`Vae::to_latents`].
    fn sample_of(&self, latents: &Tensor) -> Candle<Tensor> {
        let (mean, std) = self.centre(latents)?;
        (latents / self.config.scaling_factor)?.broadcast_mul(&std)?.broadcast_add(&mean)
    }

    /// Mean and standard deviation of a sample's channels, from the config, each (1, C, 1, 1): 0 and 1 in Stable Diffusion.
    fn centre(&self, like: &Tensor) -> Candle<(Tensor, Tensor)> {
        let (c, shape) = (&self.config, (1, self.config.latent_channels, 1, 1));
        let column = |given: &Option<Vec<f32>>, other: f64| {
            let values = given.clone().unwrap_or_else(|| vec![other as f32; c.latent_channels]);
            Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())
        };
        Ok((column(&c.latents_mean, c.shift_factor.unwrap_or(0.0))?, column(&c.latents_std, 1.0)?))
    }

    /// `pixels` (B, 3, H, W) in [-1, 1], H and W multiples of the factor -> the posterior, f32.
    pub fn encode(&self, pixels: &Tensor) -> Candle<Posterior> {
        let e = &self.encoder;
        let mut h = e.conv_in.forward(&pixels.to_device(&self.device)?.to_dtype(self.dtype)?)?;
        for level in &e.down_blocks {
            for resnet in &level.resnets {
                h = resnet.forward(&h, None)?;
            }
            if let Some(conv) = &level.resample {
                h = conv.forward(&ops::pad_bottom_right(&h)?)?;
            }
        }
        h = e.conv_norm_out.forward(&e.mid_block.forward(&h)?, Activation::Silu)?;
        h = e.conv_out.forward(&h)?;
        if let Some(conv) = &e.quant_conv {
            h = conv.forward(&h)?;
        }
        let c = self.config.latent_channels;
        let mean = h.narrow(1, 0, c)?.contiguous()?.to_dtype(DType::F32)?;
        let logvar = h.narrow(1, c, c)?.contiguous()?.to_dtype(DType::F32)?.clamp(-30f32, 20f32)?;
        Ok(Posterior { mean, logvar })
    }

    /// `latents` (B, C, h, w) as the denoiser sees them (scaled) -> pixels (B, 3, H, W), about [-1, 1], f32.
    pub fn decode(&self, latents: &Tensor) -> Candle<Tensor> {
        let d = &self.decoder;
        let mut h = self.sample_of(&latents.to_device(&self.device)?)?.to_dtype(self.dtype)?;
        if let Some(conv) = &d.post_quant_conv {
            h = conv.forward(&h)?;
        }
        h = d.mid_block.forward(&d.conv_in.forward(&h)?)?;
        for level in &d.up_blocks {
            for resnet in &level.resnets {
                h = resnet.forward(&h, None)?;
            }
            if let Some(conv) = &level.resample {
                let (_, _, height, width) = h.dims4()?;
                h = conv.forward(&ops::upsample_nearest(&h, 2 * height, 2 * width)?)?;
            }
        }
        d.conv_out.forward(&d.conv_norm_out.forward(&h, Activation::Silu)?)?.to_dtype(DType::F32)
    }
}

/// The names and shapes of the tensors that the VAE of this configuration has. `old`: with the attention's names of 2022.
pub fn shapes(folder: &Path, old: bool) -> Result<Shapes> {
    let weights = Weights::imagined(move |_| !old);
    let loader = Loader::frozen(&weights, DType::F32, &Device::Cpu);
    Vae::load(loader, VaeConfig::read(&folder.join("config.json"))?, DType::F32, &Device::Cpu)?;
    Ok(weights.asked())
}

/// `pixels` (B, 3, H, W), about [-1, 1] -> B images of 8-bit RGB, row by row, rounded as by diffusers' image processor.
pub fn to_u8(pixels: &Tensor) -> Candle<Vec<Vec<u8>>> {
    let unit = ((pixels * 0.5)? + 0.5)?.clamp(0f32, 1f32)?;
    let levels = (unit.permute((0, 2, 3, 1))? * 255.0)?.contiguous()?.to_device(&Device::Cpu)?;
    // As numpy, which rounds halves to even.
    levels
        .chunk(levels.dim(0)?, 0)?
        .iter()
        .map(|image| Ok(image.flatten_all()?.to_vec1::<f32>()?.iter().map(|v| v.round_ties_even() as u8).collect()))
        .collect()
}
