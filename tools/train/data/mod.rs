//! The labelled pairs: the order in which they are visited, and the latents and captions of each visit.

mod cache;
mod captions;
mod images;
mod votes;

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cache::{check_networks, shape_of};
use candle_core::{DType, Device, Tensor};
use captions::Captions;
use images::{Images, RowsOf, Wanted};
use nets::{conditioning::Conditioning, process::Process, prompt::PromptEncoder, vae::Vae};
use pipe::cli::{named, share};
use pipe::id::{hex, sha256};
use pipe::origin::{InputOrigin, Origin};
use pipe::schema::{images as image_columns, pairs};
use pipe::table::{BATCH, Inputs};
use pipe::{augment::Augment, pairs::PairKeys, seed, take::Taker};
use votes::{Votes, name_key};

use crate::{loss::Label, models::ModelFlags};

#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Data")]
pub struct VisitFlags {
    /// Side of the training images in pixels [default: the side that the UNet was made for]
    #[arg(long, value_name = "N")]
    pub resolution: Option<usize>,
    /// Which images to mirror at random; a folder of `encode` may have no mirrored ones [default: independent-flip]
    #[arg(long, value_parser = named::<Augment>())]
    pub augment: Option<Augment>,
    /// Share of captions replaced by the empty prompt, so that classifier-free guidance keeps working; the default is
    /// Diffusion-DPO's
    #[arg(long, value_name = "P", default_value_t = 0.2, help_heading = "Method", value_parser = share())]
    proportion_empty_prompts: f64,
}

impl VisitFlags {
    fn augment(&self) -> Augment {
        self.augment.unwrap_or(Augment::IndependentFlip)
    }
}

/// The inputs of one micro-batch of B pairs.
pub struct Batch {
    /// Scaled latents, (2B, C, h, w), the preferred images first.
    pub latents: Tensor,
    /// (2B, C, h, w), the same for both images of a pair.
    pub noise: Tensor,
    /// The 2B times of the noise, the same for both images of a pair.
    pub times: Vec<f32>,
    /// The conditioning of the 2B images: their captions, or the empty prompt where a caption was dropped.
    pub conditioning: Conditioning,
    /// B, in the order of the images.
    pub labels: Vec<Label>,
}

/// One labelled pair as row numbers: 28 bytes, so that a million pairs take little memory.
#[derive(Clone, Copy)]
struct Entry {
    /// Row of caption and uids, in the table that lists the pairs.
    keys: u32,
    /// Rows of image 0 and 1, each plain and mirrored.
    images: [[u32; 2]; 2],
    target: f32,
    weight: f32,
}

#[derive(Default)]
pub struct Labelled {
    entries: Vec<Entry>,
    /// Pairs whose label has weight 0.
    pub abstained: usize,
    /// Pairs without a label.
    pub unlabelled: usize,
}

/// All pairs with a label of weight above 0, and what is needed to visit them. The tables stay on the disk; a row is read when
/// it is visited.
pub struct Data {
    pub labelled: Labelled,
    pub labels_hash: String,
    /// Origins of the labels and of the tables.
    inputs: Vec<InputOrigin>,
    keys: Taker,
    key_columns: Vec<&'static str>,
    images: Images,
    pub captions: Captions,
    vae: Vae,
    visits: VisitFlags,
    seed: u64,
    resolution: usize,
    /// Side of the images that the base's UNet was made for, in pixels.
    native: usize,
    /// The permutation of the epoch last asked for.
    epoch: Option<(u64, Vec<u32>)>,
}

struct Tables {
    /// The table that lists the pairs; `None` if the labels do.
    listed: Option<Inputs>,
    images: Images,
    /// Rows of the images by uid, where they do not stand beside their pair.
    rows_of: Option<RowsOf>,
    origins: Vec<InputOrigin>,
}

impl Data {
    /// Joins pairs and labels by `pair_id`.
    pub fn open(
        data: &[PathBuf],
        labels: &Path,
        visits: VisitFlags,
        seed: u64,
        models: &ModelFlags,
        device: &Device,
    ) -> Result<Self> {
        let vae = Vae::open(&models.vae_folder(), DType::F32, device)?;
        let mut labels = Inputs::open(&[labels.to_owned()])?;
        let label_origins = labels.origins()?;
        let cache = cache::folder(data);
        let Tables { mut listed, images, rows_of, origins } = open_tables(data, cache)?;
        check_networks(&origins, &models.frozen_networks())?;
        let factor = vae.config.factor();
        let denoiser = models.denoiser()?;
        let native = denoiser.side * factor;
        let resolution = side(&visits, &images, native, factor)?;
        let step = factor * denoiser.multiple;
        ensure!(
            resolution.is_multiple_of(step),
            "--resolution {resolution} is not a multiple of the denoiser's {step}"
        );
        // From here on the labels may be at their end, if they came from a pipe.
        let keys = Taker::open(listed.as_ref().unwrap_or(&labels))?;
        let votes = Votes::read(&mut labels)?;
        let labels_name = labels.name();
        let listed = listed.as_mut().unwrap_or(&mut labels);
        let key_columns = PairKeys::columns(listed);
        let labelled = join(listed, &votes, rows_of.as_ref())?;
        ensure!(
            !labelled.entries.is_empty(),
            "{labels_name}: no pair of {} has a label with a weight above 0 ({} abstain, {} have none), so there is nothing to \
             train on; are these the labels of these pairs?",
            listed.name(),
            labelled.abstained,
            labelled.unlabelled
        );
        let captions = match cache {
            Some(cache) => Captions::cached(&cache.join(cache::CAPTIONS))?,
            None => {
                Captions::Encoder(Box::new(PromptEncoder::open(&models.base, DType::F32, device).context("--base")?))
            }
        };
        let labels_hash = one_hash(&label_origins).unwrap_or(votes.hash);
        let inputs = [label_origins, origins].concat();
        Ok(Self {
            labelled,
            labels_hash,
            inputs,
            keys,
            key_columns,
            images,
            captions,
            vae,
            visits,
            seed,
            resolution,
            native,
            epoch: None,
        })
    }

    pub fn len(&self) -> usize {
        self.labelled.entries.len()
    }

    pub fn latent_shape(&self) -> [usize; 3] {
        let side = self.resolution / self.vae.config.factor();
        match &self.images {
            Images::Cache { shape, .. } => *shape,
            _ => [self.vae.config.latent_channels, side, side],
        }
    }

    pub fn lacks_flips(&self) -> bool {
        self.visits.augment() != Augment::None && matches!(self.images, Images::Cache { flips: false, .. })
    }

    pub fn asks_for_flips(&self) -> bool {
        self.visits.augment.is_some()
    }

    /// A warning if the user did not ask for the cache's size of images and the UNet was made for another.
    pub fn size_note(&self) -> Option<String> {
        let (stored, native) = (self.resolution, self.native);
        let unasked = self.visits.resolution.is_none() && stored != native;
        unasked.then(|| {
            format!(
                "warning: the cache holds images of {stored} pixels, and the base's UNet was made for {native}; \
                 `encode --resolution {native}` makes such a cache, and `--resolution {stored}` here says that this is meant"
            )
        })
    }

    pub fn describe(&self, origin: Origin) -> Origin {
        origin
            .arg("proportion_empty_prompts", self.visits.proportion_empty_prompts)
            .arg("resolution", self.resolution)
            .arg("augment", self.visits.augment().to_string())
            .inputs(self.inputs.clone())
    }

    /// The pairs and epochs of `samples`, counted over all epochs: one permutation per epoch, drawn from (seed, epoch).
    fn visit(&mut self, samples: Range<u64>) -> Vec<(Entry, u64)> {
        let n = self.len() as u64;
        let mut visited = vec![];
        for sample in samples {
            let (epoch, place) = (sample / n, (sample % n) as usize);
            if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
                self.epoch = Some((epoch, seed::draws(self.seed, "epoch", "", epoch).permutation(n as usize)));
            }
            if let Some((_, order)) = &self.epoch {
                visited.push((self.labelled.entries[order[place] as usize], epoch));
            }
        }
        visited
    }

    /// The inputs of `samples`, at times that `process` draws. Every draw depends only on the run's seed, the pair and the epoch.
    pub fn batch(&mut self, samples: Range<u64>, process: &Process, device: &Device) -> Result<Batch> {
        let visited = self.visit(samples);
        let (seed, visits) = (self.seed, self.visits);
        let key_rows: Vec<usize> = visited.iter().map(|(e, _)| e.keys as usize).collect();
        let rows = self.keys.take(&key_rows, &[&self.key_columns[..], self.images.beside_keys()].concat())?;

        let (mut captions, mut labels, mut times, mut noises) = (vec![], vec![], vec![], vec![]);
        let (mut wanted, mut draws) = ([vec![], vec![]], [vec![], vec![]]); // of the winners and of the losers
        for ((entry, epoch), row) in visited.iter().zip(&rows) {
            let keys = PairKeys::of(row, row.text(pairs::CAPTION)?)?;
            let id = keys.unordered_id(0);
            let uniform = |stream: &str, id: &str| seed::draws(seed, stream, id, *epoch).uniform();
            let dropped = uniform("empty prompt", &id) < visits.proportion_empty_prompts;
            captions.push(if dropped { String::new() } else { keys.captions.value(0).to_owned() });
            // The preferred image first, so that the logs speak of winners and losers.
            let swapped = entry.target < 0.5;
            let target = if swapped { 1.0 - entry.target as f64 } else { entry.target as f64 };
            labels.push(Label { target, weight: entry.weight as f64 });
            times.push(process.draw(&mut seed::draws(seed, "timestep", &id, *epoch)));
            for place in [0, 1] {
                let side = place ^ usize::from(swapped);
                let uid = format!("{id} {}", keys.uids[side].value(0));
                let flipped = match visits.augment() {
                    Augment::None => false,
                    Augment::PairFlip => uniform("flip", &id) < 0.5,
                    Augment::IndependentFlip => uniform("flip", &uid) < 0.5,
                };
                wanted[place].push(Wanted { side, rows: entry.images[side], flipped });
                draws[place].push((uid, *epoch));
            }
            noises.push((id, *epoch));
        }

        let (posterior, sizes) = self.images.posterior(&wanted.concat(), &rows, &self.vae, self.resolution)?;
        let dims = posterior.mean.dims().to_vec(); // (2B, C, h, w)
        let size: usize = dims[1..].iter().product();
        let normals = |stream: &str, id: &str, epoch: u64| seed::draws(seed, stream, id, epoch).normals(size);
        let eps: Vec<f32> = draws.concat().iter().flat_map(|(uid, epoch)| normals("posterior", uid, *epoch)).collect();
        let sample = posterior.sample(&Tensor::from_vec(eps, &dims[..], posterior.mean.device())?)?;
        let noise: Vec<f32> = noises.iter().flat_map(|(id, epoch)| normals("noise", id, *epoch)).collect();
        let noise = Tensor::from_vec([noise.clone(), noise].concat(), &dims[..], device)?;
        let conditioning = self.captions.conditioning(&captions)?.to_device(device)?;
        Ok(Batch {
            latents: self.vae.to_latents(&sample)?.to_device(device)?,
            noise,
            times: [times.clone(), times].concat(),
            conditioning: Conditioning::cat(&[&conditioning, &conditioning])?.with_sizes(sizes),
            labels,
        })
    }
}

/// Opens a folder of `encode`, an images table or pairs tables.
fn open_tables(data: &[PathBuf], cache: Option<&Path>) -> Result<Tables> {
    if let Some(cache) = cache {
        let [latents, captions, pairs] = [cache::LATENTS, cache::CAPTIONS, cache::PAIRS].map(|name| cache.join(name));
        let origins = Inputs::open(&[latents.clone(), captions, pairs.clone()])?.origins()?;
        let mut latents = Inputs::open(&[latents])?;
        let shape = shape_of(&latents, "latent_shape")?;
        let (rows, flips) = Images::rows(&mut latents)?;
        let images = Images::Cache { table: Taker::open(&latents)?, shape, flips };
        return Ok(Tables { listed: Some(Inputs::open(&[pairs])?), images, rows_of: Some(rows), origins });
    }
    let mut inputs = Inputs::open(data)?;
    let origins = inputs.origins()?;
    if inputs.has(image_columns::IMAGE) {
        let images = Images::Table(Taker::open(&inputs)?);
        let (rows, _) = Images::rows(&mut inputs)?;
        return Ok(Tables { listed: None, images, rows_of: Some(rows), origins });
    }
    inputs.require(&pairs::NEEDED, "expected a pairs table, an images table or an `encode` folder")?;
    Ok(Tables { listed: Some(inputs), images: Images::InPairs, rows_of: None, origins })
}

/// The side of the images in pixels, with `factor` pixels per latent.
fn side(visits: &VisitFlags, images: &Images, native: usize, factor: usize) -> Result<usize> {
    let side = visits.resolution.unwrap_or(native);
    ensure!(
        side > 0 && side.is_multiple_of(factor),
        "--resolution {side} is not a multiple of the VAE's factor of {factor}"
    );
    let Images::Cache { shape: [_, h, _], .. } = images else { return Ok(side) };
    let stored = h * factor;
    ensure!(
        visits.resolution.is_none_or(|asked| asked == stored),
        "the cache holds images of {stored} pixels: --resolution cannot be {side}"
    );
    Ok(stored)
}

fn join(listed: &mut Inputs, votes: &Votes, rows_of: Option<&RowsOf>) -> Result<Labelled> {
    let (mut labelled, mut row) = (Labelled::default(), 0u32);
    for rows in listed.read(Some(&PairKeys::columns(listed)), 0..usize::MAX, BATCH)? {
        let rows = rows?;
        let keys = PairKeys::of(&rows, rows.text(pairs::CAPTION)?)?;
        let image = |i: usize, side: usize, row: u32| {
            let Some(rows_of) = rows_of else { return Ok([row; 2]) };
            let uid = keys.uids[side].value(i);
            let found = rows_of.get(&name_key(uid)).copied();
            found.with_context(|| format!("{}: image '{uid}' of this pair is not in the data", rows.at(i)))
        };
        for i in 0..rows.len() {
            match votes.of(keys.ids.value(i)) {
                None => labelled.unlabelled += 1,
                Some((_, 0.0)) => labelled.abstained += 1,
                Some((target, weight)) => {
                    let images = [image(i, 0, row)?, image(i, 1, row)?];
                    labelled.entries.push(Entry { keys: row, images, target, weight });
                }
            }
            row += 1;
        }
    }
    Ok(labelled)
}

/// The hash of a file, or of the hashes of its parts; `None` for a pipe.
fn one_hash(parts: &[InputOrigin]) -> Option<String> {
    let hashes: Vec<&str> = parts.iter().map(|part| part.sha256.as_deref()).collect::<Option<_>>()?;
    Some(match hashes[..] {
        [one] => one.to_owned(),
        _ => hex(&sha256(hashes.join("\n").as_bytes())),
    })
}
