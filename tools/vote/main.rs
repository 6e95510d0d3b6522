//! vote: turns the scores of several metrics into one preference per pair.
//!
//!   vote scores.parquet -o labels.parquet
//!   score pairs.parquet --models models/ --metrics hps,clip,pickscore,aesthetic -o - | vote - -o labels.parquet

mod arena;
mod args;
mod ballot;
mod ballots;
mod decide;
mod fit;
mod images;
mod labels;
mod per_metric;
mod rule;
mod scales;
mod source;
mod summary;
mod survey;
mod tournament;

use std::alloc::System;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, ensure};
use pipe::cli::{self, Answer};
use pipe::memory::Memory;
use pipe::{ahead::Ahead, progress, rule::Rule, schema, shard, table::Output};
use serde_json::{Map, Value};

use arena::Arena;
use args::Args;
use ballots::Columns;
use decide::{Decided, Judge};
use fit::Fit;
use rule::{Tally, Ties};
use scales::Scales;
use source::PairSource;
use summary::Summary;
use tournament::{Pairs, Rounds};

/// Batches that may wait between two steps of the work.
const WAITING: usize = 4;

#[global_allocator]
static MEMORY: Memory = Memory(System);

fn main() -> ExitCode {
    cli::run("vote", run)
}

fn run(args: Args) -> Result<Answer> {
    let common = &args.common;
    let read = args.scores.iter().map(|path| path.as_path()).chain(args.scales_file()).chain(args.arena.as_deref());
    let output = args.sharding.output_beside(common, read)?;
    let shard = args.sharding.shard;
    args.check()?;
    let ties = args.ties.under(&args.rule);
    let mut source = open(&args, ties)?;
    let (tally, scales, fit) = learn(&args, &mut source)?;

    let metrics = source.metrics().to_vec();
    let judge = Judge { tally, ties, seed: common.seed, arena: None };
    let judge = Judge { arena: arena(&args, &mut source, &judge)?.map(Arc::new), ..judge };
    let drawn = judge.arena.iter().flat_map(|arena| arena.origins.clone());
    let origin = args.origin(&metrics, ties, &scales)?.inputs(source.origins()?).inputs(drawn);
    let target = shard::target(output, shard);
    let mut out = Output::create(&target, schema::labels(&metrics), &origin)?;
    let (mut summary, mut rounds) = (Summary::new(&metrics), Rounds::default());
    let (name, bar) = (source.name(), progress::bar("vote", source.rows().map(|n| n as u64), common.quiet));
    // Three steps, in parallel where there are threads: reading, deciding, writing.
    let waiting = if common.threads.is_some_and(|n| n.get() == 1) { 0 } else { WAITING };
    let ballots = Ahead::new(source.read(Columns::All, shard)?, waiting)?;
    let same = judge.clone();
    let decide = move |ballot: Result<ballot::Ballot>| ballot.map(|ballot| (judge.decide(&ballot), ballot));
    for decided in Ahead::new(ballots.map(decide), waiting)? {
        let (mut decided, mut ballot) = decided?;
        bar.inc(decided.len() as u64);
        if let Some(pairs) = args.pairs {
            let best_worst = rounds.add_all(&ballot.prompts, &decided);
            match pairs {
                Pairs::All => {}
                Pairs::BestWorst => {
                    if let Some((again, (i, j))) = ballot.earlier.as_ref().zip(best_worst.earlier) {
                        let pair = again(i, j);
                        let decided = same.decide(&pair);
                        summary.add(&pair, &decided);
                        out.write(&labels::labels(&out.schema, &pair, &decided)?)?;
                    }
                    decided = best_worst.places.iter().map(|&i| decided[i as usize]).collect();
                    ballot = ballot.take(&best_worst.places)?;
                }
                Pairs::Pareto => {
                    let (rows, preferred) = rounds.pareto(&ballot);
                    decided = preferred.into_iter().map(Decided::by_none).collect();
                    ballot = ballot.take(&rows)?;
                }
            }
        }
        summary.add(&ballot, &decided);
        out.write(&labels::labels(&out.schema, &ballot, &decided)?)?;
    }
    bar.finish_and_clear();
    ensure!(summary.rows > 0 || shard.is_some() || rounds.prompts > 0, "{name} has no rows");
    let two = if args.pairs == Some(Pairs::Pareto) { "Pareto fronts" } else { "images" };
    ensure!(summary.rows > 0 || rounds.prompts == 0, "{name}: no prompt has two {two}, so there is no pair");

    let mut json = Map::new();
    if !args.by_fronts() {
        json.extend([("rule".to_owned(), args.rule.to_string().into()), ("ties".into(), ties.to_string().into())]);
    }
    json.extend(summary.json());
    json.extend(fit.as_ref().map(|fit| ("fit".to_owned(), fit.json(&metrics))));
    json.extend(
        same.arena
            .iter()
            .flat_map(|arena| [("arena".to_owned(), arena.json()), ("arena_unknown".to_owned(), arena.unknown())]),
    );
    json.extend(args.pairs.map(|_| ("prompts".to_owned(), rounds.json())));
    let json = serde_json::to_string(&Value::Object(json))?;
    out.note("summary", &json);
    out.finish()?;
    let learned = fit.iter().map(|fit| fit.text(&metrics)).chain(same.arena.iter().map(|arena| arena.text())).collect();
    tell(&args, &summary, fit.as_ref(), learned, &rounds, &metrics, json)
}

/// Opens the tables with their voters and margins, and checks that they have what the rule needs.
fn open(args: &Args, ties: Ties) -> Result<PairSource> {
    let mut source = PairSource::open(&args.scores, args.pairs, &args.metrics)?;
    if args.human_voter {
        source.add_people()?;
    }
    source.set_margins(args.margins(source.metrics())?);
    if ties != args.ties {
        args.common.say("vote: note: --ties is not used under --rule human, where a tie always abstains");
    }
    check(&source, &args.rule, ties)?;
    Ok(source)
}

fn check(source: &PairSource, rule: &Rule, ties: Ties) -> Result<()> {
    let human = *rule == Rule::Human;
    ensure!(
        !source.metrics().is_empty() || human,
        "{}: no metric to vote (a metric m has the columns m_0 and m_1, and judges vote only if --metrics names them); run `score` first",
        source.name()
    );
    ensure!(source.metrics().len() <= 64, "{}: {} voters; 64 is the most", source.name(), source.metrics().len());
    ensure!(
        source.has_labels() || (!human && ties != Ties::Human),
        "{}: column 'label_0' is missing, and {} needs it; score a pairs table that has human labels",
        source.name(),
        if human { "--rule human" } else { "--ties human" }
    );
    Ok(())
}

/// The rule with its numbers: from the command line, from a file, or learned in a first pass over the table.
fn learn(args: &Args, source: &mut PairSource) -> Result<(Tally, Scales, Option<Fit>)> {
    let metrics = source.metrics().to_vec();
    let mut weights = args.weights(&metrics)?;
    let (mut scales, mut fit) = (Scales::new(), None);
    if let Some(path) = args.scales_file() {
        scales = scales::read(path, &metrics)?;
    }
    if let Some(what) = args.first_pass() {
        if let Some(pipe) = source.pipe() {
            anyhow::bail!(
                "{what} in a first pass over the scores, but {pipe} can be read only once: write it to a file first"
            );
        }
        let survey = survey::survey(source, args.fit.is_some())?;
        if args.scales_file().is_none() {
            scales = survey.scales;
        }
        fit = survey.fit;
    }
    if let Some(fit) = &fit {
        weights.clone_from(&fit.weights);
        ensure!(weights.iter().any(|&w| w > 0.0), "--fit: by these votes, no voter is right more often than not");
    }
    Ok((Tally::new(args.rule.clone(), &metrics, weights, &scales)?, scales, fit))
}

/// The models that drew the pairs, with what the preferences say of them.
fn arena(args: &Args, source: &mut PairSource, judge: &Judge) -> Result<Option<Arena>> {
    let Some(path) = &args.arena else { return Ok(None) };
    let mut arena = Arena::read(path)?;
    for ballot in source.read(Columns::Scores, None)? {
        let ballot = ballot?;
        arena
            .count(judge.decide(&ballot).iter().enumerate().map(|(i, d)| (ballot.ids.value(i), d.decision.preference)));
    }
    arena.fit()?;
    Ok(Some(arena))
}

/// Prints the summary: text on standard error; JSON on standard output, unless the labels go there.
fn tell(
    args: &Args,
    summary: &Summary,
    fit: Option<&Fit>,
    learned: String,
    rounds: &Rounds,
    metrics: &[String],
    json: String,
) -> Result<Answer> {
    let common = &args.common;
    if common.json {
        common.answer(json)?;
    } else {
        let mut text = match args.by_fronts() {
            true => format!("Pareto fronts: {}", summary.text()),
            false => format!("rule {}, ties {}: {}", args.rule, args.ties.under(&args.rule), summary.text()),
        };
        text += &learned;
        text.extend(args.pairs.map(|_| rounds.text()));
        common.say(text.trim_end());
    }
    for metric in summary.collapsed() {
        common.say(format!(
            "vote: warning: {metric} scores both images alike in every pair, so it never votes; look at its model"
        ));
    }
    for (metric, _) in metrics.iter().zip(fit.iter().flat_map(|f| &f.weights)).filter(|(_, w)| **w == 0.0) {
        common.say(format!(
            "vote: warning: {metric} contradicts the other voters more often than not; its fitted weight is 0"
        ));
    }
    Ok(Answer::Yes)
}
