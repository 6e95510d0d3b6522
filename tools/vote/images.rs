//! Scored images as pairs: every two images of a prompt.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use anyhow::{Result, ensure};
use arrow::{
    array::{Array, ArrayRef, Float32Array, StringArray},
    datatypes::{DataType, Schema},
};
use pipe::{
    column::Rows,
    id,
    origin::InputOrigin,
    schema::{images, is_judge, prompts},
    table::{Batches, Inputs},
};

use crate::ballot::{Ballot, Scores, finite};

const NEEDED: [&str; 3] = [prompts::PROMPT_ID, prompts::PROMPT, images::IMAGE_UID];
const HINT: &str = "--pairs reads what `score` writes of an images table";

/// Scored tables, read one after the other.
pub struct Images {
    inputs: Inputs,
    pub metrics: Vec<String>,
    margins: Vec<f64>,
}

/// The metrics of a scored table: its columns of floating-point numbers.
fn metrics_of(schema: &Schema) -> Vec<String> {
    let float = |t: &DataType| t.is_floating() && !matches!(t, DataType::Null);
    let fields = schema.fields().iter().filter(|f| float(f.data_type()) && f.name() != prompts::NSFW_PROB);
    fields.map(|f| f.name().clone()).collect()
}

impl Images {
    /// # Errors
    /// A table that is none, a missing column, an unknown metric.
    pub fn open(paths: &[PathBuf], wanted: &[String]) -> Result<Self> {
        let inputs = Inputs::open(paths)?;
        inputs.require(&NEEDED, HINT)?;
        let found = metrics_of(inputs.schema());
        ensure!(
            !found.is_empty(),
            "{}: no metric to vote (a column of floating-point numbers); run `score` first",
            inputs.name()
        );
        for (i, name) in wanted.iter().enumerate() {
            ensure!(found.contains(name), "--metrics: there is no metric '{name}' (there are: {})", found.join(", "));
            ensure!(!wanted[..i].contains(name), "--metrics names '{name}' twice; each metric has one vote");
        }
        let votes = |m: &String| inputs.schema().field_with_name(m).is_ok_and(|f| !is_judge(f));
        let metrics: Vec<String> = match wanted.is_empty() {
            true => found.into_iter().filter(votes).collect(),
            false => wanted.to_vec(),
        };
        let names: Vec<&str> = metrics.iter().map(String::as_str).collect();
        inputs.require(&names, "score all tables with the same metrics, or choose some with --metrics")?;
        let margins = vec![0.0; metrics.len()];
        Ok(Self { inputs, metrics, margins })
    }

    pub fn set_margins(&mut self, margins: Vec<f64>) {
        self.margins = margins;
    }

    pub fn name(&self) -> String {
        self.inputs.name()
    }

    pub fn pipe(&self) -> Option<String> {
        self.inputs.rows().is_none().then(|| self.name())
    }

    pub fn origins(&self) -> Result<Vec<InputOrigin>> {
        self.inputs.origins()
    }

    /// Reads from the beginning; a ballot holds all pairs of some prompts, about `batch` of them.
    pub fn read(&mut self, batch: usize) -> Result<Reader> {
        let names: Vec<&str> = self.metrics.iter().map(String::as_str).collect();
        let columns = [&NEEDED[..], &[prompts::SET], &names].concat();
        let batches = self.inputs.read(Some(&columns), 0..usize::MAX, batch)?;
        let (metrics, margins) = (self.metrics.clone(), self.margins.clone());
        Ok(Reader { batches, batch, metrics, margins, open: None, seen: HashSet::new(), done: vec![] })
    }
}

struct Prompt {
    key: (Option<String>, String),
    text: String,
    uids: Vec<String>,
    /// One row a metric.
    scores: Vec<Vec<Option<f32>>>,
}

pub struct Reader {
    batches: Batches,
    batch: usize,
    metrics: Vec<String>,
    margins: Vec<f64>,
    /// The prompt whose images are being read, and those that are read.
    open: Option<Prompt>,
    done: Vec<Prompt>,
    /// Hashes of all prompts so far, so that one that comes again is seen.
    seen: HashSet<[u8; 16]>,
}

impl Iterator for Reader {
    type Item = Result<Ballot>;
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let pairs: usize = self.done.iter().map(|p| p.uids.len() * p.uids.len().saturating_sub(1) / 2).sum();
            if pairs >= self.batch {
                break;
            }
            match self.batches.next() {
                Some(Ok(rows)) => {
                    if let Err(error) = self.add(&rows) {
                        return Some(Err(error));
                    }
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.done.extend(self.open.take());
                    break;
                }
            }
        }
        let done = std::mem::take(&mut self.done);
        (!done.is_empty()).then(|| Ok(self.ballot(&done)))
    }
}

impl Reader {
    fn add(&mut self, rows: &Rows) -> Result<()> {
        let (ids, texts, uids) =
            (rows.text(prompts::PROMPT_ID)?, rows.text(prompts::PROMPT)?, rows.text(images::IMAGE_UID)?);
        let sets = rows.text_if_there(prompts::SET)?;
        let scores = self.metrics.iter().map(|m| finite(rows, m)).collect::<Result<Vec<Float32Array>>>()?;
        for i in 0..rows.len() {
            let key = (sets.is_valid(i).then(|| sets.value(i).to_owned()), ids.value(i).to_owned());
            if self.open.as_ref().is_none_or(|p| p.key != key) {
                let hash = id::sha256_of(&[key.0.as_deref().unwrap_or("").as_bytes(), key.1.as_bytes()]);
                let mut short = [0; 16];
                short.copy_from_slice(&hash[..16]);
                ensure!(
                    self.seen.insert(short),
                    "{}: prompt '{}' comes again after another; the images of a prompt must stand together: sort the table by \
                     prompt_id, and join tables of the same prompts first",
                    rows.at(i),
                    texts.value(i)
                );
                let prompt =
                    Prompt { key, text: texts.value(i).to_owned(), uids: vec![], scores: vec![vec![]; scores.len()] };
                self.done.extend(self.open.replace(prompt));
            }
            let Some(prompt) = &mut self.open else { continue };
            let uid = uids.value(i);
            ensure!(
                prompt.uids.iter().all(|u| u != uid),
                "{}: image {uid} stands twice under prompt '{}'; an image cannot be better than itself",
                rows.at(i),
                prompt.text
            );
            prompt.uids.push(uid.to_owned());
            for (column, of) in scores.iter().zip(&mut prompt.scores) {
                of.push(column.is_valid(i).then(|| column.value(i)));
            }
        }
        Ok(())
    }

    /// All pairs of these prompts, the earlier image as image 0.
    fn ballot(&self, done: &[Prompt]) -> Ballot {
        let pairs = || {
            done.iter().flat_map(|p| {
                let k = p.uids.len();
                (0..k).flat_map(move |i| (i + 1..k).map(move |j| (p, i, j)))
            })
        };
        let text = |f: &dyn Fn(&Prompt, usize, usize) -> String| {
            StringArray::from_iter_values(pairs().map(|(p, i, j)| f(p, i, j)))
        };
        let ids = text(&|p, i, j| id::pair_id(&p.text, &p.uids[i], &p.uids[j], ""));
        let keys: Vec<ArrayRef> = vec![
            Arc::new(ids.clone()),
            Arc::new(text(&|p, _, _| p.text.clone())),
            Arc::new(text(&|p, i, _| p.uids[i].clone())),
            Arc::new(text(&|p, _, j| p.uids[j].clone())),
        ];
        let scores = self.margins.iter().enumerate().map(|(m, &margin)| {
            let m_0 = pairs().map(|(p, i, _)| p.scores[m][i]).collect();
            let m_1 = pairs().map(|(p, _, j)| p.scores[m][j]).collect();
            Scores::new(m_0, m_1, margin)
        });
        let scores = scores.collect();
        Ballot {
            label_0: vec![None; ids.len()],
            ids,
            keys,
            scores,
            prompts: done.iter().map(|p| p.uids.len()).collect(),
        }
    }
}
