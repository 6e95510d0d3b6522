//! Sums over prompts that pass by once: per table, and per candidate and baseline.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Result, ensure};
use pipe::moments::Moments;
use pipe::names::Names;
use pipe::winrates::{ByMetric, Distribution};

use crate::bootstrap::{Bootstrap, Resampled};
use crate::prompt::Prompt;
use crate::scored::By;
use crate::stats::Wins;

/// A table, and the model whose images it holds.
#[derive(Clone)]
pub struct Model {
    pub table: String,
    pub model: String,
}

impl Model {
    /// The model's name, followed by the table's if two models of `all` have the same name.
    pub fn name(&self, all: &[Model]) -> String {
        let alone = all.iter().filter(|t| t.model == self.model).count() == 1;
        if alone { self.model.clone() } else { format!("{} ({})", self.model, self.table) }
    }
}

/// A candidate and its baseline, by their places among the tables.
pub type Pair = (usize, usize);

/// The sum of some values beside their moments, since a sum of whole numbers is exact.
#[derive(Clone, Default)]
pub struct Values {
    sum: f64,
    moments: Moments,
}

impl Values {
    pub fn add(&mut self, x: f64) {
        self.sum += x;
        self.moments.add(x);
    }

    pub fn sum(&self) -> f64 {
        self.sum
    }

    pub fn n(&self) -> usize {
        self.moments.n()
    }

    pub fn mean(&self) -> f64 {
        self.sum / self.n() as f64
    }

    pub fn sd(&self) -> Option<f64> {
        self.moments.sd()
    }

    /// The sample's variance; 0 of one value.
    pub fn variance(&self) -> f64 {
        self.sd().map_or(0.0, |sd| sd * sd)
    }
}

/// The scores of one table under one metric.
#[derive(Clone, Default)]
pub struct Scores {
    pub images: Values,
    /// The mean of each prompt's images.
    pub prompts: Values,
    /// The squared distances of images from their prompt's mean, and the degrees of freedom of that.
    within: (f64, usize),
    /// Images without a score.
    pub nulls: usize,
}

impl Scores {
    fn add(&mut self, prompt: &Prompt, metric: usize) {
        let (mean, n) = (prompt.mean(metric), prompt.scores(metric).count());
        prompt.scores(metric).for_each(|x| self.images.add(x.into()));
        self.prompts.add(mean);
        if n > 1 {
            let squares: f64 = prompt.scores(metric).map(|x| (f64::from(x) - mean).powi(2)).sum();
            self.within = (self.within.0 + squares, self.within.1 + n - 1);
        }
        self.nulls += prompt.images - n;
    }

    pub fn distribution(&self) -> Distribution {
        let (min, max) = self.images.moments.range().unwrap_or((f64::NAN, f64::NAN));
        let (squares, freedom) = self.within;
        let sd_of_a_prompt = (freedom > 0).then(|| (squares / freedom as f64).sqrt());
        Distribution { mean: self.images.mean(), min, max, sd: self.images.sd(), sd_of_a_prompt }
    }

    /// The standard deviation of the images, by which changes are measured; `None` if all score the same.
    pub fn scale(&self) -> Option<f64> {
        self.images.sd().filter(|&sd| sd > 0.0)
    }
}

/// A candidate beside its baseline.
#[derive(Clone)]
pub struct Compared {
    /// By the best and by the mean of each prompt's images, one per metric.
    pub wins: Vec<[Wins; 2]>,
    /// The number of prompts on which all metrics are better, and on which all are worse, by the best and by the mean.
    pub joint: [[usize; 2]; 2],
    /// The number of prompts whose images start from different noise.
    pub other_seeds: usize,
}

impl Compared {
    fn add(&mut self, a: &Prompt, b: &Prompt) {
        for (m, [best, mean]) in self.wins.iter_mut().enumerate() {
            best.add(a.best(m), b.best(m));
            mean.add(a.mean(m), b.mean(m));
        }
        for (joint, value) in self.joint.iter_mut().zip([Prompt::best, Prompt::mean]) {
            joint[0] += usize::from(a.dominates(b, value));
            joint[1] += usize::from(b.dominates(a, value));
        }
        self.other_seeds += usize::from(a.seeds.zip(b.seeds).is_some_and(|(a, b)| a != b));
    }
}

/// All that is counted of some prompts.
#[derive(Clone)]
pub struct Sums {
    pub n: usize,
    /// One per table and metric.
    pub tables: Vec<Vec<Scores>>,
    /// One per pair.
    pub compared: Vec<Compared>,
    /// The change of the mean, by pair and metric.
    changes: Resampled,
}

impl Sums {
    fn add(&mut self, prompts: &[&Prompt], pairs: &[Pair]) -> Result<()> {
        self.n += 1;
        for (table, prompt) in self.tables.iter_mut().zip(prompts) {
            table.iter_mut().enumerate().for_each(|(m, scores)| scores.add(prompt, m));
        }
        let metrics = self.tables[0].len();
        for (compared, &(a, b)) in self.compared.iter_mut().zip(pairs) {
            compared.add(prompts[a], prompts[b]);
        }
        let changes = pairs.iter().flat_map(|&(a, b)| (0..metrics).map(move |m| (a, b, m)));
        self.changes.add(changes.map(|(a, b, m)| prompts[a].mean(m) - prompts[b].mean(m)))
    }

    fn named(mut self, name: Option<&str>) -> Self {
        self.changes.stream = name.unwrap_or(NO_GROUP).to_owned();
        self
    }

    /// The intervals of the change of the mean: of each pair, one per metric.
    pub fn intervals(&self) -> Result<Vec<Vec<(f64, f64)>>> {
        let all = self.changes.clone().intervals()?;
        Ok(all.chunks(self.tables[0].len()).map(<[_]>::to_vec).collect())
    }

    pub fn describe(&self, table: usize, metrics: &[String]) -> (ByMetric<usize>, ByMetric<Distribution>) {
        let scores = || metrics.iter().cloned().zip(&self.tables[table]);
        let nulls = scores().map(|(metric, scores)| (metric, scores.nulls)).collect();
        (ByMetric(nulls), ByMetric(scores().map(|(metric, scores)| (metric, scores.distribution())).collect()))
    }
}

/// Groups, each of which is a row of every table that is printed.
const MOST_GROUPS: usize = 1000;

/// Resampled sums that are held at once: 2 GB of them.
const MOST_SUMS: usize = 1 << 28;

/// The group of prompts that have no value to be grouped by.
const NO_GROUP: &str = "(none)";

/// The same of all prompts, and of each group of them.
pub struct Groups {
    pub all: Sums,
    /// The first table, whose column `by` names the groups; the set unless it is given.
    table: String,
    by: Option<By>,
    pairs: Vec<Pair>,
    empty: Sums,
    /// In the order in which they come; the sums only where there are two or more, since those of one are those of all.
    names: Vec<Option<Arc<str>>>,
    groups: Vec<Sums>,
    numbers: HashMap<Option<Arc<str>>, usize>,
}

impl Groups {
    pub fn new(tables: &[Model], by: Option<By>, pairs: &[Pair], metrics: usize, bootstrap: Bootstrap) -> Result<Self> {
        let columns = pairs.len() * metrics;
        ensure!(
            bootstrap.resamples as usize * (columns + 1) <= MOST_SUMS,
            "--resamples {} of {} win rates would need more than 2 GB; take fewer resamples, metrics or tables",
            bootstrap.resamples,
            columns
        );
        let compared = Compared { wins: vec![Default::default(); metrics], joint: Default::default(), other_seeds: 0 };
        let empty = Sums {
            n: 0,
            tables: vec![vec![Scores::default(); metrics]; tables.len()],
            compared: vec![compared; pairs.len()],
            changes: Resampled::new(bootstrap, "", columns),
        };
        Ok(Self {
            all: empty.clone(),
            table: tables[0].table.clone(),
            by,
            pairs: pairs.to_vec(),
            empty,
            names: vec![],
            groups: vec![],
            numbers: HashMap::new(),
        })
    }

    /// Counts one prompt of all tables; the first table says of which group it is.
    pub fn add(&mut self, prompts: &[&Prompt]) -> Result<()> {
        let group = &prompts[0].group;
        let number = match self.numbers.get(group) {
            Some(&number) => number,
            None => self.open(group)?,
        };
        if let Some(sums) = self.groups.get_mut(number) {
            sums.add(prompts, &self.pairs)?;
        }
        self.all.add(prompts, &self.pairs)
    }

    fn open(&mut self, group: &Option<Arc<str>>) -> Result<usize> {
        let number = self.names.len();
        ensure!(
            number < MOST_GROUPS,
            "{}: more than {MOST_GROUPS} different values of {} to group by; group by another column with --by, or make one set \
             of all prompts with `prompts --set NAME`",
            self.table,
            self.by.unwrap_or(By::Set).name()
        );
        if number == 1 {
            self.groups.push(self.of_all());
        }
        if number > 0 {
            self.groups.push(self.empty.clone().named(group.as_deref()));
        }
        self.names.push(group.clone());
        self.numbers.insert(group.clone(), number);
        Ok(number)
    }

    /// The first group, as long as all prompts are of it.
    fn of_all(&self) -> Sums {
        self.all.clone().named(self.names[0].as_deref())
    }

    /// Ends the counting.
    pub fn close(&mut self) -> Result<()> {
        let Some(by) = self.by else { return Ok(()) };
        ensure!(
            self.names.iter().any(Option::is_some),
            "{}: no prompt has a {}, so there is nothing to group by; give it one in the prompts table",
            self.table,
            by.name()
        );
        if self.groups.is_empty() {
            self.groups.push(self.of_all());
        }
        Ok(())
    }

    /// Each group with its name; none if all prompts are of one.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Sums)> {
        self.names.iter().map(|name| name.as_deref().unwrap_or(NO_GROUP)).zip(&self.groups)
    }
}
