//! The same prompts drawn by every model: a row a prompt, a column a model, every image with its scores.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail, ensure};
use maud::{Markup, html};
use pipe::{schema::images, text};
use rayon::prelude::*;
use serde_json::json;

use crate::{
    cast::Cast,
    choose::{self, Prompt, spread},
    drawn::{Drawn, Key, name},
    embed::{Embedded, Fit, Form, Seeds},
    plot::{data, signed},
    scored::{Scored, decimals},
};

pub struct Gallery<'a> {
    tables: &'a [Drawn],
    /// One a table, or none at all.
    scored: Vec<&'a Scored>,
    rows: Vec<&'a Prompt>,
    /// Prompts in the tables.
    total: usize,
    /// The image of each prompt that is shown first.
    k: u64,
}

/// Table and row of an image.
type Place = (usize, usize);

/// What the page's text about an image takes, and the page's other parts, in bytes: for a first guess only.
const WORDS: usize = 1_100;
const REST: usize = 400_000;
/// Images that are read at once.
const CHUNK: usize = 64;

impl<'a> Gallery<'a> {
    /// # Errors
    /// Tables of other prompts, or of the same model; a prompt without a k-th image; scores that do not belong to the images.
    pub fn new(tables: &'a [Drawn], scored: &'a [Scored], n: usize, k: u64) -> Result<Self> {
        for (i, table) in tables.iter().enumerate() {
            if let Some(other) = tables[..i].iter().find(|other| other.model == table.model) {
                bail!(
                    "{} and {} are both called '{}'; give them other file names, or sample them under different names (`sample --name`)",
                    other.table,
                    table.table,
                    table.model
                );
            }
            table.require_k(k)?;
        }
        let prompts = choose::common_prompts(tables)?;
        let gallery = Self {
            tables,
            scored: if scored.is_empty() { vec![] } else { partners(tables, scored)? },
            rows: spread(prompts, n),
            total: prompts.len(),
            k,
        };
        gallery.check_scores()?;
        Ok(gallery)
    }

    fn check_scores(&self) -> Result<()> {
        for (table, scored) in self.tables.iter().zip(&self.scored) {
            for (key, text) in &table.prompts {
                for k in table.ks(key) {
                    let (image, uid) = (table.image(key, k), scored.uid(key, k));
                    let what = || format!("image k = {k} of prompt {}", name(key, text));
                    ensure!(
                        scored.of(key, k).is_some(),
                        "{} has {}, but {} has no score of it; score this very table",
                        table.table,
                        what(),
                        scored.table
                    );
                    let drawn = image.and_then(|i| i.uid.as_deref());
                    ensure!(
                        drawn.is_none() || uid.is_none() || drawn == uid,
                        "{} was scored from other images than {} holds ({}); score this very table",
                        scored.table,
                        table.table,
                        what()
                    );
                }
            }
        }
        Ok(())
    }

    /// The images of a prompt that every model has.
    fn ks(&self, key: &Key) -> Vec<u64> {
        let mut ks = self.tables[0].ks(key);
        ks.retain(|k| self.tables.iter().all(|t| t.image(key, *k).is_some()));
        ks
    }

    /// The images that are embedded, row by row.
    fn shown(&self, seeds: Seeds) -> Vec<(&'a Prompt, Vec<u64>)> {
        let own = |rows: &[&'a Prompt]| rows.iter().map(|(key, _)| key.clone()).collect::<HashSet<Key>>();
        let all_of = match seeds {
            Seeds::OfAll => own(&self.rows),
            Seeds::Of(n) => {
                let rows: Vec<Prompt> = self.rows.iter().map(|&p| p.clone()).collect();
                spread(&rows, n).into_iter().map(|(key, _)| key.clone()).collect()
            }
        };
        let ks = |key: &Key| if all_of.contains(key) { self.ks(key) } else { vec![self.k] };
        self.rows.iter().map(|&prompt| (prompt, ks(&prompt.0))).collect()
    }

    fn places(&self, shown: &[(&Prompt, Vec<u64>)]) -> Vec<Place> {
        let of = |t: usize, key: &Key, k: u64| self.tables[t].image(key, k).map(|image| (t, image.row));
        let each = shown.iter().flat_map(|((key, _), ks)| ks.iter().map(move |k| (key, *k)));
        let each: Vec<_> = each.collect();
        (0..self.tables.len()).flat_map(|t| each.iter().filter_map(move |(key, k)| of(t, key, *k))).collect()
    }

    fn embed(&self, places: &[Place], form: Form) -> Result<HashMap<Place, Embedded>> {
        let mut embedded = HashMap::new();
        for chunk in places.chunk_by(|a, b| a.0 == b.0).flat_map(|table| table.chunks(CHUNK)) {
            let rows: Vec<usize> = chunk.iter().map(|p| p.1).collect();
            let one = |(place, (at, bytes)): (&Place, (String, Vec<u8>))| {
                let image = form.embed(&bytes).with_context(|| format!("{at}, '{}'", images::IMAGE))?;
                Ok((*place, image))
            };
            let encoded = self.tables[chunk[0].0].encoded(&rows)?;
            embedded.extend(chunk.par_iter().zip(encoded).map(one).collect::<Result<Vec<_>>>()?);
        }
        Ok(embedded)
    }

    /// About how many bytes a page with this gallery takes, from a few of its images.
    ///
    /// # Errors
    /// An image cannot be read.
    pub fn guess(&self, fit: Fit) -> Result<usize> {
        let places = self.places(&self.shown(fit.seeds));
        let some: Vec<Place> = places.iter().copied().step_by(places.len().div_ceil(24).max(1)).collect();
        let bytes: usize = self.embed(&some, fit.form)?.values().map(|e| e.src.len()).sum();
        Ok(REST + places.len() * (WORDS + bytes / some.len().max(1)))
    }

    /// The section.
    ///
    /// # Errors
    /// An image cannot be read.
    pub fn section(&self, fit: Fit, cast: &Cast) -> Result<Markup> {
        let shown = self.shown(fit.seeds);
        let images = self.embed(&self.places(&shown), fit.form)?;
        let metrics = self.scored.first().map_or(&[][..], |s| &s.metrics);
        let sds: Vec<f64> = (0..metrics.len()).map(|m| self.base(cast).map_or(0.0, |b| b.moments(m).1)).collect();
        let most = shown.iter().map(|(_, ks)| ks.len()).max().unwrap_or(1);
        let side = images.values().map(|e| e.width.max(e.height)).max().unwrap_or(64);
        let small = if side < 200 { "small" } else { "large" };
        let models: Vec<&str> = self.tables.iter().map(|t| t.model.as_str()).collect();
        let base = cast.baseline().and_then(|b| models.iter().position(|m| *m == b));
        Ok(html! {
            div #gallery .(small) data-view="models" data-models=(json!(models).to_string()) data-metrics=(json!(metrics).to_string())
                data-sd=(json!(sds).to_string()) data-base=[base] data-seeds=(most) style={ "--models:" (models.len()) ";--seeds:" (most) } {
                p.note { (self.words(fit, &shown, cast)) }
                (self.controls(metrics, &models, most))
                p #count role="status" aria-live="polite" { (text::count(shown.len(), "prompt")) }
                div #rows {
                    @for ((key, prompt), ks) in &shown {
                        article.row data-set=(key.0.as_deref().unwrap_or("")) data-best=[self.best(key)] {
                            header {
                                h3 { (prompt) }
                                @if let Some(set) = &key.0 { p.set { (set) } }
                                p.gains {}
                            }
                            div.models { @for t in 0..self.tables.len() { (self.column(t, key, prompt, ks, &images, cast, &sds)?) } }
                        }
                    }
                }
                button #more type="button" hidden { "Show more" }
            }
        })
    }

    fn words(&self, fit: Fit, shown: &[(&Prompt, Vec<u64>)], cast: &Cast) -> Markup {
        let several = shown.iter().filter(|(_, ks)| ks.len() > 1).count();
        html! {
            @if shown.len() < self.total { (shown.len()) " of the " (self.total) " prompts, spread evenly over the sets. " }
            "One prompt a row, one model a column"
            @if self.same_noise(shown) { "; images beside one another began from the same noise" }
            ". "
            @if !self.scored.is_empty() { "Below an image stand its scores, bold where no other model's image of this number has a higher one" }
            @if let Some(base) = self.base(cast) { ", and their change from " (base.model) "'s" }
            @if !self.scored.is_empty() { ". " }
            @if several > 0 && several < shown.len() { "All seeds of " (several) " prompts are here, one of the others. " }
            (fit.form.words())
        }
    }

    fn same_noise(&self, shown: &[(&Prompt, Vec<u64>)]) -> bool {
        let seed = |t: &Drawn, key: &Key, k: u64| t.image(key, k).and_then(|image| image.seed);
        let same = |key: &Key, k: u64| {
            let first = seed(&self.tables[0], key, k);
            first.is_some() && self.tables.iter().all(|t| seed(t, key, k) == first)
        };
        self.tables.len() > 1 && shown.iter().all(|((key, _), ks)| ks.iter().all(|k| same(key, *k)))
    }

    fn base(&self, cast: &Cast) -> Option<&Scored> {
        self.scored.iter().copied().find(|s| Some(s.model.as_str()) == cast.baseline())
    }

    /// Each model's best score under each metric, as JSON.
    fn best(&self, key: &Key) -> Option<String> {
        if self.scored.is_empty() {
            return None;
        }
        let best = |t: usize| -> Vec<Option<f32>> {
            let of = self.tables[t].ks(key).into_iter().filter_map(|k| self.scored[t].of(key, k));
            let all: Vec<_> = of.collect();
            let metrics = 0..self.scored[t].metrics.len();
            metrics.map(|m| all.iter().filter_map(|scores| scores[m]).reduce(f32::max)).collect()
        };
        Some(json!((0..self.tables.len()).map(best).collect::<Vec<_>>()).to_string())
    }

    #[allow(clippy::too_many_arguments)] // what one column of one row is made of
    fn column(
        &self,
        t: usize,
        key: &Key,
        prompt: &str,
        ks: &[u64],
        images: &HashMap<Place, Embedded>,
        cast: &Cast,
        sds: &[f64],
    ) -> Result<Markup> {
        let table = &self.tables[t];
        let figures = ks.iter().map(|&k| {
            let image = table.image(key, k).and_then(|image| images.get(&(t, image.row)));
            let image = image.with_context(|| format!("{}: there is no image k = {k}", table.table))?;
            Ok(html! {
                figure.shown[k == self.k] data-k=(k) {
                    img src=(image.src) width=(image.width) height=(image.height) decoding="async"
                        alt={ (table.model) ", image " (k) ": " (prompt) };
                    figcaption {
                        span.k { "image " (k) }
                        @if !self.scored.is_empty() { (self.scores(t, key, k, cast, sds)) }
                    }
                }
            })
        });
        let figures = figures.collect::<Result<Vec<_>>>()?;
        Ok(html! {
            div.model {
                h4 class=(cast.class(&table.model)) { (table.model) }
                div.strip { @for figure in &figures { (figure) } }
            }
        })
    }

    /// An image's scores, with the change from the baseline's image of the same number.
    fn scores(&self, t: usize, key: &Key, k: u64, cast: &Cast, sds: &[f64]) -> Markup {
        let of = |s: &Scored, m: usize| s.of(key, k).and_then(|scores| scores[m]).map(f64::from);
        let base = self.base(cast).filter(|b| b.model != self.tables[t].model);
        let row = |m: usize| {
            let (score, digits) = (of(self.scored[t], m), decimals(sds[m]));
            let others = self.scored.iter().filter_map(|s| of(s, m));
            let most = score.is_some_and(|x| self.scored.len() > 1 && others.fold(f64::NEG_INFINITY, f64::max) <= x);
            let change = base.and_then(|b| Some(score? - of(b, m)?));
            html! {
                div.most[most] {
                    dt { (self.scored[t].metrics[m]) }
                    dd {
                        @match score { Some(x) => (data(x, format!("{x:.digits$}"))), None => "–" }
                        @if let Some(change) = change { " " span.change.up[change > 0.0].down[change < 0.0] { (signed(change, digits)) } }
                    }
                }
            }
        };
        html! { dl.scores { @for m in 0..self.scored[t].metrics.len() { (row(m)) } } }
    }

    fn controls(&self, metrics: &[String], models: &[&str], most: usize) -> Markup {
        let mut sets: Vec<&str> = self.rows.iter().filter_map(|(key, _)| key.0.as_deref()).collect();
        let mut seen = HashSet::new();
        sets.retain(|set| seen.insert(*set));
        let compared = !metrics.is_empty() && models.len() > 1;
        html! {
            form #controls hidden aria-label="Gallery" {
                @if most > 1 {
                    fieldset {
                        legend { "View" }
                        label { input type="radio" name="view" value="models" checked; "models side by side" }
                        label { input type="radio" name="view" value="seeds"; "all seeds" }
                    }
                    label.for-models { "Image " select name="image" {
                        @for k in self.rows.iter().map(|(key, _)| self.ks(key)).max_by_key(Vec::len).unwrap_or_default() { option value=(k) selected[k == self.k] { (k) } }
                        @for (m, metric) in metrics.iter().enumerate() { option value={ "best-" (m) } { "best by " (metric) } }
                    } }
                }
                @if compared {
                    label { "Compare " select name="a" { @for (t, model) in models.iter().enumerate() { option value=(t) { (model) } } } }
                    label { "with " select name="b" { @for (t, model) in models.iter().enumerate() { option value=(t) { (model) } } } }
                    label { "Sort by " select name="sort" {
                        option value="order" { "the table's order" }
                        option value="mean" { "gain, mean of all metrics" }
                        @for (m, metric) in metrics.iter().enumerate() { option value=(m) { "gain in " (metric) } }
                        @if metrics.len() > 1 { option value="split" { "disagreement of the metrics" } }
                    } }
                    label { input type="checkbox" name="least"; "least first" }
                }
                @if sets.len() > 1 {
                    label { "Set " select name="set" { option value="" { "all" } @for set in &sets { option value=(set) { (set) } } } }
                }
                @if compared {
                    label { "Prompts where " select name="agree" {
                        option value="" { "anything" }
                        option value="better" { "every metric gains" }
                        option value="worse" { "every metric loses" }
                        @if metrics.len() > 1 { option value="split" { "the metrics disagree" } }
                    } }
                }
                label { "Find " input type="search" name="find" placeholder="words of the prompt" autocomplete="off"; }
                label { "Image size " input type="range" name="size" min="72" max="512" step="8"; }
            }
        }
    }
}

/// The scored table of each images table: the same model's.
fn partners<'a>(tables: &[Drawn], scored: &'a [Scored]) -> Result<Vec<&'a Scored>> {
    let partner = |table: &Drawn| {
        let known = || scored.iter().map(|s| s.model.as_str()).collect::<Vec<_>>().join(", ");
        scored.iter().find(|s| s.model == table.model).with_context(|| {
            format!(
                "{} is of model '{}', of which no --scored table is (they are of {}); name the scored table of every images table",
                table.table,
                table.model,
                known()
            )
        })
    };
    tables.iter().map(partner).collect()
}
