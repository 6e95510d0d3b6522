//! Scaled dot-product attention over several heads, without permutations: heads are read in place by their stride.

use candle_core::{D, DType, Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Operand, apply3};
use super::matrix::{Mat, Shared, even, gemm};
#[cfg(feature = "cuda")]
use super::{attention_cuda, cuda};
use super::{math, precomputed::with_backward};

/// Which keys a query may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All keys.
    None,
    /// The keys up to the query's own position: CLIP's text tower.
    Causal,
}

/// softmax(q k^T / sqrt(d)) v for each head. `q` (B, N, heads * d), `k` and `v` (B, M, heads * d) -> (B, N, heads * d).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let ((b, n, width), (bk, m, wk)) = (q.dims3()?, k.dims3()?);
    if (b, width) != (bk, wk) || k.dims() != v.dims() || width % heads != 0 || (mask == Mask::Causal && n != m) {
        bail!("attention: q {:?}, k {:?}, v {:?} do not fit {heads} heads", q.shape(), k.shape(), v.shape())
    }
    apply3(Attention { heads, mask }, [q, k, v])
}

/// Scores of queries against keys that the composition holds at a time: a quarter of a gigabyte in f32.
const SCORES: usize = 1 << 26;

/// Attention from candle's operations, in chunks of queries that have about `most` scores in all heads: the whole matrix of a
/// large image would be gigabytes. The backward pass computes the scores of each chunk once more.
#[derive(Clone, Copy)]
struct Chunks {
    heads: usize,
    mask: Mask,
    most: usize,
}

impl Chunks {
    /// (B, N, heads * d) -> (B, heads, N, d)
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (b, n, width) = x.dims3()?;
        x.reshape((b, n, self.heads, width / self.heads))?.transpose(1, 2)?.contiguous()
    }

    /// (B, heads, N, d) -> (B, N, heads * d)
    fn join(&self, x: &Tensor) -> Result<Tensor> {
        let (b, heads, n, d) = x.dims4()?;
        x.transpose(1, 2)?.reshape((b, n, heads * d))
    }

    /// First query and number of queries of each chunk, for `q` (B, heads, N, d) and `k` (B, heads, M, d).
    fn pieces(&self, q: &Tensor, k: &Tensor) -> Result<impl Iterator<Item = (usize, usize)>> {
        let ((b, heads, n, _), m) = (q.dims4()?, k.dim(2)?);
        let rows = (self.most / (b * heads * m).max(1)).clamp(1, n.max(1));
        Ok((0..n).step_by(rows).map(move |from| (from, rows.min(n - from))))
    }

    /// The attention weights of the queries `q` (B, heads, rows, d), the first of which has position `from`, over the keys `k`
    /// (B, heads, M, d) -> f32 (B, heads, rows, M).
    fn weights(&self, q: &Tensor, k: &Tensor, from: usize) -> Result<Tensor> {
        let (_, _, rows, d) = q.dims4()?;
        let scores = (q.matmul(&k.t()?)? * scale(d))?;
        let scores = match self.mask {
            Mask::None => scores,
            Mask::Causal => {
                let m = k.dim(2)?;
                let sees = |i: usize| i % m <= from + i / m;
                let hidden = (0..rows * m).map(|i| if sees(i) { 0.0 } else { f32::NEG_INFINITY }).collect::<Vec<_>>();
                scores.broadcast_add(&Tensor::from_vec(hidden, (rows, m), q.device())?.to_dtype(q.dtype())?)?
            }
        };
        // In f32: half-precision sums over thousands of keys lose too much.
        let scores = scores.to_dtype(DType::F32)?;
        let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
    }

    /// Attention without history, of `q` (B, N, heads * d), `k` and `v` (B, M, heads * d).
    fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.split(q)?, self.split(k)?, self.split(v)?);
        let chunk = |(from, rows)| self.weights(&q.narrow(2, from, rows)?, &k, from)?.to_dtype(v.dtype())?.matmul(&v);
        let chunks = self.pieces(&q, &k)?.map(chunk).collect::<Result<Vec<_>>>()?;
        self.join(&Tensor::cat(&chunks, 2)?)
    }

    /// As the kernel: dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dP P)), dQ = dS K / sqrt(d), dK = dS^T Q / sqrt(d).
    fn backward(&self, q: &Tensor, k: &Tensor, v: &Tensor, go: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (q, k, v, go) = (self.split(q)?, self.split(k)?, self.split(v)?, self.split(go)?);
        let (dtype, scale) = (q.dtype(), scale(q.dim(3)?));
        let (mut gq, mut sums): (Vec<Tensor>, Option<(Tensor, Tensor)>) = (vec![], None);
        for (from, rows) in self.pieces(&q, &k)? {
            let (q, go) = (q.narrow(2, from, rows)?.contiguous()?, go.narrow(2, from, rows)?.contiguous()?);
            let p = self.weights(&q, &k, from)?;
            let gv = p.to_dtype(dtype)?.t()?.matmul(&go)?;
            let dp = go.matmul(&v.t()?)?.to_dtype(DType::F32)?;
            let dot = (&dp * &p)?.sum_keepdim(D::Minus1)?;
            let ds = (dp.broadcast_sub(&dot)? * p)?.to_dtype(dtype)?;
            gq.push((ds.matmul(&k)? * scale)?);
            let gk = (ds.t()?.matmul(&q)? * scale)?;
            // f32: there may be many chunks.
            let (gk, gv) = (gk.to_dtype(DType::F32)?, gv.to_dtype(DType::F32)?);
            sums = Some(match sums {
                None => (gk, gv),
                Some((k, v)) => ((k + gk)?, (v + gv)?),
            });
        }
        let (gk, gv) = sums.map_or_else(|| Ok::<_, candle_core::Error>((k.zeros_like()?, v.zeros_like()?)), Ok)?;
        let whole = |g: &Tensor| self.join(&g.to_dtype(dtype)?).map(Some);
        Ok([whole(&Tensor::cat(&gq, 2)?)?, whole(&gk)?, whole(&gv)?])
    }

    fn attention(self, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if cuda::fused(q) && k.dtype() == q.dtype() && v.dtype() == q.dtype() {
            let (heads, mask) = (self.heads, self.mask);
            let y = attention_cuda::forward([&q.detach(), &k.detach(), &v.detach()], heads, mask)?;
            return with_backward(y, [q, k, v], move |qkv, go, _| attention_cuda::backward(qkv, go, heads, mask));
        }
        let y = self.forward(&q.detach(), &k.detach(), &v.detach())?;
        with_backward(y, [q, k, v], move |[q, k, v], go, _| self.backward(q, k, v, go))
    }
}

pub(crate) fn scale(d: usize) -> f64 {
    1.0 / (d as f64).sqrt()
}

pub(crate) struct Attention {
    pub heads: usize,
    pub mask: Mask,
}

/// Queries that a task handles at a time, about, and scores against all keys that stay in the cache with them: each product packs the
/// keys once more, which costs the less the more queries share it.
const BLOCK: usize = 64;
const CACHED: usize = 1 << 17;

/// The queries of a block against `m` keys.
fn block(m: usize) -> usize {
    (CACHED / m.max(1)).clamp(BLOCK, 4 * BLOCK)
}

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

impl Kernel<3> for Attention {
    const NAME: &'static str = "attention";

    fn forward(&self, [q, k, v]: [Operand; 3]) -> Vec<f32> {
        let (s, batch) = (self.dims(q.dims, k.dims), q.dims[0]);
        let (q, k, v) = (q.values, k.values, v.values);
        let mut out = vec![0f32; q.len()];
        let shared = Shared::new(&mut out);
        let block = even(s.n, block(s.m));
        let blocks = s.n.div_ceil(block);
        (0..batch * s.heads * blocks).into_par_iter().for_each_init(
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
        out
    }

    fn backward(&self, [q, k, v]: [Operand; 3], go: &[f32], [to_q, to_k, to_v]: [&mut Gradient; 3]) -> Result<()> {
        let s = self.dims(q.dims, k.dims);
        let (q, k, v) = (q.values, k.values, v.values);
        let (mut gq, mut gk, mut gv) = (vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; k.len()]);
        let (sq, sk, sv) = (Shared::new(&mut gq), Shared::new(&mut gk), Shared::new(&mut gv));
        let (tasks, block) = (q.len() / (s.n * s.width) * s.heads, block(s.m).min(s.n));
        (0..tasks).into_par_iter().for_each_init(
            || (vec![0f32; block * s.m], vec![0f32; block * s.m]),
            |(p, dp), task| {
                let (b, h) = (task / s.heads, task % s.heads);
                let (q_at, k_at, d) = (s.at(b, h, s.n), s.at(b, h, s.m), s.d());
                let (q, k, v, go) = (&q[q_at..], &k[k_at..], &v[k_at..], &go[q_at..]);
                // SAFETY: a task writes the d columns of its own head and batch entry.
                let (gq, gk, gv) = unsafe {
                    let keys = (s.m - 1) * s.width + d;
                    (sq.slice(q_at, (s.n - 1) * s.width + d), sk.slice(k_at, keys), sv.slice(k_at, keys))
                };
                for from in (0..s.n).step_by(block) {
                    let rows = block.min(s.n - from);
                    self.weights(s, p, q, k, from, rows);
                    let go = Mat::new(&go[from * s.width..], s.width);
                    let p = Mat::new(p, s.m);
                    gemm(s.m, d, rows, gv, s.width, true, 1.0, p.t(), go); // dV += P^T dO
                    gemm(rows, s.m, d, dp, s.m, false, 1.0, go, Mat::new(v, s.width).t()); // dP = dO V^T
                    softmax_grad(&mut dp[..rows * s.m], &p.data[..rows * s.m], s.m);
                    let ds = Mat::new(dp, s.m);
                    let q = Mat::new(&q[from * s.width..], s.width);
                    gemm(rows, d, s.m, &mut gq[from * s.width..], s.width, false, s.scale(), ds, Mat::new(k, s.width));
                    gemm(s.m, d, rows, gk, s.width, true, s.scale(), ds.t(), q); // dK += dS^T Q / sqrt(d)
                }
            },
        );
        to_q.set(|| gq);
        to_k.set(|| gk);
        to_v.set(|| gv);
        Ok(())
    }

    fn composed(&self, operands: [&Tensor; 3]) -> Result<Tensor> {
        Chunks { heads: self.heads, mask: self.mask, most: SCORES }.attention(operands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{same, var};

    const CASES: [(usize, usize, usize, usize, usize, Mask); 4] = [
        (2, 7, 5, 2, 6, Mask::None),
        (1, 130, 77, 3, 8, Mask::None),
        (1, 65, 65, 2, 24, Mask::None),
        (2, 70, 70, 2, 4, Mask::Causal),
    ];

    /// All scores at once, with candle's history of every operation.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, chunks: Chunks) -> Result<Tensor> {
        let (q, k, v) = (chunks.split(q)?, chunks.split(k)?, chunks.split(v)?);
        chunks.join(&chunks.weights(&q, &k, 0)?.matmul(&v)?)
    }

    #[test]
    fn attention_equals_its_composition() {
        for (b, n, m, heads, d, mask) in CASES {
            let (q, k, v) = (var(&[b, n, heads * d], 1), var(&[b, m, heads * d], 2), var(&[b, m, heads * d], 3));
            let theirs = plain(&q, &k, &v, Chunks { heads, mask, most: 1 }).unwrap();
            same(&[&q, &k, &v], &attention(&q, &k, &v, heads, mask).unwrap(), &theirs);
            // The composition: whole, in a few chunks with a short last one, and row by row.
            for most in [usize::MAX, b * heads * m * 9, 1] {
                let ours = Chunks { heads, mask, most }.attention([&q, &k, &v]).unwrap();
                same(&[&q, &k, &v], &ours, &theirs);
            }
        }
    }

    #[test]
    fn a_composition_keeps_no_history_where_nothing_is_trained() {
        let x = var(&[1, 6, 8], 1);
        let frozen = x.as_detached_tensor();
        let chunks = Chunks { heads: 2, mask: Mask::None, most: 8 };
        assert!(!chunks.attention([&frozen, &frozen, &frozen]).unwrap().track_op());
        let y = chunks.attention([&x, &frozen, &frozen]).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some() && grads.get(&frozen).is_none());
    }
}
