//! Where pairs come from: which there are, in which order they are visited, and the latents and captions of each visit.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use arrow::array::{Array, AsArray, BooleanArray};
use candle_core::{Device, Tensor};
use nets::{
    image,
    prompt::PromptEncoder,
    vae::{Posterior, Vae},
};
use pipe::{
    column::Rows,
    id,
    schema::{images, labels, pairs},
    seed,
    table::{BATCH, Inputs},
    take::Taker,
};

use crate::{loss::Label, source::Batch};

/// Which images are mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Augment {
    None,
    /// Both images of a pair or neither.
    PairFlip,
    /// Each image by itself, as Diffusion-DPO.
    IndependentFlip,
}

/// One pair that has a say, as row numbers.
#[derive(Clone, Copy)]
struct Entry {
    /// Row of caption and uids, in the table that lists the pairs.
    keys: u32,
    /// Rows of image 0 and 1; in the cache, plain and mirrored.
    images: [[u32; 2]; 2],
    target: f32,
    weight: f32,
}

/// Where the images of a pair lie.
enum Images {
    /// Columns `jpg_0` and `jpg_1` of the pair's own row.
    Pairs(Taker),
    /// Column `image` of an images table.
    Table(Taker),
    /// Posteriors that `encode` has made, (C, h, w) each.
    Cache { table: Taker, shape: [usize; 3], flips: bool },
}

/// Where the states of captions come from.
enum Captions {
    Encoder(Box<PromptEncoder>),
    /// Those that `encode` has made, (T, D) each, by caption.
    Cache {
        table: Taker,
        shape: [usize; 2],
        rows: HashMap<[u8; 16], u32>,
    },
}

/// All pairs that have a say, and what is needed to visit them.
pub struct Data {
    entries: Vec<Entry>,
    /// Pairs whose label abstains, and pairs without a label.
    pub abstained: usize,
    pub unlabelled: usize,
    keys: Taker,
    images: Images,
    captions: Captions,
    vae: Vae,
    /// The permutation of the epoch last asked for.
    epoch: Option<(u64, Vec<u32>)>,
    seed: u64,
    resolution: usize,
    augment: Augment,
    empty_prompts: f64,
}

/// What the visits depend on besides the tables.
pub struct Visits {
    pub seed: u64,
    pub resolution: usize,
    pub augment: Augment,
    pub empty_prompts: f64,
}

impl Data {
    /// Joins pairs and labels by `pair_id`.
    ///
    /// # Errors
    /// A table that is not what it should be; an image that the labels name and the data lack; no pair with a say.
    pub fn open(
        data: &[PathBuf],
        labels: &Path,
        visits: Visits,
        vae: Vae,
        text: impl FnOnce() -> Result<PromptEncoder>,
    ) -> Result<Self> {
        let votes = Votes::read(labels)?;
        let folder = match data {
            [one] if one.join("latents.parquet").is_file() => Some(one),
            _ => None,
        };
        let mut listed; // the table that names the pairs
        let mut images = if let Some(folder) = folder {
            let latents = Inputs::open(&[folder.join("latents.parquet")])?;
            let shape = shape_of(&latents, "latent_shape")?;
            listed = Inputs::open(&[folder.join("pairs.parquet")])?;
            Images::Cache { table: Taker::open(&latents)?, shape, flips: false }
        } else {
            let inputs = Inputs::open(data)?;
            if inputs.has(images::IMAGE) && inputs.has(images::IMAGE_UID) {
                let taker = Taker::open(&inputs)?;
                listed = Inputs::open(&[labels.to_owned()])?;
                Images::Table(taker)
            } else {
                inputs.require(&pairs::NEEDED, "expected a pairs table, an images table or an `encode` folder")?;
                listed = inputs;
                Images::Pairs(Taker::open(&listed)?)
            }
        };
        let rows_of = match (&mut images, folder) {
            (Images::Cache { flips, .. }, Some(folder)) => {
                let rows = image_rows(&[folder.join("latents.parquet")], flips)?;
                Some(rows)
            }
            (Images::Table(_), _) => Some(image_rows(data, &mut false)?),
            _ => None,
        };

        let mut entries = vec![];
        let (mut abstained, mut unlabelled, mut row) = (0, 0, 0u32);
        let columns = [pairs::CAPTION, pairs::UID[0], pairs::UID[1], pairs::RANKING_ID, labels::PAIR_ID];
        for rows in listed.read(Some(&columns), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let keys = Keys::read(&rows)?;
            for i in 0..rows.len() {
                match votes.of(&keys.pair_id(i)) {
                    None => unlabelled += 1,
                    Some((_, 0.0)) => abstained += 1,
                    Some((target, weight)) => {
                        let find = |side: usize| match &rows_of {
                            None => Ok([row; 2]),
                            Some(found) => {
                                let uid = keys.uids[side].value(i);
                                let missing =
                                    || format!("{}: image '{uid}' of this pair is not in the data", rows.at(i));
                                found.get(&key(uid)).copied().with_context(missing)
                            }
                        };
                        entries.push(Entry { keys: row, images: [find(0)?, find(1)?], target, weight });
                    }
                }
                row += 1;
            }
        }
        ensure!(
            !entries.is_empty(),
            "{}: no pair of {} has a label with a weight above 0 ({abstained} abstain, {unlabelled} have none): \
             nothing to train on; are these the labels of these pairs?",
            labels.display(),
            listed.name()
        );
        let captions = match folder {
            Some(folder) => Captions::cached(&folder.join("captions.parquet"))?,
            None => Captions::Encoder(Box::new(text()?)),
        };
        let Visits { seed, resolution, augment, empty_prompts } = visits;
        Ok(Self {
            entries,
            abstained,
            unlabelled,
            keys: Taker::open(&listed)?,
            images,
            captions,
            vae,
            epoch: None,
            seed,
            resolution,
            augment,
            empty_prompts,
        })
    }

    /// Pairs that have a say.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The pairs of samples `from..to`, counted over all epochs: one permutation an epoch, from (seed, epoch).
    fn visit(&mut self, from: u64, to: u64) -> Vec<(Entry, u64)> {
        let n = self.entries.len() as u64;
        let mut visited = vec![];
        for sample in from..to {
            let (epoch, place) = (sample / n, (sample % n) as usize);
            if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
                self.epoch = Some((epoch, seed::draws(self.seed, "epoch", "", epoch).permutation(n as usize)));
            }
            if let Some((_, order)) = &self.epoch {
                visited.push((self.entries[order[place] as usize], epoch));
            }
        }
        visited
    }

    /// The inputs for samples `from..to`. Every draw depends on the run's seed, the pair and the epoch alone.
    pub fn batch(&mut self, from: u64, to: u64, timesteps: usize, device: &Device) -> Result<Batch> {
        let visits = self.visit(from, to);
        let key_rows: Vec<usize> = visits.iter().map(|(e, _)| e.keys as usize).collect();
        let columns = [pairs::CAPTION, pairs::UID[0], pairs::UID[1], pairs::RANKING_ID, labels::PAIR_ID];
        let keys = self.keys.take(&key_rows, &columns)?;

        let (mut captions, mut labels, mut steps, mut noises) = (vec![], vec![], vec![], vec![]);
        let (mut wanted, mut draws) = ([vec![], vec![]], vec![]);
        for ((entry, epoch), row) in visits.iter().zip(&keys) {
            let keys = Keys::read(row)?;
            let id = keys.unordered_id(0);
            let uniform = |stream: &str, id: &str| seed::draws(self.seed, stream, id, *epoch).uniform();
            let dropped = uniform("empty prompt", &id) < self.empty_prompts;
            captions.push(if dropped { String::new() } else { keys.captions.value(0).to_owned() });
            // The preferred image first, so that the logs speak of winners and losers.
            let swapped = entry.target < 0.5;
            let target = if swapped { 1.0 - entry.target as f64 } else { entry.target as f64 };
            labels.push(Label { target, weight: entry.weight as f64 });
            steps.push(seed::draws(self.seed, "timestep", &id, *epoch).below(timesteps as u64) as u32);
            noises.push((id.clone(), *epoch));
            for (place, wanted) in wanted.iter_mut().enumerate() {
                let side = place ^ usize::from(swapped);
                let uid = format!("{id} {}", keys.uids[side].value(0));
                let flipped = match self.augment {
                    Augment::None => false,
                    Augment::PairFlip => uniform("flip", &id) < 0.5,
                    Augment::IndependentFlip => uniform("flip", &uid) < 0.5,
                };
                wanted.push(Wanted { side, rows: entry.images[side], flipped });
                draws.push((place, uid, *epoch));
            }
        }
        let wanted: Vec<Wanted> = wanted.concat();
        draws.sort_by_key(|(place, ..)| *place); // stable: winners first, then losers, in the order of the pairs

        let posterior = self.posterior(&wanted)?;
        let dims = posterior.mean.dims().to_vec(); // (2B, C, h, w)
        let size: usize = dims[1..].iter().product();
        let normals = |stream: &str, id: &str, epoch| seed::draws(self.seed, stream, id, epoch).normals(size);
        let eps: Vec<f32> = draws.iter().flat_map(|(_, uid, epoch)| normals("posterior", uid, *epoch)).collect();
        let sample = posterior.sample(&Tensor::from_vec(eps, &dims[..], &Device::Cpu)?)?;
        let noise: Vec<f32> = noises.iter().flat_map(|(id, epoch)| normals("noise", id, *epoch)).collect();
        let noise = Tensor::from_vec([noise.clone(), noise].concat(), &dims[..], device)?;
        Ok(Batch {
            latents: (sample * self.vae.config.scaling_factor)?.to_device(device)?,
            noise,
            timesteps: [steps.clone(), steps].concat(),
            states: self.captions.states(&captions)?.to_device(device)?,
            labels,
        })
    }

    fn posterior(&self, wanted: &[Wanted]) -> Result<Posterior> {
        let pixels = |taker: &Taker, row: fn(&Wanted) -> (usize, &'static str)| -> Result<Posterior> {
            let rows: Vec<usize> = wanted.iter().map(|w| row(w).0).collect();
            let found = taker.take(&rows, &[pairs::JPG[0], pairs::JPG[1], images::IMAGE])?;
            let mut all = vec![];
            for (w, row_found) in wanted.iter().zip(&found) {
                let column = row_found.bytes(row(w).1)?;
                ensure!(
                    column.is_valid(0),
                    "{}: '{}' is null; there is no image to train on",
                    row_found.at(0),
                    row(w).1
                );
                let rgb = image::decode(column.value(0)).with_context(|| row_found.at(0))?;
                let rgb = if w.flipped { rgb.mirrored() } else { rgb };
                all.extend(image::dpo_train(&rgb, self.resolution).0);
            }
            let side = self.resolution;
            Ok(self.vae.encode(&Tensor::from_vec(all, (wanted.len(), 3, side, side), &Device::Cpu)?)?)
        };
        match &self.images {
            Images::Pairs(taker) => pixels(taker, |w| (w.rows[0] as usize, pairs::JPG[w.side])),
            Images::Table(taker) => pixels(taker, |w| (w.rows[0] as usize, images::IMAGE)),
            Images::Cache { table, shape: [c, h, w], flips } => {
                let rows: Vec<usize> =
                    wanted.iter().map(|w| w.rows[usize::from(w.flipped && *flips)] as usize).collect();
                let found = table.take(&rows, &["mean", "logvar"])?;
                let gather =
                    |name: &str| Ok::<_, anyhow::Error>(lists(&found, name)?.reshape((rows.len(), *c, *h, *w))?);
                Ok(Posterior { mean: gather("mean")?, logvar: gather("logvar")? })
            }
        }
    }

    /// Whether mirrored images were asked for and the cache has none.
    pub fn lacks_flips(&self) -> bool {
        self.augment != Augment::None && matches!(self.images, Images::Cache { flips: false, .. })
    }
}

impl Captions {
    fn cached(path: &Path) -> Result<Self> {
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        let shape = shape_of(&inputs, "state_shape")?;
        let table = Taker::open(&inputs)?;
        let mut all = HashMap::new();
        for rows in inputs.read(Some(&[pairs::CAPTION]), 0..usize::MAX, BATCH)? {
            for caption in rows?.text(pairs::CAPTION)?.iter().flatten() {
                all.insert(key(caption), all.len() as u32);
            }
        }
        Ok(Self::Cache { table, shape, rows: all })
    }

    /// (B, T, D)
    fn states(&self, captions: &[String]) -> Result<Tensor> {
        match self {
            Captions::Encoder(text) => Ok(text.encode(captions)?.states),
            Captions::Cache { table, shape: [t, d], rows } => {
                let row = |c: &String| {
                    let row = rows.get(&key(c)).copied();
                    Ok(row.with_context(|| format!("the cache has no caption '{c}'; make it again with `encode`"))?
                        as usize)
                };
                let found = table.take(&captions.iter().map(row).collect::<Result<Vec<_>>>()?, &["states"])?;
                Ok(lists(&found, "states")?.reshape((captions.len(), *t, *d))?)
            }
        }
    }
}

/// The numbers of a list column, all rows one after the other.
fn lists(rows: &[Rows], name: &str) -> Result<Tensor> {
    let mut all = vec![];
    for row in rows {
        all.extend_from_slice(row.f32_list(name)?.values());
    }
    let n = all.len();
    Ok(Tensor::from_vec(all, n, &Device::Cpu)?)
}

#[derive(Clone, Copy)]
struct Wanted {
    side: usize,
    rows: [u32; 2],
    flipped: bool,
}

/// The columns that name a pair.
struct Keys {
    captions: arrow::array::StringArray,
    uids: [arrow::array::StringArray; 2],
    ranking: arrow::array::StringArray,
    pair_id: Option<arrow::array::StringArray>,
}

impl Keys {
    fn read(rows: &Rows) -> Result<Self> {
        Ok(Self {
            captions: rows.text(pairs::CAPTION)?,
            uids: [rows.text(pairs::UID[0])?, rows.text(pairs::UID[1])?],
            ranking: rows.text_if_there(pairs::RANKING_ID)?,
            pair_id: if rows.has(labels::PAIR_ID) { Some(rows.text(labels::PAIR_ID)?) } else { None },
        })
    }

    fn pair_id(&self, i: usize) -> String {
        match &self.pair_id {
            Some(ids) => ids.value(i).to_owned(),
            None => {
                let ranking = if self.ranking.is_valid(i) { self.ranking.value(i) } else { "" };
                id::pair_id(self.captions.value(i), self.uids[0].value(i), self.uids[1].value(i), ranking)
            }
        }
    }

    /// A name that does not depend on which image stands first, so that swapping images and label changes no draw.
    fn unordered_id(&self, i: usize) -> String {
        let mut uids = [self.uids[0].value(i), self.uids[1].value(i)];
        uids.sort_unstable();
        id::pair_id(self.captions.value(i), uids[0], uids[1], "")
    }
}

/// target and weight by pair_id.
struct Votes(HashMap<String, (f32, f32)>);

impl Votes {
    fn read(path: &Path) -> Result<Self> {
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        let needed = [labels::PAIR_ID, labels::TARGET, labels::WEIGHT];
        inputs.require(&needed, "--labels takes what `vote` writes")?;
        let mut all = HashMap::new();
        for rows in inputs.read(Some(&needed), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let (ids, targets, weights) = (rows.text(needed[0])?, rows.f32(needed[1])?, rows.f32(needed[2])?);
            for i in 0..rows.len() {
                let vote = (targets.value(i), weights.value(i));
                let sound = (0.0..=1.0).contains(&vote.0) && vote.1 >= 0.0 && vote.1.is_finite();
                ensure!(sound, "{}: target {} and weight {} are no label", rows.at(i), vote.0, vote.1);
                if let Some(before) = all.insert(ids.value(i).to_owned(), vote) {
                    ensure!(before == vote, "{}: pair {} has two different labels", rows.at(i), ids.value(i));
                }
            }
        }
        Ok(Self(all))
    }

    fn of(&self, pair_id: &str) -> Option<(f32, f32)> {
        self.0.get(pair_id).copied()
    }
}

/// What is remembered of a uid or a caption.
fn key(text: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&id::sha256(text.as_bytes())[..16]);
    key
}

/// uid -> row of the plain and of the mirrored image (the plain one where there is none).
fn image_rows(data: &[PathBuf], flips: &mut bool) -> Result<HashMap<[u8; 16], [u32; 2]>> {
    let mut all: HashMap<[u8; 16], [u32; 2]> = HashMap::new();
    let mut row = 0u32;
    for rows in Inputs::open(data)?.read(Some(&[images::IMAGE_UID, "flipped"]), 0..usize::MAX, BATCH)? {
        let rows = rows?;
        let uids = rows.text(images::IMAGE_UID)?;
        let flipped: Option<&BooleanArray> = rows.batch.column_by_name("flipped").and_then(|c| c.as_boolean_opt());
        for i in 0..rows.len() {
            let mirrored = flipped.is_some_and(|f| f.value(i));
            *flips |= mirrored;
            let entry = all.entry(key(uids.value(i))).or_insert([row; 2]);
            entry[usize::from(mirrored)] = row;
            row += 1;
        }
    }
    Ok(all)
}

/// The shape of a row, from the schema metadata of a table that `encode` wrote.
fn shape_of<const N: usize>(table: &Inputs, name: &str) -> Result<[usize; N]> {
    let text = table.schema().metadata().get(name);
    let dims: Option<Vec<usize>> = text.and_then(|t| serde_json::from_str(t).ok());
    dims.and_then(|d| d.try_into().ok())
        .with_context(|| format!("{}: the metadata lacks {name}; make it with `encode`", table.name()))
}
