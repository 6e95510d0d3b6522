//! The section "Images": a row per prompt, a column per model, and below each image its scores.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail, ensure};
use maud::{Markup, PreEscaped, html};
use pipe::{moments, schema::images, scored::PromptKey, text};
use rayon::prelude::*;
use serde_json::json;

use crate::beside::Beside;
use crate::choose::{common_prompts, evenly};
use crate::embed::{Embedded, Fit};
use crate::images::{ModelImages, same_noise};
use crate::model_table::{ModelTable, Prompt};
use crate::models::Models;
use crate::table::{data, decimals, signed};

pub struct Gallery<'a> {
    tables: &'a [ModelImages],
    /// One per images table, or none at all.
    scores: Vec<&'a ModelTable>,
    /// The scores that the others are compared with.
    base: Option<&'a ModelTable>,
    metrics: &'a [String],
    /// The standard deviation of each metric among the base's images; 0 without a base.
    sds: Vec<f64>,
    rows: Vec<&'a Prompt>,
    total: usize,
    /// The number of the image that is shown first.
    k: u64,
    models: &'a Models,
    /// Where the images are, if not in the page.
    beside: Option<&'a Beside>,
}

/// A prompt and the numbers of its images that are embedded.
type Shown<'a> = (&'a Prompt, Vec<u64>);
/// Table and row of an image.
type Place = (usize, usize);

/// The form that sorts and filters. The script fills in models, metrics, sets and image numbers, and shows it.
const CONTROLS: &str = include_str!("controls.html");
/// Estimated bytes of the text around an image, and of the rest of the page.
const WORDS: usize = 1_100;
const ADDRESS: usize = 100;
const REST: usize = 400_000;
/// Images that are read at once, and those that an estimate reads.
const CHUNK: usize = 64;
const SAMPLE: usize = 24;

impl<'a> Gallery<'a> {
    /// A gallery of `n` prompts, with the image number `k` first.
    pub fn new(
        tables: &'a [ModelImages],
        scores: &'a [ModelTable],
        n: usize,
        k: u64,
        models: &'a Models,
        beside: Option<&'a Beside>,
    ) -> Result<Self> {
        for (i, table) in tables.iter().map(|t| &t.table).enumerate() {
            if let Some(other) = tables[..i].iter().map(|t| &t.table).find(|other| other.model == table.model) {
                bail!(
                    "{} and {} are both called '{}'; give them different file names, or sample them under different names (`sample --name`)",
                    other.file,
                    table.file,
                    table.model
                );
            }
            table.require_k(k)?;
        }
        let prompts = common_prompts(tables)?;
        let matching = if scores.is_empty() { vec![] } else { matching(tables, scores)? };
        let base = matching.iter().copied().find(|s| Some(s.model.as_str()) == models.baseline());
        let metrics = matching.first().map_or(&[][..], |s| &s.metrics);
        let sds = (0..metrics.len()).map(|m| base.and_then(|b| moments::sd(b.scores(m))).unwrap_or(0.0)).collect();
        let (rows, total) = (evenly(&prompts, n), prompts.len());
        Ok(Self { tables, scores: matching, base, metrics, sds, rows, total, k, models, beside })
    }

    /// The prompts and the numbers of their images that are embedded, row by row; `seeds` prompts have all that every model drew.
    fn shown(&self, seeds: usize) -> Vec<Shown<'a>> {
        let all: HashSet<&PromptKey> = evenly(&self.rows, seeds).into_iter().map(|p| &p.key).collect();
        let ks = |key| if all.contains(key) { self.ks(key) } else { vec![self.k] };
        self.rows.iter().map(|prompt| (*prompt, ks(&prompt.key))).collect()
    }

    fn ks(&self, key: &PromptKey) -> Vec<u64> {
        self.tables[0].table.ks(key).filter(|k| self.tables.iter().all(|t| t.table.image(key, *k).is_some())).collect()
    }

    /// Table by table.
    fn places(&self, shown: &[Shown]) -> Vec<Place> {
        let of = |t: usize| {
            let each = shown.iter().flat_map(|(prompt, ks)| ks.iter().map(|k| (&prompt.key, *k)));
            each.filter_map(move |(key, k)| Some((t, self.tables[t].table.image(key, k)?.row)))
        };
        (0..self.tables.len()).flat_map(of).collect()
    }

    fn embed(&self, places: &[Place], fit: Fit) -> Result<HashMap<Place, Embedded>> {
        let mut embedded = HashMap::new();
        for chunk in places.chunk_by(|a, b| a.0 == b.0).flat_map(|table| table.chunks(CHUNK)) {
            let rows: Vec<usize> = chunk.iter().map(|p| p.1).collect();
            let one = |(place, (at, bytes)): (&Place, (String, Vec<u8>))| {
                Ok((*place, fit.embed(&bytes, self.beside).with_context(|| format!("{at}, '{}'", images::IMAGE))?))
            };
            let encoded = self.tables[chunk[0].0].encoded(&rows)?;
            embedded.extend(chunk.par_iter().zip(encoded).map(one).collect::<Result<Vec<_>>>()?);
        }
        Ok(embedded)
    }

    /// Estimates the bytes of a page with this gallery from some of its images.
    pub fn estimate(&self, fit: Fit) -> Result<usize> {
        let places = self.places(&self.shown(fit.seeds));
        if self.beside.is_some() {
            return Ok(REST + places.len() * (WORDS + ADDRESS));
        }
        let sample: Vec<Place> = places.iter().copied().step_by(places.len().div_ceil(SAMPLE).max(1)).collect();
        let bytes: usize = self.embed(&sample, fit)?.values().map(|e| e.src.len()).sum();
        Ok(REST + places.len() * (WORDS + bytes / sample.len().max(1)))
    }

    pub fn section(&self, fit: Fit) -> Result<Markup> {
        let shown = self.shown(fit.seeds);
        let embedded = self.embed(&self.places(&shown), fit)?;
        let most = shown.iter().map(|(_, ks)| ks.len()).max().unwrap_or(1);
        let side = embedded.values().map(|e| e.width.max(e.height)).max().unwrap_or(64);
        let size = if side < 200 { "small" } else { "large" };
        let models: Vec<&str> = self.tables.iter().map(|t| t.table.model.as_str()).collect();
        let base = self.models.baseline().and_then(|b| models.iter().position(|m| *m == b));
        Ok(html! {
            div #gallery .(size) data-view="models" data-models=(json!(models).to_string()) data-metrics=(json!(self.metrics).to_string())
                data-sd=(json!(self.sds).to_string()) data-base=[base] data-k=(self.k) style={ "--models:" (models.len()) ";--seeds:" (most) } {
                p.note { (self.words(fit, &shown)) }
                (PreEscaped(CONTROLS))
                p #count role="status" aria-live="polite" { (text::count(shown.len(), "prompt")) }
                div #rows {
                    @for (prompt, ks) in &shown {
                        article.row data-set=(prompt.key.0.as_deref().unwrap_or("")) data-best=[self.best(&prompt.key)] {
                            header {
                                h3 { (prompt.text) }
                                @if let Some(set) = &prompt.key.0 { p.set { (set) } }
                                p.gains {}
                            }
                            div.models { @for t in 0..models.len() { (self.column(t, prompt, ks, &embedded)) } }
                        }
                    }
                }
                button #more type="button" hidden { "Show more" }
            }
        })
    }

    fn words(&self, fit: Fit, shown: &[Shown]) -> Markup {
        let several = shown.iter().filter(|(_, ks)| ks.len() > 1).count();
        html! {
            @if shown.len() < self.total { (shown.len()) " of the " (self.total) " prompts, spread evenly over the sets. " }
            "A row is a prompt, a column is a model. "
            @if shown.iter().all(|(prompt, ks)| same_noise(self.tables, &prompt.key, ks)) { "The images of a row began from the same noise. " }
            @if !self.scores.is_empty() {
                "Below an image are its scores; a score is bold if no other model's image of this number has a higher one. "
                @if let Some(base) = self.base { "The signed number is the change from " (base.model) "'s image. " }
            }
            @if several > 0 && several < shown.len() { "All seeds are here for " (several) " prompts, one seed for the others. " }
            (fit.words(self.beside))
        }
    }

    /// For the script: each model's best score of each metric, as JSON.
    fn best(&self, key: &PromptKey) -> Option<String> {
        let best = |s: &&ModelTable, m| {
            let scores = s.ks(key).filter_map(|k| s.image(key, k)?.score(m));
            scores.reduce(f64::max).map(|x| x as f32)
        };
        let of_model = |s| (0..self.metrics.len()).map(|m| best(s, m)).collect::<Vec<_>>();
        let all: Vec<_> = self.scores.iter().map(of_model).collect();
        (!all.is_empty()).then(|| json!(all).to_string())
    }

    fn column(&self, t: usize, prompt: &Prompt, ks: &[u64], embedded: &HashMap<Place, Embedded>) -> Markup {
        let table = &self.tables[t].table;
        let lazy = self.beside.map(|_| "lazy");
        let figures = ks.iter().filter_map(|&k| Some((k, embedded.get(&(t, table.image(&prompt.key, k)?.row))?)));
        html! {
            div.model {
                h4 class=(self.models.class(&table.model)) { (table.model) }
                div.strip {
                    @for (k, image) in figures {
                        figure.shown[k == self.k] data-k=(k) {
                            img src=(image.src) width=(image.width) height=(image.height) decoding="async" loading=[lazy]
                                alt={ (table.model) ", image " (k) ": " (prompt.text) };
                            figcaption {
                                span.k { "image " (k) }
                                @if !self.scores.is_empty() { (self.caption(self.scores[t], &prompt.key, k)) }
                            }
                        }
                    }
                }
            }
        }
    }

    /// An image's scores, each with the change from the base's image of the same number.
    fn caption(&self, own: &ModelTable, key: &PromptKey, k: u64) -> Markup {
        let of = |s: &ModelTable, m| s.image(key, k).and_then(|image| image.score(m));
        let base = self.base.filter(|b| b.model != own.model);
        html! {
            dl.scores {
                @for (m, metric) in self.metrics.iter().enumerate() {
                    @let (score, digits) = (of(own, m), decimals(self.sds[m]));
                    @let highest = self.scores.iter().filter_map(|s| of(s, m)).fold(f64::NEG_INFINITY, f64::max);
                    @let change = base.and_then(|b| Some(score? - of(b, m)?));
                    div.most[self.scores.len() > 1 && score == Some(highest)] {
                        dt { (metric) }
                        dd {
                            @match score { Some(x) => (data(x, &format!("{x:.digits$}"))), None => "–" }
                            @if let Some(shown) = change.map(|x| signed(x, digits)) {
                                " " span.change.up[shown.starts_with('+')].down[shown.starts_with('\u{2212}')] { (shown) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The scored table of each images table.
fn matching<'a>(tables: &[ModelImages], scores: &'a [ModelTable]) -> Result<Vec<&'a ModelTable>> {
    let known = || scores.iter().map(|s| s.model.as_str()).collect::<Vec<_>>().join(", ");
    let of = |images: &ModelImages| {
        let ModelTable { file, model, .. } = &images.table;
        let found = scores.iter().find(|s| s.model == *model).with_context(|| {
            format!("{file} is of model '{model}', but no --scored table is (they are of {}); name the scored table of every images table", known())
        })?;
        for (prompt, k, image) in images.table.images() {
            let what = || format!("image k = {k} of prompt {}", prompt.name());
            let other = found.image(&prompt.key, k).with_context(|| {
                format!("{file} has {}, but {} has no score of it; score this table", what(), found.file)
            })?;
            ensure!(
                image.uid.is_none() || other.uid.is_none() || image.uid == other.uid,
                "{} was scored from other images than {file} holds ({}); score this table",
                found.file,
                what()
            );
        }
        Ok(found)
    };
    tables.iter().map(of).collect()
}
