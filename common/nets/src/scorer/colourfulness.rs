//! Colourfulness after Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003). It needs no weights and
//! has nothing in common with the other metrics.

use anyhow::Result;

use super::metric::{Band, Metric, ModelFiles, Needs, Options, Role};
use super::model::{Model, Scorer, Towers};
use super::picture::Picture;
use crate::image::Rgb;

pub const METRIC: Metric = Metric {
    name: "colourfulness",
    role: Role::Judge,
    needs: Needs::Nothing,
    band: Band { mean: [20.0, 80.0], sd: [10.0, 40.0] },
    choices: &[],
    open,
};

struct Colourfulness;

fn open(_: &ModelFiles, _: &Options) -> Result<Scorer> {
    Ok(Scorer { id: "hasler-suesstrunk-2003".into(), preprocess: None, model: Model::Towers(Box::new(Colourfulness)) })
}

/// M = sqrt(sd_rg^2 + sd_yb^2) + 0.3 sqrt(mean_rg^2 + mean_yb^2) with rg = R - G and yb = (R + G) / 2 - B over all pixels:
/// 0 for grey, above 100 for the most colourful.
pub(super) fn colourfulness(image: &Rgb) -> f64 {
    // Whole numbers, rg and 2 yb. Their sums of squares stay below 2^63 for every image that is decoded.
    let (mut n, mut rg, mut yb, mut rg_2, mut yb_2) = (0i64, 0i64, 0i64, 0i64, 0i64);
    for p in image.data.chunks_exact(3) {
        let [r, g, b] = [p[0], p[1], p[2]].map(i64::from);
        let (x, y) = (r - g, r + g - 2 * b);
        (n, rg, yb, rg_2, yb_2) = (n + 1, rg + x, yb + y, rg_2 + x * x, yb_2 + y * y);
    }
    let mean = |sum: i64| sum as f64 / n as f64;
    let (mean_rg, mean_yb) = (mean(rg), mean(yb) / 2.0);
    let variance = mean(rg_2) - mean_rg.powi(2) + mean(yb_2) / 4.0 - mean_yb.powi(2);
    variance.max(0.0).sqrt() + 0.3 * mean_rg.hypot(mean_yb)
}

impl Towers for Colourfulness {
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        Ok(pictures.iter().map(|p| vec![colourfulness(&p.rgb) as f32]).collect())
    }

    fn score(&self, image: &[f32], _caption: &[f32]) -> f32 {
        image[0]
    }
}
