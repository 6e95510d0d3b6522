//! Products of matrices in memory, and slices that several tasks write to.

/// A matrix in memory: its numbers from the first one on, the distance between rows, and that between columns.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub data: &'a [f32],
    rows: isize,
    cols: isize,
}

impl<'a> Mat<'a> {
    /// Rows of length `width`, one after the other.
    pub fn new(data: &'a [f32], width: usize) -> Self {
        Self { data, rows: width as isize, cols: 1 }
    }

    pub fn t(self) -> Self {
        Self { data: self.data, rows: self.cols, cols: self.rows }
    }

    /// The matrix without its first `n` columns.
    pub fn skip_columns(self, n: usize) -> Self {
        Self { data: &self.data[n * self.cols as usize..], ..self }
    }

    /// The last index that an m x n matrix of this form touches.
    fn last(&self, m: usize, n: usize) -> usize {
        (m - 1) * self.rows as usize + (n - 1) * self.cols as usize
    }
}

/// dst = alpha * a b, or dst += alpha * a b if `add`, on the calling thread; a (m x k), b (k x n), dst (m x n, its rows
/// `stride` apart).
///
/// The value of an element depends on its row of a and its column of b alone, not on m, n or its place. To that end the sum over
/// k is cut into blocks here, because the crate's own cut depends on m and n; and its kernels for m = 1, for n = 1 and for few
/// rows times few columns are avoided, because they sum in another order.
#[allow(clippy::too_many_arguments)]
pub(crate) fn gemm(
    m: usize,
    n: usize,
    k: usize,
    dst: &mut [f32],
    stride: usize,
    add: bool,
    alpha: f32,
    a: Mat,
    b: Mat,
) {
    const DEPTH: usize = 512;
    const SMALL: usize = 256; // the crate's limit for few rows times few columns
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
        // The same with a transposed in memory.
        let mut transposed = vec![0f32; m * k];
        for (i, column) in transposed.chunks_exact_mut(m).enumerate() {
            column.iter_mut().enumerate().for_each(|(row, v)| *v = a.data[row * a.rows as usize + i]);
        }
        return gemm(m, n, k, dst, stride, add, alpha, Mat::new(&transposed, m).t(), b);
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

/// How many of `n` rows a task takes: about `size`, and all tasks nearly as many. With blocks of exactly `size`, a last block
/// of one row (which a class token makes) would cost as much as a full one.
pub(crate) fn even(n: usize, size: usize) -> usize {
    n.div_ceil((n / size).max(1)).max(1)
}

/// A mutable slice that several tasks write to, at places that never overlap.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    data: *mut f32,
    len: usize,
}

// SAFETY: `slice` is the only access, and its callers promise disjoint ranges.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    pub fn new(data: &mut [f32]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len() }
    }

    /// # Safety
    /// No two tasks may touch the same element. A strided matrix may span elements of other tasks that it does not touch.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, from: usize, len: usize) -> &mut [f32] {
        assert!(from + len <= self.len);
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(from), len) }
    }
}
