//! From pairs to the three tables of the cache: which pairs there are, the text encoder's states, the VAE's posteriors.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use arrow::array::{Array, ArrayRef, BooleanArray, Float16Array, Int32Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Metadata, Schema};
use arrow::{buffer::OffsetBuffer, compute::concat_batches};
use candle_core::{DType, Device, Tensor};
use half::f16;
use nets::image::{self, TrainCrop};
use nets::{conditioning::Widths, denoiser::Config, device, folder, prompt::PromptEncoder, vae::Vae, weights::Weights};
use pipe::cli::{Networks, named};
use pipe::schema::{self, pairs};
use pipe::{augment::Augment, column::Rows, origin::Origin, pairs::PairKeys};
use rayon::prelude::*;

use crate::seen::Seen;

/// The square root of [`image::MAX_PIXELS`].
const MAX_SIDE: usize = image::MAX_PIXELS.isqrt();

#[derive(clap::Args, Clone, Copy, Debug)]
pub struct EncoderFlags {
    /// Side of the training images in pixels: the short side is resized to it, the middle is kept [default: the side that the
    /// base's UNet was made for, and 512 if the base has no UNet]
    #[arg(long, value_name = "N")]
    resolution: Option<usize>,
    /// Store mirrored images too, for the flips of `train --augment`
    #[arg(long, default_value_t = Augment::None, value_parser = named::<Augment>())]
    augment: Augment,
    /// Images per batch of the VAE [default: up to 16, limited to 4 million pixels in all (1 million on a CPU, about 3 GB)]
    #[arg(long, help_heading = "Encoding", value_name = "N")]
    batch: Option<usize>,
}

/// The networks, and how images are made ready for them.
pub struct Encoder {
    vae: Vae,
    text: PromptEncoder,
    /// Side of the images, in pixels.
    pub resolution: usize,
    flags: EncoderFlags,
    /// Images that go through the VAE together.
    batch: usize,
}

/// An image made ready for the VAE.
struct Prepared<'a> {
    uid: &'a str,
    flipped: bool,
    pixels: Vec<f32>, // (3, resolution, resolution)
    crop: TrainCrop,
}

impl Encoder {
    pub fn open(base: &Path, flags: EncoderFlags, networks: Networks) -> Result<Self> {
        ensure!(flags.batch != Some(0), "--batch is 0: no image to encode");
        let device = device::open(networks.device)?;
        let dtype = device::dtype(networks.dtype, &device)?;
        let text = PromptEncoder::open(base, dtype, &device).context("--base")?;
        let vae = Vae::open(&base.join("vae"), dtype, &device)?;
        let factor = vae.config.factor();
        let has_denoiser = folder::DENOISERS.iter().any(|part| base.join(part).join("config.json").exists());
        let denoiser = if has_denoiser { Some(Config::read(&folder::denoiser(base)?)?) } else { None };
        let resolution = flags.resolution.unwrap_or(denoiser.as_ref().map_or(512, |config| config.side * factor));
        ensure!(
            resolution > 0 && resolution.is_multiple_of(factor),
            "--resolution {resolution} is not a multiple of the VAE's {factor}"
        );
        let step = factor * denoiser.map_or(1, |config| config.multiple);
        ensure!(
            resolution.is_multiple_of(step),
            "--resolution {resolution} is not a multiple of the denoiser's {step}"
        );
        ensure!(
            resolution <= MAX_SIDE,
            "--resolution {resolution} is more than the {MAX_SIDE} pixels a side of the largest image that is read"
        );
        let most = if device.is_cpu() { 1 << 20 } else { 1 << 22 };
        let batch = flags.batch.unwrap_or((most / (resolution * resolution)).clamp(1, 16));
        Ok(Self { vae, text, resolution, flags, batch })
    }

    /// Names and schemas of the tables, whose metadata hold the shapes.
    pub fn tables(&self) -> Vec<(&'static str, Schema)> {
        let side = self.resolution / self.vae.config.factor();
        let latent = format!("[{},{side},{side}]", self.vae.config.latent_channels);
        let (tokens, Widths { states: width, pooled }) = (self.text.tokens(), self.text.widths());
        let mut states = Metadata::default().with("state_shape", format!("[{tokens},{width}]"));
        if let Some(width) = pooled {
            states = states.with("pooled_shape", format!("[{width}]"));
        }
        vec![
            ("pairs", schema::pair_list()),
            ("captions", schema::captions(pooled.is_some()).with_metadata(states)),
            ("latents", schema::latents().with_metadata(Metadata::default().with("latent_shape", latent))),
        ]
    }

    /// The settings and the networks, which decide the numbers.
    pub fn origin(&self, base: &Path) -> Result<Origin> {
        let origin =
            Origin::new("encode").arg("resolution", self.resolution).arg("flips", self.flags.augment != Augment::None);
        let networks = ["vae"].iter().chain(self.text.parts());
        networks
            .copied()
            .try_fold(origin, |origin, network| Ok(origin.model(network, Weights::open(&base.join(network))?.hash()?)))
    }

    /// Which versions of each image are stored: as it is, and mirrored where training may mirror it.
    pub fn versions(&self) -> &'static [bool] {
        if self.flags.augment == Augment::None { &[false] } else { &[false, true] }
    }

    /// One batch per table, of what `seen` does not have yet. The caption table of a cache begins with the empty caption.
    pub fn encode(&self, rows: &Rows, seen: &mut Seen) -> Result<Vec<RecordBatch>> {
        let keys = PairKeys::of(rows, rows.text(pairs::CAPTION)?)?;
        let texts = std::iter::once("").chain(keys.captions.iter().flatten());
        let captions = self.captions(&texts.filter(|text| seen.is_new_caption(text)).collect::<Vec<_>>())?;
        let latents = self.latents(rows, &keys, seen)?;
        let [zero, one] = keys.uids;
        let pairs: Vec<ArrayRef> = vec![Arc::new(keys.ids), Arc::new(keys.captions), Arc::new(zero), Arc::new(one)];
        Ok(vec![RecordBatch::try_new(Arc::new(schema::pair_list()), pairs)?, captions, latents])
    }

    fn captions(&self, new: &[&str]) -> Result<RecordBatch> {
        let schema = Arc::new(schema::captions(self.text.widths().pooled.is_some()));
        if new.is_empty() {
            return Ok(RecordBatch::new_empty(schema));
        }
        let encoded = self.text.encode(new)?;
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from_iter_values(new)), Arc::new(halves(&encoded.states)?)];
        if let Some(pooled) = &encoded.pooled {
            columns.push(Arc::new(halves(pooled)?));
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }

    fn latents(&self, rows: &Rows, keys: &PairKeys, seen: &mut Seen) -> Result<RecordBatch> {
        let new: Vec<(usize, usize, bool)> = (0..rows.len())
            .flat_map(|i| [(i, 0), (i, 1)])
            .filter(|&(i, side)| seen.is_new_image(keys.uids[side].value(i)))
            .flat_map(|(i, side)| self.versions().iter().map(move |&flipped| (i, side, flipped)))
            .collect();
        let bytes = [rows.bytes(pairs::JPG[0])?, rows.bytes(pairs::JPG[1])?];
        let prepare = |&(i, side, flipped): &(usize, usize, bool)| -> Result<Prepared> {
            let place = || format!("{}: '{}'", rows.at(i), pairs::JPG[side]);
            ensure!(bytes[side].is_valid(i), "{} is null; there is no image", place());
            let rgb = image::decode(bytes[side].value(i)).with_context(place)?;
            let rgb = if flipped { rgb.mirrored() } else { rgb };
            let (pixels, crop) = image::dpo_train(&rgb, self.resolution);
            Ok(Prepared { uid: keys.uids[side].value(i), flipped, pixels, crop })
        };
        let mut batches = vec![];
        for batch in new.chunks(self.batch) {
            batches.push(self.posteriors(&batch.par_iter().map(prepare).collect::<Result<Vec<_>>>()?)?);
        }
        Ok(concat_batches(&Arc::new(schema::latents()), &batches)?)
    }

    fn posteriors(&self, batch: &[Prepared]) -> Result<RecordBatch> {
        let pixels: Vec<f32> = batch.iter().flat_map(|p| p.pixels.iter().copied()).collect();
        let shape = (batch.len(), 3, self.resolution, self.resolution);
        let posterior = self.vae.encode(&Tensor::from_vec(pixels, shape, &Device::Cpu)?)?; // (B, C, h, w) each
        let pixels = |f: fn(&TrainCrop) -> usize| -> ArrayRef {
            Arc::new(Int32Array::from_iter_values(batch.iter().map(|p| f(&p.crop) as i32)))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(batch.iter().map(|p| p.uid))),
            Arc::new(BooleanArray::from_iter(batch.iter().map(|p| Some(p.flipped)))),
            Arc::new(halves(&posterior.mean)?),
            Arc::new(halves(&posterior.logvar)?),
            pixels(|crop| crop.top),
            pixels(|crop| crop.left),
            pixels(|crop| crop.original_height),
            pixels(|crop| crop.original_width),
        ];
        Ok(RecordBatch::try_new(Arc::new(schema::latents()), columns)?)
    }
}

/// (B, ...) -> B lists of half-precision numbers.
fn halves(x: &Tensor) -> Result<ListArray> {
    let rows = x.dim(0)?;
    let values = x.to_device(&Device::Cpu)?.to_dtype(DType::F16)?.flatten_all()?.to_vec1::<f16>()?;
    let lengths = std::iter::repeat_n(values.len() / rows.max(1), rows);
    let item = Arc::new(Field::new("item", DataType::Float16, false));
    Ok(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(Float16Array::from(values)), None)?)
}
