//! Which pairs there are, in which order they are visited, and the latents and captions of each visit.

mod captions;
mod images;
mod keys;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use captions::Captions;
use images::{Images, Wanted};
use keys::{Keys, Votes, key};
use nets::{prompt::PromptEncoder, vae::Vae};
use pipe::{
    augment::Augment,
    schema::{images as image_columns, pairs},
    seed,
    table::{BATCH, Inputs},
    take::Taker,
};

use crate::{loss::Label, source::Batch};

/// One pair that has a say, as row numbers: 28 bytes, so that a million pairs are nothing.
#[derive(Clone, Copy)]
struct Entry {
    /// Row of caption and uids, in the table that lists the pairs.
    keys: u32,
    /// Rows of image 0 and 1; in the cache, plain and mirrored.
    images: [[u32; 2]; 2],
    target: f32,
    weight: f32,
}

/// All pairs that have a say, and what is needed to visit them. The tables stay on the disk; rows are read when visited.
pub struct Data {
    entries: Vec<Entry>,
    /// Pairs whose label abstains, and pairs without a label.
    pub abstained: usize,
    pub unlabelled: usize,
    keys: Taker,
    images: Images,
    captions: Captions,
    vae: Vae,
    visits: Visits,
    /// The permutation of the epoch last asked for.
    epoch: Option<(u64, Vec<u32>)>,
}

/// What the visits depend on besides the tables.
#[derive(Clone, Copy)]
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
        let folder = cache_folder(data);
        let mut listed; // the table that names the pairs
        let (images, rows_of) = if let Some(folder) = folder {
            let latents = folder.join("latents.parquet");
            let (rows, flips) = Images::rows(std::slice::from_ref(&latents))?;
            let latents = Inputs::open(&[latents])?;
            listed = Inputs::open(&[folder.join("pairs.parquet")])?;
            let shape = shape_of(&latents, "latent_shape")?;
            (Images::Cache { table: Taker::open(&latents)?, shape, flips }, Some(rows))
        } else {
            let inputs = Inputs::open(data)?;
            if inputs.has(image_columns::IMAGE) && inputs.has(image_columns::IMAGE_UID) {
                listed = Inputs::open(&[labels.to_owned()])?;
                (Images::Table(Taker::open(&inputs)?), Some(Images::rows(data)?.0))
            } else {
                inputs.require(&pairs::NEEDED, "expected a pairs table, an images table or an `encode` folder")?;
                listed = inputs;
                (Images::Pairs(Taker::open(&listed)?), None)
            }
        };

        let mut entries = vec![];
        let (mut abstained, mut unlabelled, mut row) = (0, 0, 0u32);
        for rows in listed.read(Some(&Keys::COLUMNS), 0..usize::MAX, BATCH)? {
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
        let keys = Taker::open(&listed)?;
        Ok(Self { entries, abstained, unlabelled, keys, images, captions, vae, visits, epoch: None })
    }

    /// Pairs that have a say.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Side of the images: as asked for, or as the cache has them.
    pub fn resolution(&self) -> usize {
        match &self.images {
            Images::Cache { shape: [_, h, _], .. } => h * self.vae.config.factor(),
            _ => self.visits.resolution,
        }
    }

    /// C h w of a latent.
    pub fn latent_numbers(&self) -> usize {
        self.vae.config.latent_channels * (self.resolution() / self.vae.config.factor()).pow(2)
    }

    /// C of a latent.
    pub fn channels(&self) -> usize {
        match &self.images {
            Images::Cache { shape: [channels, ..], .. } => *channels,
            _ => self.vae.config.latent_channels,
        }
    }

    /// Widths of the captions' states, and of the pooled state in SDXL.
    pub fn told(&self) -> (usize, Option<usize>) {
        self.captions.widths()
    }

    /// The pairs of samples `from..to`, counted over all epochs: one permutation an epoch, from (seed, epoch).
    fn visit(&mut self, from: u64, to: u64) -> Vec<(Entry, u64)> {
        let n = self.entries.len() as u64;
        let mut visited = vec![];
        for sample in from..to {
            let (epoch, place) = (sample / n, (sample % n) as usize);
            if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
                self.epoch = Some((epoch, seed::draws(self.visits.seed, "epoch", "", epoch).permutation(n as usize)));
            }
            if let Some((_, order)) = &self.epoch {
                visited.push((self.entries[order[place] as usize], epoch));
            }
        }
        visited
    }

    /// The inputs for samples `from..to`, at some of these `timesteps`. Every draw depends on the run's seed, the pair and the epoch alone.
    pub fn batch(&mut self, from: u64, to: u64, timesteps: &[u32], device: &Device) -> Result<Batch> {
        let visited = self.visit(from, to);
        let Visits { seed, resolution, augment, empty_prompts } = self.visits;
        let key_rows: Vec<usize> = visited.iter().map(|(e, _)| e.keys as usize).collect();
        let keys = self.keys.take(&key_rows, &Keys::COLUMNS)?;

        let (mut captions, mut labels, mut steps, mut noises) = (vec![], vec![], vec![], vec![]);
        let (mut wanted, mut draws) = ([vec![], vec![]], [vec![], vec![]]); // of the winners and of the losers
        for ((entry, epoch), row) in visited.iter().zip(&keys) {
            let keys = Keys::read(row)?;
            let id = keys.unordered_id(0);
            let uniform = |stream: &str, id: &str| seed::draws(seed, stream, id, *epoch).uniform();
            let dropped = uniform("empty prompt", &id) < empty_prompts;
            captions.push(if dropped { String::new() } else { keys.captions.value(0).to_owned() });
            // The preferred image first, so that the logs speak of winners and losers.
            let swapped = entry.target < 0.5;
            let target = if swapped { 1.0 - entry.target as f64 } else { entry.target as f64 };
            labels.push(Label { target, weight: entry.weight as f64 });
            let drawn = seed::draws(seed, "timestep", &id, *epoch).below(timesteps.len() as u64);
            steps.push(timesteps[drawn as usize]);
            for place in [0, 1] {
                let side = place ^ usize::from(swapped);
                let uid = format!("{id} {}", keys.uids[side].value(0));
                let flipped = match augment {
                    Augment::None => false,
                    Augment::PairFlip => uniform("flip", &id) < 0.5,
                    Augment::IndependentFlip => uniform("flip", &uid) < 0.5,
                };
                wanted[place].push(Wanted { side, rows: entry.images[side], flipped });
                draws[place].push((uid, *epoch));
            }
            noises.push((id, *epoch));
        }

        let (posterior, sizes) = self.images.posterior(&wanted.concat(), &self.vae, resolution)?;
        let dims = posterior.mean.dims().to_vec(); // (2B, C, h, w)
        let size: usize = dims[1..].iter().product();
        let normals = |stream: &str, id: &str, epoch: u64| seed::draws(seed, stream, id, epoch).normals(size);
        let eps: Vec<f32> = draws.concat().iter().flat_map(|(uid, epoch)| normals("posterior", uid, *epoch)).collect();
        let sample = posterior.sample(&Tensor::from_vec(eps, &dims[..], posterior.mean.device())?)?;
        let noise: Vec<f32> = noises.iter().flat_map(|(id, epoch)| normals("noise", id, *epoch)).collect();
        let noise = Tensor::from_vec([noise.clone(), noise].concat(), &dims[..], device)?;
        Ok(Batch {
            latents: self.vae.to_latents(&sample)?.to_device(device)?,
            noise,
            timesteps: [steps.clone(), steps].concat(),
            told: self.captions.told(&captions)?.to_device(device)?,
            sizes,
            labels,
        })
    }

    /// Whether mirrored images were asked for and the cache has none.
    pub fn lacks_flips(&self) -> bool {
        self.visits.augment != Augment::None && matches!(self.images, Images::Cache { flips: false, .. })
    }
}

/// The folder that `encode` wrote, if that is what the data are.
pub fn cache_folder(data: &[PathBuf]) -> Option<&PathBuf> {
    match data {
        [one] if one.join("latents.parquet").exists() => Some(one),
        _ => None,
    }
}

/// The shape of a row, from the schema metadata of a table that `encode` wrote.
fn shape_of<const N: usize>(table: &Inputs, name: &str) -> Result<[usize; N]> {
    let text = table.schema().metadata().get(name);
    let dims: Option<Vec<usize>> = text.and_then(|t| serde_json::from_str(t).ok());
    dims.and_then(|d| d.try_into().ok())
        .with_context(|| format!("{}: the metadata lacks {name}; make it with `encode`", table.name()))
}
