//! The images that one model drew. Pixels are read when they are asked for, so a table may be larger than memory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use arrow::array::Array;
use nets::image::{self, Rgb};
use pipe::{schema::images, scored::PromptKey, table::Inputs, take::Taker};

use crate::model_table::{ModelTable, NEEDED, name_by_file};

pub struct ModelImages {
    pub table: ModelTable,
    taker: Taker,
}

impl ModelImages {
    pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut all = paths.iter().map(|path| Self::open(path)).collect::<Result<Vec<_>>>()?;
        name_by_file(all.iter_mut().map(|t| &mut t.table));
        Ok(all)
    }

    fn open(path: &Path) -> Result<Self> {
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        inputs.require(&[&NEEDED[..], &[images::IMAGE]].concat(), "`report --images` reads what `sample` writes")?;
        let taker = Taker::open(&inputs)?;
        Ok(Self { table: ModelTable::read(path, &mut inputs, vec![])?, taker })
    }

    /// The pixels of a prompt's k-th image.
    pub fn picture(&self, key: &PromptKey, k: u64) -> Result<Rgb> {
        let image = self.table.image(key, k);
        let image = image.with_context(|| format!("{}: there is no image k = {k}", self.table.file))?;
        let (at, bytes) = self.encoded(&[image.row])?.remove(0);
        image::decode(&bytes).with_context(|| format!("{at}, '{}'", images::IMAGE))
    }

    /// The encoded images of these rows, each with where it is, for messages.
    pub fn encoded(&self, rows: &[usize]) -> Result<Vec<(String, Vec<u8>)>> {
        let bytes = |row: pipe::column::Rows| {
            let bytes = row.bytes(images::IMAGE)?;
            ensure!(bytes.is_valid(0), "{}: '{}' is null; there is no image", row.at(0), images::IMAGE);
            Ok((row.at(0), bytes.value(0).to_owned()))
        };
        self.taker.take(rows, &[images::IMAGE])?.into_iter().map(bytes).collect()
    }
}

/// Whether each of these images began from the same noise in every table. One table has nothing to compare.
pub fn same_noise(tables: &[ModelImages], key: &PromptKey, ks: &[u64]) -> bool {
    let seed = |t: &ModelImages, k| t.table.image(key, k).and_then(|image| image.seed);
    let same = |k| seed(&tables[0], k).is_some() && tables.iter().all(|t| seed(t, k) == seed(&tables[0], k));
    tables.len() > 1 && ks.iter().all(|&k| same(k))
}
