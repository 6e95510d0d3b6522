//! The rules by which votes become a preference, as they are named on `vote`'s command line and in the origin of its tables.

use std::num::NonZeroUsize;

crate::names! {
    /// How votes become a preference. The formulas stand in `tools/vote/rule.rs`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Rule {
        /// The image that more metrics prefer (BalancedDPO, Eq. 7)
        Majority = "majority",
        /// This metric alone
        Single(String) = "single:METRIC",
        /// One metric alone, drawn for each pair
        Random = "random",
        /// The image with the greater sum of raw scores
        Sum = "sum",
        /// As sum, after each metric's scores are divided by their standard deviation
        Zsum = "zsum",
        /// As sum, after each metric's scores are divided by their range
        Minmax = "minmax",
        /// The image of the majority; the target is its share of the votes
        Soft = "soft",
        /// All metrics that scored the pair, or it is a tie
        Unanimous = "unanimous",
        /// At least K metrics, and more than for the other image, or it is a tie
        Quorum(NonZeroUsize) = "quorum:K",
        /// The majority by weights (--weights, --fit)
        Weighted = "weighted",
        /// People alone: label_0, where 0.5 abstains, as Diffusion-DPO drops such pairs
        Human = "human",
    }
}

impl Rule {
    /// The metrics among `metrics` that have a vote under this rule.
    pub fn voters(self, metrics: Vec<String>) -> Vec<String> {
        match self {
            Rule::Human => vec![],
            Rule::Single(metric) => vec![metric],
            _ => metrics,
        }
    }

    pub fn is_weighted(&self) -> bool {
        matches!(self, Rule::Sum | Rule::Zsum | Rule::Minmax | Rule::Soft | Rule::Weighted)
    }
}
