//! `--verify N`: are the scores of a table those that the models give?

use std::path::Path;

use anyhow::{Context, Result, ensure};
use arrow::array::Array;
use pipe::{
    cli::{Answer, Common},
    place, seed, stop,
    table::Inputs,
    take::Taker,
};

use crate::{engine::Engine, rows::Kind};

/// Two scores this far apart are different scores. Kinds of processors differ by a hundredth of it.
const TOLERANCE: f32 = 1e-5;

/// Scores `n` random rows of `inputs` again and compares them with those in `out`.
///
/// # Errors
/// `out` is no table of these rows and metrics; a table is no Parquet file.
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
    let metrics: Vec<String> = engine.scorers.iter().map(|(name, _)| (*name).to_owned()).collect();
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
    stop::watch()?;

    let order = seed::draws(common.seed, "verify", "", 0).permutation(total);
    let mut chosen: Vec<usize> = order.into_iter().take(n).map(|row| row as usize).collect();
    chosen.sort_unstable();
    let (mut worst, mut different, mut first) = (0f32, 0, None);
    let caption = kind.caption_column();
    let wanted = [&names[..], &[caption]].concat();
    for row in &chosen {
        let there = theirs.take(&[*row], &wanted)?.remove(0);
        let here = ours.take(&[*row], &kind.columns())?.remove(0);
        let captions = [here.text_or_null(caption)?, there.text_or_null(caption)?];
        let text = |i: usize| if captions[i].is_valid(0) { captions[i].value(0) } else { "" };
        ensure!(text(0) == text(1), "{} and {} hold different captions", here.at(0), there.at(0));
        let fresh = engine.score(&here)?.into_iter().flatten();
        for (name, fresh) in names.iter().zip(fresh) {
            let kept = there.f32_or_null(name)?;
            let kept = kept.is_valid(0).then(|| kept.value(0));
            let gap = match (kept, fresh) {
                (Some(a), Some(b)) => (a - b).abs(),
                (None, None) => 0.0,
                _ => f32::INFINITY,
            };
            if gap > TOLERANCE || gap.is_nan() {
                different += 1;
                first.get_or_insert_with(|| format!("{}: {name} is {}, now {}", there.at(0), show(kept), show(fresh)));
            }
            worst = worst.max(gap);
        }
        stop::check()?;
    }
    let compared = chosen.len() * names.len();
    match first {
        None => {
            common.say(format_args!(
                "{}: {compared} scores in {} rows are the same (largest difference {worst:.1e})",
                scored.name(),
                chosen.len()
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

fn show(score: Option<f32>) -> String {
    score.map_or_else(|| "null".into(), |s| s.to_string())
}
