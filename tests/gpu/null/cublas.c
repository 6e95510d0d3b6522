// cuBLAS: counts products of matrices and what they read and write.
#include "null.h"

#include <stdint.h>

static char something[64];

int cublasCreate_v2(void **handle) { return *handle = something, 0; }
int cublasDestroy_v2(void *handle) { return 0; }
int cublasSetStream_v2(void *handle, void *stream) { return 0; }
const char *cublasGetStatusString(int status) { return "no error"; }

static int size_of(int type) { return type == 0 ? 4 : type == 1 ? 8 : 2; } // f32, f64; f16, bf16

static int product(const char *name, int batch, double m, double n, double k, const void *a, int a_type, const void *b, int b_type, const void *c, int c_type) {
    double of_a = m * k * size_of(a_type), of_b = k * n * size_of(b_type), of_c = m * n * size_of(c_type);
    null_check(name, a, of_a), null_check(name, b, of_b), null_check(name, c, of_c * batch);
    null_count(LAUNCH, name, batch * (of_a + of_b + of_c));
    return 0;
}

int cublasGemmStridedBatchedEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda, long long sa,
                               const void *b, int b_type, int ldb, long long sb, const void *beta, void *c, int c_type, int ldc, long long sc, int batch,
                               int compute, int algorithm) {
    return product(a_type == 0 ? "gemm f32" : "gemm bf16", batch, m, n, k, a, a_type, b, b_type, c, c_type);
}
int cublasGemmEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda, const void *b, int b_type,
                 int ldb, const void *beta, void *c, int c_type, int ldc, int compute, int algorithm) {
    return product(a_type == 0 ? "gemm f32" : "gemm bf16", 1, m, n, k, a, a_type, b, b_type, c, c_type);
}
int cublasDgemmStridedBatched(void *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int lda, long long sa, const void *b,
                              int ldb, long long sb, const void *beta, void *c, int ldc, long long sc, int batch) {
    return product("gemm f64", batch, m, n, k, a, 1, b, 1, c, 1);
}
