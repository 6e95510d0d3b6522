//! Scores tables side by side: finds their metrics and keeps their rows in step.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Result, bail, ensure};
use arrow::array::{Array, ArrayRef};
use pipe::schema::{is_judge, labels, pairs};
use pipe::table::{Batches, Inputs};
use pipe::text::shown;
use pipe::{column::Rows, metrics, origin::InputOrigin, pairs::human_labels, shard::Shard};

use crate::ballot::{Ballot, HUMAN, Scores, human_scores};

const KEYS: [&str; 4] = [labels::PAIR_ID, pairs::CAPTION, pairs::UID[0], pairs::UID[1]];
const HINT: &str =
    "`vote` reads what `score` writes for a pairs table; for an images table, add --pairs best-worst or --pairs all";

struct Column {
    inputs: Inputs,
    metrics: Vec<String>,
}

/// All tables: columns of different metrics side by side, over the same pairs.
pub struct Ballots {
    columns: Vec<Column>,
    /// The metrics that vote, in the order of their columns, then people if they vote too.
    pub metrics: Vec<String>,
    margins: Vec<f64>,
}

/// Which columns are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    All,
    /// Scores and labels, for a first pass.
    Scores,
}

/// Appends a table to those with the same metrics, or puts it beside all others.
fn add(columns: &mut Vec<Column>, inputs: Inputs, metrics: Vec<String>) -> Result<()> {
    let shares = |c: &Column| c.metrics.iter().any(|m| metrics.contains(m)) || c.metrics == metrics;
    match columns.iter_mut().find(|c| shares(c)) {
        None => columns.push(Column { inputs, metrics }),
        Some(column) => {
            let same = column.metrics.len() == metrics.len() && metrics.iter().all(|m| column.metrics.contains(m));
            ensure!(
                same,
                "{} has [{}] but {} has [{}]: tables with the same metrics are read one after the other, with different ones side by side; use --metrics to choose",
                column.inputs.name(),
                column.metrics.join(", "),
                inputs.name(),
                metrics.join(", "),
            );
            column.inputs.append(inputs);
        }
    }
    Ok(())
}

impl Ballots {
    /// Opens the tables and finds out which are read side by side. `wanted`: only these metrics, in this order (empty: all but
    /// judges).
    pub fn open(paths: &[PathBuf], wanted: &[String]) -> Result<Self> {
        let mut columns: Vec<Column> = vec![];
        let mut found = vec![];
        for inputs in Inputs::open_each(paths)? {
            inputs.require(&KEYS, HINT)?;
            let all = metrics::of_pairs(inputs.schema());
            let half = metrics::half_of_pairs(inputs.schema()).filter(|_| wanted.is_empty());
            if let Some((column, other)) = half {
                bail!(
                    "{}: column '{}' has no column of numbers '{}' beside it, so half a metric is missing; score the table \
                     again, or choose metrics with --metrics",
                    inputs.name(),
                    shown(&column),
                    shown(&other)
                );
            }
            let votes = |m: &String| match wanted.is_empty() {
                true => inputs.schema().field_with_name(&format!("{m}_0")).is_ok_and(|f| !is_judge(f)),
                false => wanted.contains(m),
            };
            let metrics: Vec<_> = all.iter().filter(|m| votes(m)).cloned().collect();
            for name in all {
                if !found.contains(&name) {
                    found.push(name);
                }
            }
            for m in &metrics {
                inputs
                    .require(&[&format!("{m}_0"), &format!("{m}_1")], "the parts of a table have the same columns")?;
            }
            ensure!(
                !metrics.is_empty() || inputs.has(pairs::LABEL[0]),
                "{} has no vote: it has neither label_0 nor a metric{}",
                inputs.name(),
                if found.is_empty() { " (a metric m has the columns m_0 and m_1)" } else { " that was asked for" }
            );
            add(&mut columns, inputs, metrics)?;
        }
        metrics::check(wanted, &found)?;
        let metrics: Vec<String> = match wanted.is_empty() {
            true => columns.iter().flat_map(|c| c.metrics.clone()).collect(),
            false => wanted.to_vec(),
        };
        let margins = vec![0.0; metrics.len()];
        let ballots = Self { columns, metrics, margins };
        ballots.same_length()?;
        Ok(ballots)
    }

    fn same_length(&self) -> Result<()> {
        let mut known = self.columns.iter().filter_map(|c| Some((c.inputs.name(), c.inputs.rows()?)));
        let Some((first, rows)) = known.next() else { return Ok(()) };
        ensure!(rows > 0, "{first} has no rows");
        for (name, others) in known {
            ensure!(
                others == rows,
                "{first} has {rows} rows and {name} has {others}: tables that are read side by side must hold the same pairs"
            );
        }
        Ok(())
    }

    pub fn name(&self) -> String {
        self.columns.iter().map(|c| c.inputs.name()).collect::<Vec<_>>().join(", ")
    }

    pub fn has_labels(&self) -> bool {
        self.columns.iter().any(|c| c.inputs.has(pairs::LABEL[0]))
    }

    /// Number of pairs, for the progress bar; `None` from a pipe.
    pub fn rows(&self) -> Option<usize> {
        self.columns.iter().find_map(|c| c.inputs.rows())
    }

    /// A table that can be read only once, if there is one.
    pub fn pipe(&self) -> Option<String> {
        self.columns.iter().find(|c| c.inputs.rows().is_none()).map(|c| c.inputs.name())
    }

    pub fn origins(&self) -> Result<Vec<InputOrigin>> {
        Ok(self.columns.iter().map(|c| c.inputs.origins()).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Lets people vote too, as one more metric.
    pub fn add_people(&mut self) -> Result<()> {
        ensure!(
            self.has_labels(),
            "{}: column 'label_0' is missing, and --human-voter needs it; score a pairs table that has human labels",
            self.name()
        );
        ensure!(
            self.metrics.iter().all(|m| m != HUMAN),
            "{}: a metric is called '{HUMAN}', so people cannot vote beside it under --human-voter",
            self.name()
        );
        self.metrics.push(HUMAN.into());
        self.margins.push(0.0);
        Ok(())
    }

    /// A difference must exceed its metric's margin to be a vote; one margin per metric.
    pub fn set_margins(&mut self, margins: Vec<f64>) {
        self.margins = margins;
    }

    /// Reads the rows from the beginning. Files can be read any number of times, a pipe once.
    pub fn read(&mut self, columns: Columns, shard: Option<Shard>, batch: usize) -> Result<Reader> {
        let labelled = self.columns.iter().position(|c| c.inputs.has(pairs::LABEL[0]));
        let mut sources = vec![];
        for (i, column) in self.columns.iter_mut().enumerate() {
            let mut names: Vec<String> =
                column.metrics.iter().flat_map(|m| [format!("{m}_0"), format!("{m}_1")]).collect();
            // The first table has the pair's keys; of the others only the id is read, to compare it.
            let keys = if i == 0 && columns == Columns::All { 4 } else { 1 };
            names.extend(KEYS[..keys].iter().map(|k| k.to_string()));
            if labelled == Some(i) {
                names.extend([pairs::LABEL[0], pairs::HAS_LABEL].map(String::from));
            }
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let range = column.inputs.range(shard)?;
            let name = column.inputs.name();
            sources.push(OpenTable { name, batches: column.inputs.read(Some(&names), range, batch)?, rest: None });
        }
        let home = |m: &String| self.columns.iter().position(|c| c.metrics.contains(m));
        let metrics = self.metrics.iter().map(|m| (home(m), m.clone())).collect();
        let keys: &'static [&'static str] = if columns == Columns::All { &KEYS } else { &[] };
        Ok(Reader { sources, metrics, labelled, keys, margins: self.margins.clone() })
    }
}

struct OpenTable {
    name: String,
    batches: Batches,
    rest: Option<Rows>,
}

/// Batches from all tables, cut to the same length, after their pair ids were compared.
pub struct Reader {
    sources: Vec<OpenTable>,
    /// The table that has each metric; people are in none.
    metrics: Vec<(Option<usize>, String)>,
    labelled: Option<usize>,
    keys: &'static [&'static str],
    margins: Vec<f64>,
}

impl Iterator for Reader {
    type Item = Result<Ballot>;
    fn next(&mut self) -> Option<Self::Item> {
        self.step().and_then(|rows| rows.map(|rows| self.ballot(&rows)).transpose()).transpose()
    }
}

impl Reader {
    fn step(&mut self) -> Result<Option<Vec<Rows>>> {
        for source in &mut self.sources {
            if source.rest.is_none() {
                source.rest = source.batches.next().transpose()?;
            }
        }
        let ended = |s: &OpenTable| s.rest.is_none();
        if self.sources.iter().all(ended) {
            return Ok(None);
        }
        if let (Some(short), Some(long)) =
            (self.sources.iter().find(|s| ended(s)), self.sources.iter().find(|s| !ended(s)))
        {
            bail!(
                "{} has fewer rows than {}: tables that are read side by side must hold the same pairs",
                short.name,
                long.name
            );
        }
        let n = self.sources.iter().flat_map(|s| &s.rest).map(Rows::len).min().unwrap_or(0);
        let mut cut = vec![];
        for source in &mut self.sources {
            if let Some(rows) = source.rest.take() {
                cut.push(rows.slice(0, n));
                source.rest = (rows.len() > n).then(|| rows.slice(n, rows.len() - n));
            }
        }
        Ok(Some(cut))
    }

    fn ballot(&self, rows: &[Rows]) -> Result<Ballot> {
        let ids = rows[0].text(labels::PAIR_ID)?;
        for other in &rows[1..] {
            let theirs = other.text(labels::PAIR_ID)?;
            if let Some(i) =
                (ids != theirs).then(|| (0..ids.len()).find(|&i| ids.value(i) != theirs.value(i))).flatten()
            {
                bail!(
                    "{} is pair {}, but {} is pair {}: tables that are read side by side must hold the same pairs in the same order",
                    rows[0].at(i),
                    ids.value(i),
                    other.at(i),
                    theirs.value(i)
                );
            }
        }
        let keys = self.keys.iter().map(|key| Ok(Arc::new(rows[0].text(key)?) as ArrayRef)).collect::<Result<_>>()?;
        let label_0: Vec<Option<f32>> = match self.labelled {
            Some(i) => human_labels(&rows[i])?.iter().collect(),
            None => vec![None; ids.len()],
        };
        let scores = self.metrics.iter().zip(&self.margins).map(|((home, m), &margin)| -> Result<Scores> {
            let Some(i) = *home else { return Ok(human_scores(&label_0)) };
            let [m_0, m_1] = [0, 1].map(|side| rows[i].scores(&format!("{m}_{side}")));
            Ok(Scores::new(m_0?, m_1?, margin))
        });
        let scores = scores.collect::<Result<_>>()?;
        Ok(Ballot { ids, keys, label_0, scores, prompts: vec![], earlier: None })
    }
}
