//! From rows to scores: each distinct image and caption goes through the models once, each distinct pair of them is scored
//! once.

use std::collections::{HashMap, HashSet};
use std::{ops::Range, path::Path};

use anyhow::{Context, Error, Result, bail, ensure};
use nets::scorer::{Model, Picture, distinct};
use pipe::id::{Key, key};
use pipe::{column::Rows, stop};
use rayon::prelude::*;

use crate::cache::{self, Cache, Found, Vectors};
use crate::panel::{Member, Panel};
use crate::rows::{Kind, Place, Places};

/// Images, and captions, for which memory is reserved at the start, some 20 MiB: they fill 2^17 places of a hash table. A
/// table that grows holds its old places beside the new ones for a moment, and memory would grow with the rows.
const ROOM: usize = 7 << 14;

/// Pairs of an image and a caption for which memory is reserved. An image that comes again mostly has another caption.
const PAIRS: usize = 2 * ROOM;

pub struct Engine {
    pub panel: Panel,
    kind: Kind,
    batch: usize,
    parallel: Parallel,
    bad: Bad,
    /// Where the scores of each (image, caption) lie in `scores`, in units of rows.
    known: HashMap<Key, u32>,
    /// (pairs, metrics); NaN if the image cannot be read.
    scores: Vec<f32>,
    images: Cache,
    captions: Cache,
    pub counts: Counts,
}

/// How batches share the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parallel {
    /// Each batch has a thread of its own: for the CPU.
    Batches,
    /// One batch after another, while the next one is decoded: for a GPU.
    Decoding,
}

/// What happens to an image or a caption that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It is an error.
    Refuse,
    /// Its scores are null.
    Skip,
}

#[derive(Default)]
pub struct Counts {
    pub images: HashSet<u64>,
    pub captions: HashSet<u64>,
    pub images_embedded: usize,
    pub captions_embedded: usize,
    /// Image places without an image that can be read.
    pub undecodable: usize,
    pub null_captions: usize,
    pub black: usize,
    pub identical_pairs: usize,
}

/// A pair of an image and a caption that has no scores yet, and a place where it stands.
struct Pair {
    key: Key,
    image: Key,
    caption: Key,
    place: usize,
}

impl Engine {
    /// `folder`: where vectors that may be needed again are kept while the program runs.
    pub fn new(panel: Panel, kind: Kind, folder: &Path, batch: usize, parallel: Parallel, bad: Bad) -> Result<Self> {
        let is_joint = panel.members.iter().any(|m| m.is_joint);
        let image_bytes = if is_joint { cache::BYTES_JOINT } else { cache::BYTES };
        let scores = Vec::with_capacity(PAIRS * panel.members.len());
        Ok(Self {
            panel,
            kind,
            batch,
            parallel,
            bad,
            known: HashMap::with_capacity(PAIRS),
            scores,
            images: Cache::in_folder(folder, image_bytes, ROOM)?,
            captions: Cache::in_folder(folder, cache::BYTES, ROOM)?,
            counts: Counts {
                images: HashSet::with_capacity(ROOM),
                captions: HashSet::with_capacity(ROOM),
                ..Counts::default()
            },
        })
    }

    /// The scores of all image places in these rows: one list per metric, null if an image or its caption is missing.
    pub fn score(&mut self, rows: &Rows) -> Result<Vec<Vec<Option<f32>>>> {
        let places = Places::of(self.kind, rows)?;
        let places: Vec<Place> = places.iter().collect();
        self.refuse_nulls(rows, &places)?;
        let images: Vec<Option<Key>> = places.par_iter().map(|p| p.image.map(|bytes| key(&[bytes]))).collect();
        let captions = places.iter().map(|p| p.caption.map(|text| key(&[text.as_bytes()])));
        let keys: Vec<Option<[Key; 2]>> = images.iter().zip(captions).map(|(i, c)| Some([(*i)?, c?])).collect();
        self.count(&places, &images, &keys);

        let pair_keys: Vec<Option<Key>> =
            keys.iter().map(|k| k.map(|[image, caption]| key(&[&image, &caption]))).collect();
        self.add_pairs(rows, &places, &self.new_pairs(&keys, &pair_keys))?;
        let score = |pair: &Option<Key>, metric: usize| {
            let row = *self.known.get(pair.as_ref()?)? as usize;
            Some(self.scores[row * self.panel.members.len() + metric]).filter(|s| !s.is_nan())
        };
        let all: Vec<Vec<Option<f32>>> =
            (0..self.panel.members.len()).map(|m| pair_keys.iter().map(|p| score(p, m)).collect()).collect();
        let unread = pair_keys.iter().zip(&all[0]).filter(|(pair, score)| pair.is_some() && score.is_none());
        self.counts.undecodable += unread.count();
        Ok(all)
    }

    fn refuse_nulls(&self, rows: &Rows, places: &[Place]) -> Result<()> {
        if self.bad == Bad::Skip {
            return Ok(());
        }
        match places.iter().find(|p| p.image.is_none() || p.caption.is_none()) {
            Some(p) if p.caption.is_none() => {
                bail!("{}: the caption is null; every row needs one (--skip-bad scores the others)", rows.at(p.row))
            }
            Some(p) => bail!(
                "{}: '{}' is null; there is no image to score (--skip-bad scores the others)",
                rows.at(p.row),
                p.column
            ),
            None => Ok(()),
        }
    }

    /// The pairs that have no scores yet, each once, in the order of the rows.
    fn new_pairs(&self, keys: &[Option<[Key; 2]>], pair_keys: &[Option<Key>]) -> Vec<Pair> {
        let mut seen = HashSet::new();
        let mut new = vec![];
        for (place, (keys, pair)) in keys.iter().zip(pair_keys).enumerate() {
            let (Some([image, caption]), Some(key)) = (*keys, *pair) else { continue };
            if !self.known.contains_key(&key) && seen.insert(key) {
                new.push(Pair { key, image, caption, place });
            }
        }
        new
    }

    /// Scores pairs and remembers their scores.
    fn add_pairs(&mut self, rows: &Rows, places: &[Place], pairs: &[Pair]) -> Result<()> {
        if pairs.is_empty() {
            return Ok(());
        }
        let mut images = self.images.look_up(pairs.iter().map(|p| (p.image, p.place)))?;
        let mut captions = self.captions.look_up(pairs.iter().map(|p| (p.caption, p.place)))?;
        let mut scores = vec![vec![]; self.panel.members.len()];
        for turn in self.panel.round() {
            self.panel.bring(&turn)?;
            self.embed_images(rows, places, &turn, &mut images)?;
            self.embed_captions(places, &turn, &mut captions)?;
            let readable: Vec<&Pair> = pairs.iter().filter(|p| images.vectors.contains_key(&p.image)).collect();
            for m in turn {
                scores[m] = self.score_pairs(m, places, &readable, &images.vectors, &captions.vectors)?;
            }
        }
        self.counts.images_embedded += self.images.keep(&images)?;
        self.counts.captions_embedded += self.captions.keep(&captions)?;
        self.remember(rows, places, pairs, &images.vectors, &scores)
    }

    /// Notes the scores of `pairs`. `scores`: one list per metric, of the pairs whose image is among `images`.
    fn remember(
        &mut self,
        rows: &Rows,
        places: &[Place],
        pairs: &[Pair],
        images: &HashMap<Key, Vectors>,
        scores: &[Vec<f32>],
    ) -> Result<()> {
        let mut readable = 0;
        for pair in pairs {
            let read = images.contains_key(&pair.image);
            for (Member { name, .. }, scores) in self.panel.members.iter().zip(scores) {
                let score = if read { scores[readable] } else { f32::NAN };
                let place = &places[pair.place];
                ensure!(
                    score.is_finite() || !read,
                    "{}, '{}': {name} gives {score}, which is not a score; its model is damaged",
                    rows.at(place.row),
                    place.column
                );
                self.scores.push(score);
            }
            readable += usize::from(read);
            self.known.insert(pair.key, u32::try_from(self.known.len()).context("too many distinct images")?);
        }
        Ok(())
    }

    /// The scores by metric `m` of pairs of which the image could be read.
    fn score_pairs(
        &self,
        m: usize,
        places: &[Place],
        pairs: &[&Pair],
        images: &HashMap<Key, Vectors>,
        captions: &HashMap<Key, Vectors>,
    ) -> Result<Vec<f32>> {
        let image = |pair: &Pair| &images[&pair.image][m][..];
        let joint = match &self.panel.members[m].scorer()?.model {
            Model::Towers(towers) => {
                return Ok(pairs.iter().map(|p| towers.score(image(p), &captions[&p.caption][m])).collect());
            }
            Model::Joint(joint) => joint,
        };
        let batches: Vec<&[&Pair]> = pairs.chunks(self.batch).collect();
        let score = |batch: &&[&Pair]| -> Result<Vec<f32>> {
            stop::check()?;
            let texts: Vec<&str> = batch.iter().map(|p| places[p.place].caption.unwrap_or_default()).collect();
            joint.scores(&batch.iter().map(|p| image(p)).collect::<Vec<_>>(), &texts)
        };
        let scores: Vec<Vec<f32>> = match self.parallel {
            Parallel::Batches => batches.par_iter().map(score).collect::<Result<_>>()?,
            Parallel::Decoding => batches.iter().map(score).collect::<Result<_>>()?,
        };
        Ok(scores.concat())
    }

    /// Adds the vectors of the `missing` images by the members whose turn it is. An image that cannot be read has none, where
    /// such images are skipped.
    fn embed_images(&mut self, rows: &Rows, places: &[Place], turn: &Range<usize>, images: &mut Found) -> Result<()> {
        let members = &self.panel.members[turn.clone()];
        let preprocesses = distinct(members.iter().filter_map(|m| m.preprocess));
        let decode = |chunk: &[(Key, usize)]| -> Vec<Result<Picture>> {
            let decode = |&(_, i): &(Key, usize)| Picture::decode(places[i].image.unwrap_or_default(), &preprocesses);
            chunk.par_iter().map(decode).collect()
        };
        let chunks: Vec<&[(Key, usize)]> = images.missing.chunks(self.batch).collect();
        let embedded: Vec<Vec<Embedded>> = match self.parallel {
            Parallel::Batches => chunks.par_iter().map(|c| embed(members, decode(c))).collect::<Result<_>>()?,
            Parallel::Decoding => {
                let mut all = vec![];
                let mut ready = chunks.first().map(|c| decode(c)).unwrap_or_default();
                for next in 1..=chunks.len() {
                    let (done, decoded) = rayon::join(
                        || embed(members, std::mem::take(&mut ready)),
                        || chunks.get(next).map(|c| decode(c)).unwrap_or_default(),
                    );
                    all.push(done?);
                    ready = decoded;
                }
                all
            }
        };
        let metrics = self.panel.members.len();
        for (embedded, &(key, i)) in embedded.into_iter().flatten().zip(&images.missing) {
            match embedded {
                Embedded::Seen { vectors, black } => {
                    let of_image = images.vectors.entry(key).or_insert_with(|| {
                        self.counts.black += usize::from(black);
                        vec![vec![]; metrics]
                    });
                    of_image[turn.clone()].clone_from_slice(&vectors);
                }
                Embedded::Unreadable(error) if self.bad == Bad::Refuse => {
                    let place = &places[i];
                    bail!("{}, '{}': {error:#} (--skip-bad scores the others)", rows.at(place.row), place.column);
                }
                Embedded::Unreadable(_) => {}
            }
        }
        Ok(())
    }

    /// Adds the vectors of the `missing` captions by the members whose turn it is.
    fn embed_captions(&self, places: &[Place], turn: &Range<usize>, captions: &mut Found) -> Result<()> {
        let texts: Vec<&str> = captions.missing.iter().filter_map(|&(_, i)| places[i].caption).collect();
        for m in turn.clone() {
            stop::check()?;
            let vectors = self.panel.members[m].scorer()?.caption_features(&texts)?;
            for (&(key, _), vector) in captions.missing.iter().zip(vectors) {
                captions.vectors.entry(key).or_insert_with(|| vec![vec![]; self.panel.members.len()])[m] = vector;
            }
        }
        Ok(())
    }

    fn count(&mut self, places: &[Place], images: &[Option<Key>], keys: &[Option<[Key; 2]>]) {
        for [image, caption] in keys.iter().flatten() {
            self.counts.images.insert(short(image));
            self.counts.captions.insert(short(caption));
        }
        self.counts.undecodable += places.iter().filter(|p| p.image.is_none()).count();
        let sides = self.kind.image_columns().len();
        self.counts.null_captions += places.iter().step_by(sides).filter(|p| p.caption.is_none()).count();
        if sides == 2 {
            let same = images.chunks_exact(2).filter(|k| k[0].is_some() && k[0] == k[1]);
            self.counts.identical_pairs += same.count();
        }
    }
}

/// The vectors of pictures by each of the `members`.
fn embed(members: &[Member], pictures: Vec<Result<Picture>>) -> Result<Vec<Embedded>> {
    stop::check()?;
    let good: Vec<&Picture> = pictures.iter().flatten().collect();
    let mut by_scorer = vec![];
    for member in members {
        by_scorer.push(member.scorer()?.image_features(&good)?.into_iter());
    }
    let embedded = pictures.into_iter().map(|picture| match picture {
        Ok(picture) => Embedded::Seen {
            vectors: by_scorer.iter_mut().map(|v| v.next().unwrap_or_default()).collect(),
            black: picture.rgb.is_black(),
        },
        Err(error) => Embedded::Unreadable(error),
    });
    Ok(embedded.collect())
}

enum Embedded {
    Seen { vectors: Vectors, black: bool },
    Unreadable(Error),
}

/// Enough of a key to count distinct ones.
fn short(key: &Key) -> u64 {
    key.iter().take(8).fold(0, |n, &b| n << 8 | u64::from(b))
}

#[cfg(test)]
mod tests;
