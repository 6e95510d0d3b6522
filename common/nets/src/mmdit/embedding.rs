//! The layers before and after the blocks: the embedding of time, pooled text and guidance; latents to tokens; tokens to
//! latents.

use anyhow::{Context, Result, ensure};
use candle_core::{D, Device, Result as Candle, Tensor};

use super::config::{MMDiTConfig, PATCH, Places};
use crate::conditioning::Conditioning;
use crate::layers::{Linear, Mlp, sinusoidal};
use crate::loader::Loader;

/// Width of the sinusoids of a number, whatever the width of the model is.
const SINUSOIDS: usize = 256;

/// Epsilon of every norm.
pub const EPS: f64 = 1e-6;

pub struct Embedding {
    time: Mlp,
    guidance: Option<Mlp>,
    text: Mlp,
    flux: bool,
}

impl Embedding {
    pub fn load(p: &Loader, c: &MMDiTConfig) -> Result<Self> {
        let (p, width) = (p.pp("time_text_embed"), c.width());
        let guidance = c.guidance.then(|| Mlp::load(p.pp("guidance_embedder"), SINUSOIDS, width)).transpose()?;
        Ok(Self {
            time: Mlp::load(p.pp("timestep_embedder"), SINUSOIDS, width)?,
            guidance,
            text: Mlp::load(p.pp("text_embedder"), c.widths.pooled.context("no pooled text")?, width)?,
            flux: c.is_flux(),
        })
    }

    /// The embedding of the times `t` (B), the guidance and the pooled text, after the SiLU that every block begins with: (B,
    /// width), in the dtype and on the device of `x`.
    pub fn forward(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        let sinusoids = |values: &[f32]| sinusoidal(values, SINUSOIDS, true, 0.0, x.device())?.to_dtype(x.dtype());
        // FLUX is given t / 1000 and multiplies it again, which rounds.
        let rounded: Vec<f32> = t.iter().map(|t| if self.flux { t / 1000.0 * 1000.0 } else { *t }).collect();
        let mut sum = self.time.forward(&sinusoids(&rounded)?)?;
        if let Some(mlp) = &self.guidance {
            let given = &conditioning.guidance;
            ensure!(
                given.len() == t.len(),
                "this transformer needs the guidance of {} images, not {}",
                t.len(),
                given.len()
            );
            let times: Vec<f32> = given.iter().map(|g| g * 1000.0).collect();
            sum = (sum + mlp.forward(&sinusoids(&times)?)?)?;
        }
        let pooled = conditioning.pooled.as_ref().context("this transformer needs pooled text")?;
        Ok(ops::silu(&(sum + self.text.forward(pooled)?)?)?)
    }
}

/// Refuses latents that do not divide into squares. Returns the squares of a column and of a row.
pub fn squares(x: &Tensor) -> Result<[usize; 2]> {
    let (_, _, h, w) = x.dims4()?;
    ensure!(
        h % PATCH == 0 && w % PATCH == 0,
        "latents of {h} x {w} do not divide into squares of {PATCH}: a transformer needs even sides"
    );
    Ok([h / PATCH, w / PATCH])
}

/// `x` (B, C, h, w) -> (B, N, C * 4): the squares of latents, row by row, each as (channel, row, column).
fn pack(x: &Tensor) -> Result<Tensor> {
    let ([rows, columns], (b, c, _, _)) = (squares(x)?, x.dims4()?);
    let split = x.reshape(&[b, c, rows, PATCH, columns, PATCH])?.permute([0, 2, 4, 1, 3, 5])?;
    Ok(split.reshape((b, rows * columns, c * PATCH * PATCH))?)
}

/// Latents and text states to tokens.
pub struct Enter {
    image: Linear,
    text: Linear,
    /// (1, side * side, width)
    table: Option<Tensor>,
}

impl Enter {
    pub fn load(p: &Loader, c: &MMDiTConfig) -> Result<Self> {
        let ([channels, _], width) = (c.channels, c.width());
        let (image, table) = match c.places {
            Places::Table(side) => {
                let p = p.pp("pos_embed");
                let table = p.constant("pos_embed", &[1, side * side, width])?;
                (Linear::load_patches(p.pp("proj"), channels, PATCH, width)?, Some(table))
            }
            Places::Rotary(_) => (Linear::load(p.pp("x_embedder"), channels * PATCH * PATCH, width)?, None),
        };
        Ok(Self { image, text: Linear::load(p.pp("context_embedder"), c.widths.states, width)?, table })
    }

    /// `x` (B, C, h, w), `states` (B, T, D) -> tokens of the image (B, N, width) and of the text (B, T, width).
    pub fn forward(&self, x: &Tensor, states: &Tensor) -> Result<[Tensor; 2]> {
        let [rows, columns] = squares(x)?;
        let mut image = self.image.forward(&pack(x)?)?;
        if let Some(table) = &self.table {
            let (_, places, width) = table.dims3()?;
            let side = places.isqrt();
            ensure!(
                rows <= side && columns <= side,
                "latents of {} x {} are larger than the {side} x {side} squares of {PATCH} that the model has places for",
                rows * PATCH,
                columns * PATCH
            );
            let (top, left) = ((side - rows) / 2, (side - columns) / 2);
            let middle = table.reshape((side, side, width))?.narrow(0, top, rows)?.narrow(1, left, columns)?;
            image = image.broadcast_add(&middle.reshape((rows * columns, width))?)?;
        }
        Ok([image, self.text.forward(states)?])
    }
}

/// Tokens to the prediction.
pub struct Leave {
    norm: Linear,
    proj: Linear,
    channels: usize,
    flux: bool,
}

impl Leave {
    pub fn load(p: &Loader, c: &MMDiTConfig) -> Result<Self> {
        let ([_, channels], width) = (c.channels, c.width());
        Ok(Self {
            norm: Linear::load(p.pp("norm_out.linear"), width, 2 * width)?,
            proj: Linear::load(p.pp("proj_out"), width, channels * PATCH * PATCH)?,
            channels,
            flux: c.is_flux(),
        })
    }

    /// `tokens` (B, N or more, width), those of the image last -> (B, C, h, w). `temb`: the embedding.
    pub fn forward(&self, tokens: &Tensor, temb: &Tensor, [rows, columns]: [usize; 2]) -> Result<Tensor> {
        let (b, all, _) = tokens.dims3()?;
        let image = tokens.narrow(1, all - rows * columns, rows * columns)?;
        let [scale, shift] = parts(&self.norm, temb)?;
        let y = self.proj.forward(&ops::modulated_layer_norm(&image, &scale, &shift, EPS)?)?;
        // A token of Stable Diffusion 3 is (row, column, channel), one of FLUX (channel, row, column).
        let c = self.channels;
        let split = match self.flux {
            false => y.reshape(&[b, rows, columns, PATCH, PATCH, c])?.permute([0, 5, 1, 3, 2, 4])?,
            true => y.reshape(&[b, rows, columns, c, PATCH, PATCH])?.permute([0, 3, 1, 4, 2, 5])?,
        };
        Ok(split.reshape((b, c, rows * PATCH, columns * PATCH))?)
    }
}

/// The N modulations that a layer makes of the embedding, each (B, width).
pub fn parts<const N: usize>(layer: &Linear, temb: &Tensor) -> Result<[Tensor; N]> {
    let all = layer.forward(temb)?;
    let width = all.dim(D::Minus1)? / N;
    let parts = (0..N).map(|i| all.narrow(1, i * width, width)?.contiguous()).collect::<Candle<Vec<_>>>()?;
    parts.try_into().ok().context("a modulation has another number of parts")
}

/// cos and sin of FLUX's angles, each (T + N, head width / 2): text tokens stand at (0, 0, 0), image tokens at (0, row, column).
/// In f64, as in diffusers.
pub fn angles(axes: &[usize], text: usize, [rows, columns]: [usize; 2], device: &Device) -> Candle<[Tensor; 2]> {
    const THETA: f64 = 10_000.0;
    let places = std::iter::repeat_n([0, 0, 0], text)
        .chain((0..rows).flat_map(|row| (0..columns).map(move |column| [0, row, column])));
    let of_place = |place: [usize; 3]| {
        let axis = |(&channels, at): (&usize, usize)| {
            (0..channels / 2).map(move |k| at as f64 / THETA.powf(2.0 * k as f64 / channels as f64))
        };
        axes.iter().zip(place).flat_map(axis).collect::<Vec<f64>>()
    };
    let all: Vec<f64> = places.flat_map(of_place).collect();
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f32> = all.iter().map(|&angle| f(angle) as f32).collect();
        Tensor::from_vec(values, (text + rows * columns, axes.iter().sum::<usize>() / 2), device)
    };
    Ok([table(f64::cos)?, table(f64::sin)?])
}
