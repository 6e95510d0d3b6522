//! Who judges: the scorer behind each metric, which must be the same for all tables, and whether a metric also voted on the
//! labels that a model was trained with.

use anyhow::{Result, bail, ensure};
use pipe::{origin::Origin, table::Inputs};
use serde_json::Value;

/// The hash of each metric's scorer, and its arithmetic where that is not f32, from the nearest `score` in the origin of each part
/// of the table; `None` for a part that does not say.
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

/// Refuses tables whose scores come from different scorers. Returns the metrics whose scorer some table does not tell.
pub fn same_scorers(tables: &[(String, Vec<Vec<Option<Value>>>)], metrics: &[String]) -> Result<Vec<String>> {
    let mut untold = vec![];
    for (m, metric) in metrics.iter().enumerate() {
        let all = || tables.iter().flat_map(|(table, scorers)| scorers[m].iter().map(move |s| (table, s)));
        if all().any(|(_, scorer)| scorer.is_none()) {
            untold.push(metric.clone());
        }
        let mut told = all().filter_map(|(table, scorer)| Some((table, scorer.as_ref()?)));
        let Some((first, theirs)) = told.next() else { continue };
        if let Some((other, _)) = told.find(|(_, scorer)| *scorer != theirs) {
            bail!(
                "{metric} comes from different scorers in {first} and {other}, so its scores cannot be compared; score both with the same model and options"
            );
        }
    }
    Ok(untold)
}

/// The metrics that voted on the labels of the table's model, by every `vote` that its origin tells of.
pub fn voted(inputs: &Inputs) -> Result<Vec<String>> {
    let mut voted: Vec<String> = vec![];
    for origin in inputs.origins()?.iter().filter_map(|input| input.origin.as_deref()) {
        for vote in origin.chain().into_iter().filter(|o| o.tool == "vote") {
            let text = |name: &str| vote.args.get(name).and_then(Value::as_str).map(String::from);
            let metrics = vote.args.get("metrics").and_then(Value::as_array).into_iter().flatten();
            let metrics = metrics.filter_map(Value::as_str).map(String::from);
            let rule = text("rule").unwrap_or_default();
            match rule.strip_prefix("single:") {
                _ if rule == "human" => {}
                Some(one) => voted.push(one.to_owned()),
                None => voted.extend(metrics),
            }
        }
    }
    voted.sort();
    voted.dedup();
    Ok(voted)
}

/// The metrics that judge and did not vote: those of `said`, and where any vote is known, those that had no part in one.
///
/// # Errors
/// A metric of `said` is not compared, or is known to have voted.
pub fn held_out(said: &[String], metrics: &[String], voted: &[(String, Vec<String>)]) -> Result<Vec<String>> {
    for name in said {
        ensure!(
            metrics.contains(name),
            "--held-out: {name} is not among the metrics compared ({}); score it too, or name another",
            metrics.join(", ")
        );
        if let Some((table, _)) = voted.iter().find(|(_, voted)| voted.contains(name)) {
            bail!("--held-out: {name} voted on the labels behind {table}, so it is no independent judge of it");
        }
    }
    let known = voted.iter().any(|(_, voted)| !voted.is_empty());
    let idle = |m: &&String| known && !voted.iter().any(|(_, voted)| voted.contains(m));
    Ok(metrics.iter().filter(|m| said.contains(m) || idle(m)).cloned().collect())
}
