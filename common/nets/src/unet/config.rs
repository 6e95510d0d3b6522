//! `unet/config.json`, as diffusers writes it.

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use crate::config::Rule::{Flag, Free, List, Number, OneOrEach, Only, Same, Whole, Words};
use crate::config::{DEPTH, EPSILON, Rules, WIDTH};
use crate::{conditioning::Widths, lora::kohya::Naming, names::Names};

/// Levels of a UNet or VAE: each halves the size, and no image could be halved more often.
pub(crate) const LEVELS: usize = 8;

/// The arguments of diffusers' UNet2DConditionModel.
pub(super) const KEYS: Rules = &[
    (
        "in_channels out_channels norm_num_groups addition_time_embed_dim projection_class_embeddings_input_dim \
         time_embedding_dim",
        WIDTH,
    ),
    ("block_out_channels", List(LEVELS, &WIDTH)),
    ("layers_per_block", Same(&Whole(1, 16))), // 2 in every published model
    ("down_block_types", List(LEVELS, &Words(&["CrossAttnDownBlock2D", "DownBlock2D"]))),
    ("up_block_types", List(LEVELS, &Words(&["CrossAttnUpBlock2D", "UpBlock2D"]))),
    ("mid_block_type", Only(&["\"UNetMidBlock2DCrossAttn\""])),
    ("cross_attention_dim", Same(&WIDTH)),
    ("attention_head_dim", OneOrEach(&WIDTH)),
    ("transformer_layers_per_block", OneOrEach(&DEPTH)),
    ("use_linear_projection flip_sin_to_cos", Flag),
    ("norm_eps", EPSILON),
    ("freq_shift", Number(0.0, 1.0)),
    ("addition_embed_type", Words(&["text_time"])),
    // The latents of 8,192 pixels a side: twice what any model was made for.
    ("sample_size", Same(&Whole(1, 1024))),
    ("act_fn", Only(&["\"silu\"", "\"swish\""])),
    ("addition_embed_type_num_heads", Free), // for other values of addition_embed_type
    ("attention_type resnet_time_scale_shift", Only(&["\"default\""])),
    (
        "center_input_sample class_embeddings_concat dual_cross_attention mid_block_only_cross_attention \
         only_cross_attention resnet_skip_time_act",
        Only(&["false", "null"]),
    ),
    (
        "class_embed_type cross_attention_norm encoder_hid_dim encoder_hid_dim_type num_attention_heads \
         num_class_embeds reverse_transformer_layers_per_block time_cond_proj_dim time_embedding_act_fn \
         timestep_post_act",
        Only(&["null"]),
    ),
    ("conv_in_kernel conv_out_kernel", Only(&["3"])),
    ("downsample_padding mid_block_scale_factor resnet_out_scale_factor", Only(&["1"])),
    ("dropout", Only(&["0", "null"])),
    ("time_embedding_type", Only(&["\"positional\""])),
    ("upcast_attention", Free), // in half precision only
];

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

crate::json::defaults! {
    /// `unet/config.json`. A missing key takes diffusers' default; a key that asks for what is not built is refused.
    #[derive(Clone, Debug)]
    pub struct UNetConfig {
        pub in_channels: usize = 4,
        pub out_channels: usize = 4,
        pub block_out_channels: Vec<usize> = vec![320, 640, 1280, 1280],
        pub layers_per_block: usize = 2,
        pub(super) down_block_types: Vec<String> = blocks(["CrossAttnDownBlock2D"; 3], ["DownBlock2D"; 1]),
        pub(super) up_block_types: Vec<String> = blocks(["UpBlock2D"; 1], ["CrossAttnUpBlock2D"; 3]),
        pub cross_attention_dim: usize = 1280,
        /// The number of heads, in spite of its name, in Stable Diffusion's files.
        pub(super) attention_head_dim: PerBlock = PerBlock::One(8),
        pub(super) transformer_layers_per_block: PerBlock = PerBlock::One(1),
        pub(super) use_linear_projection: bool = false,
        pub(super) norm_num_groups: usize = 32,
        pub(super) norm_eps: f64 = 1e-5,
        pub(super) flip_sin_to_cos: bool = true,
        pub(super) freq_shift: f64 = 0.0,
        pub(crate) addition_embed_type: Option<String> = None,
        pub(super) addition_time_embed_dim: Option<usize> = None,
        pub(crate) projection_class_embeddings_input_dim: Option<usize> = None,
        time_embedding_dim: Option<usize> = None,
        pub sample_size: usize = 64,
    }
}

fn blocks<const N: usize, const M: usize>(first: [&str; N], then: [&str; M]) -> Vec<String> {
    first.into_iter().chain(then).map(String::from).collect()
}

impl UNetConfig {
    /// Refuses what is not built, and lists that do not fit each other.
    pub(super) fn check(&self) -> Result<()> {
        let n = self.block_out_channels.len();
        ensure!(
            n > 0 && self.down_block_types.len() == n && self.up_block_types.len() == n,
            "block lists differ in length"
        );
        ensure!(
            self.in_channels == self.out_channels,
            "in_channels is {} and out_channels {}: a UNet that takes more than the latents (inpainting, depth) or predicts more \
             than the noise (a learned variance) is not supported",
            self.in_channels,
            self.out_channels
        );
        let (asked, width) = (self.time_embedding_dim, self.time_width());
        ensure!(
            asked.is_none_or(|asked| asked == width),
            "time_embedding_dim = {} is not supported; expected {width}, four times the first channels",
            asked.unwrap_or_default()
        );
        let sizes = 6 * self.addition_time_embed_dim.unwrap_or(256);
        let inner = self.projection_class_embeddings_input_dim.filter(|_| self.addition_embed_type.is_some());
        ensure!(
            inner.is_none_or(|inner| inner > sizes),
            "projection_class_embeddings_input_dim = {} has no room for six sizes of {} numbers and the pooled text",
            inner.unwrap_or_default(),
            sizes / 6
        );
        Ok(())
    }

    /// Widths of the text states that the UNet attends to and of the pooled state that SDXL's takes.
    pub fn widths(&self) -> Widths {
        let sizes = 6 * self.addition_time_embed_dim.unwrap_or(256);
        let pooled = self.projection_class_embeddings_input_dim.filter(|_| self.addition_embed_type.is_some());
        Widths { states: self.cross_attention_dim, pooled: pooled.map(|width| width.saturating_sub(sizes)) }
    }

    pub fn kohya_naming(&self) -> Naming {
        match self.widths().pooled {
            Some(_) => Naming::Sdxl { layers_per_block: self.layers_per_block },
            None => Naming::Diffusers,
        }
    }

    /// The original names of its tensors in Stable Diffusion's files.
    pub fn first_names(&self) -> Names {
        let attends: Vec<bool> = self.down_block_types.iter().map(|kind| kind.starts_with("CrossAttn")).collect();
        Names::unet(self.layers_per_block, &attends)
    }

    /// Width of the embedding that enters every resnet.
    pub(super) fn time_width(&self) -> usize {
        4 * self.block_out_channels[0]
    }
}
