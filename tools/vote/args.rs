//! The command line, and what of it decides the content.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use pipe::{
    cli::{Common, Sharding, named},
    origin::Origin,
    rule::Rule,
};
use serde_json::{Map, Value};

use crate::{
    ballot::HUMAN,
    per_metric::{PerMetric, in_order},
    rule::{self, Ties},
    scales::{Scales, ScalesFrom},
    tournament::Pairs,
};

/// Turn the scores of several metrics into one preference a pair
///
/// Each metric votes for the image that it scores higher; the images' labels follow the rule, by default the majority
/// (BalancedDPO, Eq. 6 and 7). Rows keep their order, one label a pair, in Pick-a-Pic's form too (label_0, label_1), so
/// that Diffusion-DPO trains on the result unchanged. A null score is no vote. A summary of the vote is printed, and kept in
/// the table's metadata.
#[derive(Parser)]
#[command(name = "vote", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Args {
    /// Scores tables (Parquet, Arrow, a folder of parts, or `-`); with --pairs, scored images
    ///
    /// Tables with the same metrics are read one after the other; tables with different metrics are read side by side
    /// and must hold the same pairs in the same order.
    #[arg(required = true, value_name = "SCORES")]
    pub scores: Vec<PathBuf>,
    /// How votes become a preference
    #[arg(long, default_value_t = Rule::Majority, value_parser = named::<Rule>())]
    pub rule: Rule,
    /// Metrics that vote, separated by commas [default: every m with columns m_0 and m_1 that is not marked as a judge]
    ///
    /// `score` marks clip-l and colourfulness as judges: they vote only where they are named here.
    #[arg(long, value_name = "M,...", value_delimiter = ',')]
    pub metrics: Vec<String>,
    /// People vote too: label_0 is one more voter, called `human`
    #[arg(long)]
    pub human_voter: bool,
    /// Who decides where the votes tie; four voters tie in 15 to 35 % of pairs, and the paper gives no rule
    #[arg(long, value_name = "POLICY", default_value_t = Ties::Abstain, value_parser = named::<Ties>())]
    pub ties: Ties,
    /// Least difference of scores that is a vote, in the metric's own units: a difference of at most X is none [default: 0]
    #[arg(long, value_name = "M=X,...", value_delimiter = ',')]
    pub margin: Vec<PerMetric>,
    /// Weight of every voter, under weighted, soft, sum, zsum and minmax [default: all alike]
    #[arg(long, value_name = "M=X,...", value_delimiter = ',', conflicts_with = "fit")]
    pub weights: Vec<PerMetric>,
    /// Weights from the votes themselves, under weighted and soft
    #[arg(long, value_name = "METHOD", value_parser = named::<FitMethod>())]
    pub fit: Option<FitMethod>,
    /// Spreads that zsum and minmax divide by: `data`, this table's own (a first pass, so not from a pipe), or a JSON file
    ///
    /// FILE holds {"hps": {"sd": 0.013, "min": 0.22, "max": 0.31}, ...}; what `vote --json` printed for another table will do.
    #[arg(long, value_name = "data|FILE")]
    pub scales: Option<ScalesFrom>,
    /// Read scored images and make pairs of each prompt's images
    #[arg(long, value_name = "WHICH", value_parser = named::<Pairs>())]
    pub pairs: Option<Pairs>,
    #[command(flatten)]
    pub sharding: Sharding,
    #[command(flatten)]
    pub common: Common,
}

pipe::names! {
    /// How weights are found.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum FitMethod {
        /// Each voter's accuracy by how the voters agree (EM); voters that err together share their weight
        DawidSkene = "dawid-skene",
    }
}

const EXAMPLES: &str = "\
Examples:
  vote scores.parquet -o labels.parquet
  vote hps.parquet clip.parquet -o labels.parquet --ties human
  vote scores.parquet -o hps-only.parquet --rule single:hps
  vote scores.parquet -o labels.parquet --rule weighted --fit dawid-skene --human-voter
  vote scored-images.parquet -o labels.parquet --pairs best-worst
  score pairs.parquet --models models/ --metrics hps,clip -o - | vote - -o labels.parquet --json

Exit status: 0 done, 2 trouble.";

impl Args {
    /// Flags that would be without effect are refused.
    pub fn check(&self) -> Result<()> {
        let rule = &self.rule;
        ensure!(
            self.weights.is_empty() || rule.is_weighted(),
            "--weights has no meaning under --rule {rule}; use --rule weighted"
        );
        let fits = matches!(rule, Rule::Weighted | Rule::Soft);
        ensure!(self.fit.is_none() || fits, "--fit has no meaning under --rule {rule}; use --rule weighted or soft");
        ensure!(
            *rule != Rule::Weighted || self.fit.is_some() || !self.weights.is_empty(),
            "--rule weighted needs weights: --weights hps=1,clip=0.5,... or --fit dawid-skene"
        );
        let scaled = rule::scale(rule).is_some();
        ensure!(
            self.scales.is_none() || scaled,
            "--scales has no meaning under --rule {rule}; use --rule zsum or minmax"
        );
        ensure!(
            self.pairs.is_none() || self.sharding.shard.is_none(),
            "--shard cannot be used with --pairs: the images of a prompt belong together"
        );
        Ok(())
    }

    /// Of every voter, 0 where none was given.
    pub fn margins(&self, metrics: &[String]) -> Result<Vec<f64>> {
        let given = in_order("--margin", &self.margin, metrics)?;
        Ok(given.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Of every voter, 1 where --weights is not there.
    pub fn weights(&self, metrics: &[String]) -> Result<Vec<f64>> {
        let given = in_order("--weights", &self.weights, metrics)?;
        if self.weights.is_empty() {
            return Ok(vec![1.0; metrics.len()]);
        }
        if let Some((metric, _)) = metrics.iter().zip(&given).find(|(_, w)| w.is_none()) {
            bail!("--weights does not name {metric}; give it one too (0 mutes it), or leave it out with --metrics");
        }
        ensure!(given.iter().flatten().any(|&w| w > 0.0), "--weights are all 0, so nobody votes");
        Ok(given.into_iter().flatten().collect())
    }

    pub fn scales_file(&self) -> Option<&Path> {
        match &self.scales {
            Some(ScalesFrom::File(path)) => Some(path),
            _ => None,
        }
    }

    /// What has to be learned of the whole table before the first pair is decided, as the beginning of a sentence.
    pub fn first_pass(&self) -> Option<String> {
        if self.fit.is_some() {
            return Some("--fit learns how often each voter is right".into());
        }
        let own = rule::scale(&self.rule).is_some() && self.scales_file().is_none();
        own.then(|| format!("--rule {} learns each metric's spread (unless --scales names a file)", self.rule))
    }

    /// The arguments that decide the content.
    pub fn origin(&self, metrics: &[String], ties: Ties, scales: &Scales) -> Result<Origin> {
        let mut origin = Origin::new("vote").arg("rule", self.rule.to_string());
        if self.rule != Rule::Human {
            origin = origin.arg("ties", ties.to_string());
        }
        let people = usize::from(self.human_voter);
        origin = origin.arg("metrics", metrics[..metrics.len() - people].to_vec());
        if self.human_voter {
            origin = origin.arg("human_voter", HUMAN);
        }
        if ties == Ties::Random || self.rule == Rule::Random {
            origin = origin.arg("seed", self.common.seed);
        }
        let map = |given: &[PerMetric]| {
            Value::Object(given.iter().map(|g| (g.metric.clone(), g.value.into())).collect::<Map<_, _>>())
        };
        if !self.margin.is_empty() {
            origin = origin.arg("margin", map(&self.margin));
        }
        if !self.weights.is_empty() {
            origin = origin.arg("weights", map(&self.weights));
        }
        if let Some(fit) = self.fit {
            origin = origin.arg("fit", fit.to_string());
        }
        if rule::scale(&self.rule).is_some() {
            // Of its own data a table's scales follow; of a file they would be lost.
            let own = self.scales_file().is_none();
            origin = origin.arg("scales", if own { "data".into() } else { serde_json::to_value(scales)? });
        }
        if let Some(pairs) = self.pairs {
            origin = origin.arg("pairs", pairs.to_string());
        }
        Ok(origin)
    }
}
