//! What is printed: the paper's Tables I and II (win rates), V (mean scores) and VI (distribution of the scores), every test, and
//! several seeds taken together.

use pipe::{
    grid::{self, Grid},
    moments,
    names::Names,
};

use crate::{
    compare::{By, Cell, Comparison, Rate, Row, Side, groups},
    scored::{ModelScores, Prompt},
    seeds::{Estimate, Pooled, PooledCell},
    sign::LEVEL,
    stats::wilson,
};

/// Everything that the tables show.
pub struct Results<'a> {
    pub metrics: &'a [String],
    /// Metrics that judge and did not vote.
    pub held_out: &'a [String],
    pub best_of: u32,
    pub by: Option<By>,
    pub tables: &'a [ModelScores],
    pub comparisons: &'a [Comparison],
    /// The same with several training seeds taken together, under --seeds.
    pub pooled: &'a [Pooled],
}

impl Results<'_> {
    /// Tables I and II: on how many prompts the candidate is ahead, and how far the mean scores moved.
    pub fn rates(&self) -> Vec<Grid> {
        let tests: usize = self.comparisons.iter().map(|c| c.rows.len() * self.metrics.len()).sum();
        let noise = format!(
            "[95 % interval]\nWho is ahead: + the candidate, - the baseline, no sign nobody, within the noise \
             (exact sign test, Holm over these {tests} rates, {:.0} %)",
            100.0 * LEVEL
        );
        let grid = |title: String, cell: &dyn Fn(&Row, &Cell) -> grid::Cell| {
            let rows = self.rows().map(|(c, row)| {
                let head = self.row_head(&[format!("{} vs {}", c.a, c.b)], row.group.as_deref(), row.n);
                head.into_iter().chain(row.cells.iter().map(|x| cell(row, x))).collect()
            });
            let rows: Vec<_> = rows.collect();
            let head = self.head(&[""]);
            Grid { title, left: head.len() - 1 - self.metrics.len(), head, rows }
        };
        let signed =
            |of: fn(&Cell) -> &Rate| self.rows().any(|(_, r)| r.cells.iter().any(|c| of(c).winner().is_some()));
        let images = self.best_of;
        let mut grids = vec![grid(format!("win rate, best of {images} images per prompt {noise}"), &|row, c| {
            rate(row, &c.best, signed(|c| &c.best))
        })];
        if images > 1 {
            grids.push(grid(format!("win rate, mean of {images} images per prompt"), &|row, c| {
                rate(row, &c.mean, signed(|c| &c.mean))
            }));
        }
        let title = "change of the mean score, in sd of the baseline's images [95 % paired bootstrap over prompts]";
        grids.push(grid(title.into(), &|_, c| change(c)));
        grids
    }

    /// Every rate with its counts, intervals and probabilities, one per line.
    pub fn tests(&self) -> Grid {
        let share = |x: f64| grid::Cell::new().number(x, format!("{:.1} %", 100.0 * x));
        let p = |x: f64| grid::Cell::new().number(x, if x < 0.0001 { "<0.0001".into() } else { format!("{x:.4}") });
        let mut rows = vec![];
        for (c, row) in self.rows() {
            for (metric, cell) in self.metrics.iter().zip(&row.cells) {
                let which = if self.best_of > 1 {
                    &[("best", &cell.best), ("mean", &cell.mean)][..]
                } else {
                    &[("best", &cell.best)]
                };
                for &(of, rate) in which {
                    let (low, high) = wilson(rate.wins.wins, row.n);
                    let ahead = rate.winner().map_or("", |w| if w == Side::A { &c.a } else { &c.b });
                    let group = self.grouped().then(|| row.group.as_deref().unwrap_or("all").into());
                    let mut line: Vec<grid::Cell> = vec![(&c.a).into(), (&c.b).into()];
                    line.extend(group);
                    line.extend([self.called(metric).into(), of.into(), ahead.into()]);
                    let counts = [row.n, rate.wins.wins, rate.wins.losses, rate.wins.ties];
                    line.extend(counts.map(|n| grid::Cell::new().count(n)));
                    line.extend([rate.wins.rate(), low, high, rate.bootstrap.0, rate.bootstrap.1].map(share));
                    line.extend([rate.p, rate.p_holm].map(p));
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
            self.best_of
        );
        Grid { title, head: head.into_iter().map(String::from).collect(), rows, left }
    }

    /// Table V: mean scores, and how far they are from the last table's.
    pub fn means(&self) -> Grid {
        let base = &self.tables[self.tables.len() - 1];
        let mut rows = vec![];
        for (table, group, prompts) in self.slices() {
            let cell = |m: usize| {
                let of = |prompts: &[&Prompt]| moments::mean(prompts.iter().map(|p| p.mean[m]));
                let mean = of(&prompts);
                let theirs: Vec<_> = prompts.iter().filter_map(|p| base.get(&p.key)).collect();
                let sd = moments::sd(theirs.iter().flat_map(|p| &p.scores[m]).map(|&x| f64::from(x)));
                let change = sd.filter(|&sd| sd > 0.0).map(|sd| (mean - of(&theirs)) / sd);
                let cell = grid::Cell::new().number(mean, format!("{mean:.4}"));
                match change.filter(|_| !std::ptr::eq(table, base)) {
                    Some(change) => cell.text(format!(" ({change:+.2})")),
                    None => cell,
                }
            };
            let head = self.row_head(&[table.name(self.tables)], group, prompts.len());
            rows.push(head.into_iter().chain((0..self.metrics.len()).map(cell)).collect());
        }
        let head = self.head(&["model"]);
        let title = format!(
            "mean score of {} images per prompt (difference from {}, in sd of its images)",
            self.best_of,
            base.name(self.tables)
        );
        Grid { title, left: head.len() - 1 - self.metrics.len(), head, rows }
    }

    /// Table VI: mean, least, greatest and standard deviation of the images' scores, and the deviation among one prompt's images.
    pub fn stats(&self) -> Grid {
        let number = |x: f64| grid::Cell::new().number(x, format!("{x:.4}"));
        let mut rows = vec![];
        for (table, group, prompts) in self.slices() {
            let distributions: Vec<_> = (0..self.metrics.len()).map(|m| Distribution::of(&prompts, m)).collect();
            for (name, value) in Distribution::FIGURES {
                let head = self.row_head(&[table.name(self.tables), name.into()], group, prompts.len());
                let cell = |s: &Distribution| value(s).map_or_else(|| "-".into(), number);
                rows.push(head.into_iter().chain(distributions.iter().map(cell)).collect());
            }
        }
        let head = self.head(&["model", ""]);
        let title = format!("scores of {} images per prompt, image by image", self.best_of);
        Grid { title, left: head.len() - 1 - self.metrics.len(), head, rows }
    }

    /// Several training seeds taken together: win rates and changes of the mean score, one line per comparison.
    pub fn seeds(&self) -> Vec<Grid> {
        let grid = |title: String, cell: &dyn Fn(&PooledCell) -> grid::Cell| {
            let row = |p: &Pooled| {
                let head = [(&p.a).into(), (&p.b).into(), p.seeds.to_string().into(), p.n.to_string().into()];
                head.into_iter().chain(p.cells.iter().map(cell)).collect()
            };
            let metrics = self.metrics.iter().map(|m| self.called(m));
            let head = ["model", "against", "seeds", "n"].map(String::from).into_iter().chain(metrics);
            Grid { title, head: head.collect(), rows: self.pooled.iter().map(row).collect(), left: 2 }
        };
        let (images, between) = (self.best_of, "[95 % interval over seeds and prompts]");
        vec![
            grid(format!("win rate, best of {images} images per prompt, mean of the training seeds {between}"), &|c| {
                let Estimate { mean, low, high } = c.rate;
                grid::Cell::new().estimate([mean, low, high], points, " %")
            }),
            grid(format!("change of the mean score, in sd of the baseline's images {between}"), &|c| match c.change {
                Some(Estimate { mean, low, high }) => grid::Cell::new().estimate([mean, low, high], signed, ""),
                None => "-".into(),
            }),
        ]
    }

    /// The same for a spreadsheet, one line per number and its interval: `figure` is `rate`, or `change_sd` as in the JSON.
    pub fn seeds_by_number(&self) -> Grid {
        let mut rows = vec![];
        for (figure, of) in
            [("rate", (|c| Some(c.rate)) as fn(&PooledCell) -> Option<Estimate>), ("change_sd", |c| c.change)]
        {
            for p in self.pooled {
                for (metric, cell) in self.metrics.iter().zip(&p.cells) {
                    let mut row = vec![figure.into(), (&p.a).into(), (&p.b).into(), self.called(metric).into()];
                    row.extend([p.seeds, p.n].map(|n| n.to_string().into()));
                    let numbers = of(cell).map(|e| [e.mean, e.low, e.high].map(|x| x.to_string()));
                    row.extend(numbers.unwrap_or_else(|| ["-", "-", "-"].map(String::from)).map(grid::Cell::from));
                    rows.push(row);
                }
            }
        }
        let head = ["figure", "model", "against", "metric", "seeds", "n", "rate", "low", "high"].map(String::from);
        Grid { title: String::new(), head: head.to_vec(), rows, left: 4 }
    }

    fn rows(&self) -> impl Iterator<Item = (&Comparison, &Row)> {
        self.comparisons.iter().flat_map(|c| c.rows.iter().map(move |row| (c, row)))
    }

    /// The tables, baseline first as in the paper, with their prompts: each group, then all together.
    fn slices(&self) -> Vec<(&ModelScores, Option<&str>, Vec<&Prompt>)> {
        let mut slices = vec![];
        for table in self.tables.iter().rev() {
            // Cannot fail: `compare` has checked it.
            for group in groups(table, self.by).unwrap_or_default() {
                let some = table.prompts.iter().filter(|p| self.by.unwrap_or(By::Set).of(p) == group);
                slices.push((table, Some(group.unwrap_or("(none)")), some.collect()));
            }
            slices.push((table, None, table.prompts.iter().collect()));
        }
        slices
    }

    fn grouped(&self) -> bool {
        self.tables.iter().any(|t| groups(t, self.by).is_ok_and(|g| !g.is_empty()))
    }

    fn head(&self, first: &[&str]) -> Vec<String> {
        let mut head: Vec<_> = first.iter().map(|s| s.to_string()).collect();
        head.extend(self.grouped().then(|| self.by.unwrap_or(By::Set).name().to_owned()));
        head.push("n".into());
        head.extend(self.metrics.iter().map(|m| self.called(m)));
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
        let held_out = self.held_out.iter().any(|m| m == metric);
        if held_out { format!("{metric} (held out)") } else { metric.to_owned() }
    }
}

/// A rate with its interval; if `signed`, with room for the mark of who is ahead.
fn rate(row: &Row, rate: &Rate, signed: bool) -> grid::Cell {
    let (low, high) = wilson(rate.wins.wins, row.n);
    let ties = if rate.wins.ties > 0 { format!(", ties {}", rate.wins.ties) } else { String::new() };
    let ahead = match rate.winner() {
        Some(Side::A) => " +",
        Some(Side::B) => " -",
        None if signed => "  ",
        None => "",
    };
    grid::Cell::new().estimate([rate.wins.rate(), low, high], points, " %").text(ties + ahead)
}

fn change(cell: &Cell) -> grid::Cell {
    match (cell.change_sd(), cell.in_sd(cell.diff.0), cell.in_sd(cell.diff.1)) {
        (Some(change), Some(low), Some(high)) => grid::Cell::new().estimate([change, low, high], signed, ""),
        _ => "-".into(),
    }
}

/// "64.6" of the share 0.646.
fn points(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

fn signed(x: f64) -> String {
    format!("{x:+.2}")
}

/// How the scores of some images are distributed.
pub struct Distribution {
    pub mean: f64,
    pub min: f64,
    pub max: f64,
    pub sd: Option<f64>,
    /// The same among the images of one prompt, pooled over all prompts: what the best of n chooses from.
    pub sd_of_a_prompt: Option<f64>,
}

/// A name and how to get its value.
type Figure = (&'static str, fn(&Distribution) -> Option<f64>);

impl Distribution {
    const FIGURES: [Figure; 5] = [
        ("mean", |s| Some(s.mean)),
        ("min", |s| Some(s.min)),
        ("max", |s| Some(s.max)),
        ("sd", |s| s.sd),
        ("sd of a prompt", |s| s.sd_of_a_prompt),
    ];

    pub fn of(prompts: &[&Prompt], metric: usize) -> Self {
        let scores = prompts.iter().flat_map(|p| &p.scores[metric]).map(|&x| f64::from(x));
        Self {
            mean: moments::mean(scores.clone()),
            min: scores.clone().fold(f64::INFINITY, f64::min),
            max: scores.clone().fold(f64::NEG_INFINITY, f64::max),
            sd: moments::sd(scores),
            sd_of_a_prompt: moments::sd_within(prompts.iter().map(|p| p.scores[metric].as_slice())),
        }
    }
}
