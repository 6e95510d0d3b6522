//! vote: turns the scores of several metrics into one preference a pair.
//!
//!   vote scores.parquet -o labels.parquet
//!   score pairs.parquet --models models/ --metrics hps,clip,pickscore,aesthetic -o - | vote - -o labels.parquet

mod ballots;
mod rule;
mod summary;

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, Result, ensure};
use arrow::{
    array::{Array, ArrayRef, Float32Array, Int8Array, Int32Array, RecordBatch},
    datatypes::SchemaRef,
};
use clap::Parser;
use pipe::{
    cli::{self, Answer, Common},
    origin::Origin,
    progress, schema,
    table::{self, Output},
};

use ballots::{Ballot, Ballots};
use rule::{Decision, Pair, Rule, Ties};
use summary::Summary;

/// Turn the scores of several metrics into one preference a pair
///
/// Each metric votes for the image that it scores higher; the images' labels follow the rule, by default the majority
/// (BalancedDPO, Eq. 6 and 7). Rows keep their order, one label a pair, in Pick-a-Pic's form too (label_0, label_1), so
/// that Diffusion-DPO trains on the result unchanged. A null score is no vote.
#[derive(Parser)]
#[command(name = "vote", version, max_term_width = 100, after_help = EXAMPLES)]
struct Args {
    /// Scores tables (Parquet, Arrow, a folder of parts, or `-`)
    ///
    /// Tables with the same metrics are read one after the other; tables with different metrics are read side by side
    /// and must hold the same pairs in the same order.
    #[arg(required = true, value_name = "SCORES")]
    scores: Vec<PathBuf>,
    /// How votes become a preference: `majority`, `single:METRIC` or `human`
    ///
    /// majority: the image that more metrics prefer. single:METRIC: that metric alone. human: label_0, where 0.5
    /// abstains, as Diffusion-DPO drops such pairs.
    #[arg(long, default_value = "majority")]
    rule: Rule,
    /// Metrics that vote, separated by commas [default: every m with columns m_0 and m_1]
    #[arg(long, value_name = "M,...", value_delimiter = ',')]
    metrics: Vec<String>,
    /// Who decides where the votes tie; four voters tie in 15 to 35 % of pairs, and the paper gives no rule
    #[arg(long, value_enum, value_name = "POLICY", default_value = "abstain")]
    ties: Ties,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  vote scores.parquet -o labels.parquet
  vote hps.parquet clip.parquet -o labels.parquet --ties human
  vote scores.parquet -o hps-only.parquet --rule single:hps
  score pairs.parquet --models models/ --metrics hps,clip -o - | vote - -o labels.parquet --json

Exit status: 0 done, 2 trouble.";

/// Rows a batch: scores are small, and so are eight thousand of them.
const BATCH: usize = 8192;

fn main() -> ExitCode {
    cli::run("vote", run)
}

fn run(args: Args) -> Result<Answer> {
    let common = &args.common;
    let output = common.output()?;
    let ballots = Ballots::open(&args.scores, &args.metrics)?;
    let rule = args.rule.over(&ballots.metrics)?;
    let ties = args.rule.ties(args.ties);
    if ties != args.ties {
        common.say("vote: note: --ties is not used under --rule human, where a tie always abstains");
    }
    check(&ballots, &rule, ties)?;

    let mut summary = Summary::new(&ballots.metrics);
    let target = table::target(output, common.shard);
    let mut labels = Output::create(&target, schema::labels(&ballots.metrics), &origin(&args, &ballots, ties)?)?;
    let schema = labels.schema.clone();
    let (name, bar) = (ballots.name(), progress::bar("vote", ballots.rows().map(|n| n as u64), common.quiet));
    for ballot in ballots.read(common.shard, BATCH)? {
        let ballot = ballot?;
        summary.add_scores(&ballot);
        let decisions = decide(&ballot, &rule, ties, common.seed);
        decisions.iter().for_each(|d| summary.add_decision(d));
        labels.write(&label(&schema, &ballot, &decisions)?)?;
        bar.inc(ballot.ids.len() as u64);
    }
    bar.finish_and_clear();
    ensure!(summary.rows > 0 || common.shard.is_some(), "{name} has no rows");
    labels.finish()?;
    tell(&args, ties, &summary)
}

/// What a rule cannot do without.
fn check(ballots: &Ballots, rule: &Rule<usize>, ties: Ties) -> Result<()> {
    ensure!(
        !ballots.metrics.is_empty() || *rule == Rule::Human,
        "{}: no metric to vote (a metric m has the columns m_0 and m_1); run `score` first",
        ballots.name()
    );
    ensure!(
        ballots.has_labels() || (*rule != Rule::Human && ties != Ties::Human),
        "{}: column 'label_0' is missing, and {} needs it; score a pairs table that has human labels",
        ballots.name(),
        if *rule == Rule::Human { "--rule human" } else { "--ties human" }
    );
    Ok(())
}

fn origin(args: &Args, ballots: &Ballots, ties: Ties) -> Result<Origin> {
    let mut origin = Origin::new("vote").arg("rule", args.rule.to_string());
    if args.rule != Rule::Human {
        origin = origin.arg("ties", word(ties));
    }
    origin = origin.arg("metrics", ballots.metrics.clone());
    if ties == Ties::Random {
        origin = origin.arg("seed", args.common.seed);
    }
    Ok(origin.inputs(ballots.origins()?))
}

/// A policy's name on the command line.
fn word(ties: Ties) -> String {
    clap::ValueEnum::to_possible_value(&ties).map_or_else(String::new, |v| v.get_name().to_owned())
}

fn decide(ballot: &Ballot, rule: &Rule<usize>, ties: Ties, seed: u64) -> Vec<Decision> {
    let mut s = vec![None; ballot.scores.len()];
    let pairs = (0..ballot.ids.len()).map(|i| {
        for (s_m, scores) in s.iter_mut().zip(&ballot.scores) {
            *s_m = scores.s[i];
        }
        rule.decide(ties, seed, &Pair { id: ballot.ids.value(i), s: &s, label_0: ballot.label_0[i] })
    });
    pairs.collect()
}

fn label(schema: &SchemaRef, ballot: &Ballot, decisions: &[Decision]) -> Result<RecordBatch> {
    let mut columns = ballot.keys.clone();
    let (mut votes, mut voters) = (vec![0i32; decisions.len()], vec![0i32; decisions.len()]);
    for metric in &ballot.scores {
        let s: Vec<i8> = metric.s.iter().map(|s_m| s_m.unwrap_or(0)).collect();
        for ((votes, voters), &s_m) in votes.iter_mut().zip(&mut voters).zip(&s) {
            *votes += i32::from(s_m);
            *voters += i32::from(s_m.abs());
        }
        columns.push(Arc::new(Int8Array::from(s)));
    }
    let floats = |value: fn(&Decision) -> f32| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(decisions.iter().map(value)))
    };
    columns.push(Arc::new(Int32Array::from(votes)));
    columns.push(Arc::new(Int32Array::from(voters)));
    columns.push(floats(|d| d.target));
    columns.push(floats(|d| d.weight));
    columns.push(floats(|d| d.target));
    columns.push(floats(|d| 1.0 - d.target));
    RecordBatch::try_new(schema.clone(), columns).context("cannot put the labels together")
}

/// The summary: text on standard error; JSON on standard output, unless the labels go there.
fn tell(args: &Args, ties: Ties, summary: &Summary) -> Result<Answer> {
    let common = &args.common;
    if common.json {
        let mut json = serde_json::Map::new();
        json.insert("rule".into(), args.rule.to_string().into());
        json.insert("ties".into(), word(ties).into());
        json.extend(summary.json());
        let line = serde_json::to_string(&json)?;
        if common.output.as_ref().is_some_and(|o| o.as_os_str() == "-") {
            common.say(line);
        } else {
            writeln!(std::io::stdout(), "{line}").context("cannot print the summary")?;
        }
    } else {
        common.say(format!("rule {}, ties {}: {}", args.rule, word(ties), summary.text().trim_end()));
    }
    for metric in summary.collapsed() {
        common.say(format!(
            "vote: warning: {metric} scores both images alike in every pair, so it never votes; look at its model"
        ));
    }
    Ok(Answer::Yes)
}
