//! Some pairs with everything that a rule may need of them, column by column. Here scores become votes.

use anyhow::Result;
use arrow::array::{Array, ArrayRef, AsArray, Float32Array, StringArray, UInt32Array};
use arrow::compute::take;
use pipe::moments::Moments;

use crate::rule;

/// The name of people as a voter.
pub const HUMAN: &str = "human";

pub struct Ballot {
    pub ids: StringArray,
    /// pair_id again, caption and both uids, as a labels table has them; empty in a first pass.
    pub keys: Vec<ArrayRef>,
    /// `None` if there is no human label, or if the table has NaN, as pandas writes a missing number.
    pub label_0: Vec<Option<f32>>,
    /// One per voter.
    pub scores: Vec<Scores>,
    /// For pairs made from scored images: the number of images of each prompt that ends here. Their pairs (0, 1), (0, 2) ...
    /// (1, 2) ... follow each other. Empty for a table of pairs.
    pub prompts: Vec<usize>,
    /// Gives a pair of two images (i, j) of the first of these prompts again, if ballots before this one have its first pairs.
    pub earlier: Option<Box<dyn Fn(usize, usize) -> Ballot + Send>>,
}

pub struct Scores {
    m_0: Float32Array,
    m_1: Float32Array,
    /// Eq. 6; `None` if the metric did not score both images.
    pub s: Vec<Option<i8>>,
    /// m_0 - m_1; 0 if s is not a vote.
    pub d: Vec<f64>,
}

impl Scores {
    pub fn new(m_0: Float32Array, m_1: Float32Array, margin: f64) -> Self {
        let values = || m_0.values().iter().zip(m_1.values());
        let mut s: Vec<_> = values().map(|(&a, &b)| Some(rule::s(a, b, margin))).collect();
        let mut d: Vec<_> = values().map(|(&a, &b)| f64::from(a) - f64::from(b)).collect();
        if m_0.null_count() + m_1.null_count() > 0 {
            let lost = (0..s.len()).filter(|&i| m_0.is_null(i) || m_1.is_null(i));
            lost.for_each(|i| s[i] = None);
        }
        let mute = |s_m: Option<i8>| !matches!(s_m, Some(1 | -1));
        d.iter_mut().zip(&s).filter(|(_, s_m)| mute(**s_m)).for_each(|(d_m, _)| *d_m = 0.0);
        Self { m_0, m_1, s, d }
    }

    /// Adds the scores of both images; an image counts once for each pair that it is in.
    pub fn add_to(&self, moments: &mut Moments) {
        for side in [&self.m_0, &self.m_1] {
            match side.null_count() {
                0 => side.values().iter().for_each(|&x| moments.add(x.into())),
                _ => side.iter().flatten().for_each(|x| moments.add(x.into())),
            }
        }
    }

    fn take(&self, rows: &UInt32Array) -> Result<Self> {
        let side = |m: &Float32Array| -> Result<Float32Array> { Ok(take(m, rows, None)?.as_primitive().clone()) };
        let some = || rows.values().iter().map(|&i| i as usize);
        Ok(Self {
            m_0: side(&self.m_0)?,
            m_1: side(&self.m_1)?,
            s: some().map(|i| self.s[i]).collect(),
            d: some().map(|i| self.d[i]).collect(),
        })
    }
}

/// People as a voter: label_0 against 1 - label_0.
pub fn human_scores(label_0: &[Option<f32>]) -> Scores {
    let side = |f: fn(f32) -> f32| label_0.iter().map(|l| l.map(f)).collect::<Float32Array>();
    Scores::new(side(|l| l), side(|l| 1.0 - l), 0.0)
}

impl Ballot {
    pub fn len(&self) -> usize {
        self.label_0.len()
    }

    /// The pairs in these rows.
    pub fn take(&self, rows: &[u32]) -> Result<Self> {
        let rows = UInt32Array::from(rows.to_vec());
        let keys = self.keys.iter().map(|key| take(key, &rows, None)).collect::<Result<_, _>>()?;
        let scores = self.scores.iter().map(|s| s.take(&rows)).collect::<Result<_>>()?;
        let label_0 = rows.values().iter().map(|&i| self.label_0[i as usize]).collect();
        Ok(Self {
            ids: take(&self.ids, &rows, None)?.as_string::<i32>().clone(),
            keys,
            label_0,
            scores,
            prompts: vec![],
            earlier: None,
        })
    }
}
