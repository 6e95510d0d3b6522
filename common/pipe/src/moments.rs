//! Mean and standard deviation, once for all tools.
//!
//! The standard deviation is the sample's: sd^2 = sum of (x - mean)^2 / (n - 1). It is defined from two values on.

/// The mean; NaN of no value.
pub fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count() as f64
}

/// The standard deviation; `None` of fewer than two values.
pub fn sd(values: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    let (centre, n) = (mean(values.clone()), values.clone().count());
    (n > 1).then(|| (values.map(|x| (x - centre).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt())
}

/// Mean, standard deviation and range of values that pass by once.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    n: usize,
    mean: f64,
    /// Sum of (x - mean)^2.
    squares: f64,
    min: f64,
    max: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Self { n: 0, mean: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Moments {
    /// Welford's update.
    pub fn add(&mut self, x: f64) {
        self.n += 1;
        let from_old = x - self.mean;
        self.mean += from_old / self.n as f64;
        self.squares += from_old * (x - self.mean);
        self.min = self.min.min(x);
        self.max = self.max.max(x);
    }

    pub fn n(&self) -> usize {
        self.n
    }

    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then_some(self.mean)
    }

    pub fn sd(&self) -> Option<f64> {
        (self.n > 1).then(|| (self.squares / (self.n - 1) as f64).sqrt())
    }

    pub fn range(&self) -> Option<(f64, f64)> {
        (self.n > 0).then_some((self.min, self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sd_is_the_samples() {
        // numpy.std([1, 2, 3, 4], ddof=1)
        let x = [1.0, 2.0, 3.0, 4.0];
        assert!((sd(x.into_iter()).unwrap() - 1.290_994_448_7).abs() < 1e-9);
        assert_eq!(sd([1.0].into_iter()), None);
    }

    #[test]
    fn passing_by_once_gives_the_same() {
        // Far from 0, where the mean of squares less the square of the mean has no digit left.
        let x: Vec<f64> = (0..1000).map(|i| 1e8 + f64::from(i % 7)).collect();
        let mut moments = Moments::default();
        assert_eq!((moments.mean(), moments.sd(), moments.range()), (None, None, None));
        x.iter().for_each(|&x| moments.add(x));
        let all = || x.iter().copied();
        assert!((moments.mean().unwrap() - mean(all())).abs() < 1e-6);
        assert!((moments.sd().unwrap() - sd(all()).unwrap()).abs() < 1e-6);
        assert_eq!((moments.n(), moments.range()), (1000, Some((1e8, 1e8 + 6.0))));
    }
}
