//! What one model drew: which prompts there are, and any picture of them, without holding the others.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use arrow::array::Array;
use nets::image::{self, Rgb};
use pipe::{
    schema::{images, prompts},
    table::{BATCH, Inputs},
    take::Taker,
};

/// The same text in two sets is two prompts.
pub type Key = (Option<String>, String);

pub struct Drawn {
    /// The table, as it was named.
    pub table: String,
    pub model: String,
    /// Key and text, in the table's order.
    pub prompts: Vec<(Key, String)>,
    /// Each prompt's images by k.
    images: HashMap<Key, BTreeMap<u64, Image>>,
    taker: Taker,
}

/// One image, but for its pixels.
pub struct Image {
    pub row: usize,
    /// Of its noise.
    pub seed: Option<u64>,
    pub uid: Option<String>,
}

impl Drawn {
    /// Reads which prompts a table of one model's images has, and where each image lies.
    ///
    /// # Errors
    /// No images table; two models in it; an image twice.
    pub fn open(path: &Path) -> Result<Self> {
        let table = path.display().to_string();
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        let needed = [prompts::PROMPT_ID, prompts::PROMPT, images::K, images::MODEL, images::IMAGE];
        inputs.require(&needed, "`report --images` reads what `sample` writes")?;
        let taker = Taker::open(&inputs)?;
        let columns = [&needed[..4], &[prompts::SET, images::SEED, images::IMAGE_UID]].concat();
        let (mut order, mut images_of, mut model, mut row) = (vec![], HashMap::new(), String::new(), 0);
        for rows in inputs.read(Some(&columns), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let (ids, texts, models) =
                (rows.text(prompts::PROMPT_ID)?, rows.text(prompts::PROMPT)?, rows.text(images::MODEL)?);
            let (sets, ks, uids) =
                (rows.text_if_there(prompts::SET)?, rows.u64(images::K)?, rows.text_if_there(images::IMAGE_UID)?);
            let seeds = if rows.has(images::SEED) { Some(rows.u64(images::SEED)?) } else { None };
            for i in 0..rows.len() {
                if model.is_empty() {
                    model = models.value(i).to_owned();
                }
                ensure!(
                    model == models.value(i),
                    "{}: model '{}', but the table began with '{model}'; a column is one model",
                    rows.at(i),
                    models.value(i),
                );
                let key: Key = (sets.is_valid(i).then(|| sets.value(i).to_owned()), ids.value(i).to_owned());
                let of_prompt = images_of.entry(key.clone()).or_insert_with(|| {
                    order.push((key, texts.value(i).to_owned()));
                    BTreeMap::new()
                });
                let seed = seeds.as_ref().map(|s| s.value(i));
                let uid = uids.is_valid(i).then(|| uids.value(i).to_owned());
                let twice = of_prompt.insert(ks.value(i), Image { row, seed, uid }).is_some();
                ensure!(!twice, "{}: this prompt has k = {} twice", rows.at(i), ks.value(i));
                row += 1;
            }
        }
        ensure!(!order.is_empty(), "{table} has no rows");
        Ok(Self { table, model, prompts: order, images: images_of, taker })
    }

    /// # Errors
    /// A prompt has no k-th image.
    pub fn require_k(&self, k: u64) -> Result<()> {
        match self.prompts.iter().find(|(key, _)| self.image(key, k).is_none()) {
            Some((key, text)) => anyhow::bail!("{}: prompt {} has no image k = {k}", self.table, name(key, text)),
            None => Ok(()),
        }
    }

    pub fn has(&self, key: &Key) -> bool {
        self.images.contains_key(key)
    }

    /// The numbers k of a prompt's images.
    pub fn ks(&self, key: &Key) -> Vec<u64> {
        self.images.get(key).map_or_else(Vec::new, |images| images.keys().copied().collect())
    }

    pub fn image(&self, key: &Key, k: u64) -> Option<&Image> {
        self.images.get(key)?.get(&k)
    }

    /// A prompt's k-th picture.
    ///
    /// # Errors
    /// It is not there, null, or cannot be decoded.
    pub fn picture(&self, key: &Key, k: u64) -> Result<Rgb> {
        let image = self.image(key, k).with_context(|| format!("{}: there is no image k = {k}", self.table))?;
        let encoded = self.encoded(&[image.row])?;
        let (at, bytes) = &encoded[0];
        image::decode(bytes).with_context(|| format!("{at}, '{}'", images::IMAGE))
    }

    /// The encoded images of these rows, each with where it lies.
    ///
    /// # Errors
    /// One is null.
    pub fn encoded(&self, rows: &[usize]) -> Result<Vec<(String, Vec<u8>)>> {
        let bytes = |row: pipe::column::Rows| {
            let bytes = row.bytes(images::IMAGE)?;
            ensure!(bytes.is_valid(0), "{}: '{}' is null; there is no image", row.at(0), images::IMAGE);
            Ok((row.at(0), bytes.value(0).to_owned()))
        };
        self.taker.take(rows, &[images::IMAGE])?.into_iter().map(bytes).collect()
    }
}

/// Where several tables are of the same model, as of runs with other seeds, they go by their files' names.
pub fn by_file<'a>(tables: impl Iterator<Item = (&'a mut String, &'a str)>) {
    let mut tables: Vec<_> = tables.collect();
    let models: Vec<String> = tables.iter().map(|(model, _)| (*model).clone()).collect();
    for (model, table) in &mut tables {
        if models.iter().filter(|m| *m == *model).count() > 1 {
            let stem = Path::new(table).file_stem().unwrap_or_default();
            **model = stem.to_string_lossy().into_owned();
        }
    }
}

/// For messages: the text, its beginning if it is long, and its set.
pub fn name(key: &Key, text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    match &key.0 {
        Some(set) => format!("'{short}{dots}' (set {set})"),
        None => format!("'{short}{dots}'"),
    }
}
