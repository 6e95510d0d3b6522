//! Elementary functions without branches, so that loops over them vectorise. Callers choose the widest instructions at run time.

use multiversion::multiversion;

/// exp to 2 units in the last place (Cephes' expf); 0 below -87, clamped above 88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.3);
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer, which the low bits then hold
    let rounded = x * std::f32::consts::LOG2_E + MAGIC;
    let n = rounded - MAGIC;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_6e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // Not a cast of n, which would be checked lane by lane.
    y * f32::from_bits(rounded.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23)
}

/// erf to a few units in the last place (the rational function that Eigen and XLA use).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let z = x * x;
    let mut p = -2.726_142_3e-10;
    p = p * z + 2.770_681_4e-8;
    p = p * z + -2.101_024_e-6;
    p = p * z + -5.692_506_4e-5;
    p = p * z + -7.349_906_3e-4;
    p = p * z + -2.954_6e-3;
    p = p * z + -1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * z + -2.133_740_6e-4;
    q = q * z + -1.682_827e-3;
    q = q * z + -7.373_329_2e-3;
    q = q * z + -1.426_473_9e-2;
    x * p / q
}

#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// d silu / dx
#[inline(always)]
pub fn silu_grad(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

/// x Phi(x), the exact (erf) form.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// d gelu / dx = Phi(x) + x phi(x)
#[inline(always)]
pub fn gelu_grad(x: f32) -> f32 {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * INV_SQRT_TAU * exp(-0.5 * x * x)
}

/// x (1 + tanh u) / 2 = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    x * sigmoid(TWO_ROOTS * (x + CUBIC * x * x * x))
}

#[inline(always)]
pub fn gelu_tanh_grad(x: f32) -> f32 {
    let s = sigmoid(TWO_ROOTS * (x + CUBIC * x * x * x));
    s + x * s * (1.0 - s) * TWO_ROOTS * (1.0 + 3.0 * CUBIC * x * x)
}

/// 2 sqrt(2 / pi)
const TWO_ROOTS: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
pub fn quick_gelu(x: f32) -> f32 {
    x * sigmoid(1.702 * x)
}

#[inline(always)]
pub fn quick_gelu_grad(x: f32) -> f32 {
    let s = sigmoid(1.702 * x);
    s * (1.0 + 1.702 * x * (1.0 - s))
}

const LANES: usize = 16;

/// The sum of f(0) to f(n - 1), as sixteen partial sums in a fixed order: the same for every instruction set.
#[inline(always)]
pub fn sum_by(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + j);
        }
    }
    let mut rest = 0.0;
    for i in whole..n {
        rest += f(i);
    }
    for width in [8, 4, 2, 1] {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
    }
    lanes[0] + rest
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn sum(x: &[f32]) -> f32 {
    sum_by(x.len(), |i| x[i])
}

/// The largest number, from sixteen partial maxima: in a single chain, each comparison would wait for the one before.
#[inline(always)]
fn max_of(x: &[f32]) -> f32 {
    let larger = |m: f32, x: f32| if x > m { x } else { m };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// x = exp(x - max) for every number; the last few are computed as one whole vector too.
#[inline(always)]
fn exp_from(x: &mut [f32], max: f32) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for chunk in whole {
        for x in chunk {
            *x = exp(*x - max);
        }
    }
    let mut last = [max; LANES];
    last[..rest.len()].copy_from_slice(rest);
    for x in &mut last {
        *x = exp(*x - max);
    }
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Softmax over the rows of `scores` (each `width` long), in place. In row i only the first `visible[i]` entries count; the others
/// become 0.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn softmax_rows(scores: &mut [f32], width: usize, visible: &[usize]) {
    for (row, &n) in scores.chunks_exact_mut(width).zip(visible) {
        let (row, hidden) = row.split_at_mut(n);
        hidden.fill(0.0);
        exp_from(row, max_of(row));
        let inverse = 1.0 / sum_by(n, |i| row[i]);
        for x in row.iter_mut() {
            *x *= inverse;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_erf_are_accurate() {
        for i in -8000..8000 {
            let x = i as f32 * 0.01;
            let want = (x as f64).exp();
            assert!((exp(x) as f64 / want - 1.0).abs() < 3e-7, "exp({x})");
        }
        // erf by Simpson's rule in f64.
        for i in -50..=50 {
            let x = i as f64 * 0.1;
            let n = 2000;
            let h = x / n as f64;
            let f = |k: usize| (-(k as f64 * h).powi(2)).exp();
            let inner: f64 = (1..n).map(|k| f(k) * if k % 2 == 1 { 4.0 } else { 2.0 }).sum();
            let want = 2.0 / std::f64::consts::PI.sqrt() * h / 3.0 * (f(0) + inner + f(n));
            assert!((erf(x as f32) as f64 - want).abs() < 2e-7, "erf({x}) {} {want}", erf(x as f32));
        }
    }

    #[test]
    fn derivatives_are_those_of_the_functions() {
        type Pair = (fn(f64) -> f64, fn(f32) -> f32);
        let pairs: [Pair; 2] =
            [(|x| x / (1.0 + (-x).exp()), silu_grad), (|x| x / (1.0 + (-1.702 * x).exp()), quick_gelu_grad)];
        for (f, grad) in pairs {
            for i in -60..60 {
                let x = i as f64 * 0.1;
                let want = (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
                assert!((grad(x as f32) as f64 - want).abs() < 1e-5);
            }
        }
        for i in -60..60 {
            let x = i as f32 * 0.1;
            let want = (gelu(x + 1e-2) as f64 - gelu(x - 1e-2) as f64) / 2e-2;
            assert!((gelu_grad(x) as f64 - want).abs() < 1e-3);
        }
    }
}
