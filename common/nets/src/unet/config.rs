//! `unet/config.json`, as diffusers writes it.

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use crate::{conditioning::Widths, lora::kohya::Naming};

/// One number for all blocks, or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum PerBlock {
    One(usize),
    Each(Vec<usize>),
}

impl PerBlock {
    pub fn get(&self, key: &str, blocks: usize) -> Result<Vec<usize>> {
        match self {
            PerBlock::One(n) => Ok(vec![*n; blocks]),
            PerBlock::Each(all) if all.len() == blocks => Ok(all.clone()),
            PerBlock::Each(all) => bail!("{key} has {} entries for {blocks} blocks", all.len()),
        }
    }
}

/// `unet/config.json`. A missing key takes diffusers' default; a key that asks for what is not built is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct UNetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub(super) down_block_types: Vec<String>,
    pub(super) up_block_types: Vec<String>,
    pub(super) mid_block_type: Option<String>,
    pub cross_attention_dim: usize,
    /// The number of heads, in spite of its name, in Stable Diffusion's files.
    pub(super) attention_head_dim: PerBlock,
    pub(super) num_attention_heads: Option<PerBlock>,
    pub(super) transformer_layers_per_block: PerBlock,
    pub(super) use_linear_projection: bool,
    pub(super) norm_num_groups: usize,
    pub(super) norm_eps: f64,
    pub(super) flip_sin_to_cos: bool,
    pub(super) freq_shift: f64,
    pub(super) downsample_padding: usize,
    pub(super) act_fn: String,
    pub(super) center_input_sample: bool,
    pub(super) resnet_time_scale_shift: String,
    pub(super) class_embed_type: Option<String>,
    pub(super) num_class_embeds: Option<usize>,
    pub(crate) addition_embed_type: Option<String>,
    pub(super) addition_time_embed_dim: Option<usize>,
    pub(crate) projection_class_embeddings_input_dim: Option<usize>,
    pub(super) dual_cross_attention: bool,
    pub(super) encoder_hid_dim: Option<usize>,
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
    /// Refuses what is not built, and lists that do not fit each other.
    pub(super) fn check(&self) -> Result<()> {
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

    /// Widths of the text states that the UNet attends to and of the pooled state that SDXL's takes.
    pub fn widths(&self) -> Widths {
        let sizes = 6 * self.addition_time_embed_dim.unwrap_or(256);
        let pooled = self.projection_class_embeddings_input_dim.filter(|_| self.addition_embed_type.is_some());
        Widths { states: self.cross_attention_dim, pooled: pooled.map(|width| width.saturating_sub(sizes)) }
    }

    /// The names that kohya's scripts give this UNet's modules.
    pub fn kohya_naming(&self) -> Naming {
        match self.widths().pooled {
            Some(_) => Naming::Sdxl { layers_per_block: self.layers_per_block },
            None => Naming::Diffusers,
        }
    }

    /// Width of the embedding that enters every resnet.
    pub(super) fn time_width(&self) -> usize {
        4 * self.block_out_channels[0]
    }
}
