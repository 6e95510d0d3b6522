//! Attention on a GPU: products by cuBLAS, and the softmax between them in one pass. Scores and their gradients are f32, whatever
//! the type of the activations, as in torch.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaDevice, Result, Tensor};

use super::attention::{Mask, scale};
use super::cuda::{self, Number, launch, of_type};
use super::precomputed::Computed;
use super::product::{Matrix, product};

/// The scores that are in memory at a time: a quarter of a gigabyte in f32.
const SCORES: usize = 1 << 26;

/// The shared data of the passes of one call. Tensors with heads are (B, heads, N, d).
struct Shape {
    heads: usize,
    mask: Mask,
    batch: usize, // images times heads
    n: usize,
    m: usize,
    d: usize,
}

impl Shape {
    fn of(q: &Tensor, k: &Tensor, heads: usize, mask: Mask) -> Result<Self> {
        let ((b, n, width), m) = (q.dims3()?, k.dim(1)?);
        Ok(Self { heads, mask, batch: b * heads, n, m, d: width / heads })
    }

    fn scale(&self) -> f32 {
        scale(self.d) as f32
    }

    /// First query and number of queries of each chunk.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> {
        let (n, rows) = (self.n, (SCORES / (self.batch * self.m).max(1)).clamp(1, self.n.max(1)));
        (0..n).step_by(rows).map(move |from| (from, rows.min(n - from)))
    }

    /// The attention weights of a chunk of queries, (batch, rows, m).
    fn weights<T: Number>(
        &self,
        device: &CudaDevice,
        q: &CudaView<T>,
        k: &CudaView<T>,
        chunk: (usize, usize),
    ) -> Result<Tensor> {
        let ((from, rows), (m, all)) = (chunk, (self.m, self.batch * chunk.1));
        let scores = cuda::room::<f32>(device, all * m)?;
        self.by_keys(device, q, k, chunk, &scores.as_view())?;
        let p = cuda::room::<T>(device, all * m)?;
        let (causal, first, queries) = (i32::from(self.mask == Mask::Causal), from as i32, rows as i32);
        let grid = (all as u32, threads(m));
        launch!(
            device,
            T::kernel("softmax"),
            grid,
            scores.as_view(),
            p.as_view(),
            m as i32,
            self.scale(),
            causal,
            first,
            queries
        )?;
        Ok(cuda::tensor(p, device, (self.batch, rows, m)))
    }

    /// x K^T for a chunk of the rows of `x` (batch, n, d): scores (batch, rows, m).
    fn by_keys<T: Number>(
        &self,
        device: &CudaDevice,
        x: &CudaView<T>,
        k: &CudaView<T>,
        (from, rows): (usize, usize),
        scores: &CudaView<f32>,
    ) -> Result<()> {
        let Self { n, m, d, .. } = *self;
        let (x, k) = (Matrix::new(x, d, n * d).row(from), Matrix::new(k, d, m * d));
        product(device, self.batch, [m, rows, d], k.t(), x, Matrix::new(scores, m, rows * m), 0.0)
    }

    /// y = w V for a chunk: `w` (batch, rows, m), `v` (batch, m, d), `y` (batch, n, d).
    fn by_values<T: Number>(
        &self,
        device: &CudaDevice,
        w: &CudaView<T>,
        v: &CudaView<T>,
        (from, rows): (usize, usize),
        y: &CudaView<T>,
    ) -> Result<()> {
        let Self { n, m, d, .. } = *self;
        let y = Matrix::new(y, d, n * d).row(from);
        product(device, self.batch, [d, rows, m], Matrix::new(v, d, m * d), Matrix::new(w, m, rows * m), y, 0.0)
    }

    /// sum += w^T x over a chunk: `w` (batch, rows, m), `x` (batch, n, d), `sum` (batch, m, d), which the first chunk writes.
    fn by_queries<T: Number>(
        &self,
        device: &CudaDevice,
        w: &CudaView<T>,
        x: &CudaView<T>,
        (from, rows): (usize, usize),
        sum: &CudaView<f32>,
    ) -> Result<()> {
        let Self { n, m, d, .. } = *self;
        let (x, w) = (Matrix::new(x, d, n * d).row(from), Matrix::new(w, m, rows * m));
        let before = if from == 0 { 0.0 } else { 1.0 };
        product(device, self.batch, [d, m, rows], x, w.t(), Matrix::new(sum, d, m * d), before)
    }
}

/// Threads of a block that works on a row of `m` scores.
fn threads(m: usize) -> u32 {
    if m <= 128 { 32 } else { 256 }
}

/// `q` (B, N, heads * d), `k` and `v` (B, M, heads * d) -> (B, N, heads * d), without history.
pub(crate) fn forward([q, k, v]: [&Tensor; 3], heads: usize, mask: Mask) -> Result<Computed> {
    fn of<T: Number>([q, k, v]: [&Tensor; 3], heads: usize, mask: Mask) -> Result<Computed> {
        let shape = q.shape().clone();
        let s = Shape::of(q, k, heads, mask)?;
        let [q, k, v] = [split::<T>(q, heads)?, split::<T>(k, heads)?, split::<T>(v, heads)?];
        let y = cuda::with_views::<T, 3, _>([&q, &k, &v], |device, [q, k, v]| {
            let y = cuda::room::<T>(device, q.len())?;
            for chunk in s.chunks() {
                let p = s.weights(device, &q, &k, chunk)?;
                cuda::with_views::<T, 1, _>([&p], |_, [p]| s.by_values(device, &p, &v, chunk, &y.as_view()))?;
            }
            let y = exchange::<T>(device, &y.as_view(), [heads, s.n, s.d])?;
            Ok(Computed::Cuda(cuda::storage(y, device), shape))
        });
        y
    }
    of_type!(q.dtype(), of([q, k, v], heads, mask))
}

/// The gradients of q, k and v; as the CPU's, chunk by chunk.
pub(crate) fn backward([q, k, v]: [&Tensor; 3], go: &Tensor, heads: usize, mask: Mask) -> Result<[Option<Tensor>; 3]> {
    fn of<T: Number>([q, k, v]: [&Tensor; 3], go: &Tensor, heads: usize, mask: Mask) -> Result<[Option<Tensor>; 3]> {
        let (s, dtype) = (Shape::of(q, k, heads, mask)?, q.dtype());
        let [q, k, v, go] =
            [split::<T>(q, heads)?, split::<T>(k, heads)?, split::<T>(v, heads)?, split::<T>(go, heads)?];
        let [gq, gk, gv] = cuda::with_views::<T, 4, _>([&q, &k, &v, &go], |device, [q, k, v, go]| {
            let gq = cuda::room::<T>(device, q.len())?;
            let (gk, gv) = (cuda::room::<f32>(device, k.len())?, cuda::room::<f32>(device, v.len())?);
            for chunk in s.chunks() {
                let p = s.weights(device, &q, &k, chunk)?;
                cuda::with_views::<T, 1, _>([&p], |_, [p]| {
                    s.by_queries(device, &p, &go, chunk, &gv.as_view())?;
                    let (gp, gs) = (cuda::room::<f32>(device, p.len())?, cuda::room::<T>(device, p.len())?);
                    s.by_keys(device, &go, &v, chunk, &gp.as_view())?;
                    let grid = ((s.batch * chunk.1) as u32, threads(s.m));
                    launch!(
                        device,
                        T::kernel("softmax_grad"),
                        grid,
                        p,
                        gp.as_view(),
                        gs.as_view(),
                        s.m as i32,
                        s.scale()
                    )?;
                    s.by_values(device, &gs.as_view(), &k, chunk, &gq.as_view())?;
                    s.by_queries(device, &gs.as_view(), &q, chunk, &gk.as_view())
                })?;
            }
            let tensor = |n: usize| (s.batch / s.heads, s.heads, n, s.d);
            Ok([
                cuda::tensor(gq, device, tensor(s.n)),
                cuda::tensor(gk, device, tensor(s.m)).to_dtype(dtype)?,
                cuda::tensor(gv, device, tensor(s.m)).to_dtype(dtype)?,
            ])
        })?;
        Ok([Some(join::<T>(&gq)?), Some(join::<T>(&gk)?), Some(join::<T>(&gv)?)])
    }
    of_type!(q.dtype(), of([q, k, v], go, heads, mask))
}

/// (B, N, heads * d) -> (B, heads, N, d)
fn split<T: Number>(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, n, width) = x.dims3()?;
    let d = width / heads;
    cuda::with_views::<T, 1, _>([x], |device, [x]| {
        Ok(cuda::tensor(exchange(device, &x, [n, heads, d])?, device, (b, heads, n, d)))
    })
}

/// (B, heads, N, d) -> (B, N, heads * d)
fn join<T: Number>(x: &Tensor) -> Result<Tensor> {
    let (b, heads, n, d) = x.dims4()?;
    cuda::with_views::<T, 1, _>([x], |device, [x]| {
        Ok(cuda::tensor(exchange(device, &x, [heads, n, d])?, device, (b, n, heads * d)))
    })
}

/// Tensors of shape (.., b, c, d) with b and c exchanged.
fn exchange<T: Number>(device: &CudaDevice, x: &CudaView<T>, [b, c, d]: [usize; 3]) -> Result<CudaSlice<T>> {
    let (y, n, x) = (cuda::room::<T>(device, x.len())?, x.len(), x.slice(..));
    launch!(device, T::kernel("exchange"), cuda::grid(n), x, y.as_view(), n, b, c, d)?;
    Ok(y)
}
