//! Products of matrices on a GPU, by cuBLAS: of either type of activations, added up in f32, into either type.

use candle_core::cuda_backend::cudarc::cublas::{result::gemm_strided_batched_ex, sys};
use candle_core::cuda_backend::cudarc::driver::CudaView;
use candle_core::{CudaDevice, Result};

use super::cuda::{Number, address};

/// Row-major matrices, the first of which begins at number `from`; they are `stride` numbers apart, their rows `row` numbers. cuBLAS
/// takes them for transposed ones.
pub(crate) struct Matrix<'a, T> {
    view: &'a CudaView<'a, T>,
    from: usize,
    row: usize,
    stride: usize,
    transposed: bool,
}

impl<'a, T> Matrix<'a, T> {
    pub fn new(view: &'a CudaView<'a, T>, row: usize, stride: usize) -> Self {
        Self { view, from: 0, row, stride, transposed: false }
    }

    /// From this row on.
    pub fn row(self, row: usize) -> Self {
        Self { from: row * self.row, ..self }
    }

    fn address(&self) -> u64 {
        address(self.view) + (self.from * size_of::<T>()) as u64
    }

    pub fn t(self) -> Self {
        Self { transposed: true, ..self }
    }

    fn operation(&self) -> sys::cublasOperation_t {
        if self.transposed { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N }
    }
}

/// cuBLAS's name of a type.
fn kind<T: Number>() -> sys::cudaDataType {
    if T::NAME == "f32" { sys::cudaDataType_t::CUDA_R_32F } else { sys::cudaDataType_t::CUDA_R_16BF }
}

/// c = b a + before c for `batch` matrices, added up in f32: with `size` [m, n, k], `b` is (n, k), `a` (k, m) and `c` (n, m).
pub(crate) fn product<T: Number, C: Number>(
    device: &CudaDevice,
    batch: usize,
    [m, n, k]: [usize; 3],
    a: Matrix<T>,
    b: Matrix<T>,
    c: Matrix<C>,
    before: f32,
) -> Result<()> {
    let alpha = 1f32;
    let number = |f: &f32| std::ptr::from_ref(f).cast();
    let (m, n, k, batch) = (m as i32, n as i32, k as i32, batch as i32);
    let (in_a, in_b, in_c) = (a.address(), b.address(), c.address());
    let blas = device.cublas_handle();
    // SAFETY: the sizes describe matrices that lie in the three arrays, and all kernels run on the handle's stream, in order.
    let done = unsafe {
        gemm_strided_batched_ex(
            *blas.handle(),
            a.operation(),
            b.operation(),
            m,
            n,
            k,
            number(&alpha),
            in_a as *const _,
            kind::<T>(),
            a.row as i32,
            a.stride as i64,
            in_b as *const _,
            kind::<T>(),
            b.row as i32,
            b.stride as i64,
            number(&before),
            in_c as *mut _,
            kind::<C>(),
            c.row as i32,
            c.stride as i64,
            batch,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    };
    done.map_err(candle_core::Error::wrap)
}
