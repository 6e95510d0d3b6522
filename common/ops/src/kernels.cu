// Our kernels for GPUs. All arrays are f32 and contiguous. The formulas are those of the kernels for CPUs, and the launches stand
// beside these: norm.rs, activation.rs, arithmetic.rs, adamw.rs.

__device__ float sum_over_warp(float v) {
    for (int apart = 16; apart > 0; apart /= 2) v += __shfl_down_sync(0xffffffffu, v, apart);
    return v;
}

// The same over all threads of the block, the number of which is a multiple of 32. The order of the sum is fixed.
__device__ float sum_over_block(float v) {
    __shared__ float parts[32];
    __syncthreads(); // the sum before this one has been read
    v = sum_over_warp(v);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = sum_over_warp(threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0.f);
        if (threadIdx.x == 0) parts[0] = v;
    }
    __syncthreads();
    return parts[0];
}

// Mean and 1 / sqrt(variance + eps) of a block's row, two passes: a one-pass variance cancels.
__device__ void moments(const float *x, int n, float eps, float *mean, float *rstd) {
    float sum = 0.f, square = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    *mean = sum_over_block(sum) / n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) square += (x[i] - *mean) * (x[i] - *mean);
    *rstd = 1.f / sqrtf(sum_over_block(square) / n + eps);
}

__device__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// A block works on one group of an image: `size` numbers, `pixels` per channel.
extern "C" __global__ void group_norm(const float *x, const float *w, const float *b, float *y, int size, int pixels,
                                      int groups, float eps, int silu) {
    float mean, rstd;
    size_t from = (size_t)blockIdx.x * size;
    int first = blockIdx.x % groups * (size / pixels);
    moments(x + from, size, eps, &mean, &rstd);
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        int c = first + i / pixels;
        float u = (x[from + i] - mean) * rstd * w[c] + b[c];
        y[from + i] = silu ? u * sigmoid(u) : u;
    }
}

// gw and gb are (B, C): the caller sums them over the images.
extern "C" __global__ void group_norm_grad(const float *x, const float *w, const float *b, const float *gy, float *gx,
                                           float *gw, float *gb, int size, int pixels, int groups, float eps, int silu) {
    float mean, rstd, sum = 0.f, dot = 0.f; // of gu w, and of gu w (x - mean), over the group
    size_t from = (size_t)blockIdx.x * size;
    int per_group = size / pixels, first = blockIdx.x % groups * per_group;
    moments(x + from, size, eps, &mean, &rstd);
    for (int i = 0; i < per_group; i++) {
        int c = first + i;
        float s = 0.f, d = 0.f;
        for (int j = threadIdx.x; j < pixels; j += blockDim.x) {
            size_t k = from + (size_t)i * pixels + j;
            float centred = x[k] - mean, gu = gy[k];
            if (silu) {
                float u = centred * rstd * w[c] + b[c], sig = sigmoid(u);
                gu *= sig * (1.f + u * (1.f - sig));
            }
            gx[k] = gu;
            s += gu;
            d += gu * centred;
        }
        s = sum_over_block(s);
        d = sum_over_block(d);
        if (threadIdx.x == 0) {
            gw[blockIdx.x * per_group + i] = d * rstd;
            gb[blockIdx.x * per_group + i] = s;
        }
        sum += s * w[c];
        dot += d * w[c];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        float centred = x[from + i] - mean;
        gx[from + i] = rstd * (w[first + i / pixels] * gx[from + i] - (sum + rstd * rstd * dot * centred) / size);
    }
}

// A block works on one row of n numbers.
extern "C" __global__ void layer_norm(const float *x, const float *w, const float *b, float *y, int n, float eps) {
    float mean, rstd;
    size_t from = (size_t)blockIdx.x * n;
    moments(x + from, n, eps, &mean, &rstd);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[from + i] = (x[from + i] - mean) * rstd * w[i] + b[i];
}

// gw has a row for each row of x: the caller sums them. The gradient of b is gy, summed likewise.
extern "C" __global__ void layer_norm_grad(const float *x, const float *w, const float *gy, float *gx, float *gw, int n,
                                           float eps) {
    float mean, rstd, sum = 0.f, dot = 0.f;
    size_t from = (size_t)blockIdx.x * n;
    moments(x + from, n, eps, &mean, &rstd);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float g = gy[from + i] * w[i];
        sum += g;
        dot += g * (x[from + i] - mean);
    }
    sum = sum_over_block(sum) / n;
    dot = sum_over_block(dot) * rstd * rstd / n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float centred = x[from + i] - mean;
        gx[from + i] = rstd * (gy[from + i] * w[i] - sum - centred * dot);
        gw[from + i] = gy[from + i] * centred * rstd;
    }
}

// The threads below take every k-th element, k being the number of threads.
#define EACH(n) size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x

// x (rows, 2 width), hidden before gate; y (rows, width), n numbers.
extern "C" __global__ void geglu(const float *x, float *y, size_t n, size_t width) {
    for (EACH(n)) {
        size_t k = i / width * 2 * width + i % width;
        float gate = x[k + width];
        y[i] = x[k] * gate * normcdff(gate);
    }
}

extern "C" __global__ void geglu_grad(const float *x, const float *gy, float *gx, size_t n, size_t width) {
    for (EACH(n)) {
        size_t k = i / width * 2 * width + i % width;
        float gate = x[k + width], cdf = normcdff(gate), pdf = 0.3989422804f * expf(-0.5f * gate * gate);
        gx[k] = gy[i] * gate * cdf;
        gx[k + width] = gy[i] * x[k] * (cdf + gate * pdf);
    }
}

// One bias per channel; a channel has `pixels` numbers.
extern "C" __global__ void add_bias(float *y, const float *b, size_t n, size_t pixels, size_t channels) {
    for (EACH(n)) y[i] += b[i / pixels % channels];
}

// The sum of squares of each block's numbers.
extern "C" __global__ void squares(const float *x, float *sums, size_t n) {
    float sum = 0.f;
    for (EACH(n)) sum += x[i] * x[i];
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void adamw(float *p, float *m, float *v, const float *g, size_t n, float beta1, float beta2,
                                 float decay, float rate, float root2, float eps) {
    for (EACH(n)) {
        m[i] += (1.f - beta1) * (g[i] - m[i]);
        v[i] = beta2 * v[i] + (1.f - beta2) * g[i] * g[i];
        p[i] = decay * p[i] - rate * m[i] / (sqrtf(v[i]) / root2 + eps);
    }
}
