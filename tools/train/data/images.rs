//! Where the images of a pair are stored, and how they become posteriors of the VAE.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use arrow::array::{Array, AsArray, BooleanArray, PrimitiveArray};
use arrow::datatypes::Int32Type;
use candle_core::{Device, Tensor};
use nets::conditioning::TimeIds;
use nets::image::{self, TrainCrop};
use nets::vae::{Posterior, Vae};
use pipe::schema::{images, pairs};
use pipe::table::{BATCH, Inputs};
use pipe::{column::Rows, id::Key, image_keys, take::Taker};
use rayon::prelude::*;

use super::votes::name_key;

pub enum Images {
    /// Columns `jpg_0` and `jpg_1` of the pair's own row.
    InPairs,
    /// Column `image` of an images table.
    Table(Taker),
    /// Posteriors stored by `encode`, (C, h, w) each.
    Cache { table: Taker, shape: [usize; 3], flips: bool },
}

#[derive(Clone, Copy)]
pub struct Wanted {
    pub side: usize,
    /// Rows of the plain and of the mirrored image; the same row where images are mirrored after reading.
    pub rows: [u32; 2],
    pub flipped: bool,
}

/// uid -> rows of the plain and of the mirrored image (the plain one where none is stored).
pub type RowsOf = HashMap<Key, [u32; 2]>;

impl Images {
    /// The columns in which the images stand beside the keys of their pair.
    pub fn beside_keys(&self) -> &'static [&'static str] {
        if matches!(self, Images::InPairs) { &pairs::JPG } else { &[] }
    }

    /// Posteriors of 2B images, the winners first, at this resolution, (2B, C, h, w), and SDXL's conditioning on their sizes.
    /// `pair_rows`: the rows of the B pairs, with the columns of `beside_keys`.
    pub fn posterior(
        &self,
        wanted: &[Wanted],
        pair_rows: &[Rows],
        vae: &Vae,
        resolution: usize,
    ) -> Result<(Posterior, Vec<TimeIds>)> {
        match self {
            Images::InPairs => {
                let rows = pair_rows.iter().cycle();
                encode(wanted.iter().zip(rows).map(|(w, row)| (row, pairs::JPG[w.side], w)), vae, resolution)
            }
            Images::Table(table) => {
                let rows: Vec<usize> = wanted.iter().map(|w| w.rows[0] as usize).collect();
                let found = table.take(&rows, &[images::IMAGE])?;
                encode(wanted.iter().zip(&found).map(|(w, row)| (row, images::IMAGE, w)), vae, resolution)
            }
            Images::Cache { table, shape: [c, h, w], flips } => {
                let row = |w: &Wanted| w.rows[usize::from(w.flipped && *flips)] as usize;
                let rows: Vec<usize> = wanted.iter().map(row).collect();
                let sizes = ["original_height", "original_width", "crop_top", "crop_left"];
                let found = table.take(&rows, &[&["mean", "logvar"], &sizes[..]].concat())?;
                let gather =
                    |name: &str| Ok::<_, anyhow::Error>(lists(&found, name)?.reshape((rows.len(), *c, *h, *w))?);
                let side = h * vae.config.factor();
                let time_ids = found.iter().map(|row| {
                    let [oh, ow, top, left] = sizes.map(|name| integer(row, name));
                    Ok(TimeIds::new([oh?, ow?], [top?, left?], [side, side]))
                });
                let posterior = Posterior { mean: gather("mean")?, logvar: gather("logvar")? };
                Ok((posterior, time_ids.collect::<Result<_>>()?))
            }
        }
    }

    /// Rows by uid of a table of images or latents, and whether mirrored images are among them.
    pub fn rows(table: &mut Inputs) -> Result<(RowsOf, bool)> {
        let (mut all, mut flips, mut row) = (RowsOf::new(), false, 0u32);
        let named = table.has(images::IMAGE_UID);
        let columns = [images::IMAGE_UID, "flipped", images::IMAGE];
        for rows in table.read(Some(&columns[..if named { 2 } else { 3 }]), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let uids = image_keys::uids(&rows, images::IMAGE_UID, images::IMAGE)?;
            let flipped: Option<&BooleanArray> = rows.batch.column_by_name("flipped").and_then(|c| c.as_boolean_opt());
            for i in 0..rows.len() {
                let mirrored = flipped.is_some_and(|f| f.value(i));
                flips |= mirrored;
                let entry = all.entry(name_key(uids.value(i))).or_insert([row; 2]);
                entry[usize::from(mirrored)] = row;
                row += 1;
            }
        }
        Ok((all, flips))
    }
}

/// Decodes, resizes and crops images, each in a column of a row, and runs the VAE over them.
fn encode<'a>(
    images: impl Iterator<Item = (&'a Rows, &'static str, &'a Wanted)>,
    vae: &Vae,
    side: usize,
) -> Result<(Posterior, Vec<TimeIds>)> {
    let images: Vec<_> = images.collect();
    let ready = images.par_iter().map(|(row, column, wanted)| {
        let bytes = row.bytes(column)?;
        ensure!(bytes.is_valid(0), "{}: '{column}' is null; there is no image to train on", row.at(0));
        let rgb = image::decode(bytes.value(0)).with_context(|| row.at(0))?;
        let rgb = if wanted.flipped { rgb.mirrored() } else { rgb };
        Ok(image::dpo_train(&rgb, side))
    });
    let (pixels, crops): (Vec<_>, Vec<TrainCrop>) = ready.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let time_ids = |c: &TrainCrop| TimeIds::new([c.original_height, c.original_width], [c.top, c.left], [side, side]);
    let pixels = Tensor::from_vec(pixels.concat(), (images.len(), 3, side, side), &Device::Cpu)?;
    Ok((vae.encode(&pixels)?, crops.iter().map(time_ids).collect()))
}

/// The numbers of a list column of all rows, one row after the other.
pub fn lists(rows: &[Rows], name: &str) -> Result<Tensor> {
    let mut all = vec![];
    for row in rows {
        all.extend_from_slice(row.f32_list(name)?.values());
    }
    let n = all.len();
    Ok(Tensor::from_vec(all, n, &Device::Cpu)?)
}

fn integer(row: &Rows, name: &str) -> Result<usize> {
    let column: Option<&PrimitiveArray<Int32Type>> =
        row.batch.column_by_name(name).and_then(|c| c.as_primitive_opt::<Int32Type>());
    let column = column.with_context(|| format!("{}: column '{name}' is missing; make it with `encode`", row.table))?;
    Ok(column.value(0).max(0) as usize)
}
