//! The judges: the scorer behind each metric, which must be the same for all tables, and whether a metric also voted on the labels
//! that a model was trained with.

use anyhow::{Result, bail, ensure};
use pipe::{origin::Origin, rule::Rule, table::Inputs};
use serde_json::Value;

/// A table, and the metrics that voted on the labels of its model.
pub type TableVoters = (String, Vec<String>);

/// The hash of each metric's scorer, and its dtype if that is not f32, from the nearest `score` in the origin of each part of the
/// table; `None` for a part whose origin does not have it.
pub fn scorers(inputs: &Inputs, metrics: &[String]) -> Result<Vec<Vec<Option<Value>>>> {
    let scorer = |origin: Option<&Origin>, metric: &String| {
        let score = origin?.chain().into_iter().find(|o| o.tool == "score")?;
        let hash = score.models.get(metric)?.clone();
        Some(match score.args.get("dtype") {
            None => hash,
            Some(dtype) => vec![hash, dtype.clone()].into(),
        })
    };
    let origins = inputs.origins()?;
    Ok(metrics.iter().map(|m| origins.iter().map(|input| scorer(input.origin.as_deref(), m)).collect()).collect())
}

/// Returns the metrics whose scorer is not known for every table.
pub fn same_scorers(tables: &[(String, Vec<Vec<Option<Value>>>)], metrics: &[String]) -> Result<Vec<String>> {
    let mut unknown = vec![];
    for (m, metric) in metrics.iter().enumerate() {
        let all = || tables.iter().flat_map(|(table, scorers)| scorers[m].iter().map(move |s| (table, s)));
        if all().any(|(_, scorer)| scorer.is_none()) {
            unknown.push(metric.clone());
        }
        let mut known = all().filter_map(|(table, scorer)| Some((table, scorer.as_ref()?)));
        let Some((first, theirs)) = known.next() else { continue };
        if let Some((other, _)) = known.find(|(_, scorer)| *scorer != theirs) {
            bail!(
                "{metric} comes from different scorers in {first} and {other}, so its scores cannot be compared; score both with the same model and options"
            );
        }
    }
    Ok(unknown)
}

/// The metrics that voted on the labels of the table's model, from every `vote` in its origin.
pub fn voted(inputs: &Inputs) -> Result<Vec<String>> {
    let mut voted: Vec<String> = vec![];
    for origin in inputs.origins()?.iter().filter_map(|input| input.origin.as_deref()) {
        for vote in origin.chain().into_iter().filter(|o| o.tool == "vote") {
            let metrics = vote.args.get("metrics").and_then(Value::as_array).into_iter().flatten();
            let metrics = metrics.filter_map(Value::as_str).map(String::from).collect();
            let rule = vote.args.get("rule").and_then(Value::as_str).and_then(|rule| rule.parse::<Rule>().ok());
            // Under a rule that is not known here, all metrics may have voted.
            voted.extend(rule.unwrap_or(Rule::Majority).voters(metrics));
        }
    }
    voted.sort();
    voted.dedup();
    Ok(voted)
}

/// The metrics that judge and did not vote: those that `--held-out` names, and those that took part in none of the known votes.
pub fn held_out(named: &[String], metrics: &[String], voted: &[TableVoters]) -> Result<Vec<String>> {
    for name in named {
        ensure!(
            metrics.contains(name),
            "--held-out: {name} is not among the metrics compared ({}); score it too, or name another",
            metrics.join(", ")
        );
        if let Some((table, _)) = voted.iter().find(|(_, voted)| voted.contains(name)) {
            bail!("--held-out: {name} voted on the labels behind {table}, so it is not an independent judge of it");
        }
    }
    let known = voted.iter().any(|(_, voted)| !voted.is_empty());
    let idle = |m: &&String| known && !voted.iter().any(|(_, voted)| voted.contains(m));
    Ok(metrics.iter().filter(|m| named.contains(m) || idle(m)).cloned().collect())
}
