//! A first pass over the scores, for what must be known of the whole table before the first pair is decided: spreads for `zsum`
//! and `minmax`, patterns of votes for `--fit`.

use anyhow::Result;
use pipe::moments::Moments;

use crate::fit::{Fit, Patterns};
use crate::scales::{Scale, Scales};
use crate::{ballots::Columns, source::PairSource};

pub struct Survey {
    pub scales: Scales,
    pub fit: Option<Fit>,
}

/// Reads every row, also if only a shard will be decided: all shards use the same numbers.
pub fn survey(source: &mut PairSource, fit: bool) -> Result<Survey> {
    let metrics = source.metrics().to_vec();
    let mut moments = vec![Moments::default(); metrics.len()];
    let mut patterns = fit.then(|| Patterns::new(metrics.len())).transpose()?;
    for ballot in source.read(Columns::Scores, None)? {
        let ballot = ballot?;
        moments.iter_mut().zip(&ballot.scores).for_each(|(moments, scores)| scores.add_to(moments));
        if let Some(patterns) = &mut patterns {
            (0..ballot.len()).for_each(|i| patterns.add(ballot.scores.iter().map(|scores| scores.s[i])));
        }
    }
    let scales = metrics.iter().cloned().zip(&moments).filter_map(|(m, moments)| Some((m, Scale::of(moments)?)));
    Ok(Survey { scales: scales.collect(), fit: patterns.map(|p| p.fit(&metrics)).transpose()? })
}
