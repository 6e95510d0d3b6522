//! Significance: the exact sign test, and Holm's correction for many tests.

/// The probability that all tests together name any winner where there is none.
pub const LEVEL: f64 = 0.05;

/// The exact two-sided sign test: the probability that a fair coin falls at least this unevenly. Ties do not show who is better and
/// are left out.
pub fn sign_test(wins: usize, losses: usize) -> f64 {
    let (n, k) = (wins + losses, wins.min(losses));
    // P(X = k) = n! / (k! (n-k)!) / 2^n, in logarithms; then P(X = i-1) = P(X = i) i / (n-i+1), down to 0.
    let ln_p = (1..=k).map(|i| ((n - k + i) as f64 / i as f64).ln()).sum::<f64>() - n as f64 * std::f64::consts::LN_2;
    let (mut term, mut sum) = (1.0, 1.0);
    for i in (1..=k).rev() {
        term *= i as f64 / (n - i + 1) as f64;
        sum += term;
    }
    (2.0 * ln_p.exp() * sum).min(1.0)
}

/// Holm's step-down correction: the i-th smallest of m values (i from 0) becomes the largest of (m-j) p_j over j <= i, at most 1.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    let (mut corrected, mut largest) = (vec![0.0; p.len()], 0.0_f64);
    for (rank, i) in order.into_iter().enumerate() {
        largest = largest.max((p.len() - rank) as f64 * p[i]).min(1.0);
        corrected[i] = largest;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    // from scipy.stats import binomtest
    // for k, n in [(0, 0), (1, 1), (5, 10), (8, 10), (2, 10), (210, 297), (170, 297), (643, 1129), (20000, 40500)]:
    //     print(k, n - k, binomtest(k, n).pvalue if n else 1)
    #[test]
    fn the_sign_test_is_scipys() {
        for (wins, losses, p) in [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (5, 5, 1.0),
            (8, 2, 0.109375),
            (2, 8, 0.109375),
            (210, 87, 6.808869554183306e-13),
            (170, 127, 0.014667449113253609),
            (643, 486, 3.3214740437202904e-6),
            (20_000, 20_500, 0.013153825113144245),
        ] {
            let ours = sign_test(wins, losses);
            assert!((ours / p - 1.0).abs() < 1e-9, "{wins} {losses}: {ours} {p}");
        }
        assert!(sign_test(10, 4990) < 1e-300); // not NaN
    }

    // R: p.adjust(c(0.01, 0.04, 0.03, 0.005), method = "holm") is 0.03 0.06 0.06 0.02
    #[test]
    fn holm_is_rs() {
        let close = |a: Vec<f64>, b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12) && a.len() == b.len();
        assert!(close(holm(&[0.01, 0.04, 0.03, 0.005]), &[0.03, 0.06, 0.06, 0.02]));
        assert!(close(holm(&[0.9, 0.8]), &[1.0, 1.0]));
        assert!(holm(&[]).is_empty());
    }
}
