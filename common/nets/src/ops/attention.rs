//! Scaled dot-product attention over several heads, without the permutations: heads are read in place by their stride.

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Mat, Shared, even, gemm, has_kernel, math, values, with_values};

/// Which keys a query may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Those up to its own position: CLIP's text tower.
    Causal,
}

/// softmax(q k^T / sqrt(d)) v for each head. `q` (B, N, heads * d), `k` and `v` (B, M, heads * d) -> (B, N, heads * d).
///
/// # Errors
/// Shapes that do not fit each other or the number of heads.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let ((b, n, width), (bk, m, wk)) = (q.dims3()?, k.dims3()?);
    if (b, width) != (bk, wk) || k.dims() != v.dims() || width % heads != 0 || (mask == Mask::Causal && n != m) {
        bail!("attention: q {:?}, k {:?}, v {:?} do not fit {heads} heads", q.shape(), k.shape(), v.shape())
    }
    if has_kernel(q) {
        return q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, Attention { heads, mask });
    }
    composed(q, k, v, heads, mask)
}

/// The same from candle's operations, every one of which has a backward pass.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let (b, n, width) = q.dims3()?;
    let split = |x: &Tensor| x.reshape((b, x.dim(1)?, heads, width / heads))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let scores = (q.matmul(&k.t()?)? * (1.0 / ((width / heads) as f64).sqrt()))?; // (B, heads, N, M)
    let scores = match mask {
        Mask::None => scores,
        Mask::Causal => {
            let hidden: Vec<f32> = (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 }).collect();
            scores.broadcast_add(&Tensor::from_vec(hidden, (n, n), q.device())?.to_dtype(q.dtype())?)?
        }
    };
    // In f32: half-precision sums over thousands of keys lose too much.
    let scores = scores.to_dtype(DType::F32)?;
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(v.dtype())?;
    p.matmul(&v)?.transpose(1, 2)?.reshape((b, n, width))
}

struct Attention {
    heads: usize,
    mask: Mask,
}

/// Queries a task handles at a time, about: their scores against all keys stay in the cache.
const BLOCK: usize = 64;

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Dims {
    n: usize,
    m: usize,
    heads: usize,
    width: usize,
}

impl Dims {
    fn d(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d() as f32).sqrt()
    }

    /// Where head `h` of batch `b` begins in a tensor with `len` positions.
    fn at(&self, b: usize, h: usize, len: usize) -> usize {
        b * len * self.width + h * self.d()
    }
}

impl Attention {
    fn dims(&self, q: &[usize], k: &[usize]) -> Dims {
        Dims { n: q[1], m: k[1], heads: self.heads, width: q[2] }
    }

    /// The attention weights of queries `from..from + rows`, (rows, m).
    fn weights(&self, s: Dims, p: &mut [f32], q: &[f32], k: &[f32], from: usize, rows: usize) {
        let (q, k) = (Mat::new(&q[from * s.width..], s.width), Mat::new(k, s.width));
        gemm(rows, s.m, s.d(), p, s.m, false, s.scale(), q, k.t());
        let visible: Vec<usize> = match self.mask {
            Mask::None => vec![s.m; rows],
            Mask::Causal => (from + 1..from + rows + 1).collect(),
        };
        math::softmax_rows(&mut p[..rows * s.m], s.m, &visible);
    }
}

/// dS = P * (dP - rowsum(dP * P)), written over dP.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn softmax_grad(dp: &mut [f32], p: &[f32], width: usize) {
    for (dp, p) in dp.chunks_exact_mut(width).zip(p.chunks_exact(width)) {
        let dot = math::sum_by(width, |i| dp[i] * p[i]);
        dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - dot));
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (values(q, lq)?, values(k, lk)?, values(v, lv)?);
        let s = self.dims(lq.dims(), lk.dims());
        let mut out = vec![0f32; q.len()];
        let shared = Shared::new(&mut out);
        let block = even(s.n, BLOCK);
        let blocks = s.n.div_ceil(block);
        (0..lq.dims()[0] * s.heads * blocks).into_par_iter().for_each_init(
            || vec![0f32; block * s.m],
            |p, task| {
                let (b, h, from) = (task / blocks / s.heads, task / blocks % s.heads, task % blocks * block);
                let rows = block.min(s.n - from);
                let (q_at, k_at) = (s.at(b, h, s.n), s.at(b, h, s.m));
                self.weights(s, p, &q[q_at..], &k[k_at..], from, rows);
                let start = q_at + from * s.width;
                // SAFETY: a task writes d columns of its own rows.
                let o = unsafe { shared.slice(start, (rows - 1) * s.width + s.d()) };
                gemm(rows, s.d(), s.m, o, s.width, false, 1.0, Mat::new(p, s.m), Mat::new(&v[k_at..], s.width));
            },
        );
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        go: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let s = self.dims(q.dims(), k.dims());
        let (gq, gk, gv) = with_values([q, k, v, go], |[q, k, v, go]| {
            let (mut gq, mut gk, mut gv) = (vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; k.len()]);
            let (sq, sk, sv) = (Shared::new(&mut gq), Shared::new(&mut gk), Shared::new(&mut gv));
            let tasks = q.len() / (s.n * s.width) * s.heads;
            (0..tasks).into_par_iter().for_each_init(
                || (vec![0f32; BLOCK * s.m], vec![0f32; BLOCK * s.m]),
                |(p, dp), task| {
                    let (b, h) = (task / s.heads, task % s.heads);
                    let (q_at, k_at, d) = (s.at(b, h, s.n), s.at(b, h, s.m), s.d());
                    let (q, k, v, go) = (&q[q_at..], &k[k_at..], &v[k_at..], &go[q_at..]);
                    // SAFETY: a task writes the d columns of its own head and batch entry.
                    let (gq, gk, gv) = unsafe {
                        let keys = (s.m - 1) * s.width + d;
                        (sq.slice(q_at, (s.n - 1) * s.width + d), sk.slice(k_at, keys), sv.slice(k_at, keys))
                    };
                    for from in (0..s.n).step_by(BLOCK) {
                        let rows = BLOCK.min(s.n - from);
                        self.weights(s, p, q, k, from, rows);
                        let go = Mat::new(&go[from * s.width..], s.width);
                        let p = Mat::new(p, s.m);
                        gemm(s.m, d, rows, gv, s.width, true, 1.0, p.t(), go); // dV += P^T dO
                        gemm(rows, s.m, d, dp, s.m, false, 1.0, go, Mat::new(v, s.width).t()); // dP = dO V^T
                        softmax_grad(&mut dp[..rows * s.m], &p.data[..rows * s.m], s.m);
                        let ds = Mat::new(dp, s.m);
                        let q = Mat::new(&q[from * s.width..], s.width);
                        gemm(
                            rows,
                            d,
                            s.m,
                            &mut gq[from * s.width..],
                            s.width,
                            false,
                            s.scale(),
                            ds,
                            Mat::new(k, s.width),
                        );
                        gemm(s.m, d, rows, gk, s.width, true, s.scale(), ds.t(), q); // dK += dS^T Q / sqrt(d)
                    }
                },
            );
            (gq, gk, gv)
        })?;
        let give = |g: Vec<f32>, like: &Tensor| Tensor::from_vec(g, like.shape(), like.device()).map(Some);
        Ok((give(gq, q)?, give(gk, k)?, give(gv, v)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{same, var};
    use super::*;

    #[test]
    fn attention_equals_its_composition() {
        let cases = [
            (2, 7, 5, 2, 6, Mask::None),
            (1, 130, 77, 3, 8, Mask::None),
            (1, 65, 65, 2, 24, Mask::None),
            (2, 70, 70, 2, 4, Mask::Causal),
        ];
        for (b, n, m, heads, d, mask) in cases {
            let (q, k, v) = (var(&[b, n, heads * d], 1), var(&[b, m, heads * d], 2), var(&[b, m, heads * d], 3));
            let ours = attention(&q, &k, &v, heads, mask).unwrap();
            same(&[&q, &k, &v], &ours, &composed(&q, &k, &v, heads, mask).unwrap());
        }
    }
}
