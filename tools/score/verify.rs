//! `--verify N`: whether the scores of a table are those that the models give.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use arrow::array::Array;
use pipe::cli::{Answer, Common};
use pipe::{column::Rows, place, seed, stop, table::Inputs, take::Taker};

use crate::{engine::Engine, rows::Kind};

/// Two scores that differ by more are different scores. Different processors differ by about 1 % of this.
const TOLERANCE: f32 = 1e-5;

/// How fresh scores compare with those in a table.
#[derive(Default)]
struct Comparison {
    compared: usize,
    different: usize,
    worst: f32,
    /// The first difference, for a person.
    first: Option<String>,
}

impl Comparison {
    /// `at`: the row, for a person.
    fn add(&mut self, at: &str, column: &str, kept: Option<f32>, fresh: Option<f32>) {
        let gap = match (kept, fresh) {
            (Some(a), Some(b)) => (a - b).abs(),
            (None, None) => 0.0,
            _ => f32::INFINITY,
        };
        self.compared += 1;
        if gap > TOLERANCE || gap.is_nan() {
            self.different += 1;
            self.first.get_or_insert_with(|| format!("{at}: {column} is {}, now {}", show(kept), show(fresh)));
        }
        self.worst = self.worst.max(gap);
    }
}

/// Scores `n` random rows of `inputs` again and compares them with those in `out`.
pub fn verify(
    engine: &mut Engine,
    kind: Kind,
    inputs: &Inputs,
    out: &Path,
    n: usize,
    common: &Common,
) -> Result<Answer> {
    ensure!(
        inputs.rows().is_some() && !place::is_stream(out),
        "--verify draws rows at random; name the table as a Parquet file"
    );
    let scored = Inputs::open(&[out.to_owned()]).context("--verify needs the table that -o names")?;
    let metrics: Vec<String> = engine.panel.members.iter().map(|m| m.name.to_owned()).collect();
    let columns = kind.score_columns(&metrics);
    let names: Vec<&str> = columns.iter().map(String::as_str).collect();
    scored.require(&names, "choose the metrics that it has with --metrics")?;
    let total = inputs.rows().unwrap_or(0);
    ensure!(
        scored.rows() == Some(total),
        "{} has {} rows and {} has {total}: it is not the table made of it",
        scored.name(),
        scored.rows().unwrap_or(0),
        inputs.name()
    );
    let (theirs, ours) = (Taker::open(&scored)?, Taker::open(inputs)?);
    stop::watch_and_leave("score")?;

    let order = seed::draws(common.seed, "verify", "", 0).permutation(total);
    let mut chosen: Vec<usize> = order.into_iter().take(n).map(|row| row as usize).collect();
    chosen.sort_unstable();
    let wanted = [&names[..], &[kind.caption_column()]].concat();
    let mut comparison = Comparison::default();
    for row in &chosen {
        let there = theirs.take(&[*row], &wanted)?.remove(0);
        let here = ours.take(&[*row], &kind.columns())?.remove(0);
        require_same_caption(kind.caption_column(), &here, &there)?;
        let fresh = engine.score(&here)?.into_iter().flatten();
        for (name, fresh) in names.iter().zip(fresh) {
            let kept = there.f32_or_null(name)?;
            comparison.add(&there.at(0), name, kept.is_valid(0).then(|| kept.value(0)), fresh);
        }
        stop::check()?;
    }
    let Comparison { compared, different, worst, first } = comparison;
    let name = scored.name();
    match first {
        None => {
            let rows = chosen.len();
            common.say(format_args!(
                "{name}: {compared} scores in {rows} rows are the same (largest difference {worst:.1e})"
            ));
            Ok(Answer::Yes)
        }
        Some(first) => {
            common.say(format_args!(
                "score: {different} of {compared} scores differ, by up to {worst:.1e}; the first: {first}"
            ));
            Ok(Answer::No)
        }
    }
}

/// A null caption has become an empty one in the output.
fn require_same_caption(column: &str, here: &Rows, there: &Rows) -> Result<()> {
    let captions = [here.text_or_null(column)?, there.text_or_null(column)?];
    let [ours, theirs] = captions.each_ref().map(|c| if c.is_valid(0) { c.value(0) } else { "" });
    ensure!(ours == theirs, "{} and {} hold different captions", here.at(0), there.at(0));
    Ok(())
}

fn show(score: Option<f32>) -> String {
    score.map_or_else(|| "null".into(), |s| s.to_string())
}
