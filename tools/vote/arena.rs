//! Weights without scores, by the models that drew the images (ArenaPO, 2605.06070): how much better the winner of a pair may be
//! expected to be than its loser.
//!
//! The quality of an image by model g is normal around mu_g with variance 1/2, so the gap between two images is normal around
//! m = mu_w - mu_l with variance 1. The mu maximise the likelihood of the preferences under a standard normal prior. As the winner is
//! the better one, the gap is positive, and its mean is that of a truncated normal: m + phi(m) / Phi(m).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Result, ensure};
use arrow::array::{Array, StringArray};
use pipe::origin::InputOrigin;
use pipe::pairs::PairKeys;
use pipe::schema::pairs;
use pipe::{table::Inputs, text};
use serde_json::{Value, json};
use statrs::distribution::{Continuous, ContinuousCDF, Normal};

/// The models of every pair, and what is known of them.
pub struct Arena {
    name: String,
    pub origins: Vec<InputOrigin>,
    models: Vec<String>,
    /// By the pair's id: the models of image 0 and 1; `None` where one of them is not known.
    drawn_by: HashMap<String, Option<[u32; 2]>>,
    /// Scored pairs that are not in the table, and those of which it does not know both models. They weigh 1.
    absent: usize,
    nameless: usize,
    mu: Vec<f64>,
    /// Mean of the expected gaps, by which they are divided.
    mean: f64,
    /// How often the first model of a key was preferred to the second.
    counts: BTreeMap<[u32; 2], usize>,
}

const BATCH: usize = 8192;
const ROUNDS: usize = 10_000;
const CLOSE: f64 = 1e-10;

impl Arena {
    /// Reads who drew the images of a table of pairs.
    pub fn read(path: &Path) -> Result<Self> {
        let mut inputs = Inputs::open(&[path.to_owned()])?;
        inputs
            .require(&[&[pairs::CAPTION], &pairs::MODEL[..]].concat(), "--arena reads which models drew the images")?;
        let columns = [&PairKeys::columns(&inputs)[..], &pairs::MODEL].concat();
        let known = |models: &StringArray, i: usize| models.is_valid(i) && !models.value(i).is_empty();
        let (mut numbers, mut drawn_by) = (BTreeMap::<String, u32>::new(), HashMap::new());
        for rows in inputs.read(Some(&columns), 0..usize::MAX, BATCH)? {
            let rows = rows?;
            let ids = PairKeys::of(&rows, rows.text_or_null(pairs::CAPTION)?)?.ids;
            let [model_0, model_1] = [rows.text_or_null(pairs::MODEL[0])?, rows.text_or_null(pairs::MODEL[1])?];
            for i in 0..rows.len() {
                let models = (known(&model_0, i) && known(&model_1, i)).then(|| {
                    [model_0.value(i), model_1.value(i)].map(|model| {
                        let next = numbers.len() as u32;
                        *numbers.entry(model.to_owned()).or_insert(next)
                    })
                });
                let before = drawn_by.insert(ids.value(i).to_owned(), models);
                ensure!(
                    before.is_none_or(|before| before == models),
                    "{}: this pair appears twice, with different models",
                    rows.at(i)
                );
            }
        }
        let mut models = vec![String::new(); numbers.len()];
        numbers.into_iter().for_each(|(model, number)| models[number as usize] = model);
        let (name, origins, n) = (inputs.name(), inputs.origins()?, models.len());
        let (absent, nameless) = (0, 0);
        Ok(Self {
            name,
            origins,
            models,
            drawn_by,
            absent,
            nameless,
            mu: vec![0.0; n],
            mean: 1.0,
            counts: BTreeMap::new(),
        })
    }

    /// Counts preferences, by the pair's id: 1 for image 0, -1 for image 1; others say nothing.
    pub fn count<'a>(&mut self, preferences: impl Iterator<Item = (&'a str, i8)>) {
        for (id, preference) in preferences {
            match self.drawn_by.get(id) {
                None => self.absent += 1,
                Some(None) => self.nameless += 1,
                Some(Some(_)) => {}
            }
            if let Some((winner, loser)) = self.sides(id, preference) {
                *self.counts.entry([winner, loser]).or_default() += 1;
            }
        }
    }

    /// Learns mu from the preferences counted.
    pub fn fit(&mut self) -> Result<()> {
        let all: usize = self.counts.values().sum();
        ensure!(
            all > 0,
            "{}: no pair that has a preference is here with both of its models; name the table that was scored, whose columns model_0 and model_1 \
             say which model drew each image",
            self.name
        );
        self.mu = quality(&self.counts, self.models.len());
        let gaps = self.counts.iter().map(|(&[w, l], &n)| n as f64 * self.gap(w, l));
        self.mean = gaps.sum::<f64>() / all as f64;
        Ok(())
    }

    /// The preferences for a model, and those in which it took part.
    fn record(&self, model: usize) -> [usize; 2] {
        let of = |side: &dyn Fn(&[u32; 2]) -> bool| self.counts.iter().filter(|(k, _)| side(k)).map(|(_, n)| n).sum();
        [of(&|k| k[0] as usize == model), of(&|k| k.contains(&(model as u32)))]
    }

    fn sides(&self, id: &str, preference: i8) -> Option<(u32, u32)> {
        let [zero, one] = (*self.drawn_by.get(id)?)?;
        match preference {
            1 => Some((zero, one)),
            -1 => Some((one, zero)),
            _ => None,
        }
    }

    fn gap(&self, winner: u32, loser: u32) -> f64 {
        let m = self.mu[winner as usize] - self.mu[loser as usize];
        m + hazard(m)
    }

    /// The expected gap of a pair with this preference, divided by the mean of all; 1 where it has none or a model is not known.
    pub fn weight(&self, id: &str, preference: i8) -> f64 {
        self.sides(id, preference).map_or(1.0, |(winner, loser)| self.gap(winner, loser) / self.mean)
    }

    pub fn text(&self) -> String {
        let mut rows = vec![["model", "quality", "preferred", "of"].map(String::from).to_vec()];
        let mut order: Vec<usize> = (0..self.models.len()).collect();
        order.sort_by(|&a, &b| self.mu[b].total_cmp(&self.mu[a]));
        rows.extend(order.into_iter().map(|i| {
            let [won, all] = self.record(i);
            vec![self.models[i].clone(), format!("{:+.3}", self.mu[i]), won.to_string(), all.to_string()]
        }));
        let mut all = format!("\n{}", text::table(&rows, 1));
        for (n, why) in
            [(self.absent, "not in"), (self.nameless, "without both models in")].into_iter().filter(|(n, _)| *n > 0)
        {
            all += &format!("{} {why} {}: weight 1\n", text::count(n, "scored pair"), self.name);
        }
        all
    }

    /// The pairs about which the table says nothing.
    pub fn unknown(&self) -> Value {
        json!({"absent": self.absent, "without_models": self.nameless})
    }

    pub fn json(&self) -> Value {
        let model = |i: usize| {
            let [preferred, pairs] = self.record(i);
            (self.models[i].clone(), json!({"quality": self.mu[i], "preferred": preferred, "pairs": pairs}))
        };
        Value::Object((0..self.models.len()).map(model).collect())
    }
}

/// phi(x) / Phi(x).
fn hazard(x: f64) -> f64 {
    let normal = Normal::standard();
    normal.pdf(x) / normal.cdf(x)
}

/// mu of every model, from how often the first model of a key was preferred to the second. The likelihood is concave, and no
/// second derivative exceeds the number of a model's pairs, so each of these steps raises it.
fn quality(counts: &BTreeMap<[u32; 2], usize>, models: usize) -> Vec<f64> {
    let mut mu = vec![0.0; models];
    let mut pairs = vec![0.0; models];
    for (&[winner, loser], &n) in counts.iter().filter(|([w, l], _)| w != l) {
        pairs[winner as usize] += 2.0 * n as f64;
        pairs[loser as usize] += 2.0 * n as f64;
    }
    for _ in 0..ROUNDS {
        let mut slope: Vec<f64> = mu.iter().map(|mu_g| -mu_g).collect();
        for (&[winner, loser], &n) in counts {
            let push = n as f64 * hazard(mu[winner as usize] - mu[loser as usize]);
            slope[winner as usize] += push;
            slope[loser as usize] -= push;
        }
        let steps: Vec<f64> = slope.iter().zip(&pairs).map(|(slope, n)| slope / (n + 1.0)).collect();
        mu.iter_mut().zip(&steps).for_each(|(mu_g, step)| *mu_g += step);
        if steps.iter().all(|step| step.abs() < CLOSE) {
            break;
        }
    }
    mu
}

#[cfg(test)]
mod tests {
    // n = {(0, 1): 70, (1, 0): 30, (1, 2): 60, (2, 1): 40, (0, 2): 8, (2, 0): 2, (0, 0): 5}; the least, by torch.optim.LBFGS in f64, of
    // f = lambda mu: (mu ** 2).sum() / 2 - sum(k * torch.special.log_ndtr(mu[w] - mu[l]) for (w, l), k in n.items())
    #[test]
    fn quality_is_the_most_likely() {
        let counts = [([0, 1], 70), ([1, 0], 30), ([1, 2], 60), ([2, 1], 40), ([0, 2], 8), ([2, 0], 2), ([0, 0], 5)];
        let mu = super::quality(&counts.into_iter().collect(), 3);
        for (ours, known) in mu.iter().zip(KNOWN) {
            assert!((ours - known).abs() < 1e-6, "{mu:?}");
        }
    }

    const KNOWN: [f64; 3] = [0.432749144, -0.089824539, -0.342924605];

    /// The integral of x phi(x - m) over x > 0, divided by that of phi(x - m), on a grid.
    #[test]
    fn a_gap_is_the_mean_of_a_truncated_normal() {
        for (m, mean) in [(-3.0, 0.28309865493), (0.0, 0.797884560803), (1.5, 1.638789750459)] {
            assert!((m + super::hazard(m) - mean).abs() < 1e-9, "{m}: {}", m + super::hazard(m));
        }
    }
}
