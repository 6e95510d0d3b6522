//! Differentiable operations, each with a CPU kernel of ours and a composition of candle's operations for other devices; what
//! would take a dozen of them has a kernel for GPUs.
//!
//! Why not candle's own: its `softmax_last_dim` and fused `LayerNorm` have no backward pass and drop gradients without
//! an error, its `gelu` is the tanh form, and on the CPU its convolution and norms take two to eighty times torch's time.
//!
//! Two rules hold in every kernel here. Work is cut into pieces whose size never depends on the number of threads, and
//! sums run in a fixed order: so one thread and many give the same bits. And a row or an image meets the same
//! arithmetic whatever stands beside it in the batch: so shards and batch sizes give the same bits too.

mod accumulate;
mod activation;
mod arithmetic;
mod attention;
mod conv;
#[cfg(feature = "cuda")]
pub mod cuda;
mod frozen;
mod given;
mod linear;
mod math;
mod norm;
mod shape;
mod values;
mod winograd;

pub use accumulate::{Sums, accumulate, accumulate_store};
pub use activation::{geglu, gelu, quick_gelu, silu};
pub use arithmetic::{add_in_place, add_to, map_in_place, scale, sum_of_squares, sums_of_squares};
pub use attention::{Mask, attention};
pub use conv::conv2d;
pub use frozen::{freeze, linear_frozen};
pub use linear::linear;
pub use norm::{Activation, group_norm, layer_norm};
pub use shape::{from_tokens, pad_bottom_right, to_tokens, upsample_nearest};
pub use values::{with_values, write};

use candle_core::{DType, Result, Tensor};
use values::values;

/// Whether our CPU kernels can take this tensor; otherwise candle's own operations do the work.
fn has_kernel(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// y + b, `pixels` numbers of `y` for each channel of `b` (C); `y` is fresh and of nobody else.
fn with_bias(y: Tensor, b: &Tensor, pixels: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if y.device().is_cuda() && y.dtype() == DType::F32 && y.is_contiguous() {
        cuda::add_bias(&y, &b.to_dtype(DType::F32)?, pixels)?;
        return Ok(y);
    }
    let b = b.to_dtype(y.dtype())?;
    if pixels == 1 { y.broadcast_add(&b) } else { y.broadcast_add(&b.reshape((1, (), 1, 1))?) }
}

/// A matrix in memory: first element, distance between rows and between columns.
#[derive(Clone, Copy)]
struct Mat<'a> {
    data: &'a [f32],
    rows: isize,
    cols: isize,
}

impl<'a> Mat<'a> {
    /// Rows of length `width` one after the other.
    fn new(data: &'a [f32], width: usize) -> Self {
        Self { data, rows: width as isize, cols: 1 }
    }

    /// The transpose, without moving anything.
    fn t(self) -> Self {
        Self { data: self.data, rows: self.cols, cols: self.rows }
    }

    /// The last index an m x n matrix of this form touches.
    fn last(&self, m: usize, n: usize) -> usize {
        (m - 1) * self.rows as usize + (n - 1) * self.cols as usize
    }
}

/// dst (m x n, rows `stride` apart) = alpha * a (m x k) b (k x n), or added to dst. On the calling thread.
///
/// An element's value depends on its row of a and its column of b alone, not on m, n or its place: the sum over k is cut
/// into blocks here, because the crate's own cut depends on m and n, and its kernels for m = 1 or n = 1 and for few rows times
/// few columns, which sum in another order, are avoided.
#[allow(clippy::too_many_arguments)]
fn gemm(m: usize, n: usize, k: usize, dst: &mut [f32], stride: usize, add: bool, alpha: f32, a: Mat, b: Mat) {
    const DEPTH: usize = 512;
    const SMALL: usize = 256; // the crate's limit
    if m == 0 || n == 0 {
        return;
    }
    if m == 1 || n == 1 {
        // The same row or column twice.
        let (rows, cols) = (m.max(2), n.max(2));
        let mut twice = vec![0f32; rows * cols];
        let a = if m == 1 { Mat { rows: 0, ..a } } else { a };
        let b = if n == 1 { Mat { cols: 0, ..b } } else { b };
        gemm(rows, cols, k, &mut twice, cols, false, alpha, a, b);
        for (i, row) in twice.chunks_exact(cols).take(m).enumerate() {
            let dst = &mut dst[i * stride..i * stride + n];
            dst.iter_mut().zip(row).for_each(|(d, v)| *d = if add { *d + v } else { *v });
        }
        return;
    }
    if a.cols == 1 && b.rows == 1 && m * n <= SMALL {
        // The same with the rows turned.
        let mut turned = vec![0f32; m * k];
        for (i, turned) in turned.chunks_exact_mut(m).enumerate() {
            turned.iter_mut().enumerate().for_each(|(row, v)| *v = a.data[row * a.rows as usize + i]);
        }
        return gemm(m, n, k, dst, stride, add, alpha, Mat::new(&turned, m).t(), b);
    }
    assert!((m - 1) * stride + n <= dst.len(), "gemm writes outside its destination");
    assert!(k == 0 || (a.last(m, k) < a.data.len() && b.last(k, n) < b.data.len()), "gemm reads outside an operand");
    for from in (0..k).step_by(DEPTH) {
        // SAFETY: the assertions above bound every element that is read or written, and dst is borrowed mutably.
        unsafe {
            gemm::gemm(
                m,
                n,
                DEPTH.min(k - from),
                dst.as_mut_ptr(),
                1,
                stride as isize,
                add || from > 0,
                a.data.as_ptr().offset(from as isize * a.cols),
                a.cols,
                a.rows,
                b.data.as_ptr().offset(from as isize * b.rows),
                b.cols,
                b.rows,
                1.0,
                alpha,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

/// How many of `n` rows a task takes, about `size`: in blocks of `size` itself a last one of a single row, which a class token
/// makes, would cost like many.
fn even(n: usize, size: usize) -> usize {
    n.div_ceil((n / size).max(1)).max(1)
}

/// A mutable slice that several tasks write at places that never overlap.
#[derive(Clone, Copy)]
struct Shared {
    data: *mut f32,
    len: usize,
}

// SAFETY: `slice` is the only access, and its callers promise disjoint ranges.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    fn new(data: &mut [f32]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len() }
    }

    /// # Safety
    /// No two tasks may touch the same element; a strided matrix may reach over elements of others without touching them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, from: usize, len: usize) -> &mut [f32] {
        assert!(from + len <= self.len);
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(from), len) }
    }
}

#[cfg(test)]
mod check {
    //! Kernels against compositions of candle's operations, values and gradients.
    use candle_core::{Device, Tensor, Var};

    pub fn var(shape: &[usize], seed: u64) -> Var {
        let n = shape.iter().product();
        // A small linear congruential generator: any spread of values will do.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let data: Vec<f32> = (0..n)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0
            })
            .collect();
        Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
    }

    pub fn close(a: &Tensor, b: &Tensor, what: &str) {
        let scale = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().max(1e-3);
        let gap = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(gap <= 2e-5 * scale, "{what}: {gap} of {scale}");
    }

    /// Same values and same gradients of every variable, under a random weighting of the output.
    pub fn same(vars: &[&Var], ours: &Tensor, theirs: &Tensor) {
        close(ours, theirs, "forward");
        let weight = var(ours.dims(), 77);
        let grads = |y: &Tensor| (y * weight.as_tensor().detach()).unwrap().sum_all().unwrap().backward().unwrap();
        let (a, b) = (grads(ours), grads(theirs));
        for (i, v) in vars.iter().enumerate() {
            close(a.get(v).unwrap(), b.get(v).unwrap(), &format!("gradient {i}"));
        }
    }
}
