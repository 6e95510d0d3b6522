// Our kernels for GPUs. All arrays are contiguous. Arithmetic is f32; where a name ends in bf16, tensors of activations are stored in
// bf16, while weights and sums stay f32. The formulas are those of the kernels for CPUs, and the launches stand beside these: norm.rs,
// activation.rs, attention.rs, arithmetic.rs, adamw.rs. `make test-kernels` runs them without a GPU.

// The upper half of a float. By integers, so that the compiler needs no header.
struct bf16 {
    unsigned short bits;
};

__device__ float get(float x) { return x; }
__device__ float get(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ void put(float *to, float x) { *to = x; }
// To the nearest bf16, of two equally near ones to the even one. NaN stays NaN.
__device__ void put(bf16 *to, float x) {
    unsigned bits = __float_as_uint(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to->bits = (unsigned short)((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

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

// The same with the largest.
__device__ float max_over_block(float v) {
    __shared__ float largest[32];
    __syncthreads(); // the one before this has been read
    for (int apart = 16; apart > 0; apart /= 2) v = fmaxf(v, __shfl_down_sync(0xffffffffu, v, apart));
    if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = v;
    __syncthreads();
    v = largest[0];
    for (int i = 1; i < (int)blockDim.x / 32; i++) v = fmaxf(v, largest[i]);
    return v;
}

// Mean and 1 / sqrt(variance + eps) of a block's row, two passes: a one-pass variance cancels.
template <class T> __device__ void moments(const T *x, int n, float eps, float *mean, float *rstd) {
    float sum = 0.f, square = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += get(x[i]);
    *mean = sum_over_block(sum) / n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float centred = get(x[i]) - *mean;
        square += centred * centred;
    }
    *rstd = 1.f / sqrtf(sum_over_block(square) / n + eps);
}

__device__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// A block works on one group of an image: `size` numbers, `pixels` per channel.
template <class T>
__device__ void group_norm(const T *x, const float *w, const float *b, T *y, int size, int pixels, int groups, float eps, int silu) {
    float mean, rstd;
    size_t from = (size_t)blockIdx.x * size;
    int first = blockIdx.x % groups * (size / pixels);
    moments(x + from, size, eps, &mean, &rstd);
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        int c = first + i / pixels;
        float u = (get(x[from + i]) - mean) * rstd * w[c] + b[c];
        put(y + from + i, silu ? u * sigmoid(u) : u);
    }
}

// The gradient of what SiLU was given, u, from that of its result.
__device__ float before_silu(float gy, float u, int silu) {
    float sig = sigmoid(u);
    return silu ? gy * sig * (1.f + u * (1.f - sig)) : gy;
}

// gw and gb are (B, C): the caller sums them over the images.
template <class T>
__device__ void group_norm_grad(const T *x, const float *w, const float *b, const T *gy, T *gx, float *gw, float *gb, int size, int pixels,
                                int groups, float eps, int silu) {
    float mean, rstd, sum = 0.f, dot = 0.f; // of gu w, and of gu w (x - mean), over the group
    size_t from = (size_t)blockIdx.x * size;
    int per_group = size / pixels, first = blockIdx.x % groups * per_group;
    moments(x + from, size, eps, &mean, &rstd);
    for (int i = 0; i < per_group; i++) {
        int c = first + i;
        float s = 0.f, d = 0.f;
        for (int j = threadIdx.x; j < pixels; j += blockDim.x) {
            size_t k = from + (size_t)i * pixels + j;
            float centred = get(x[k]) - mean, gu = before_silu(get(gy[k]), centred * rstd * w[c] + b[c], silu);
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
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        int c = first + i / pixels;
        float centred = get(x[from + i]) - mean, gu = before_silu(get(gy[from + i]), centred * rstd * w[c] + b[c], silu);
        put(gx + from + i, rstd * (w[c] * gu - (sum + rstd * rstd * dot * centred) / size));
    }
}

// A block works on one row of n numbers.
template <class T> __device__ void layer_norm(const T *x, const float *w, const float *b, T *y, int n, float eps) {
    float mean, rstd;
    size_t from = (size_t)blockIdx.x * n;
    moments(x + from, n, eps, &mean, &rstd);
    for (int i = threadIdx.x; i < n; i += blockDim.x) put(y + from + i, (get(x[from + i]) - mean) * rstd * w[i] + b[i]);
}

// A block works on `each` rows of the `rows`, one after the other. gw and gb have a row for each block: the caller sums them.
template <class T>
__device__ void layer_norm_grad(const T *x, const float *w, const T *gy, T *gx, float *gw, float *gb, int rows, int each, int n, float eps) {
    float *to_w = gw + (size_t)blockIdx.x * n, *to_b = gb + (size_t)blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) to_w[i] = to_b[i] = 0.f;
    for (int row = blockIdx.x * each; row < min(rows, (int)(blockIdx.x + 1) * each); row++) {
        float mean, rstd, sum = 0.f, dot = 0.f;
        size_t from = (size_t)row * n;
        moments(x + from, n, eps, &mean, &rstd);
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            float g = get(gy[from + i]) * w[i];
            sum += g;
            dot += g * (get(x[from + i]) - mean);
        }
        sum = sum_over_block(sum) / n;
        dot = sum_over_block(dot) * rstd * rstd / n;
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            float centred = get(x[from + i]) - mean, g = get(gy[from + i]);
            put(gx + from + i, rstd * (g * w[i] - sum - centred * dot));
            to_w[i] += g * centred * rstd;
            to_b[i] += g;
        }
    }
}

// The attention weights of one query in each block: the softmax of its m scores times `scale`. If `causal`, the query has position
// `first` + block % `queries`, and sees the keys up to there.
template <class T> __device__ void softmax(const float *scores, T *p, int m, float scale, int causal, int first, int queries) {
    size_t from = (size_t)blockIdx.x * m;
    int seen = causal ? first + blockIdx.x % queries + 1 : m;
    float largest = -3.402823466e38f, sum = 0.f;
    for (int i = threadIdx.x; i < seen; i += blockDim.x) largest = fmaxf(largest, scores[from + i]);
    largest = max_over_block(largest);
    for (int i = threadIdx.x; i < seen; i += blockDim.x) sum += expf((scores[from + i] - largest) * scale);
    sum = sum_over_block(sum);
    for (int i = threadIdx.x; i < m; i += blockDim.x) put(p + from + i, i < seen ? expf((scores[from + i] - largest) * scale) / sum : 0.f);
}

// The gradient of the scores, scale P (dP - rowsum(dP P)).
template <class T> __device__ void softmax_grad(const T *p, const float *gp, T *gs, int m, float scale) {
    size_t from = (size_t)blockIdx.x * m;
    float dot = 0.f;
    for (int i = threadIdx.x; i < m; i += blockDim.x) dot += get(p[from + i]) * gp[from + i];
    dot = sum_over_block(dot);
    for (int i = threadIdx.x; i < m; i += blockDim.x) put(gs + from + i, scale * get(p[from + i]) * (gp[from + i] - dot));
}

// The threads below take every k-th element, k being the number of threads.
#define EACH(n) size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x

// x (rows, 2 width), hidden before gate; y (rows, width), n numbers.
template <class T> __device__ void geglu(const T *x, T *y, size_t n, size_t width) {
    for (EACH(n)) {
        size_t k = i / width * 2 * width + i % width;
        float gate = get(x[k + width]);
        put(y + i, get(x[k]) * gate * normcdff(gate));
    }
}

template <class T> __device__ void geglu_grad(const T *x, const T *gy, T *gx, size_t n, size_t width) {
    for (EACH(n)) {
        size_t k = i / width * 2 * width + i % width;
        float gate = get(x[k + width]), cdf = normcdff(gate), pdf = 0.3989422804f * expf(-0.5f * gate * gate), g = get(gy[i]);
        put(gx + k, g * gate * cdf);
        put(gx + k + width, g * get(x[k]) * (cdf + gate * pdf));
    }
}

// One bias per channel; a channel has `pixels` numbers.
template <class T> __device__ void add_bias(T *y, const float *b, size_t n, size_t pixels, size_t channels) {
    for (EACH(n)) put(y + i, get(y[i]) + b[i / pixels % channels]);
}

// x (.., b, c, d) -> y (.., c, b, d)
template <class T> __device__ void exchange(const T *x, T *y, size_t n, size_t b, size_t c, size_t d) {
    for (EACH(n)) {
        size_t j = i % d, in_b = i / d % b, in_c = i / d / b % c, a = i / d / b / c;
        y[i] = x[((a * b + in_b) * c + in_c) * d + j];
    }
}

// The sum of each channel of x (images, channels, pixels): a block works on one channel.
template <class T> __device__ void channel_sums(const T *x, float *sums, int images, int channels, int pixels) {
    float sum = 0.f;
    for (int image = 0; image < images; image++) {
        const T *plane = x + ((size_t)image * channels + blockIdx.x) * pixels;
        for (int i = threadIdx.x; i < pixels; i += blockDim.x) sum += get(plane[i]);
    }
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The sums of the columns of x (rows, n) over `each` rows: sums (rows / each, n), rounded up. 256 threads work on 32 columns, in 8 lanes.
template <class T> __device__ void column_sums(const T *x, float *sums, int rows, int n, int each) {
    __shared__ float parts[8][32];
    int tiles = (n + 31) / 32, chunk = blockIdx.x / tiles, lane = threadIdx.x / 32, column = blockIdx.x % tiles * 32 + threadIdx.x % 32;
    int end = min(rows, (chunk + 1) * each);
    float sum = 0.f;
    if (column < n)
        for (int row = chunk * each + lane; row < end; row += 8) sum += get(x[(size_t)row * n + column]);
    parts[lane][threadIdx.x % 32] = sum;
    __syncthreads();
    if (lane == 0 && column < n) {
        for (int i = 1; i < 8; i++) sum += parts[i][threadIdx.x];
        sums[(size_t)chunk * n + column] = sum;
    }
}

// ---- All tensors at once ----
// `table` has for each tensor its length, and the addresses of its arrays of f32. A block works on CHUNK numbers of one tensor:
// places[2 k] is the tensor of block k, and places[2 k + 1] the chunk of it.

#define CHUNK 65536
#define EACH_OF_CHUNK(n)                                                                                                                   \
    size_t i = (size_t)places[2 * blockIdx.x + 1] * CHUNK + threadIdx.x, end = i - threadIdx.x + CHUNK;                                    \
    i < (n) && i < end;                                                                                                                    \
    i += blockDim.x

// The sum of squares of each chunk; the one array is x.
extern "C" __global__ void squares(const size_t *table, const unsigned *places, float *sums) {
    const size_t *row = table + 2 * (size_t)places[2 * blockIdx.x];
    const float *x = (const float *)row[1];
    float sum = 0.f;
    for (EACH_OF_CHUNK(row[0])) sum += x[i] * x[i];
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// x *= factor
extern "C" __global__ void scale(const size_t *table, const unsigned *places, float factor) {
    const size_t *row = table + 2 * (size_t)places[2 * blockIdx.x];
    float *x = (float *)row[1];
    for (EACH_OF_CHUNK(row[0])) x[i] *= factor;
}

// The arrays are p, m, v and g.
extern "C" __global__ void adamw(const size_t *table, const unsigned *places, float beta1, float beta2, float decay, float rate, float root2,
                                 float eps) {
    const size_t *row = table + 5 * (size_t)places[2 * blockIdx.x];
    float *p = (float *)row[1], *m = (float *)row[2], *v = (float *)row[3];
    const float *g = (const float *)row[4];
    for (EACH_OF_CHUNK(row[0])) {
        m[i] += (1.f - beta1) * (g[i] - m[i]);
        v[i] = beta2 * v[i] + (1.f - beta2) * g[i] * g[i];
        p[i] = decay * p[i] - rate * m[i] / (sqrtf(v[i]) / root2 + eps);
    }
}

// The kernels above, for activations in f32 and in bf16.

extern "C" __global__ void group_norm_f32(const float *x, const float *w, const float *b, float *y, int size, int pixels, int groups, float eps, int silu) {
    group_norm(x, w, b, y, size, pixels, groups, eps, silu);
}

extern "C" __global__ void group_norm_bf16(const bf16 *x, const float *w, const float *b, bf16 *y, int size, int pixels, int groups, float eps, int silu) {
    group_norm(x, w, b, y, size, pixels, groups, eps, silu);
}

extern "C" __global__ void group_norm_grad_f32(const float *x, const float *w, const float *b, const float *gy, float *gx, float *gw,
                                               float *gb, int size, int pixels, int groups, float eps, int silu) {
    group_norm_grad(x, w, b, gy, gx, gw, gb, size, pixels, groups, eps, silu);
}

extern "C" __global__ void group_norm_grad_bf16(const bf16 *x, const float *w, const float *b, const bf16 *gy, bf16 *gx, float *gw,
                                               float *gb, int size, int pixels, int groups, float eps, int silu) {
    group_norm_grad(x, w, b, gy, gx, gw, gb, size, pixels, groups, eps, silu);
}

extern "C" __global__ void layer_norm_f32(const float *x, const float *w, const float *b, float *y, int n, float eps) {
    layer_norm(x, w, b, y, n, eps);
}

extern "C" __global__ void layer_norm_bf16(const bf16 *x, const float *w, const float *b, bf16 *y, int n, float eps) {
    layer_norm(x, w, b, y, n, eps);
}

extern "C" __global__ void layer_norm_grad_f32(const float *x, const float *w, const float *gy, float *gx, float *gw, float *gb, int rows, int each, int n, float eps) {
    layer_norm_grad(x, w, gy, gx, gw, gb, rows, each, n, eps);
}

extern "C" __global__ void layer_norm_grad_bf16(const bf16 *x, const float *w, const bf16 *gy, bf16 *gx, float *gw, float *gb, int rows, int each, int n, float eps) {
    layer_norm_grad(x, w, gy, gx, gw, gb, rows, each, n, eps);
}

extern "C" __global__ void softmax_f32(const float *scores, float *p, int m, float scale, int causal, int first, int queries) {
    softmax(scores, p, m, scale, causal, first, queries);
}

extern "C" __global__ void softmax_bf16(const float *scores, bf16 *p, int m, float scale, int causal, int first, int queries) {
    softmax(scores, p, m, scale, causal, first, queries);
}

extern "C" __global__ void softmax_grad_f32(const float *p, const float *gp, float *gs, int m, float scale) {
    softmax_grad(p, gp, gs, m, scale);
}

extern "C" __global__ void softmax_grad_bf16(const bf16 *p, const float *gp, bf16 *gs, int m, float scale) {
    softmax_grad(p, gp, gs, m, scale);
}

extern "C" __global__ void geglu_f32(const float *x, float *y, size_t n, size_t width) {
    geglu(x, y, n, width);
}

extern "C" __global__ void geglu_bf16(const bf16 *x, bf16 *y, size_t n, size_t width) {
    geglu(x, y, n, width);
}

extern "C" __global__ void geglu_grad_f32(const float *x, const float *gy, float *gx, size_t n, size_t width) {
    geglu_grad(x, gy, gx, n, width);
}

extern "C" __global__ void geglu_grad_bf16(const bf16 *x, const bf16 *gy, bf16 *gx, size_t n, size_t width) {
    geglu_grad(x, gy, gx, n, width);
}

extern "C" __global__ void channel_sums_f32(const float *x, float *sums, int images, int channels, int pixels) {
    channel_sums(x, sums, images, channels, pixels);
}

extern "C" __global__ void channel_sums_bf16(const bf16 *x, float *sums, int images, int channels, int pixels) {
    channel_sums(x, sums, images, channels, pixels);
}

extern "C" __global__ void column_sums_f32(const float *x, float *sums, int rows, int n, int each) {
    column_sums(x, sums, rows, n, each);
}

extern "C" __global__ void column_sums_bf16(const bf16 *x, float *sums, int rows, int n, int each) {
    column_sums(x, sums, rows, n, each);
}

extern "C" __global__ void add_bias_f32(float *y, const float *b, size_t n, size_t pixels, size_t channels) {
    add_bias(y, b, n, pixels, channels);
}

extern "C" __global__ void add_bias_bf16(bf16 *y, const float *b, size_t n, size_t pixels, size_t channels) {
    add_bias(y, b, n, pixels, channels);
}

extern "C" __global__ void exchange_f32(const float *x, float *y, size_t n, size_t b, size_t c, size_t d) {
    exchange(x, y, n, b, c, d);
}

extern "C" __global__ void exchange_bf16(const bf16 *x, bf16 *y, size_t n, size_t b, size_t c, size_t d) {
    exchange(x, y, n, b, c, d);
}
