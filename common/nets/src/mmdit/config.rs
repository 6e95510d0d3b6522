//! `transformer/config.json` of Stable Diffusion 3 and 3.5 and of FLUX.1, as diffusers writes it.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::conditioning::Widths;
use crate::config::Rule::{Flag, List, Only, Whole, Words};
use crate::config::{self, DEPTH, Rules, WIDTH};

pub const SD3: &str = "SD3Transformer2DModel";
pub const FLUX: &str = "FluxTransformer2DModel";

/// Side of the squares of latents that become one token: the same in all of these models.
pub const PATCH: usize = 2;

/// Side of the latents of 16,384 pixels: more than any of these models was made for.
const SIDE: config::Rule = Whole(1, 2048);

/// The arguments of diffusers' SD3Transformer2DModel.
const SD3_KEYS: Rules = &[
    ("sample_size", SIDE),
    ("patch_size", Only(&["2"])),
    ("in_channels", WIDTH),
    ("num_layers", DEPTH),
    ("attention_head_dim", WIDTH),
    ("num_attention_heads", WIDTH),
    ("joint_attention_dim", WIDTH),
    ("caption_projection_dim", WIDTH),
    ("pooled_projection_dim", WIDTH),
    ("out_channels", WIDTH),
    ("pos_embed_max_size", SIDE),
    ("dual_attention_layers", config::Rule::Read),
    ("qk_norm", Words(&["rms_norm"])),
];

/// The arguments of diffusers' FluxTransformer2DModel.
const FLUX_KEYS: Rules = &[
    ("patch_size", Only(&["1"])), // the latents come in squares of 2
    ("in_channels", WIDTH),
    ("out_channels", WIDTH),
    ("num_layers", DEPTH),
    ("num_single_layers", Whole(0, 256)),
    ("attention_head_dim", WIDTH),
    ("num_attention_heads", WIDTH),
    ("joint_attention_dim", WIDTH),
    ("pooled_projection_dim", WIDTH),
    ("guidance_embeds", Flag),
    ("axes_dims_rope", List(3, &WIDTH)),
];

crate::json::defaults! {
    struct Sd3 {
        sample_size: usize = 128,
        in_channels: usize = 16,
        num_layers: usize = 18,
        attention_head_dim: usize = 64,
        num_attention_heads: usize = 18,
        joint_attention_dim: usize = 4096,
        caption_projection_dim: usize = 1152,
        pooled_projection_dim: usize = 2048,
        out_channels: usize = 16,
        pos_embed_max_size: usize = 96,
        dual_attention_layers: Vec<usize> = vec![],
        qk_norm: Option<String> = None,
    }
}

crate::json::defaults! {
    struct Flux {
        in_channels: usize = 64,
        out_channels: Option<usize> = None,
        num_layers: usize = 19,
        num_single_layers: usize = 38,
        attention_head_dim: usize = 128,
        num_attention_heads: usize = 24,
        joint_attention_dim: usize = 4096,
        pooled_projection_dim: usize = 768,
        guidance_embeds: bool = false,
        axes_dims_rope: Vec<usize> = vec![16, 56, 56],
    }
}

/// How a token knows its place.
#[derive(Clone, Debug, PartialEq)]
pub enum Places {
    /// By a table of this side, which is added to the image's tokens, the middle of it for smaller images: Stable Diffusion 3.
    Table(usize),
    /// By rotation of queries and keys; this many channels of a head turn with each of the three coordinates: FLUX.
    Rotary(Vec<usize>),
}

/// The configuration of either kind.
#[derive(Clone, Debug)]
pub struct MMDiTConfig {
    /// Channels of the latents, and of the prediction.
    pub channels: [usize; 2],
    pub side: usize,
    pub widths: Widths,
    pub heads: usize,
    pub head_width: usize,
    /// Blocks with tokens of image and text apart, and blocks with all of them together.
    pub joint: usize,
    pub single: usize,
    /// Joint blocks with a second attention of the image's tokens.
    pub dual: Vec<usize>,
    /// Whether queries and keys are normalised.
    pub norm: bool,
    pub places: Places,
    /// Whether the weight of guidance is an input, as in FLUX.1 [dev].
    pub guidance: bool,
}

impl MMDiTConfig {
    pub fn is_flux(&self) -> bool {
        matches!(self.places, Places::Rotary(_))
    }

    pub fn width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Reads the configuration of a transformer of whichever class the file names.
    pub fn open(file: &Path) -> Result<Self> {
        Self::read(file, &config::class(file)?.unwrap_or_default())
    }

    /// Reads the configuration of a transformer of this class.
    pub fn read(file: &Path, class: &str) -> Result<Self> {
        let config = match class {
            FLUX => Self::flux(config::read(file, &[FLUX_KEYS])?),
            _ => Self::sd3(config::read(file, &[SD3_KEYS])?),
        };
        config.with_context(|| format!("{} cannot be used", file.display()))
    }

    fn sd3(c: Sd3) -> Result<Self> {
        let width = c.num_attention_heads * c.attention_head_dim;
        ensure!(
            c.caption_projection_dim == width,
            "caption_projection_dim = {} is not supported; expected {width}, the width of the image's tokens",
            c.caption_projection_dim
        );
        let beyond = c.dual_attention_layers.iter().find(|&&layer| layer >= c.num_layers);
        ensure!(beyond.is_none(), "dual_attention_layers names layer {} of {}", beyond.unwrap_or(&0), c.num_layers);
        Ok(Self {
            channels: [c.in_channels, c.out_channels],
            side: c.sample_size,
            widths: Widths { states: c.joint_attention_dim, pooled: Some(c.pooled_projection_dim) },
            heads: c.num_attention_heads,
            head_width: c.attention_head_dim,
            joint: c.num_layers,
            single: 0,
            dual: c.dual_attention_layers,
            norm: c.qk_norm.is_some(),
            places: Places::Table(c.pos_embed_max_size),
            guidance: false,
        })
    }

    fn flux(c: Flux) -> Result<Self> {
        let axes = &c.axes_dims_rope;
        ensure!(
            axes.len() == 3
                && axes.iter().all(|n| n.is_multiple_of(2))
                && axes.iter().sum::<usize>() == c.attention_head_dim,
            "axes_dims_rope = {axes:?} does not share {} channels of a head among three coordinates, an even number to each",
            c.attention_head_dim
        );
        let channels = [c.in_channels, c.out_channels.unwrap_or(c.in_channels)];
        let squares = PATCH * PATCH;
        ensure!(
            channels.iter().all(|n| n.is_multiple_of(squares)),
            "{channels:?} in_channels and out_channels are not those of squares of {squares} latents"
        );
        Ok(Self {
            channels: channels.map(|n| n / squares),
            side: 128, // FluxPipeline's default_sample_size
            widths: Widths { states: c.joint_attention_dim, pooled: Some(c.pooled_projection_dim) },
            heads: c.num_attention_heads,
            head_width: c.attention_head_dim,
            joint: c.num_layers,
            single: c.num_single_layers,
            dual: vec![],
            norm: true,
            places: Places::Rotary(c.axes_dims_rope),
            guidance: c.guidance_embeds,
        })
    }
}
