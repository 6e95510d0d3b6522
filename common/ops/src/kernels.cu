// Our kernels for GPUs. All arrays are contiguous. Arithmetic is f32; where a name ends in bf16, tensors of activations are stored in
// bf16, while weights and sums stay f32. The formulas are those of the kernels for CPUs, and the launches stand beside these: norm.rs,
// activation.rs, attention.rs, arithmetic.rs, shape.rs, adamw.rs, pairs.rs. `make test-kernels` runs them without a GPU.

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

template <class S> __device__ S sum_over_warp(S v) {
    for (int apart = 16; apart > 0; apart /= 2) v += __shfl_down_sync(0xffffffffu, v, apart);
    return v;
}

// The same over all threads of the block, the number of which is a multiple of 32. The order of the sum is fixed.
template <class S> __device__ S sum_over_block(S v) {
    __shared__ S parts[32];
    __syncthreads(); // the sum before this one has been read
    v = sum_over_warp(v);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = sum_over_warp(threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : S(0));
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

// gw and gb have a row for each image, `row` numbers apart: the caller sums them. `more` is added to the gradient of x, if `plus`.
template <class T>
__device__ void group_norm_grad(const T *x, const float *w, const float *b, const T *gy, const T *more, T *gx, float *gw, float *gb, int size,
                                int pixels, int groups, int row, float eps, int silu, int plus) {
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
            gw[blockIdx.x / groups * row + c] = d * rstd;
            gb[blockIdx.x / groups * row + c] = s;
        }
        sum += s * w[c];
        dot += d * w[c];
    }
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        int c = first + i / pixels;
        float centred = get(x[from + i]) - mean, gu = before_silu(get(gy[from + i]), centred * rstd * w[c] + b[c], silu);
        float g = rstd * (w[c] * gu - (sum + rstd * rstd * dot * centred) / size);
        put(gx + from + i, plus ? g + get(more[from + i]) : g);
    }
}

// A block works on one row of n numbers.
template <class T> __device__ void layer_norm(const T *x, const float *w, const float *b, T *y, int n, float eps) {
    float mean, rstd;
    size_t from = (size_t)blockIdx.x * n;
    moments(x + from, n, eps, &mean, &rstd);
    for (int i = threadIdx.x; i < n; i += blockDim.x) put(y + from + i, (get(x[from + i]) - mean) * rstd * w[i] + b[i]);
}

// A block works on `each` rows of the `rows`, one after the other. gw and gb have a row for each block, `row_of_sums` numbers apart:
// the caller sums them. `more` is added to the gradient of x, if `plus`.
template <class T>
__device__ void layer_norm_grad(const T *x, const float *w, const T *gy, const T *more, T *gx, float *gw, float *gb, int rows, int each, int n,
                                int row_of_sums, float eps, int plus) {
    float *to_w = gw + (size_t)blockIdx.x * row_of_sums, *to_b = gb + (size_t)blockIdx.x * row_of_sums;
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
            float by_x = rstd * (g * w[i] - sum - centred * dot);
            put(gx + from + i, plus ? by_x + get(more[from + i]) : by_x);
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

// y += bias, and what else is added to the result of a layer: `image` (images, channels) to all pixels of a channel, and `more`.
template <class T>
__device__ void finish(T *y, const float *b, const T *image, const T *more, unsigned n, unsigned pixels, unsigned channels, int with_image, int plus) {
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float sum = get(y[i]) + b[i / pixels % channels];
        if (with_image) sum += get(image[i / pixels]);
        put(y + i, plus ? sum + get(more[i]) : sum);
    }
}

// x (.., b, c, d) -> y (.., c, b, d)
template <class T> __device__ void exchange(const T *x, T *y, size_t n, size_t b, size_t c, size_t d) {
    for (EACH(n)) {
        size_t j = i % d, in_b = i / d % b, in_c = i / d / b % c, a = i / d / b / c;
        y[i] = x[((a * b + in_b) * c + in_c) * d + j];
    }
}

// x (matrices, rows, columns) -> y (matrices, columns, rows). 256 threads work on a square of 32 x 32 numbers.
template <class T> __device__ void swap(const T *x, T *y, int rows, int columns) {
    __shared__ T square[32][33];
    int across = (columns + 31) / 32, down = (rows + 31) / 32, tile = blockIdx.x % (across * down);
    int row = tile / across * 32, column = tile % across * 32, lane = threadIdx.x % 32;
    size_t from = (size_t)(blockIdx.x / (across * down)) * rows * columns;
    for (int i = threadIdx.x / 32; i < 32; i += 8)
        if (row + i < rows && column + lane < columns) square[i][lane] = x[from + (size_t)(row + i) * columns + column + lane];
    __syncthreads();
    for (int i = threadIdx.x / 32; i < 32; i += 8)
        if (column + i < columns && row + lane < rows) y[from + (size_t)(column + i) * rows + row + lane] = square[lane][i];
}

// x (planes, h0, w0) -> y (planes, h, w), n numbers: pixel (i, j) is pixel (i h0 / h, j w0 / w).
template <class T> __device__ void upsample(const T *x, T *y, size_t n, size_t h0, size_t w0, size_t h, size_t w) {
    for (EACH(n)) y[i] = x[i / w / h * h0 * w0 + i / w % h * h0 / h * w0 + i % w * w0 / w];
}

// The gradient of x, n numbers: the sum over the pixels that were made from it.
template <class T> __device__ void upsample_grad(const T *gy, T *gx, size_t n, size_t h0, size_t w0, size_t h, size_t w) {
    for (EACH(n)) {
        size_t row = i / w0 % h0, column = i % w0;
        const T *plane = gy + i / w0 / h0 * h * w;
        float sum = 0.f;
        for (size_t k = (row * h + h0 - 1) / h0; k < ((row + 1) * h + h0 - 1) / h0; k++)
            for (size_t l = (column * w + w0 - 1) / w0; l < ((column + 1) * w + w0 - 1) / w0; l++) sum += get(plane[k * w + l]);
        put(gx + i, sum);
    }
}

// y = a x + b y of each image, n numbers in all and `each` in an image; numbers[2 k] is a, numbers[2 k + 1] is b.
extern "C" __global__ void mix(const float *x, const float *y, const float *numbers, float *mixed, size_t n, size_t each) {
    for (EACH(n)) mixed[i] = numbers[i / each * 2] * x[i] + numbers[i / each * 2 + 1] * y[i];
}

// Some channels of each image, n numbers in all and `some` in an image: those that begin at number `from` of the `each` of an image.
template <class T> __device__ void part(const T *x, T *y, size_t n, size_t some, size_t each, size_t from) {
    for (EACH(n)) y[i] = x[i / some * each + from + i % some];
}

// sum += g
template <class T> __device__ void add_to(float *sum, const T *g, size_t n) {
    for (EACH(n)) sum[i] += get(g[i]);
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

// The sums of the columns of x (rows, n), added: of the first `split` to a, of the others to b. 256 threads work on 32 columns.
template <class T> __device__ void add_columns(const T *x, float *a, float *b, int rows, int n, int split) {
    __shared__ float lanes[8][32];
    int lane = threadIdx.x / 32, column = blockIdx.x * 32 + threadIdx.x % 32;
    float sum = 0.f;
    for (int k = lane; column < n && k < rows; k += 8) sum += get(x[(size_t)k * n + column]);
    lanes[lane][threadIdx.x % 32] = sum;
    __syncthreads();
    if (lane == 0 && column < n) {
        for (int k = 1; k < 8; k++) sum += lanes[k][threadIdx.x];
        if (column < split) a[column] += sum;
        else b[column - split] += sum;
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

// The root of the sum of n such sums, and the factor that makes it at most `most`, which is NaN where the root is not finite. One block.
extern "C" __global__ void whole_norm(const float *sums, double *root, float *factor, int n, double most) {
    double sum = 0.;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
    sum = sqrt(sum_over_block(sum));
    if (threadIdx.x == 0) {
        *root = sum;
        *factor = (float)(sum - sum + fmin(1., most / (sum + 1e-6)));
    }
}

// x = 0
extern "C" __global__ void clear(const size_t *table, const unsigned *places) {
    const size_t *row = table + 2 * (size_t)places[2 * blockIdx.x];
    float *x = (float *)row[1];
    for (EACH_OF_CHUNK(row[0])) x[i] = 0.f;
}

// x *= factor
extern "C" __global__ void scale(const size_t *table, const unsigned *places, const float *factor) {
    const size_t *row = table + 2 * (size_t)places[2 * blockIdx.x];
    float *x = (float *)row[1], by = *factor;
    for (EACH_OF_CHUNK(row[0])) x[i] *= by;
}

// A well-mixed function of an integer, as in adamw.rs.
__device__ unsigned hash(unsigned x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

__device__ void put_at_random(float *to, float x, unsigned random) { *to = x; }
// To one of the two bf16 beside x, the more often the nearer it is.
__device__ void put_at_random(bf16 *to, float x, unsigned random) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) put(to, x); // infinity or NaN
    else to->bits = (unsigned short)((bits + (random & 0xffffu)) >> 16);
}

// The arrays are p, m, v and g. Nothing changes where the factor of g is NaN. `seed` decides how moments in bf16 are rounded.
template <class T>
__device__ void adamw(const size_t *table, const unsigned *places, const float *factor, unsigned seed, float beta1, float beta2, float decay,
                      float rate, float root2, float eps) {
    const size_t *row = table + 5 * (size_t)places[2 * blockIdx.x];
    float *p = (float *)row[1], by = *factor;
    T *m = (T *)row[2], *v = (T *)row[3];
    const float *gradient = (const float *)row[4];
    if (!(by >= 0.f)) return;
    seed = hash(seed + places[2 * blockIdx.x]);
    for (EACH_OF_CHUNK(row[0])) {
        float g = by * gradient[i], old = get(m[i]);
        put_at_random(m + i, old + (1.f - beta1) * (g - old), hash(seed + (unsigned)i));
        put_at_random(v + i, beta2 * get(v[i]) + (1.f - beta2) * g * g, hash(~seed + (unsigned)i));
        p[i] = decay * p[i] - rate * get(m[i]) / (sqrtf(get(v[i])) / root2 + eps);
    }
}

// Copies in bf16: `table` has for each tensor its length, its address, and where its copy begins in y.
extern "C" __global__ void narrow(const size_t *table, const unsigned *places, bf16 *y) {
    const size_t *row = table + 3 * (size_t)places[2 * blockIdx.x];
    const float *x = (const float *)row[1];
    for (EACH_OF_CHUNK(row[0])) put(y + row[2] + i, x[i]);
}

// ---- Losses ----

#define POLY 0
#define IPO 1
#define DMPO 2
#define LINEAR 3
#define SFT 4

__device__ double logistic(double z) {
    double e = exp(-fabs(z));
    return z >= 0. ? 1. / (1. + e) : e / (1. + e);
}

// The derivative at z of the loss of a pair whose winner is certain; `a` is the number of the loss. LINEAR: the weight of the errors.
__device__ double slope(int form, double a, double z) {
    double p = logistic(z), q = logistic(-z);
    switch (form) {
    case POLY: return -q * (1. + a * p);
    case IPO: return 2. * z - 1.;
    case DMPO: return p * q * (z - (log(1. - a) - log(a)));
    default: return fmin(fmax(0.5 - 0.4 * z, a), 1. - a);
    }
}

// A block works on one of the pairs. Arrays of predictions are (2 pairs, each), the winners first. For each pair, `numbers` has the
// label's target and weight, beta, and the weights of the winner's and the loser's error; `sums` gets the sums over the numbers of an image
// of (policy - target)^2 of the winner and of the loser, (reference - target)^2, policy^2 and reference^2 likewise, the product of
// (policy - target) of winner and loser, and (policy - base)^2. `seed` is `scale` times the loss's gradient by the policy's prediction.
// tools/train/loss.rs has the formulas, guard.rs that of mu, which is below 0 without a guard; `anchor` is beta / 2 times its weight.
template <class T>
__device__ void pair_loss(const T *policy, const T *reference, const T *base, const float *target, const double *numbers, T *seed,
                          double *sums, size_t each, int pairs, int form, double a, double mu, double anchor, double scale) {
    double parts[11] = {};
    size_t begins[2] = {blockIdx.x * each, (blockIdx.x + (size_t)pairs) * each};
    for (size_t i = threadIdx.x; i < each; i += blockDim.x) {
        double apart[2];
        for (int side = 0; side < 2; side++) {
            size_t k = begins[side] + i;
            float p = get(policy[k]), r = get(reference[k]), by_reference = r - target[k], by_base = p - get(base[k]);
            apart[side] = p - target[k];
            parts[side] += apart[side] * apart[side];
            parts[2 + side] += (double)by_reference * by_reference;
            parts[4 + side] += (double)p * p;
            parts[6 + side] += (double)r * r;
            parts[9 + side] += (double)by_base * by_base;
        }
        parts[8] += apart[0] * apart[1];
    }
    for (int k = 0; k < 11; k++) {
        parts[k] = sum_over_block(parts[k]);
        if (threadIdx.x == 0) sums[blockIdx.x * 11 + k] = parts[k];
    }

    const double *of = numbers + 5 * blockIdx.x;
    double t = of[0], weight = of[1], beta = of[2], slopes[2];
    double z = -0.5 * beta * (of[3] * (parts[0] - parts[2]) - of[4] * (parts[1] - parts[3])) / each;
    if (form == SFT) {
        slopes[0] = weight * t;
        slopes[1] = weight * (1. - t);
    } else {
        double by_z = weight * (t * slope(form, a, z) - (1. - t) * slope(form, a, -z));
        slopes[0] = form == LINEAR ? by_z : -0.5 * beta * by_z;
        slopes[1] = -slopes[0];
    }
    if (mu >= 0. && slopes[0] > 0. && slopes[1] < 0. && parts[8] > 0.) slopes[1] *= fmin(1., (1. - mu) * parts[0] / parts[8]);
    for (int side = 0; side < 2; side++) {
        double factor = 2. * scale * of[3 + side] / each;
        float by_target = (float)(factor * slopes[side]), by_base = (float)(factor * weight * anchor);
        for (size_t i = threadIdx.x; i < each; i += blockDim.x) {
            size_t k = begins[side] + i;
            float p = get(policy[k]);
            put(seed + k, by_target * (p - target[k]) + by_base * (p - get(base[k])));
        }
    }
}

// The kernels above, for activations in f32 and in bf16.

extern "C" __global__ void group_norm_f32(const float *x, const float *w, const float *b, float *y, int size, int pixels, int groups, float eps, int silu) {
    group_norm(x, w, b, y, size, pixels, groups, eps, silu);
}

extern "C" __global__ void group_norm_bf16(const bf16 *x, const float *w, const float *b, bf16 *y, int size, int pixels, int groups, float eps, int silu) {
    group_norm(x, w, b, y, size, pixels, groups, eps, silu);
}

extern "C" __global__ void group_norm_grad_f32(const float *x, const float *w, const float *b, const float *gy, const float *more, float *gx, float *gw, float *gb, int size, int pixels, int groups, int row, float eps, int silu, int plus) {
    group_norm_grad(x, w, b, gy, more, gx, gw, gb, size, pixels, groups, row, eps, silu, plus);
}

extern "C" __global__ void group_norm_grad_bf16(const bf16 *x, const float *w, const float *b, const bf16 *gy, const bf16 *more, bf16 *gx, float *gw, float *gb, int size, int pixels, int groups, int row, float eps, int silu, int plus) {
    group_norm_grad(x, w, b, gy, more, gx, gw, gb, size, pixels, groups, row, eps, silu, plus);
}

extern "C" __global__ void layer_norm_f32(const float *x, const float *w, const float *b, float *y, int n, float eps) {
    layer_norm(x, w, b, y, n, eps);
}

extern "C" __global__ void layer_norm_bf16(const bf16 *x, const float *w, const float *b, bf16 *y, int n, float eps) {
    layer_norm(x, w, b, y, n, eps);
}

extern "C" __global__ void layer_norm_grad_f32(const float *x, const float *w, const float *gy, const float *more, float *gx, float *gw, float *gb, int rows, int each, int n, int row_of_sums, float eps, int plus) {
    layer_norm_grad(x, w, gy, more, gx, gw, gb, rows, each, n, row_of_sums, eps, plus);
}

extern "C" __global__ void layer_norm_grad_bf16(const bf16 *x, const float *w, const bf16 *gy, const bf16 *more, bf16 *gx, float *gw, float *gb, int rows, int each, int n, int row_of_sums, float eps, int plus) {
    layer_norm_grad(x, w, gy, more, gx, gw, gb, rows, each, n, row_of_sums, eps, plus);
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

extern "C" __global__ void swap_f32(const float *x, float *y, int rows, int columns) {
    swap(x, y, rows, columns);
}

extern "C" __global__ void swap_bf16(const bf16 *x, bf16 *y, int rows, int columns) {
    swap(x, y, rows, columns);
}

extern "C" __global__ void upsample_f32(const float *x, float *y, size_t n, size_t h0, size_t w0, size_t h, size_t w) {
    upsample(x, y, n, h0, w0, h, w);
}

extern "C" __global__ void upsample_bf16(const bf16 *x, bf16 *y, size_t n, size_t h0, size_t w0, size_t h, size_t w) {
    upsample(x, y, n, h0, w0, h, w);
}

extern "C" __global__ void upsample_grad_f32(const float *gy, float *gx, size_t n, size_t h0, size_t w0, size_t h, size_t w) {
    upsample_grad(gy, gx, n, h0, w0, h, w);
}

extern "C" __global__ void upsample_grad_bf16(const bf16 *gy, bf16 *gx, size_t n, size_t h0, size_t w0, size_t h, size_t w) {
    upsample_grad(gy, gx, n, h0, w0, h, w);
}

extern "C" __global__ void add_to_f32(float *sum, const float *g, size_t n) {
    add_to(sum, g, n);
}

extern "C" __global__ void add_to_bf16(float *sum, const bf16 *g, size_t n) {
    add_to(sum, g, n);
}

extern "C" __global__ void pair_loss_f32(const float *policy, const float *reference, const float *base, const float *target, const double *numbers, float *seed, double *sums, size_t each, int pairs, int form, double a, double mu, double anchor, double scale) {
    pair_loss(policy, reference, base, target, numbers, seed, sums, each, pairs, form, a, mu, anchor, scale);
}

extern "C" __global__ void pair_loss_bf16(const bf16 *policy, const bf16 *reference, const bf16 *base, const float *target, const double *numbers, bf16 *seed, double *sums, size_t each, int pairs, int form, double a, double mu, double anchor, double scale) {
    pair_loss(policy, reference, base, target, numbers, seed, sums, each, pairs, form, a, mu, anchor, scale);
}

extern "C" __global__ void finish_f32(float *y, const float *b, const float *image, const float *more, unsigned n, unsigned pixels, unsigned channels, int with_image, int plus) {
    finish(y, b, image, more, n, pixels, channels, with_image, plus);
}

extern "C" __global__ void add_columns_f32(const float *x, float *a, float *b, int rows, int n, int split) {
    add_columns(x, a, b, rows, n, split);
}

extern "C" __global__ void finish_bf16(bf16 *y, const float *b, const bf16 *image, const bf16 *more, unsigned n, unsigned pixels, unsigned channels, int with_image, int plus) {
    finish(y, b, image, more, n, pixels, channels, with_image, plus);
}

extern "C" __global__ void add_columns_bf16(const bf16 *x, float *a, float *b, int rows, int n, int split) {
    add_columns(x, a, b, rows, n, split);
}

extern "C" __global__ void adamw_f32(const size_t *table, const unsigned *places, const float *factor, unsigned seed, float beta1, float beta2, float decay, float rate, float root2, float eps) {
    adamw<float>(table, places, factor, seed, beta1, beta2, decay, rate, root2, eps);
}

extern "C" __global__ void adamw_bf16(const size_t *table, const unsigned *places, const float *factor, unsigned seed, float beta1, float beta2, float decay, float rate, float root2, float eps) {
    adamw<bf16>(table, places, factor, seed, beta1, beta2, decay, rate, root2, eps);
}

extern "C" __global__ void part_f32(const float *x, float *y, size_t n, size_t some, size_t each, size_t from) {
    part(x, y, n, some, each, from);
}

extern "C" __global__ void part_bf16(const bf16 *x, bf16 *y, size_t n, size_t some, size_t each, size_t from) {
    part(x, y, n, some, each, from);
}
