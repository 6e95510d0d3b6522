//! One model's images, by prompt and number, with the scores that the table has of them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use arrow::array::Array;
use pipe::metrics;
use pipe::schema::{images, prompts};
use pipe::scored::{self, PromptKey, ScoredRows, owned};
use pipe::table::{BATCH, Inputs};

pub struct ModelTable {
    /// The file as the command line names it.
    pub file: String,
    pub model: String,
    pub metrics: Vec<String>,
    /// In the order of the table.
    pub prompts: Vec<Prompt>,
    images: HashMap<PromptKey, BTreeMap<u64, Image>>,
}

pub struct Prompt {
    pub key: PromptKey,
    pub text: String,
}

pub struct Image {
    /// Its number, counted from 0.
    pub row: usize,
    pub seed: Option<u64>,
    pub uid: Option<String>,
    /// One per metric; `None` if the image could not be scored.
    scores: Vec<Option<f32>>,
}

pub const NEEDED: [&str; 4] = [prompts::PROMPT_ID, prompts::PROMPT, images::K, images::MODEL];
const OPTIONAL: [&str; 3] = [prompts::SET, images::SEED, images::IMAGE_UID];
const HINT: &str = "`report --scored` reads what `score` writes of an images table";

impl ModelTable {
    pub fn read_scored(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let read = |path: &PathBuf| {
            let mut inputs = Inputs::open(std::slice::from_ref(path))?;
            inputs.require(&NEEDED, HINT)?;
            let found = metrics::of_images(inputs.schema());
            ensure!(!found.is_empty(), "{} has no metric (a column of floating-point numbers); {HINT}", path.display());
            let names: Vec<&str> = found.iter().map(String::as_str).collect();
            inputs.require(&names, "score all parts with the same metrics")?;
            Self::read(path, &mut inputs, found)
        };
        let mut all = paths.iter().map(read).collect::<Result<Vec<_>>>()?;
        name_by_file(all.iter_mut());
        for table in &all {
            let (one, other) = (table.metrics.join(", "), all[0].metrics.join(", "));
            let (file, first) = (&table.file, &all[0].file);
            ensure!(
                one == other,
                "{file} has the metrics {one}, but {first} has {other}; score both with the same --metrics"
            );
        }
        Ok(all)
    }

    /// Reads what a table says of its images, and their scores of `metrics`.
    pub fn read(path: &Path, inputs: &mut Inputs, metrics: Vec<String>) -> Result<Self> {
        let (file, model) = (path.display().to_string(), String::new());
        let mut table = Self { file, model, metrics, prompts: vec![], images: HashMap::new() };
        let mut row = 0;
        for rows in scored::read(inputs, &NEEDED, &OPTIONAL, &table.metrics, BATCH)? {
            let rows = rows?;
            for i in 0..rows.len() {
                table.add(&rows, i, row)?;
                row += 1;
            }
        }
        ensure!(row > 0, "{} has no rows", table.file);
        Ok(table)
    }

    fn add(&mut self, rows: &ScoredRows, i: usize, row: usize) -> Result<()> {
        if self.model.is_empty() {
            rows.models.value(i).clone_into(&mut self.model);
        }
        let (key, k) = (rows.key(i), rows.ks.value(i));
        let images = self.images.entry(key.clone()).or_insert_with(|| {
            self.prompts.push(Prompt { key, text: rows.prompts.value(i).to_owned() });
            BTreeMap::new()
        });
        let seed = rows.seeds.is_valid(i).then(|| rows.seeds.value(i));
        let image = Image { row, seed, uid: owned(&rows.uids, i), scores: rows.scores_of(i).collect() };
        ensure!(images.insert(k, image).is_none(), "{}: this prompt has k = {k} twice", rows.at(i));
        Ok(())
    }

    pub fn require_k(&self, k: u64) -> Result<()> {
        match self.prompts.iter().find(|p| self.image(&p.key, k).is_none()) {
            Some(prompt) => bail!("{}: prompt {} has no image k = {k}", self.file, prompt.name()),
            None => Ok(()),
        }
    }

    pub fn image(&self, key: &PromptKey, k: u64) -> Option<&Image> {
        self.images.get(key)?.get(&k)
    }

    pub fn ks(&self, key: &PromptKey) -> impl Iterator<Item = u64> {
        self.images.get(key).into_iter().flat_map(|images| images.keys().copied())
    }

    pub fn images(&self) -> impl Iterator<Item = (&Prompt, u64, &Image)> + Clone {
        self.prompts.iter().flat_map(|p| self.images[&p.key].iter().map(move |(k, image)| (p, *k, image)))
    }

    pub fn scores(&self, metric: usize) -> impl Iterator<Item = f64> + Clone {
        self.images().filter_map(move |(.., image)| image.score(metric))
    }

    /// The change of a metric from `base`'s image to this table's, for each image of the same prompt and k.
    pub fn changes(&self, base: &Self, metric: usize) -> Vec<f64> {
        let before = |prompt: &Prompt, k| base.image(&prompt.key, k)?.score(metric);
        self.images().filter_map(|(prompt, k, image)| Some(image.score(metric)? - before(prompt, k)?)).collect()
    }
}

impl Image {
    pub fn score(&self, metric: usize) -> Option<f64> {
        self.scores[metric].map(f64::from)
    }
}

impl Prompt {
    /// For messages: the text, shortened if it is long, and the set.
    pub fn name(&self) -> String {
        scored::prompt_name(&scored::short(&self.text), self.key.0.as_deref())
    }
}

/// Where several tables are of the same model, as of runs with different seeds, each is called after its file.
pub fn name_by_file<'a>(tables: impl Iterator<Item = &'a mut ModelTable>) {
    let mut tables: Vec<_> = tables.collect();
    let models: Vec<String> = tables.iter().map(|t| t.model.clone()).collect();
    for table in &mut tables {
        if models.iter().filter(|m| **m == table.model).count() > 1 {
            table.model = stem(&table.file);
        }
    }
}

/// The name of a file without folder and extension.
pub fn stem(path: impl AsRef<Path>) -> String {
    path.as_ref().file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
