//! The conditioning of a denoiser: the states of the prompt's tokens, in SDXL and the transformers pooled text, and numbers.

use std::str::FromStr;

use candle_core::{D, DType, Device, Result as Candle, Tensor};

/// The conditioning of B images.
#[derive(Clone, Debug)]
pub struct Conditioning {
    pub states: Tensor,
    /// The pooled state of the text, (B, P); `None` in Stable Diffusion 1 and 2.
    pub pooled: Option<Tensor>,
    /// SDXL: sizes and crop of each image. B of them, or none while they are not known; other models ignore them.
    pub sizes: Vec<TimeIds>,
    /// FLUX.1 [dev]: the weight of guidance of each image. B of them, or none while they are not known; other models ignore them.
    pub guidance: Vec<f32>,
}

/// Widths of the conditioning, which text encoders and denoiser must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// D of the text states.
    pub states: usize,
    /// P of the pooled state, if there is one.
    pub pooled: Option<usize>,
}

impl Conditioning {
    /// That of text alone, without numbers.
    pub fn of_text(states: Tensor, pooled: Option<Tensor>) -> Self {
        Self { states, pooled, sizes: vec![], guidance: vec![] }
    }

    pub fn with_sizes(self, sizes: Vec<TimeIds>) -> Self {
        Self { sizes, ..self }
    }

    /// With this weight of guidance for every image, unless they have weights of their own.
    pub fn with_guidance(self, weight: f32) -> Candle<Self> {
        let images = self.states.dim(0)?;
        let guidance = if self.guidance.is_empty() { vec![weight; images] } else { self.guidance };
        Ok(Self { guidance, ..self })
    }

    pub fn widths(&self) -> Candle<Widths> {
        let pooled = self.pooled.as_ref().map(|p| p.dim(D::Minus1)).transpose()?;
        Ok(Widths { states: self.states.dim(D::Minus1)?, pooled })
    }

    /// All rows, one batch after the other: for classifier-free guidance, or for the two images of a pair.
    pub fn cat(all: &[&Self]) -> Candle<Self> {
        let states: Vec<&Tensor> = all.iter().map(|c| &c.states).collect();
        let pooled: Option<Vec<&Tensor>> = all.iter().map(|c| c.pooled.as_ref()).collect();
        Ok(Self {
            states: Tensor::cat(&states, 0)?,
            pooled: pooled.filter(|p| !p.is_empty()).map(|pooled| Tensor::cat(&pooled, 0)).transpose()?,
            sizes: all.iter().flat_map(|c| &c.sizes).copied().collect(),
            guidance: all.iter().flat_map(|c| &c.guidance).copied().collect(),
        })
    }

    /// Row 0, `n` times.
    pub fn repeat(&self, n: usize) -> Candle<Self> {
        let sizes = self.sizes.first().map_or(vec![], |first| vec![*first; n]);
        let repeat = |x: &Tensor| x.narrow(0, 0, 1)?.repeat([&[n], &vec![1; x.rank() - 1][..]].concat());
        let guidance = self.guidance.first().map_or(vec![], |first| vec![*first; n]);
        Ok(Self { sizes, guidance, ..self.map(repeat)? })
    }

    pub fn to_device(&self, device: &Device) -> Candle<Self> {
        self.map(|x| x.to_device(device))
    }

    pub fn to_dtype(&self, dtype: DType) -> Candle<Self> {
        self.map(|x| x.to_dtype(dtype))
    }

    /// The conditioning of no text at all, as SDXL asks for: zeros.
    pub fn zeros_like(&self) -> Candle<Self> {
        self.map(Tensor::zeros_like)
    }

    fn map(&self, f: impl Fn(&Tensor) -> Candle<Tensor>) -> Candle<Self> {
        let pooled = self.pooled.as_ref().map(&f).transpose()?;
        Ok(Self { states: f(&self.states)?, pooled, sizes: self.sizes.clone(), guidance: self.guidance.clone() })
    }
}

/// SDXL's sizes of one image in pixels: original height and width, top and left of the crop, target height and width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeIds(pub [f32; 6]);

impl TimeIds {
    /// `original` (height, width) of the file, `crop` (top, left), `target` (height, width) of what the network sees.
    pub fn new(original: [usize; 2], crop: [usize; 2], target: [usize; 2]) -> Self {
        let [oh, ow] = original;
        let [top, left] = crop;
        let [th, tw] = target;
        Self([oh, ow, top, left, th, tw].map(|n| n as f32))
    }

    /// Those of an image that was made at this size: neither resized nor cropped.
    pub fn whole(height: usize, width: usize) -> Self {
        Self::new([height, width], [0, 0], [height, width])
    }
}

impl FromStr for TimeIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<f32>> =
            text.split(',').map(|n| n.trim().parse::<u32>().ok().map(|n| n as f32)).collect();
        let ids = numbers.and_then(|n| n.try_into().ok());
        ids.map(Self).ok_or_else(|| "expected six whole numbers, as 1024,1024,0,0,1024,1024".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_ids_are_six_whole_numbers() {
        assert_eq!("1024, 768,0,8,512,384".parse(), Ok(TimeIds::new([1024, 768], [0, 8], [512, 384])));
        assert_eq!(TimeIds::whole(64, 48).0, [64., 48., 0., 0., 64., 48.]);
        for bad in ["", "1,2,3,4,5", "1,2,3,4,5,6,7", "1,2,3,4,5,-6", "1,2,3,4,5,x"] {
            assert!(bad.parse::<TimeIds>().unwrap_err().contains("six whole numbers"), "{bad}");
        }
    }
}
