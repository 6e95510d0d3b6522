//! All images of a prompt against each other: which is best, which is worst, and whether the preferences form a cycle. Pairwise
//! majorities over three images or more may do so: a over b, b over c, c over a (Condorcet).

use std::mem::take;

use serde_json::{Value, json};

use crate::{ballot::Ballot, decide::Decided};

pipe::names! {
    /// Which pairs of a prompt's images become rows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Pairs {
        /// One pair per prompt: the image that is preferred most often against the one that is preferred least often
        BestWorst = "best-worst",
        /// Every two images of the prompt
        All = "all",
        /// Each image of the prompt's first Pareto front against each of its last, and the former is preferred (CaPO): metrics do not
        /// outvote each other
        Pareto = "pareto",
    }
}

#[derive(Default)]
pub struct Rounds {
    pub prompts: usize,
    /// Prompts with a single image, which have no pair.
    pub alone: usize,
    /// Prompts whose preferences form a cycle.
    pub cycles: usize,
    /// Prompts with an image that is preferred to every other.
    pub winners: usize,
    /// Best-worst pairs in which the worst is preferred to the best, which can happen in a cycle.
    pub reversed: usize,
    /// Prompts of several images in a single Pareto front; `None` if fronts are not asked for.
    pub one_front: Option<usize>,
    /// S of the pairs so far of a prompt that has more.
    open: Vec<i8>,
}

/// The best-worst pairs of some prompts.
#[derive(Default)]
pub struct BestWorst {
    /// The images of the first, where an earlier ballot has this pair.
    pub earlier: Option<(usize, usize)>,
    /// Places in this ballot.
    pub places: Vec<u32>,
}

impl Rounds {
    /// Adds the decisions of a ballot, in which prompts with these numbers of images end.
    pub fn add_all(&mut self, images: &[usize], decided: &[Decided]) -> BestWorst {
        let (mut pairs, mut found) = (take(&mut self.open), BestWorst::default());
        let before = pairs.len();
        pairs.extend(decided.iter().map(|d| d.decision.preference));
        let mut first = 0;
        for &k in images {
            let end = first + k * k.saturating_sub(1) / 2;
            if let Some((i, j)) = self.add(k, &pairs[first..end]) {
                match (first + i * (2 * k - i - 1) / 2 + j - i - 1).checked_sub(before) {
                    Some(place) => found.places.push(place as u32),
                    None => found.earlier = Some((i, j)),
                }
            }
            first = end;
        }
        pairs.drain(..first);
        self.open = pairs;
        found
    }

    /// Counts one prompt of `k` images with S of its pairs (0, 1), (0, 2) ... (1, 2) ... and returns the best and the worst image, the
    /// earlier first; `None` if there is no pair.
    fn add(&mut self, k: usize, s: &[i8]) -> Option<(usize, usize)> {
        self.prompts += 1;
        if k < 2 {
            self.alone += 1;
            return None;
        }
        let over = table(k, s);
        self.cycles += has_cycle(&over) as usize;
        self.winners += over.iter().any(|row| row.iter().filter(|&&s| s > 0).count() == k - 1) as usize;
        let (best, worst) = best_and_worst(&over);
        self.reversed += (over[best][worst] < 0) as usize;
        Some((best.min(worst), best.max(worst)))
    }

    /// The pairs of an image of the first front and one of the last, of all prompts of a batch: their rows, and 1 if image 0 is of
    /// the first front, -1 if image 1 is.
    pub fn pareto(&mut self, ballot: &Ballot) -> (Vec<u32>, Vec<i8>) {
        let (mut row, mut rows, mut preferred) = (0, vec![], vec![]);
        for &k in &ballot.prompts {
            let all: Vec<(usize, usize)> = pairs(k).collect();
            let s = (row..row + all.len()).map(|i| dominates(ballot.scores.iter().filter_map(|m| m.s[i])));
            let front = fronts(&table(k, &s.collect::<Vec<_>>()));
            let last = front.iter().copied().max().unwrap_or(0);
            *self.one_front.get_or_insert(0) += usize::from(k > 1 && last == 0);
            for (i, j) in all {
                let side = i8::from(front[i] == 0 && front[j] == last) - i8::from(front[i] == last && front[j] == 0);
                if side != 0 {
                    rows.push(row as u32);
                    preferred.push(side);
                }
                row += 1;
            }
        }
        (rows, preferred)
    }

    pub fn text(&self) -> String {
        let Self { prompts, alone, cycles, winners, reversed, one_front, .. } = self;
        let fronts = one_front.map_or(String::new(), |n| format!(", {n} with a single Pareto front and so no pair"));
        format!(
            "{prompts} prompts: {winners} with an image preferred to every other, {cycles} whose preferences form a cycle, \
             {reversed} best-worst pairs where the worst is preferred, {alone} with a single image and so no pair{fronts}"
        )
    }

    pub fn json(&self) -> Value {
        let mut json = json!({
            "prompts": self.prompts, "alone": self.alone, "cycles": self.cycles, "winners": self.winners, "reversed": self.reversed,
        });
        if let Some(n) = self.one_front {
            json["one_front"] = n.into();
        }
        json
    }
}

/// All pairs of `k` images, in the order of a ballot.
fn pairs(k: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..k).flat_map(move |i| (i + 1..k).map(move |j| (i, j)))
}

/// 1 if some metric prefers image 0 and none prefers image 1, -1 the other way round, otherwise 0.
fn dominates(s: impl Iterator<Item = i8>) -> i8 {
    let (best, worst) = s.fold((0, 0), |(best, worst), s_m| (s_m.max(best), s_m.min(worst)));
    best + worst
}

/// The Pareto front of each image: 0 if no image dominates it, 1 if those that do are of front 0, and so on (non-dominated
/// sorting: Deb et al. 2002). `over[i][j]` = 1 if i dominates j. Images that dominate each other in a circle, as margins and missing
/// scores allow, are of one front.
fn fronts(over: &[Vec<i8>]) -> Vec<usize> {
    let (mut front, mut left) = (vec![0; over.len()], (0..over.len()).collect::<Vec<_>>());
    for number in 0..over.len() {
        let (dominated, free): (Vec<_>, Vec<_>) = left.iter().partition(|&&i| left.iter().any(|&j| over[j][i] > 0));
        let (these, rest) = if free.is_empty() { (dominated, free) } else { (free, dominated) };
        these.iter().for_each(|&i| front[i] = number);
        left = rest;
    }
    front
}

/// S of every two images, from both sides: over[i][j] = 1 if i is preferred to j.
fn table(k: usize, s: &[i8]) -> Vec<Vec<i8>> {
    let mut over = vec![vec![0; k]; k];
    for ((i, j), s) in pairs(k).zip(s) {
        over[i][j] = *s;
        over[j][i] = -s;
    }
    over
}

/// The best and the worst image by Copeland's score: the number of images to which it is preferred, minus the number of images
/// that are preferred to it. Equal images count in their order, so that the two are always different.
fn best_and_worst(over: &[Vec<i8>]) -> (usize, usize) {
    let score = |i: &usize| over[*i].iter().map(|&s| i32::from(s)).sum::<i32>();
    // From the back, max_by_key finds the first of equals and min_by_key the last.
    let best = (0..over.len()).rev().max_by_key(score).unwrap_or(0);
    let worst = (0..over.len()).rev().filter(|i| *i != best).min_by_key(score).unwrap_or(0);
    (best, worst)
}

/// Whether some images form a cycle, in which each is preferred to the next and the last to the first. Images to which none is
/// preferred are taken away until none is left to take; what remains has a cycle.
fn has_cycle(over: &[Vec<i8>]) -> bool {
    // How many of those that remain are preferred to each.
    let mut above: Vec<usize> = over.iter().map(|row| row.iter().filter(|&&s| s < 0).count()).collect();
    let mut free: Vec<usize> = (0..over.len()).filter(|&i| above[i] == 0).collect();
    let mut left = over.len();
    while let Some(i) = free.pop() {
        left -= 1;
        for j in (0..over.len()).filter(|&j| over[i][j] > 0) {
            above[j] -= 1;
            free.extend((above[j] == 0).then_some(j));
        }
    }
    left > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_found() {
        // Pairs of three: 01 02 12.
        for (s, cycle, winner, best_worst) in [
            ([1, 1, 1], false, true, Some((0, 2))),
            ([-1, -1, -1], false, true, Some((0, 2))),
            ([1, -1, 1], true, false, Some((0, 2))),
            ([1, 0, 1], false, false, Some((0, 2))),
            ([0, 0, 0], false, false, Some((0, 2))),
            ([-1, 1, 1], false, true, Some((1, 2))),
        ] {
            let mut rounds = Rounds::default();
            assert_eq!(rounds.add(3, &s), best_worst, "{s:?}");
            assert_eq!((rounds.cycles, rounds.winners), (cycle as usize, winner as usize), "{s:?}");
        }
        let mut rounds = Rounds::default();
        assert_eq!(rounds.add(1, &[]), None);
        assert_eq!((rounds.prompts, rounds.alone), (1, 1));
    }

    #[test]
    fn fronts_are_peeled_off_one_after_the_other() {
        // (score by metric 1, by metric 2): two extremes and a compromise, one that is worse than the compromise, and the worst of all.
        let points = [(3, 0), (0, 3), (2, 2), (1, 2), (0, 0)];
        let s = pairs(5).map(|(i, j)| {
            let sign = |a: i32, b: i32| (a - b).signum() as i8;
            dominates([sign(points[i].0, points[j].0), sign(points[i].1, points[j].1)].into_iter())
        });
        assert_eq!(fronts(&table(5, &s.collect::<Vec<_>>())), [0, 0, 0, 1, 2]);
        assert_eq!(
            [&[1, 0][..], &[1, -1], &[-1, 0], &[0, 0], &[]].map(|s| dominates(s.iter().copied())),
            [1, 0, -1, 0, 0]
        );
        // Where a circle leaves no image that is not dominated, the rest is one front.
        let circle = [1, -1, 1, 1, 1, 1]; // 01 02 03 12 13 23
        assert_eq!(fronts(&table(4, &circle)), [0, 0, 0, 0]);
        assert_eq!((fronts(&table(1, &[])), fronts(&table(2, &[0]))), (vec![0], vec![0, 0]));
    }

    #[test]
    fn the_pair_is_found_among_many() {
        // Image 3 is preferred to all, all are preferred to image 1. The pairs of five are 01 02 03 04 12 13 14 23 24 34.
        let over = |i: usize, j: usize| {
            if i == 3 || j == 1 {
                1
            } else if j == 3 || i == 1 {
                -1
            } else {
                0
            }
        };
        let s: Vec<i8> = (0..5).flat_map(|i| (i + 1..5).map(move |j| over(i, j))).collect();
        assert_eq!(Rounds::default().add(5, &s), Some((1, 3)));
    }
}
