//! A contact sheet: images in rows and columns. Its words are rendered from SVG, and the images are laid over it.

use anyhow::{Context, Result, ensure};
use maud::html;
use nets::image::{self, Filter, Rgb};
use pipe::text::count;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use crate::choose::{common_prompts, evenly};
use crate::font::{FAMILY, FONT, Face};
use crate::images::{ModelImages, same_noise};
use crate::model_table::Prompt;

pub struct Sheet {
    columns: Vec<String>,
    rows: Vec<Row>,
    /// A line below the images.
    note: String,
}

struct Row {
    title: String,
    /// Small, below the title.
    remark: Option<String>,
    pictures: Vec<Rgb>,
}

/// In pixels, as everything below.
const MARGIN: usize = 20;
const GAP: usize = 8;
/// The width of the titles of the rows.
const HEAD: usize = 220;
/// The least and the greatest side of an image.
const SMALL: usize = 128;
const LARGE: usize = 256;
/// The greatest height of a sheet; viewers open no taller ones.
const TALLEST: usize = 32_000;

impl Sheet {
    /// The k-th images of `n` prompts: a row per prompt, a column per model.
    pub fn of_prompts(tables: &[ModelImages], n: usize, k: u64) -> Result<Self> {
        let prompts = common_prompts(tables)?;
        tables.iter().try_for_each(|t| t.table.require_k(k))?;
        let shown = evenly(&prompts, n);
        let row = |prompt: &&Prompt| -> Result<Row> {
            let pictures = tables.iter().map(|t| t.picture(&prompt.key, k)).collect::<Result<_>>()?;
            Ok(Row { title: prompt.text.clone(), remark: prompt.key.0.clone(), pictures })
        };
        let same = shown.iter().all(|prompt| same_noise(tables, &prompt.key, &[k]));
        let noise = if same { ", from the same noise in each row" } else { "" };
        let (some, all) = (shown.len(), count(prompts.len(), "prompt"));
        let which = if some == prompts.len() { all } else { format!("{some} of {all}") };
        Ok(Self {
            columns: tables.iter().map(|t| t.table.model.clone()).collect(),
            rows: shown.iter().map(row).collect::<Result<_>>()?,
            note: format!("{which}, image k = {k} of each{noise}"),
        })
    }

    /// All images of one prompt: a row per model, a column per image.
    pub fn of_seeds(tables: &[ModelImages], prompt: &str) -> Result<Self> {
        let found = |t: &ModelImages| {
            let found = t.table.prompts.iter().find(|p| p.text == prompt).map(|p| p.key.clone());
            found.with_context(|| format!("{}: there is no prompt '{prompt}'", t.table.file))
        };
        let key = tables.iter().map(found).collect::<Result<Vec<_>>>()?.swap_remove(0);
        let everywhere = |k: &u64| tables.iter().all(|t| t.table.image(&key, *k).is_some());
        let ks: Vec<u64> = tables[0].table.ks(&key).filter(everywhere).collect();
        let row = |t: &ModelImages| -> Result<Row> {
            let pictures = ks.iter().map(|k| t.picture(&key, *k)).collect::<Result<_>>()?;
            Ok(Row { title: t.table.model.clone(), remark: None, pictures })
        };
        let noise = if same_noise(tables, &key, &ks) { ", each column from the same noise" } else { "" };
        Ok(Self {
            columns: ks.iter().map(|k| format!("image {k}")).collect(),
            rows: tables.iter().map(row).collect::<Result<_>>()?,
            note: format!("{prompt}{noise}"),
        })
    }

    pub fn png(&self, scale: usize) -> Result<Vec<u8>> {
        let (cell, margin, gap, aside) = (scale * self.cell(), scale * MARGIN, scale * GAP, scale * HEAD);
        let face = |size: f32| Face::new(size * scale as f32);
        let (title, body, small) = (face(15.0)?, face(13.0)?, face(11.0)?);
        let heads: Vec<_> = self.columns.iter().map(|m| title.wrap(m, cell as f32, 3)).collect();
        let top = margin + scale * (20 * heads.iter().map(Vec::len).max().unwrap_or(1) + 6);
        let (columns, rows) = (self.columns.len(), self.rows.len());
        let width = margin + aside + (cell + gap) * columns - gap + margin;
        let height = top + (cell + gap) * rows + scale * 16 + margin;
        ensure!(
            height <= TALLEST,
            "{rows} rows of {cell} pixels are too tall for one sheet; choose fewer --prompts, or a smaller --scale"
        );

        let centre = |column: usize| margin + aside + (cell + gap) * column + cell / 2;
        let text = |line: &str, x: usize, y: usize, face: &Face, colour: &str, anchor: &str| {
            html! { text x=(x) y=(y) font-size=(face.size) fill=(colour) text-anchor=(anchor) { (line) } }
        };
        let beside = (aside - scale * 16) as f32;
        let note = small.wrap(&self.note, (width - 2 * margin) as f32, 1);
        let svg = html! {
            svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(height) {
                rect width="100%" height="100%" fill="#f2f2f2" {}
                @for (column, lines) in heads.iter().enumerate() {
                    @for (i, line) in lines.iter().rev().enumerate() {
                        (text(line, centre(column), top - scale * (12 + 20 * i), &title, "#222", "middle"))
                    }
                }
                @for (r, row) in self.rows.iter().enumerate() {
                    @let y = |pixels: usize| top + (cell + gap) * r + scale * pixels;
                    @let lines = body.wrap(&row.title, beside, (cell / scale - 20) / 18);
                    @let remark = row.remark.as_ref().map(|remark| small.wrap(remark, beside, 1)).unwrap_or_default();
                    @for (i, line) in lines.iter().enumerate() { (text(line, margin, y(14 + 18 * i), &body, "#222", "start")) }
                    @for line in &remark { (text(line, margin, y(14 + 18 * lines.len()), &small, "#777", "start")) }
                }
                @for line in &note { (text(line, margin, height - margin, &small, "#777", "start")) }
            }
        };
        let mut pixels = render(&svg.into_string())?;
        for (r, row) in self.rows.iter().enumerate() {
            for (column, picture) in row.pictures.iter().enumerate() {
                let fitted = fit(picture, cell);
                let (x, y) = (centre(column) - fitted.width / 2, top + (cell + gap) * r + (cell - fitted.height) / 2);
                lay(&mut pixels, &fitted, x, y);
            }
        }
        pixels.encode_png().context("the sheet cannot be written as PNG")
    }

    /// The side of the square around each image.
    fn cell(&self) -> usize {
        let pictures = || self.rows.iter().flat_map(|r| &r.pictures);
        let longest = pictures().map(|p| p.width.max(p.height)).max().unwrap_or(SMALL).max(1);
        if longest > LARGE { LARGE } else { longest * SMALL.div_ceil(longest) }
    }
}

/// Fits an image into a square: a small one grows by whole pixels, so that it stays sharp; a large one is resized.
fn fit(picture: &Rgb, cell: usize) -> Rgb {
    let longest = picture.width.max(picture.height).max(1);
    let times = cell / longest;
    if times == 0 {
        let side = |length: usize| ((length * cell + longest / 2) / longest).max(1);
        return image::resize(picture, side(picture.width), side(picture.height), Filter::Bicubic);
    }
    let mut data = Vec::with_capacity(picture.data.len() * times * times);
    for row in picture.data.chunks_exact(3 * picture.width.max(1)) {
        let wide: Vec<u8> = row.chunks_exact(3).flat_map(|pixel| pixel.repeat(times)).collect();
        (0..times).for_each(|_| data.extend_from_slice(&wide));
    }
    Rgb { width: picture.width * times, height: picture.height * times, data }
}

fn render(svg: &str) -> Result<Pixmap> {
    let mut options = Options { font_family: FAMILY.into(), ..Options::default() };
    options.fontdb_mut().load_font_data(FONT.to_vec());
    let tree = Tree::from_str(svg, &options).context("the sheet is not an SVG")?;
    let size = tree.size().to_int_size();
    let mut pixels = Pixmap::new(size.width(), size.height()).context("there is no memory for the sheet")?;
    resvg::render(&tree, Transform::identity(), &mut pixels.as_mut());
    Ok(pixels)
}

/// Copies an image to (x, y); it must lie inside.
fn lay(pixels: &mut Pixmap, picture: &Rgb, x: usize, y: usize) {
    let width = pixels.width() as usize;
    for (i, row) in picture.data.chunks_exact(3 * picture.width.max(1)).enumerate() {
        let opaque: Vec<u8> = row.chunks_exact(3).flat_map(|p| [p[0], p[1], p[2], 255]).collect();
        let at = 4 * ((y + i) * width + x);
        pixels.data_mut()[at..at + opaque.len()].copy_from_slice(&opaque);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Rgb {
        let data = (0..width * height * 3).map(|i| (i * 37 % 256) as u8).collect();
        Rgb { width, height, data }
    }

    fn cell(width: usize, height: usize) -> (usize, usize, usize) {
        let row = Row { title: String::new(), remark: None, pictures: vec![picture(width, height)] };
        let sheet = Sheet { columns: vec!["m".into()], rows: vec![row], note: String::new() };
        let scaled = fit(&sheet.rows[0].pictures[0], sheet.cell());
        (sheet.cell(), scaled.width, scaled.height)
    }

    #[test]
    fn small_pictures_grow_by_whole_pixels_and_large_ones_shrink() {
        assert_eq!(cell(64, 64), (128, 128, 128));
        assert_eq!(cell(100, 50), (200, 200, 100));
        assert_eq!(cell(256, 256), (256, 256, 256));
        assert_eq!(cell(512, 512), (256, 256, 256));
        assert_eq!(cell(1024, 512), (256, 256, 128));
        assert_eq!(cell(3000, 1), (256, 256, 1));
        let twice = fit(&picture(64, 64), 128);
        assert_eq!(twice.data[3 * (128 * 5 + 9)..][..3], picture(64, 64).data[3 * (64 * 2 + 4)..][..3]);
    }
}
