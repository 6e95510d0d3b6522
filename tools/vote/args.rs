//! The command line, and which arguments decide the content.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use pipe::cli::{Common, Sharding, named};
use pipe::{origin::Origin, rule::Rule};
use serde_json::{Map, Value};

use crate::per_metric::{PerMetric, in_order};
use crate::rule::{self, Ties};
use crate::scales::{Scales, ScalesFrom};
use crate::{ballot::HUMAN, tournament::Pairs};

/// Turn the scores of several metrics into one preference per pair
///
/// Each metric votes for the image that it scores higher. The rule turns the votes into a label, by default that of the
/// majority (BalancedDPO, Eq. 6 and 7). The output has one row per pair, in the order of the input. It also has Pick-a-Pic's
/// columns label_0 and label_1, so that Diffusion-DPO can train on it unchanged. A null score is not a vote. A summary of the
/// votes is printed, and stored in the table's metadata.
#[derive(Parser)]
#[command(name = "vote", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Args {
    /// Scores tables (Parquet, Arrow, a folder of parts, or `-`); with --pairs, tables of scored images
    ///
    /// Tables with the same metrics are read one after the other. Tables with different metrics are read side by side,
    /// and must hold the same pairs in the same order.
    #[arg(required = true, value_name = "SCORES")]
    pub scores: Vec<PathBuf>,
    /// How votes become a preference
    #[arg(long, default_value_t = Rule::Majority, value_parser = named::<Rule>())]
    pub rule: Rule,
    /// Metrics that vote, separated by commas [default: every m with columns m_0 and m_1 that is not marked as a judge]
    ///
    /// `score` marks judges such as imagereward and clip-l: they vote only if they are named here.
    #[arg(long, value_name = "M,...", value_delimiter = ',')]
    pub metrics: Vec<String>,
    /// Let people vote too: label_0 is one more voter, called `human`
    #[arg(long, help_heading = "Voters")]
    pub human_voter: bool,
    /// Who decides if the votes tie: four voters tie in 15 to 35 % of pairs, and the paper gives no rule
    #[arg(long, value_name = "POLICY", default_value_t = Ties::Abstain, value_parser = named::<Ties>())]
    pub ties: Ties,
    /// Difference of scores, in the metric's own units, that must be exceeded for a vote [default: 0]
    #[arg(long, help_heading = "Voters", value_name = "M=X,...", value_delimiter = ',')]
    pub margin: Vec<PerMetric>,
    /// Weight of every voter, under the rules weighted, soft, sum, zsum and minmax [default: 1 each]
    #[arg(long, help_heading = "Voters", value_name = "M=X,...", value_delimiter = ',', conflicts_with = "fit")]
    pub weights: Vec<PerMetric>,
    /// Learn the weights from the votes themselves, under the rules weighted and soft
    #[arg(long, help_heading = "Voters", value_name = "METHOD", value_parser = named::<FitMethod>())]
    pub fit: Option<FitMethod>,
    /// Spreads by which zsum and minmax divide: `data` (this table's own, by a first pass, which a pipe does not allow) or a
    /// JSON file [default: data]
    ///
    /// FILE holds {"hps": {"sd": 0.013, "min": 0.22, "max": 0.31}, ...}. The output of `vote --json` for another table works too.
    #[arg(long, help_heading = "Voters", value_name = "data|FILE")]
    pub scales: Option<ScalesFrom>,
    /// Weigh each pair by the gap to be expected between images of its two models, from PAIRS' model_0 and model_1 (ArenaPO)
    ///
    /// PAIRS is the table that was scored. A normal distribution of the quality of each model's images is fitted to the preferences.
    /// The weights have the mean 1; a pair of unknown models keeps its weight.
    #[arg(long, help_heading = "Voters", value_name = "PAIRS", conflicts_with = "pairs")]
    pub arena: Option<PathBuf>,
    /// Read tables of scored images and make pairs of each prompt's images
    #[arg(long, value_name = "WHICH", value_parser = named::<Pairs>())]
    pub pairs: Option<Pairs>,
    #[command(flatten)]
    pub sharding: Sharding,
    #[command(flatten)]
    pub common: Common,
}

pipe::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum FitMethod {
        /// Estimate each voter's accuracy from how often the voters agree (EM); voters that err together share their weight
        DawidSkene = "dawid-skene",
    }
}

const EXAMPLES: &str = "\
Examples:
  vote scores.parquet -o labels.parquet
  vote hps.parquet clip.parquet -o labels.parquet --ties human
  vote scores.parquet -o hps-only.parquet --rule single:hps
  vote scores.parquet -o labels.parquet --rule weighted --fit dawid-skene \\
       --human-voter
  vote scores.parquet -o labels.parquet --arena pairs.parquet
  vote scored-images.parquet -o labels.parquet --pairs best-worst
  score pairs.parquet --models models/ --metrics hps,clip -o - \\
       | vote - -o labels.parquet --json

Exit status: 0 done, 2 trouble.";

impl Args {
    /// Refuses a flag that would have no effect, and a rule that lacks a flag.
    pub fn check(&self) -> Result<()> {
        let rule = &self.rule;
        let plain = *rule == Rule::Majority && self.ties == Ties::Abstain;
        let unweighted = self.weights.is_empty() && self.fit.is_none() && self.scales.is_none();
        ensure!(
            !self.by_fronts() || (plain && unweighted),
            "--pairs pareto decides by itself, without a vote: leave out --rule, --ties, --weights, --fit and --scales"
        );
        ensure!(
            self.weights.is_empty() || rule.is_weighted(),
            "--weights has no effect under --rule {rule}; use --rule weighted"
        );
        let fits = matches!(rule, Rule::Weighted | Rule::Soft);
        ensure!(self.fit.is_none() || fits, "--fit has no effect under --rule {rule}; use --rule weighted or soft");
        ensure!(
            *rule != Rule::Weighted || self.fit.is_some() || !self.weights.is_empty(),
            "--rule weighted needs weights: --weights hps=1,clip=0.5,... or --fit dawid-skene"
        );
        let scaled = rule::scale(rule).is_some();
        ensure!(
            self.scales.is_none() || scaled,
            "--scales has no effect under --rule {rule}; use --rule zsum or minmax"
        );
        ensure!(
            self.pairs.is_none() || self.sharding.shard.is_none(),
            "--shard cannot be used with --pairs: the images of a prompt belong together"
        );
        Ok(())
    }

    /// Whether Pareto fronts decide, and no rule.
    pub fn by_fronts(&self) -> bool {
        self.pairs == Some(Pairs::Pareto)
    }

    /// The margin of every voter; 0 if none was given.
    pub fn margins(&self, metrics: &[String]) -> Result<Vec<f64>> {
        let given = in_order("--margin", &self.margin, metrics)?;
        Ok(given.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The weight of every voter; 1 without --weights.
    pub fn weights(&self, metrics: &[String]) -> Result<Vec<f64>> {
        let given = in_order("--weights", &self.weights, metrics)?;
        if self.weights.is_empty() {
            return Ok(vec![1.0; metrics.len()]);
        }
        if let Some((metric, _)) = metrics.iter().zip(&given).find(|(_, w)| w.is_none()) {
            bail!(
                "--weights does not name {metric}; give it a weight too (0 mutes it), or leave it out with --metrics"
            );
        }
        ensure!(given.iter().flatten().any(|&w| w > 0.0), "--weights are all 0, so no metric has a vote");
        Ok(given.into_iter().flatten().collect())
    }

    pub fn scales_file(&self) -> Option<&Path> {
        match &self.scales {
            Some(ScalesFrom::File(path)) => Some(path),
            _ => None,
        }
    }

    /// The numbers that need the whole table before the first pair is decided, as the beginning of a sentence.
    pub fn first_pass(&self) -> Option<String> {
        if self.arena.is_some() {
            return Some("--arena learns how good each model's images are".into());
        }
        if self.fit.is_some() {
            return Some("--fit learns how often each voter is right".into());
        }
        let own = rule::scale(&self.rule).is_some() && self.scales_file().is_none();
        own.then(|| format!("--rule {} learns each metric's spread (unless --scales names a file)", self.rule))
    }

    /// The arguments that decide the content.
    pub fn origin(&self, metrics: &[String], ties: Ties, scales: &Scales) -> Result<Origin> {
        let mut origin = Origin::new("vote");
        if !self.by_fronts() {
            origin = origin.arg("rule", self.rule.to_string());
        }
        if self.rule != Rule::Human && !self.by_fronts() {
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
            // A table's own scales follow from its data; those of a file would be lost.
            let own = self.scales_file().is_none();
            origin = origin.arg("scales", if own { "data".into() } else { serde_json::to_value(scales)? });
        }
        if self.arena.is_some() {
            origin = origin.arg("weights_by", "arena");
        }
        if let Some(pairs) = self.pairs {
            origin = origin.arg("pairs", pairs.to_string());
        }
        Ok(origin)
    }
}
