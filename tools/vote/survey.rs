//! What must be known of the whole table before the first pair is decided: spreads for `zsum` and `minmax`, patterns of votes
//! for `--fit`. A first pass over the scores.

use anyhow::Result;

use crate::{
    ballots::Columns,
    fit::{Fit, Patterns},
    scales::Scales,
    source::Source,
    spread::Spread,
};

pub struct Survey {
    pub scales: Scales,
    pub fit: Option<Fit>,
}

/// Reads every row, also where only a shard is to be decided: all shards go by the same numbers.
pub fn survey(source: &mut Source, fit: bool) -> Result<Survey> {
    let metrics = source.metrics().to_vec();
    let mut spreads = vec![Spread::default(); metrics.len()];
    let mut patterns = fit.then(|| Patterns::new(metrics.len())).transpose()?;
    for ballot in source.read(Columns::Scores, None)? {
        let ballot = ballot?;
        spreads.iter_mut().zip(&ballot.scores).for_each(|(spread, scores)| spread.add(scores));
        if let Some(patterns) = &mut patterns {
            (0..ballot.len()).for_each(|i| patterns.add(ballot.scores.iter().map(|scores| scores.s[i])));
        }
    }
    let scales = metrics.iter().cloned().zip(&spreads).filter_map(|(m, spread)| Some((m, spread.scale()?))).collect();
    Ok(Survey { scales, fit: patterns.map(|p| p.fit(&metrics)).transpose()? })
}
