//! UNet2DConditionModel of the Stable Diffusion family, built from its own config.json, differentiable throughout.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Result as Candle, Tensor};
use serde::Deserialize;

use crate::{
    checkpoint::{Loader, Params, Weights, read_json},
    layers::{Conv2d, GroupNorm, LayerNorm, Linear, ResnetBlock},
    lora::{self, LoraConfig},
    ops::{self, Activation, Mask},
};

/// A number for every block, or one for all.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PerBlock {
    One(usize),
    Each(Vec<usize>),
}

impl PerBlock {
    fn get(&self, key: &str, blocks: usize) -> Result<Vec<usize>> {
        match self {
            PerBlock::One(n) => Ok(vec![*n; blocks]),
            PerBlock::Each(all) if all.len() == blocks => Ok(all.clone()),
            PerBlock::Each(all) => bail!("{key} has {} entries for {blocks} blocks", all.len()),
        }
    }
}

/// `unet/config.json`; missing keys take diffusers' defaults, keys that ask for what is not built are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct UNetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    mid_block_type: Option<String>,
    pub cross_attention_dim: usize,
    /// In Stable Diffusion's files this is the number of heads.
    attention_head_dim: PerBlock,
    num_attention_heads: Option<PerBlock>,
    transformer_layers_per_block: PerBlock,
    use_linear_projection: bool,
    norm_num_groups: usize,
    norm_eps: f64,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    downsample_padding: usize,
    act_fn: String,
    center_input_sample: bool,
    resnet_time_scale_shift: String,
    class_embed_type: Option<String>,
    num_class_embeds: Option<usize>,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
    dual_cross_attention: bool,
    encoder_hid_dim: Option<usize>,
    pub sample_size: usize,
}

impl Default for UNetConfig {
    fn default() -> Self {
        let strings = |all: [&str; 4]| all.map(String::from).to_vec();
        let (cross, plain) = ("CrossAttnDownBlock2D", "DownBlock2D");
        let (up_cross, up_plain) = ("CrossAttnUpBlock2D", "UpBlock2D");
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            down_block_types: strings([cross, cross, cross, plain]),
            up_block_types: strings([up_plain, up_cross, up_cross, up_cross]),
            mid_block_type: Some("UNetMidBlock2DCrossAttn".into()),
            cross_attention_dim: 1280,
            attention_head_dim: PerBlock::One(8),
            num_attention_heads: None,
            transformer_layers_per_block: PerBlock::One(1),
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            downsample_padding: 1,
            act_fn: "silu".into(),
            center_input_sample: false,
            resnet_time_scale_shift: "default".into(),
            class_embed_type: None,
            num_class_embeds: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            dual_cross_attention: false,
            encoder_hid_dim: None,
            sample_size: 64,
        }
    }
}

impl UNetConfig {
    fn check(&self) -> Result<()> {
        let n = self.block_out_channels.len();
        ensure!(
            n > 0 && self.down_block_types.len() == n && self.up_block_types.len() == n,
            "block lists differ in length"
        );
        let refuse = |asked: bool, what: &str| if asked { bail!("{what} is not supported") } else { Ok(()) };
        refuse(self.act_fn != "silu", "an act_fn other than silu")?;
        refuse(self.center_input_sample, "center_input_sample")?;
        refuse(self.resnet_time_scale_shift != "default", "a resnet_time_scale_shift other than default")?;
        refuse(self.class_embed_type.is_some() || self.num_class_embeds.is_some(), "a class embedding")?;
        refuse(self.dual_cross_attention || self.encoder_hid_dim.is_some(), "dual cross-attention or encoder_hid_dim")?;
        refuse(self.num_attention_heads.is_some(), "num_attention_heads beside attention_head_dim")?;
        refuse(self.mid_block_type.as_deref() != Some("UNetMidBlock2DCrossAttn"), "this mid_block_type")?;
        refuse(!matches!(self.addition_embed_type.as_deref(), None | Some("text_time")), "this addition_embed_type")
    }

    fn time_width(&self) -> usize {
        4 * self.block_out_channels[0]
    }
}

struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Attention {
    fn load(p: Loader, width: usize, context: usize, heads: usize) -> Result<Self> {
        ensure!(heads > 0 && width.is_multiple_of(heads), "{width} channels do not divide into {heads} heads");
        Ok(Self {
            to_q: Linear::load_no_bias(p.pp("to_q"), width, width)?,
            to_k: Linear::load_no_bias(p.pp("to_k"), context, width)?,
            to_v: Linear::load_no_bias(p.pp("to_v"), context, width)?,
            to_out: Linear::load(p.pp("to_out.0"), width, width)?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Candle<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(context)?, self.to_v.forward(context)?);
        self.to_out.forward(&ops::attention(&q, &k, &v, self.heads, Mask::None)?)
    }
}

struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

impl TransformerBlock {
    fn load(p: Loader, width: usize, context: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            norm1: LayerNorm::load(p.pp("norm1"), width, 1e-5)?,
            attn1: Attention::load(p.pp("attn1"), width, width, heads)?,
            norm2: LayerNorm::load(p.pp("norm2"), width, 1e-5)?,
            attn2: Attention::load(p.pp("attn2"), width, context, heads)?,
            norm3: LayerNorm::load(p.pp("norm3"), width, 1e-5)?,
            ff_in: Linear::load(p.pp("ff.net.0.proj"), width, 8 * width)?,
            ff_out: Linear::load(p.pp("ff.net.2"), 4 * width, width)?,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Candle<Tensor> {
        let h = self.norm1.forward(x)?;
        let x = (x + self.attn1.forward(&h, &h)?)?;
        let x = (&x + self.attn2.forward(&self.norm2.forward(&x)?, context)?)?;
        let h = ops::geglu(&self.ff_in.forward(&self.norm3.forward(&x)?)?)?;
        &x + self.ff_out.forward(&h)?
    }
}

/// Transformer2DModel: pixels as tokens, attending to each other and to the prompt.
struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

impl Transformer {
    fn load(p: Loader, c: &UNetConfig, width: usize, heads: usize, layers: usize) -> Result<Self> {
        let projection = |p| match c.use_linear_projection {
            true => Linear::load(p, width, width),
            false => Linear::load_1x1(p, width, width),
        };
        let block = |i| TransformerBlock::load(p.pp("transformer_blocks").pp(i), width, c.cross_attention_dim, heads);
        Ok(Self {
            norm: GroupNorm::load(p.pp("norm"), width, c.norm_num_groups, 1e-6)?, // 1e-6 whatever norm_eps says
            proj_in: projection(p.pp("proj_in"))?,
            blocks: (0..layers).map(block).collect::<Result<_>>()?,
            proj_out: projection(p.pp("proj_out"))?,
        })
    }

    /// `x` (B, C, H, W), `context` (B, T, D) -> (B, C, H, W)
    fn forward(&self, x: &Tensor, context: &Tensor) -> Candle<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let mut tokens = self.proj_in.forward(&ops::to_tokens(&self.norm.forward(x, Activation::None)?)?)?;
        for block in &self.blocks {
            tokens = block.forward(&tokens, context)?;
        }
        x + ops::from_tokens(&self.proj_out.forward(&tokens)?, h, w)?
    }
}

struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer>,
    downsampler: Option<Conv2d>,
}

struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer>,
    upsampler: Option<Conv2d>,
}

/// SDXL's extra conditioning; [`crate::prompt::Conditioning::added`] makes it.
pub struct Added {
    /// Pooled text state of the second encoder, (B, D).
    pub text_embeds: Tensor,
    /// (B, 6): original height and width, crop top and left, target height and width.
    pub time_ids: Tensor,
}

pub struct UNet {
    pub config: UNetConfig,
    conv_in: Conv2d,
    time_embedding: (Linear, Linear),
    add_embedding: Option<(Linear, Linear)>,
    down_blocks: Vec<DownBlock>,
    mid_resnets: [ResnetBlock; 2],
    mid_attention: Transformer,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// A UNet with its tensors as variables.
pub struct Trainable {
    pub unet: UNet,
    pub params: Params,
}

impl UNet {
    /// Frozen weights from a folder with `config.json` and weights.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let weights = Weights::open(folder)?;
        Self::load(Loader::frozen(&weights, dtype, device), read_config(folder)?)
            .with_context(|| format!("{} does not fit its config.json", folder.display()))
    }

    /// f32 variables; with `detached` the network does not track them (a reference that is refreshed in place).
    pub fn open_variables(folder: &Path, device: &Device, detached: bool) -> Result<Trainable> {
        let weights = Weights::open(folder)?;
        let loader = Loader::variables(&weights, device, detached);
        let unet = Self::load(loader.clone(), read_config(folder)?)
            .with_context(|| format!("{} does not fit its config.json", folder.display()))?;
        Ok(Trainable { unet, params: loader.params() })
    }

    /// Two networks on the same frozen tensors, each with adapters of its own: what is trained, and a reference that does
    /// not track its adapters. New adapters add nothing.
    ///
    /// # Errors
    /// No layer, or one that is not linear, is what `config` names.
    pub fn open_adapted(folder: &Path, config: &LoraConfig, seed: u64, device: &Device) -> Result<[Trainable; 2]> {
        let weights = Weights::open(folder)?;
        let shared = Loader::shared(&weights, device);
        let adapted = |detached| {
            let loader = shared.adapted(config, seed, detached);
            let unet = Self::load(loader.clone(), read_config(folder)?)
                .with_context(|| format!("{} does not fit its config.json", folder.display()))?;
            Ok::<_, anyhow::Error>(Trainable { unet, params: loader.params() })
        };
        let [policy, reference] = [adapted(false)?, adapted(true)?];
        let modules = lora::modules(policy.params.keys());
        let unused = config.targets.iter().find(|target| {
            let one = LoraConfig { targets: vec![(*target).clone()], ..config.clone() };
            !modules.iter().any(|module| one.adapts(module))
        });
        ensure!(unused.is_none(), "this UNet has no linear layer '{}' to adapt", unused.map_or("", |t| t));
        Ok([policy, reference])
    }

    pub fn load(p: Loader, c: UNetConfig) -> Result<Self> {
        c.check()?;
        let n = c.block_out_channels.len();
        let (groups, eps, time) = (c.norm_num_groups, c.norm_eps, c.time_width());
        let heads = c.attention_head_dim.get("attention_head_dim", n)?;
        let depths = c.transformer_layers_per_block.get("transformer_layers_per_block", n)?;
        let resnet = |p, inner, out| ResnetBlock::load(p, inner, out, groups, eps, Some(time));
        let two = |p: Loader, inner| -> Result<(Linear, Linear)> {
            Ok((Linear::load(p.pp("linear_1"), inner, time)?, Linear::load(p.pp("linear_2"), time, time)?))
        };
        let first = c.block_out_channels[0];

        let mut down_blocks = vec![];
        let mut skips = vec![first]; // channels of every skip connection, in the order they are made
        for (i, &out) in c.block_out_channels.iter().enumerate() {
            let p = p.pp("down_blocks").pp(i);
            let inner = if i == 0 { first } else { c.block_out_channels[i - 1] };
            let crossed = kind(&c.down_block_types[i], "CrossAttnDownBlock2D", "DownBlock2D")?;
            let mut block = DownBlock { resnets: vec![], attentions: vec![], downsampler: None };
            for j in 0..c.layers_per_block {
                block.resnets.push(resnet(p.pp("resnets").pp(j), if j == 0 { inner } else { out }, out)?);
                if crossed {
                    block.attentions.push(Transformer::load(p.pp("attentions").pp(j), &c, out, heads[i], depths[i])?);
                }
                skips.push(out);
            }
            if i + 1 < n {
                let p = p.pp("downsamplers.0.conv");
                block.downsampler = Some(Conv2d::load(p, out, out, 3, 2, c.downsample_padding)?);
                skips.push(out);
            }
            down_blocks.push(block);
        }

        let last = c.block_out_channels[n - 1];
        let mid = p.pp("mid_block");
        let mid_resnets = [resnet(mid.pp("resnets.0"), last, last)?, resnet(mid.pp("resnets.1"), last, last)?];
        let mid_attention = Transformer::load(mid.pp("attentions.0"), &c, last, heads[n - 1], depths[n - 1])?;

        let mut up_blocks = vec![];
        let mut inner = last;
        for i in 0..n {
            let p = p.pp("up_blocks").pp(i);
            let level = n - 1 - i;
            let out = c.block_out_channels[level];
            let crossed = kind(&c.up_block_types[i], "CrossAttnUpBlock2D", "UpBlock2D")?;
            let mut block = UpBlock { resnets: vec![], attentions: vec![], upsampler: None };
            for j in 0..c.layers_per_block + 1 {
                let skip =
                    skips.pop().context("the up blocks ask for more skip connections than the down blocks make")?;
                block.resnets.push(resnet(p.pp("resnets").pp(j), inner + skip, out)?);
                inner = out;
                if crossed {
                    let p = p.pp("attentions").pp(j);
                    block.attentions.push(Transformer::load(p, &c, out, heads[level], depths[level])?);
                }
            }
            if i + 1 < n {
                block.upsampler = Some(Conv2d::load(p.pp("upsamplers.0.conv"), out, out, 3, 1, 1)?);
            }
            up_blocks.push(block);
        }

        let add_embedding = match c.addition_embed_type {
            Some(_) => {
                let inner = c.projection_class_embeddings_input_dim;
                Some(two(p.pp("add_embedding"), inner.context("projection_class_embeddings_input_dim is missing")?)?)
            }
            None => None,
        };
        Ok(Self {
            conv_in: Conv2d::load(p.pp("conv_in"), c.in_channels, first, 3, 1, 1)?,
            time_embedding: two(p.pp("time_embedding"), first)?,
            add_embedding,
            down_blocks,
            mid_resnets,
            mid_attention,
            up_blocks,
            conv_norm_out: GroupNorm::load(p.pp("conv_norm_out"), first, groups, eps)?,
            conv_out: Conv2d::load(p.pp("conv_out"), first, c.out_channels, 3, 1, 1)?,
            config: c,
        })
    }

    /// `x` noisy latents (B, C, H, W), `timesteps` one an image, `context` text states (B, T, D) -> prediction (B, C, H, W).
    ///
    /// # Errors
    /// Shapes that do not fit; SDXL's conditioning missing where the config asks for it, or given where it does not.
    pub fn forward(&self, x: &Tensor, timesteps: &[f32], context: &Tensor, added: Option<&Added>) -> Candle<Tensor> {
        let temb = ops::silu(&self.embed(timesteps, x, added)?)?; // every resnet begins with this SiLU
        let temb = Some(&temb);

        let mut h = self.conv_in.forward(x)?;
        let mut skips = vec![h.clone()];
        for block in &self.down_blocks {
            for (j, resnet) in block.resnets.iter().enumerate() {
                h = resnet.forward(&h, temb)?;
                if let Some(attention) = block.attentions.get(j) {
                    h = attention.forward(&h, context)?;
                }
                skips.push(h.clone());
            }
            if let Some(conv) = &block.downsampler {
                h = conv.forward(&h)?;
                skips.push(h.clone());
            }
        }

        h = self.mid_resnets[0].forward(&h, temb)?;
        h = self.mid_attention.forward(&h, context)?;
        h = self.mid_resnets[1].forward(&h, temb)?;

        for block in &self.up_blocks {
            for (j, resnet) in block.resnets.iter().enumerate() {
                let Some(skip) = skips.pop() else { candle_core::bail!("the UNet ran out of skip connections") };
                h = resnet.forward(&Tensor::cat(&[&h, &skip], 1)?, temb)?;
                if let Some(attention) = block.attentions.get(j) {
                    h = attention.forward(&h, context)?;
                }
            }
            if let (Some(conv), Some(next)) = (&block.upsampler, skips.last()) {
                // To the size of what comes next: twice as large, or one less where a size was odd.
                let (_, _, height, width) = next.dims4()?;
                h = conv.forward(&ops::upsample_nearest(&h, height, width)?)?;
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&h, Activation::Silu)?)
    }

    /// The timestep, and SDXL's sizes and pooled text, as one vector an image, (B, 4 * first channels).
    fn embed(&self, timesteps: &[f32], x: &Tensor, added: Option<&Added>) -> Candle<Tensor> {
        let c = &self.config;
        let run = |(one, two): &(Linear, Linear), x: &Tensor| two.forward(&ops::silu(&one.forward(x)?)?);
        let sinusoid = |values: &[f32], width| {
            sinusoidal(values, width, c.flip_sin_to_cos, c.freq_shift, x.device())?.to_dtype(x.dtype())
        };
        let temb = run(&self.time_embedding, &sinusoid(timesteps, c.block_out_channels[0])?)?;
        match (&self.add_embedding, added) {
            (None, None) => Ok(temb),
            (Some(mlp), Some(added)) => {
                let ids = added.time_ids.flatten_all()?.to_vec1::<f32>()?;
                let ids = sinusoid(&ids, c.addition_time_embed_dim.unwrap_or(256))?.reshape((timesteps.len(), ()))?;
                temb + run(mlp, &Tensor::cat(&[&added.text_embeds, &ids], 1)?)?
            }
            (Some(_), None) => candle_core::bail!("this UNet needs SDXL's pooled text and time ids"),
            (None, Some(_)) => candle_core::bail!("this UNet has no place for SDXL's pooled text and time ids"),
        }
    }
}

fn read_config(folder: &Path) -> Result<UNetConfig> {
    read_json(&folder.join("config.json"))
}

fn kind(name: &str, crossed: &str, plain: &str) -> Result<bool> {
    match name {
        _ if name == crossed => Ok(true),
        _ if name == plain => Ok(false),
        _ => bail!("block type {name} is not supported; expected {crossed} or {plain}"),
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
