//! The only source of randomness. Every draw is a pure function of (run seed, stream name, id, visit), so order, threads, shards and
//! resumption change nothing.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::id::sha256_of;

/// A generator for one thing at one visit.
pub struct Draws(ChaCha8Rng);

/// The generator for these four. `stream`: what is drawn ("noise", "timestep"). `id`: the pair or image. `visit`: how many times it has
/// been seen before.
pub fn draws(seed: u64, stream: &str, id: &str, visit: u64) -> Draws {
    let key = sha256_of(&[&seed.to_le_bytes(), stream.as_bytes(), id.as_bytes(), &visit.to_le_bytes()]);
    Draws(ChaCha8Rng::from_seed(key))
}

impl Draws {
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..n (n > 0), without bias (Lemire's rejection).
    pub fn below(&mut self, n: u64) -> u64 {
        loop {
            let wide = self.0.next_u64() as u128 * n as u128;
            if wide as u64 >= n.wrapping_neg() % n {
                return (wide >> 64) as u64;
            }
        }
    }

    /// `n` independent standard normals (Box-Muller in f64).
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(n + 1);
        while out.len() < n {
            let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
            out.push((radius * cos) as f32);
            out.push((radius * sin) as f32);
        }
        out.truncate(n);
        out
    }

    /// A random order of 0..n (Fisher-Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_the_moments_of_normals() {
        let x = draws(1, "noise", "a", 0).normals(200_000);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let var = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "{mean} {var}");
    }

    #[test]
    fn every_key_part_matters() {
        let first = |d: &mut Draws| d.next_u64();
        let base = first(&mut draws(1, "noise", "a", 0));
        assert_eq!(base, first(&mut draws(1, "noise", "a", 0)));
        for other in
            [draws(2, "noise", "a", 0), draws(1, "t", "a", 0), draws(1, "noise", "b", 0), draws(1, "noise", "a", 1)]
        {
            assert_ne!(base, first(&mut { other }));
        }
    }

    #[test]
    fn permutation_holds_each_once() {
        let mut p = draws(0, "epoch", "", 3).permutation(1000);
        assert_ne!(p[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        p.sort();
        assert!(p.iter().enumerate().all(|(i, &v)| i == v as usize));
    }
}
