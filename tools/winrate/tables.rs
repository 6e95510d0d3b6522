//! The printed tables: the paper's Tables I and II (win rates), V (mean scores) and VI (distribution of the scores), every test, and
//! several seeds taken together.

use pipe::grid::{self, Grid};
use pipe::winrates::{Cell, Change, Comparison, Distribution, Group, Joint, Pooled, PooledCell, PooledShare};
use pipe::winrates::{Rate, Side, Winrates};
use pipe::{names::Names, shown::shown};

use crate::scored::By;
use crate::sign::LEVEL;
use crate::sums::{Groups, Model, Scores, Sums};

pub struct Results<'a> {
    pub winrates: &'a Winrates,
    pub by: Option<By>,
    pub models: &'a [Model],
    pub groups: &'a Groups,
}

impl Results<'_> {
    /// Tables I and II: on how many prompts the candidate is ahead, and how far the mean scores moved.
    pub fn rates(&self) -> Vec<Grid> {
        let tests = self.rows().count() * self.winrates.metrics.len();
        let noise = format!(
            "[95 % interval]\nWho is ahead: + the candidate, - the baseline, no sign: a difference within the noise \
             (exact sign test, {}{:.0} %)",
            if tests == 1 { String::new() } else { format!("Holm over these {tests} rates, ") },
            100.0 * LEVEL
        );
        let grid = |title: String, cell: &dyn Fn(&Cell) -> grid::Cell| {
            let rows = self.rows().map(|(c, group)| {
                let head = self.row_head(&[format!("{} vs {}", c.a, c.b)], group.name.as_deref(), group.n);
                head.into_iter().chain(group.metrics.values().map(cell)).collect()
            });
            let rows: Vec<_> = rows.collect();
            let head = self.head(&[""]);
            Grid { title, left: head.len() - 1 - self.winrates.metrics.len(), head, rows }
        };
        let signed = |of: fn(&Cell) -> &Rate| {
            self.rows().any(|(_, group)| group.metrics.values().any(|c| of(c).winner.is_some()))
        };
        let images = self.winrates.best_of;
        let mut grids = vec![grid(format!("win rate, best of {images} images per prompt {noise}"), &|c| {
            rate(&c.best, signed(|c| &c.best))
        })];
        if images > 1 {
            grids.push(grid(format!("win rate, mean of {images} images per prompt"), &|c| {
                rate(&c.mean_of_n, signed(|c| &c.mean_of_n))
            }));
        }
        let title = "change of the mean score, in sd of the baseline's images [95 % paired bootstrap over prompts]";
        grids.push(grid(title.into(), &|c| change(&c.change)));
        grids.extend(self.joint());
        grids
    }

    /// On how many prompts all metrics are better, and on how many all are worse; nothing with one metric.
    fn joint(&self) -> Option<Grid> {
        let images = if self.winrates.best_of > 1 { &["best", "mean"][..] } else { &["best"] };
        let mut rows = vec![];
        for (c, group) in self.rows() {
            let mut row = self.row_head(&[format!("{} vs {}", c.a, c.b)], group.name.as_deref(), group.n);
            for joint in [&group.joint, &group.joint_mean_of_n].into_iter().take(images.len()).flatten() {
                row.extend(joint.map(|share| grid::Cell::new().estimate(share.estimate(), points, " %")));
            }
            rows.push(row);
        }
        let mut head = self.keys(&[""]);
        let left = head.len() - 1;
        head.extend(images.iter().flat_map(|of| [format!("{of}: all better"), format!("{of}: all worse")]));
        let title = format!(
            "joint domination and collapse: prompts on which all {} metrics are better, and on which all are worse [95 % interval]",
            self.winrates.metrics.len()
        );
        (self.winrates.metrics.len() > 1).then_some(Grid { title, left, head, rows })
    }

    /// Every rate with its counts, intervals and probabilities, one per line.
    pub fn tests(&self) -> Grid {
        let share = |x: f64| grid::Cell::new().number(x, format!("{:.1} %", 100.0 * x));
        let p = |x: f64| grid::Cell::new().number(x, if x < 0.0001 { "<0.0001".into() } else { format!("{x:.4}") });
        let mut rows = vec![];
        for (c, group) in self.rows() {
            for (metric, cell) in &group.metrics.0 {
                let which = if self.winrates.best_of > 1 {
                    &[("best", &cell.best), ("mean", &cell.mean_of_n)][..]
                } else {
                    &[("best", &cell.best)]
                };
                for &(of, rate) in which {
                    let ahead = rate.winner.map_or("", |w| if w == Side::A { &c.a } else { &c.b });
                    let name = self.grouped().then(|| group.name.as_deref().unwrap_or("all").into());
                    let mut line: Vec<grid::Cell> = vec![(&c.a).into(), (&c.b).into()];
                    line.extend(name);
                    line.extend([self.called(metric).into(), of.into(), ahead.into()]);
                    let counts = [group.n, rate.wins, rate.losses, rate.ties];
                    line.extend(counts.map(|n| grid::Cell::new().count(n)));
                    line.extend([rate.rate, rate.low, rate.high, rate.bootstrap_low, rate.bootstrap_high].map(share));
                    line.extend([rate.p, rate.p_holm].map(p));
                    rows.push(line);
                }
            }
            let which = [("best", &group.joint), ("mean", &group.joint_mean_of_n)];
            for (of, joint) in which.into_iter().take(if self.winrates.best_of > 1 { 2 } else { 1 }) {
                let Some(Joint { domination, collapse }) = joint else { continue };
                for (metric, s) in [("(all better)", domination), ("(all worse)", collapse)] {
                    let mut line: Vec<grid::Cell> = vec![(&c.a).into(), (&c.b).into()];
                    line.extend(self.grouped().then(|| group.name.as_deref().unwrap_or("all").into()));
                    line.extend([metric, of, ""].map(grid::Cell::from));
                    line.extend([group.n, s.prompts].map(|n| grid::Cell::new().count(n)));
                    line.extend(["", ""].map(grid::Cell::from));
                    line.extend(s.estimate().map(share));
                    line.extend(["", "", "", ""].map(grid::Cell::from));
                    rows.push(line);
                }
            }
        }
        let mut head = vec!["candidate", "baseline"];
        head.extend(self.grouped().then(|| self.by.unwrap_or(By::Set).name()));
        head.extend(["metric", "images", "ahead"]);
        let left = head.len();
        head.extend(["n", "wins", "losses", "ties", "rate", "low", "high"]);
        head.extend(["bootstrap low", "bootstrap high", "p", "p Holm"]);
        let title = format!(
            "win rates by the best and by the mean of {} images per prompt, with Wilson's and the bootstrap's 95 % intervals and the exact sign test",
            self.winrates.best_of
        );
        Grid { title, head: head.into_iter().map(String::from).collect(), rows, left }
    }

    /// Table V: mean scores, and how far they are from the last table's.
    pub fn means(&self) -> Grid {
        let last = self.models.len() - 1;
        let mut rows = vec![];
        for (table, group, sums) in self.slices() {
            let cell = |m: usize| {
                let (mean, base) = (sums.tables[table][m].prompts.mean(), &sums.tables[last][m]);
                let cell = grid::Cell::new().number(mean, format!("{mean:.4}"));
                match base.scale().filter(|_| table != last) {
                    Some(sd) => cell.text(format!(" ({:+.2})", (mean - base.prompts.mean()) / sd)),
                    None => cell,
                }
            };
            let head = self.row_head(&[self.models[table].name(self.models)], group, sums.n);
            rows.push(head.into_iter().chain((0..self.winrates.metrics.len()).map(cell)).collect());
        }
        let head = self.head(&["model"]);
        let title = format!(
            "mean score of {} images per prompt (difference from {}, in sd of its images)",
            self.winrates.best_of,
            shown(&self.models[last].name(self.models))
        );
        Grid { title, left: head.len() - 1 - self.winrates.metrics.len(), head, rows }
    }

    /// Table VI: mean, least, greatest and standard deviation of the images' scores, and the deviation among one prompt's images.
    pub fn stats(&self) -> Grid {
        let number = |x: f64| grid::Cell::new().number(x, format!("{x:.4}"));
        let mut rows = vec![];
        for (table, group, sums) in self.slices() {
            let distributions: Vec<_> = sums.tables[table].iter().map(Scores::distribution).collect();
            for (name, value) in FIGURES {
                let head = self.row_head(&[self.models[table].name(self.models), name.into()], group, sums.n);
                let cell = |s: &Distribution| value(s).map_or_else(|| "-".into(), number);
                rows.push(head.into_iter().chain(distributions.iter().map(cell)).collect());
            }
        }
        let head = self.head(&["model", ""]);
        let title = format!("scores of {} images per prompt, image by image", self.winrates.best_of);
        Grid { title, left: head.len() - 1 - self.winrates.metrics.len(), head, rows }
    }

    /// Several training seeds taken together: win rates and changes of the mean score, one line per comparison.
    pub fn seeds(&self) -> Vec<Grid> {
        let table = |title: String, heads: Vec<String>, cells: &dyn Fn(&Pooled) -> Vec<grid::Cell>| {
            let row = |p: &Pooled| {
                let head = [(&p.a).into(), (&p.b).into(), p.seeds.to_string().into(), p.n.to_string().into()];
                head.into_iter().chain(cells(p)).collect()
            };
            let head = ["model", "against", "seeds", "n"].map(String::from).into_iter().chain(heads);
            Grid { title, head: head.collect(), rows: self.winrates.seeds.iter().map(row).collect(), left: 2 }
        };
        let grid = |title: String, cell: &dyn Fn(&PooledCell) -> grid::Cell| {
            let metrics = self.winrates.metrics.iter().map(|m| self.called(m)).collect();
            table(title, metrics, &|p| p.metrics.values().map(cell).collect())
        };
        let (images, between) = (self.winrates.best_of, "[95 % interval over seeds and prompts]");
        let share = |share: &PooledShare| grid::Cell::new().estimate(share.estimate(), points, " %");
        let mut grids = vec![
            grid(format!("win rate, best of {images} images per prompt, mean of the training seeds {between}"), &|c| {
                share(&c.wins)
            }),
            grid(format!("change of the mean score, in sd of the baseline's images {between}"), &|c| change(&c.change)),
        ];
        if self.winrates.seeds.iter().any(|p| p.joint.is_some()) {
            let metrics = self.winrates.metrics.len();
            let title = format!(
                "joint domination and collapse: prompts on which the best images are better by all {metrics} metrics, and worse by all {between}"
            );
            let heads = ["all better", "all worse"].map(String::from).to_vec();
            grids.push(table(title, heads, &|p| p.joint.iter().flat_map(|joint| joint.map(share)).collect()));
        }
        grids
    }

    /// The same for a spreadsheet, one line per number and its interval: `figure` is `rate`, or `change_sd` as in the JSON.
    pub fn seeds_by_number(&self) -> Grid {
        let mut rows = vec![];
        let rate: fn(&PooledCell) -> Option<[f64; 3]> = |cell| Some(cell.wins.estimate());
        let row = |figure: &str, p: &Pooled, metric: String, estimate: Option<[f64; 3]>| -> Vec<grid::Cell> {
            let mut row = vec![figure.into(), (&p.a).into(), (&p.b).into(), metric.into()];
            row.extend([p.seeds, p.n].map(|n| n.to_string().into()));
            let numbers = estimate.map(|estimate| estimate.map(|x| x.to_string()));
            row.extend(numbers.unwrap_or_else(|| ["-", "-", "-"].map(String::from)).map(grid::Cell::from));
            row
        };
        for (figure, of) in [("rate", rate), ("change_sd", |cell| cell.change.estimate())] {
            for p in &self.winrates.seeds {
                rows.extend(p.metrics.0.iter().map(|(metric, cell)| row(figure, p, self.called(metric), of(cell))));
            }
        }
        for p in &self.winrates.seeds {
            let shares = p.joint.iter().flat_map(|joint| joint.map(PooledShare::estimate));
            let named = ["joint_domination", "joint_collapse"].into_iter().zip(shares);
            rows.extend(named.map(|(figure, estimate)| row(figure, p, String::new(), Some(estimate))));
        }
        let head = ["figure", "model", "against", "metric", "seeds", "n", "rate", "low", "high"].map(String::from);
        Grid { title: String::new(), head: head.to_vec(), rows, left: 4 }
    }

    /// Each comparison group by group, then over all prompts.
    fn rows(&self) -> impl Iterator<Item = (&Comparison, &Group)> {
        self.winrates.comparisons.iter().flat_map(|c| c.groups.iter().chain([&c.all]).map(move |group| (c, group)))
    }

    /// The tables, baseline first as in the paper, with their prompts: each group, then all together.
    fn slices(&self) -> impl Iterator<Item = (usize, Option<&str>, &Sums)> {
        let groups = || self.groups.named().map(|(name, sums)| (Some(name), sums)).chain([(None, &self.groups.all)]);
        (0..self.models.len()).rev().flat_map(move |table| groups().map(move |(name, sums)| (table, name, sums)))
    }

    fn grouped(&self) -> bool {
        self.groups.named().next().is_some()
    }

    fn head(&self, first: &[&str]) -> Vec<String> {
        let mut head = self.keys(first);
        head.extend(self.winrates.metrics.iter().map(|m| self.called(m)));
        head
    }

    /// The heads of what a row is about, which [`Self::row_head`] fills.
    fn keys(&self, first: &[&str]) -> Vec<String> {
        let mut head: Vec<_> = first.iter().map(|s| s.to_string()).collect();
        head.extend(self.grouped().then(|| self.by.unwrap_or(By::Set).name().to_owned()));
        head.push("n".into());
        head
    }

    fn row_head(&self, first: &[String], group: Option<&str>, n: usize) -> Vec<grid::Cell> {
        let mut head: Vec<grid::Cell> = first.iter().map(grid::Cell::from).collect();
        head.extend(self.grouped().then(|| group.unwrap_or("all").into()));
        head.push(n.to_string().into());
        head
    }

    /// A metric's name, marked if it only judges.
    pub fn called(&self, metric: &str) -> String {
        let held_out = self.winrates.held_out.iter().any(|m| m == metric);
        if held_out { format!("{metric} (held out)") } else { metric.to_owned() }
    }
}

/// A rate with its interval; if `signed`, with room for the mark of who is ahead.
fn rate(rate: &Rate, signed: bool) -> grid::Cell {
    let ties = if rate.ties > 0 { format!(", ties {}", rate.ties) } else { String::new() };
    let ahead = match rate.winner {
        Some(Side::A) => " +",
        Some(Side::B) => " -",
        None if signed => "  ",
        None => "",
    };
    grid::Cell::new().estimate(rate.estimate(), points, " %").text(ties + ahead)
}

fn change(change: &Change) -> grid::Cell {
    change.estimate().map_or_else(|| "-".into(), |estimate| grid::Cell::new().estimate(estimate, signed, ""))
}

fn points(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

fn signed(x: f64) -> String {
    format!("{x:+.2}")
}

/// A name and how to get its value.
type Figure = (&'static str, fn(&Distribution) -> Option<f64>);

const FIGURES: [Figure; 5] = [
    ("mean", |s| Some(s.mean)),
    ("min", |s| Some(s.min)),
    ("max", |s| Some(s.max)),
    ("sd", |s| s.sd),
    ("sd of a prompt", |s| s.sd_of_a_prompt),
];
