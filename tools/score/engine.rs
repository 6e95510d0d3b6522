//! From rows to scores, each distinct piece of work once.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use anyhow::{Context, Error, Result, bail, ensure};
use nets::{
    image::Preprocess,
    scorer::{Picture, preprocesses},
};
use pipe::{column::Rows, id, stop};
use rayon::prelude::*;

use crate::{
    cache::{Cache, KEPT, Vectors},
    models::Scorers,
    rows::{Kind, Place, Places},
};

/// The first half of a SHA-256: a million images share one with probability 1e-27.
pub type Key = [u8; 16];

fn key(parts: &[&[u8]]) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&id::sha256_of(parts)[..16]);
    key
}

/// Images, and captions, for which there is room from the start, in some 20 MiB: as many as fill 2^17 places of a hash table. A
/// table that grows holds its old places beside the new ones for a moment, and memory would grow with the rows.
const ROOM: usize = 7 << 14;

/// Pairs of an image and a caption: an image that comes again has mostly another caption.
const PAIRS: usize = 2 * ROOM;

pub struct Engine {
    pub scorers: Scorers,
    preprocesses: Vec<Preprocess>,
    kind: Kind,
    /// Images that go through a tower at once.
    batch: usize,
    /// Whether several batches go through the towers side by side.
    side_by_side: bool,
    skip_bad: bool,
    /// The scores of each (image, caption) met so far.
    known: HashMap<Key, u32>,
    known_scores: Vec<f32>,
    images: Cache,
    captions: Cache,
    pub work: Work,
}

/// What was done, for the summary.
#[derive(Default)]
pub struct Work {
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

impl Engine {
    /// `folder`: where vectors that may be needed again are kept meanwhile.
    ///
    /// # Errors
    /// `folder` takes no files.
    pub fn new(
        scorers: Scorers,
        kind: Kind,
        folder: &Path,
        batch: usize,
        side_by_side: bool,
        skip_bad: bool,
    ) -> Result<Self> {
        let known_scores = Vec::with_capacity(PAIRS * scorers.len());
        Ok(Self {
            preprocesses: preprocesses(scorers.iter().map(|(_, s)| s.as_ref())),
            scorers,
            kind,
            batch,
            side_by_side,
            skip_bad,
            known: HashMap::with_capacity(PAIRS),
            known_scores,
            images: Cache::in_folder(folder, KEPT, ROOM)?,
            captions: Cache::in_folder(folder, KEPT, ROOM)?,
            work: Work {
                images: HashSet::with_capacity(ROOM),
                captions: HashSet::with_capacity(ROOM),
                ..Work::default()
            },
        })
    }

    /// The scores of every image place of these rows: one list a metric; null where an image or its caption is missing.
    ///
    /// # Errors
    /// Without `--skip-bad`, an image that cannot be read or a null caption; a score that is no number; a signal.
    pub fn score(&mut self, rows: &Rows) -> Result<Vec<Vec<Option<f32>>>> {
        let places = Places::of(self.kind, rows)?;
        let places: Vec<Place> = places.iter().collect();
        let image_keys: Vec<Option<Key>> = places.par_iter().map(|p| p.image.map(|bytes| key(&[bytes]))).collect();
        let caption_keys: Vec<Option<Key>> =
            places.iter().map(|p| p.caption.map(|text| key(&[text.as_bytes()]))).collect();
        self.refuse_nulls(rows, &places)?;

        // What is new, in the order of the rows.
        let mut new: Vec<(Key, usize)> = vec![];
        let (mut images, mut captions) = (Wanted::default(), Wanted::default());
        let mut pair_keys = vec![None; places.len()];
        let mut asked = HashSet::new();
        for (i, keys) in image_keys.iter().zip(&caption_keys).enumerate() {
            let (Some(image), Some(caption)) = keys else { continue };
            self.work.images.insert(short(image));
            self.work.captions.insert(short(caption));
            let pair = key(&[image, caption]);
            pair_keys[i] = Some(pair);
            if !self.known.contains_key(&pair) && asked.insert(pair) {
                new.push((pair, i));
                images.want(*image, i, &self.images)?;
                captions.want(*caption, i, &self.captions)?;
            }
        }
        self.embed_images(rows, &places, &mut images)?;
        self.embed_captions(&places, &mut captions)?;
        for (pair, i) in new {
            let image = image_keys[i].and_then(|k| images.vectors.get(&k));
            let caption = caption_keys[i].and_then(|k| captions.vectors.get(&k));
            self.combine(rows, &places[i], image, caption)?;
            self.known.insert(pair, u32::try_from(self.known.len()).context("too many distinct images")?);
        }

        self.count(&places, &image_keys);
        let score = |pair: &Option<Key>, m: usize| {
            let at = *self.known.get(pair.as_ref()?)? as usize;
            Some(self.known_scores[at * self.scorers.len() + m]).filter(|s| !s.is_nan())
        };
        let all: Vec<Vec<Option<f32>>> =
            (0..self.scorers.len()).map(|m| pair_keys.iter().map(|p| score(p, m)).collect()).collect();
        let unread = pair_keys.iter().enumerate().filter(|(i, p)| p.is_some() && all[0][*i].is_none()).count();
        self.work.undecodable += unread;
        Ok(all)
    }

    /// What was done; models and memory are given back.
    pub fn finish(self) -> Work {
        self.work
    }

    fn refuse_nulls(&self, rows: &Rows, places: &[Place]) -> Result<()> {
        let null = places.iter().find(|p| p.image.is_none() || p.caption.is_none()).filter(|_| !self.skip_bad);
        match null {
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

    /// Finds the vectors of the images that no cache has; an image that cannot be read has none, under `--skip-bad`.
    fn embed_images(&mut self, rows: &Rows, places: &[Place], wanted: &mut Wanted) -> Result<()> {
        let this = &*self;
        let decode = |chunk: &[usize]| -> Vec<Result<Picture>> {
            let decode = |&i: &usize| Picture::decode(places[i].image.unwrap_or_default(), &this.preprocesses);
            chunk.par_iter().map(decode).collect()
        };
        let new: Vec<usize> = wanted.new.iter().map(|(_, i)| *i).collect();
        let chunks: Vec<&[usize]> = new.chunks(self.batch).collect();
        let embedded: Vec<Vec<Embedded>> = match self.side_by_side {
            true => chunks.par_iter().map(|c| this.embed(decode(c))).collect::<Result<_>>()?,
            false => {
                // While one batch is with the towers, the next is decoded.
                let mut all = vec![];
                let mut ready = chunks.first().map(|c| decode(c)).unwrap_or_default();
                for next in 1..=chunks.len() {
                    let (done, decoded) = rayon::join(
                        || this.embed(std::mem::take(&mut ready)),
                        || chunks.get(next).map(|c| decode(c)).unwrap_or_default(),
                    );
                    all.push(done?);
                    ready = decoded;
                }
                all
            }
        };
        for (embedded, &(key, i)) in embedded.into_iter().flatten().zip(&wanted.new) {
            match embedded {
                Embedded::Seen { vectors, black } => {
                    self.work.images_embedded += 1;
                    self.work.black += usize::from(black);
                    self.images.put(key, &vectors)?;
                    wanted.vectors.insert(key, vectors);
                }
                Embedded::Unreadable(error) if !self.skip_bad => {
                    let place = &places[i];
                    bail!("{}, '{}': {error:#} (--skip-bad scores the others)", rows.at(place.row), place.column);
                }
                Embedded::Unreadable(_) => {}
            }
        }
        Ok(())
    }

    fn embed(&self, pictures: Vec<Result<Picture>>) -> Result<Vec<Embedded>> {
        stop::check()?;
        let good: Vec<&Picture> = pictures.iter().flatten().collect();
        let mut by_scorer = vec![];
        for (_, scorer) in &self.scorers {
            by_scorer.push(scorer.image_features(&good)?.into_iter());
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

    fn embed_captions(&mut self, places: &[Place], wanted: &mut Wanted) -> Result<()> {
        let texts: Vec<&str> = wanted.new.iter().filter_map(|&(_, i)| places[i].caption).collect();
        let mut all: Vec<Vectors> = vec![vec![]; texts.len()];
        for (_, scorer) in &self.scorers {
            stop::check()?;
            for (vectors, vector) in all.iter_mut().zip(scorer.caption_features(&texts)?) {
                vectors.push(vector);
            }
        }
        self.work.captions_embedded += texts.len();
        for (&(key, _), vectors) in wanted.new.iter().zip(all) {
            self.captions.put(key, &vectors)?;
            wanted.vectors.insert(key, vectors);
        }
        Ok(())
    }

    /// The scores of an image with a caption; NaN stands for those of an image that cannot be read.
    fn combine(
        &mut self,
        rows: &Rows,
        place: &Place,
        image: Option<&Vectors>,
        caption: Option<&Vectors>,
    ) -> Result<()> {
        for (m, (name, scorer)) in self.scorers.iter().enumerate() {
            let score = match (image, caption) {
                (Some(image), Some(caption)) => {
                    let score = scorer.score(&image[m], &caption[m]);
                    ensure!(
                        score.is_finite(),
                        "{}, '{}': {name} gives {score}, which is no score; its model is damaged",
                        rows.at(place.row),
                        place.column
                    );
                    score
                }
                _ => f32::NAN,
            };
            self.known_scores.push(score);
        }
        Ok(())
    }

    fn count(&mut self, places: &[Place], image_keys: &[Option<Key>]) {
        self.work.undecodable += places.iter().filter(|p| p.image.is_none()).count();
        let sides = self.kind.image_columns().len();
        self.work.null_captions += places.iter().step_by(sides).filter(|p| p.caption.is_none()).count();
        if sides == 2 {
            let same = image_keys.chunks_exact(2).filter(|k| k[0].is_some() && k[0] == k[1]);
            self.work.identical_pairs += same.count();
        }
    }
}

/// The images, or the captions, that some rows need.
#[derive(Default)]
struct Wanted {
    vectors: HashMap<Key, Vectors>,
    /// Those without vectors yet, each with a place where it stands.
    new: Vec<(Key, usize)>,
    asked: HashSet<Key>,
}

impl Wanted {
    fn want(&mut self, key: Key, place: usize, cache: &Cache) -> Result<()> {
        if self.asked.insert(key) {
            match cache.get(&key)? {
                Some(vectors) => drop(self.vectors.insert(key, vectors)),
                None => self.new.push((key, place)),
            }
        }
        Ok(())
    }
}

enum Embedded {
    Seen { vectors: Vectors, black: bool },
    Unreadable(Error),
}

/// Enough of a key to count distinct ones.
fn short(key: &Key) -> u64 {
    key.iter().take(8).fold(0, |n, &b| n << 8 | u64::from(b))
}
