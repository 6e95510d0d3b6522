// Every kernel of common/ops/src/kernels.cu on the CPU, against the same formula in f64.
//
// A case runs in three orders of blocks and threads, which must give equal bits. All memory is exactly as long as the shapes say and
// holds NaN until it is written, so that AddressSanitizer sees what lies outside and the comparison sees what was never written.

#include "kernels.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

using Numbers = std::vector<double>;
using Results = std::vector<Numbers>;
using shim::Order;

static float as(float, double x) { return (float)x; }
static double number(float x) { return x; }

static double number(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}
// The nearest of the two neighbours.
static bf16 as(bf16, double x) {
    float wide = (float)x;
    uint32_t bits;
    memcpy(&bits, &wide, sizeof bits);
    bf16 below{(unsigned short)(bits >> 16)}, above{(unsigned short)((bits >> 16) + 1)};
    double down = std::fabs(number(below) - x), up = std::fabs(number(above) - x);
    return down < up || (down == up && below.bits % 2 == 0) ? below : above;
}

// What a type of activations is called, and how far a result may lie from the exact one: half of its last digit, and what f32 loses.
template <class T> constexpr const char *TYPE = sizeof(T) == 2 ? "bf16" : "f32";
template <class T> static double within(double f32) { return sizeof(T) == 2 ? f32 + 1.0 / 256 : f32; }
#define OF(T, kernel) (choose<T>(kernel##_f32, kernel##_bf16))
template <class T, class A, class B> static auto choose(A f32, B bf16) {
    if constexpr (sizeof(T) == 2) return bf16;
    else return f32;
}

// Memory of a device.
template <class T> class Memory {
    void *room;
    size_t n;

  public:
    T *at;

    // The numbers begin `shift` numbers behind an aligned address, as those of a part of a tensor do.
    explicit Memory(size_t n, size_t shift = 0) : n(n) {
        room = malloc((n + shift) * sizeof(T));
        memset(room, 0xff, (n + shift) * sizeof(T));
        at = (T *)room + shift;
    }
    explicit Memory(const Numbers &numbers, size_t shift = 0) : Memory(numbers.size(), shift) {
        for (size_t i = 0; i < n; i++) at[i] = as(T(), numbers[i]);
    }
    Memory(const Memory &) = delete;
    ~Memory() { free(room); }

    Numbers read() const {
        Numbers numbers(n);
        for (size_t i = 0; i < n; i++) numbers[i] = number(at[i]);
        return numbers;
    }
};

// Numbers between middle - 1 and middle + 1, which a type holds exactly.
template <class T = float> static Numbers random_numbers(size_t n, uint64_t seed, double middle = 0) {
    Numbers numbers(n);
    uint64_t state = seed * 0x9e3779b97f4a7c15u | 1;
    for (double &x : numbers) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x = number(as(T(), middle + (double)(state >> 40) / (1 << 23) - 1));
    }
    return numbers;
}

static void check(const std::string &what, double tolerance, const Results &expected, const std::function<Results(Order)> &run) {
    Results first = run(Order::Forward);
    for (Order order : {Order::Backward, Order::Shuffled}) {
        Results again = run(order);
        for (size_t r = 0; r < first.size(); r++)
            for (size_t i = 0; i < first[r].size(); i++)
                if (memcmp(&first[r][i], &again[r][i], sizeof(double)) != 0) {
                    printf("%s: number %zu of result %zu depends on the order of the threads\n", what.c_str(), i, r);
                    exit(1);
                }
    }
    double worst = 0;
    for (size_t r = 0; r < expected.size(); r++) {
        double squares = 0;
        for (double x : expected[r]) squares += x * x;
        double size = std::sqrt(squares / (double)expected[r].size());
        for (size_t i = 0; i < expected[r].size(); i++) {
            double apart = std::fabs(first[r][i] - expected[r][i]) / (size + std::fabs(expected[r][i]));
            if (!(apart <= tolerance)) {
                printf("%s: number %zu of result %zu is %.9g instead of %.9g\n", what.c_str(), i, r, first[r][i], expected[r][i]);
                exit(1);
            }
            worst = std::max(worst, apart);
        }
    }
    printf("%s: %.1e\n", what.c_str(), worst);
}

static double sum(const Numbers &x) {
    double sum = 0;
    for (double v : x) sum += v;
    return sum;
}

static double cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
static double pdf(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI); }

// dL/dx of L = sum of gy f(x), by differences.
static Numbers differences(Numbers x, const Numbers &gy, const std::function<Numbers(const Numbers &)> &f) {
    Numbers gradient(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        double kept = x[i], step = 1e-5;
        x[i] = kept + step;
        Numbers above = f(x);
        x[i] = kept - step;
        Numbers below = f(x);
        x[i] = kept;
        for (size_t k = 0; k < gy.size(); k++) gradient[i] += gy[k] * (above[k] - below[k]) / (2 * step);
    }
    return gradient;
}

// ---- Group norm ---------------------------------------------------------------------------------------------------------------

struct Group {
    int batch, channels, groups, pixels;
    double eps;
    bool silu;

    int size() const { return channels / groups * pixels; }
    size_t count() const { return (size_t)batch * channels * pixels; }

    Numbers forward(const Numbers &x, const Numbers &w, const Numbers &b) const {
        Numbers y(x.size());
        for (int g = 0; g < batch * groups; g++) {
            size_t from = (size_t)g * size();
            double mean = 0, variance = 0;
            for (int i = 0; i < size(); i++) mean += x[from + i] / size();
            for (int i = 0; i < size(); i++) variance += (x[from + i] - mean) * (x[from + i] - mean) / size();
            for (int i = 0; i < size(); i++) {
                int c = (int)((from + i) / pixels % channels);
                double u = (x[from + i] - mean) / std::sqrt(variance + eps) * w[c] + b[c];
                y[from + i] = silu ? u / (1 + std::exp(-u)) : u;
            }
        }
        return y;
    }

    // The gradients of x, and of w and b for each image.
    Results backward(const Numbers &x, const Numbers &w, const Numbers &b, const Numbers &gy) const {
        Numbers gx(x.size()), gw(batch * channels), gb(batch * channels);
        for (int g = 0; g < batch * groups; g++) {
            size_t from = (size_t)g * size();
            Numbers centred(size()), inner(size()); // x - mean, and the gradient of the normalised number
            double mean = 0, variance = 0, inner_mean = 0, product = 0;
            for (int i = 0; i < size(); i++) mean += x[from + i] / size();
            for (int i = 0; i < size(); i++) centred[i] = x[from + i] - mean, variance += centred[i] * centred[i] / size();
            double rstd = 1 / std::sqrt(variance + eps);
            for (int i = 0; i < size(); i++) {
                size_t channel = (from + i) / pixels, c = channel % channels;
                double normal = centred[i] * rstd, u = normal * w[c] + b[c], s = 1 / (1 + std::exp(-u));
                double gu = gy[from + i] * (silu ? s * (1 + u * (1 - s)) : 1);
                gw[channel] += gu * normal;
                gb[channel] += gu;
                inner[i] = gu * w[c];
                inner_mean += inner[i] / size();
                product += inner[i] * normal / size();
            }
            for (int i = 0; i < size(); i++) gx[from + i] = rstd * (inner[i] - inner_mean - centred[i] * rstd * product);
        }
        return {gx, gw, gb};
    }
};

template <class T> static void group_norms() {
    for (Group s : {Group{2, 8, 4, 35, 1e-5, true}, Group{2, 6, 3, 70, 0.3, false}, Group{1, 4, 2, 300, 1e-5, true}, Group{3, 6, 3, 1, 0.1, true}}) {
        Numbers x = random_numbers<T>(s.count(), 1, 2), w = random_numbers(s.channels, 2, 0.5), b = random_numbers(s.channels, 3);
        Numbers gy = random_numbers<T>(s.count(), 4);
        unsigned blocks = s.batch * s.groups;
        float eps = (float)s.eps;
        for (unsigned threads : {32u, s.silu ? 96u : 512u}) {
            std::string what = std::string("group_norm, ") + TYPE<T> + ", " + std::to_string(s.batch) + "x" + std::to_string(s.channels) + "x" +
                               std::to_string(s.pixels) + " in " + std::to_string(s.groups) + " groups" + (s.silu ? ", silu, " : ", ") +
                               std::to_string(threads) + " threads";
            check(what, within<T>(3e-6), {s.forward(x, w, b)}, [&](Order order) -> Results {
                Memory<T> dx(x, 1), y(s.count());
                Memory<float> dw(w, 1), db(b, 1);
                shim::launch(blocks, threads, order,
                             [&] { OF(T, group_norm)(dx.at, dw.at, db.at, y.at, s.size(), s.pixels, s.groups, eps, s.silu); });
                return {y.read()};
            });
            check(what + ", gradient", within<T>(1e-5), s.backward(x, w, b, gy), [&](Order order) -> Results {
                Memory<T> dx(x, 1), dy(gy, 1), gx(s.count());
                Memory<float> dw(w, 1), db(b, 1), gw(s.batch * s.channels), gb(s.batch * s.channels);
                shim::launch(blocks, threads, order, [&] {
                    OF(T, group_norm_grad)(dx.at, dw.at, db.at, dy.at, gx.at, gw.at, gb.at, s.size(), s.pixels, s.groups, eps, s.silu);
                });
                return {gx.read(), gw.read(), gb.read()};
            });
        }
        if (s.count() > 1000 || sizeof(T) == 2) continue;
        Results formula = s.backward(x, w, b, gy);
        check("group_norm's formula against differences", 1e-7, {differences(x, gy, [&](auto &x) { return s.forward(x, w, b); })},
              [&](Order) -> Results { return {formula[0]}; });
    }
}

// ---- Layer norm ---------------------------------------------------------------------------------------------------------------

// A layer norm of rows of n is a group norm of images with one group, whose n channels have one pixel.
template <class T> static void layer_norms() {
    for (auto [rows, n, eps, each] : {std::tuple{3, 7, 1e-5, 1}, std::tuple{5, 33, 0.2, 2}, std::tuple{7, 320, 1e-5, 3}}) {
        Group s{rows, n, 1, 1, eps, false};
        Numbers x = random_numbers<T>(s.count(), 1, 2), w = random_numbers(n, 2, 0.5), b = random_numbers(n, 3), gy = random_numbers<T>(s.count(), 4);
        std::string what = std::string("layer_norm, ") + TYPE<T> + ", " + std::to_string(rows) + "x" + std::to_string(n);
        check(what, within<T>(3e-6), {s.forward(x, w, b)}, [&, n = n, eps = eps, rows = rows](Order order) -> Results {
            Memory<T> dx(x, 1), y(s.count());
            Memory<float> dw(w, 1), db(b, 1);
            shim::launch(rows, 128, order, [&] { OF(T, layer_norm)(dx.at, dw.at, db.at, y.at, n, (float)eps); });
            return {y.read()};
        });
        // The gradients of w and b, over the rows of each block.
        int blocks = (rows + each - 1) / each;
        Results by_row = s.backward(x, w, b, gy), expected = {by_row[0], Numbers(blocks * n), Numbers(blocks * n)};
        for (int i = 0; i < rows * n; i++)
            for (int r : {1, 2}) expected[r][i / n / each * n + i % n] += by_row[r][i];
        check(what + ", gradient", within<T>(1e-5), expected, [&, n = n, eps = eps, rows = rows, each = each](Order order) -> Results {
            Memory<T> dx(x, 1), dy(gy, 1), gx(s.count());
            Memory<float> dw(w, 1), gw(blocks * n), gb(blocks * n);
            shim::launch(blocks, 64, order, [&] { OF(T, layer_norm_grad)(dx.at, dw.at, dy.at, gx.at, gw.at, gb.at, rows, each, n, (float)eps); });
            return {gx.read(), gw.read(), gb.read()};
        });
    }
}

// ---- Attention ----------------------------------------------------------------------------------------------------------------

template <class T> static void softmaxes() {
    struct Case {
        int rows, m;
        bool causal;
        int first, queries;
    };
    for (Case s : {Case{3, 77, false, 0, 3}, Case{2, 300, false, 0, 1}, Case{6, 9, true, 2, 3}}) {
        float scale = 0.3f;
        Numbers scores = random_numbers(s.rows * s.m, 1), p(scores.size()), gp = random_numbers(scores.size(), 2), gs(scores.size());
        for (double &x : scores) x *= 32; // so large that half a digit of bf16 would be seen
        if (s.m == 300) scores[40] = 500;  // whose exponential would overflow; the second warp meets it
        for (int row = 0; row < s.rows; row++) {
            int seen = s.causal ? s.first + row % s.queries + 1 : s.m;
            double largest = -1e9, sum = 0;
            double *of = &scores[row * s.m], *to = &p[row * s.m];
            for (int i = 0; i < seen; i++) largest = std::max(largest, of[i] * scale);
            for (int i = 0; i < seen; i++) sum += to[i] = std::exp(of[i] * scale - largest);
            for (int i = 0; i < seen; i++) to[i] /= sum;
        }
        std::string what = std::string("softmax, ") + TYPE<T> + ", " + std::to_string(s.rows) + "x" + std::to_string(s.m) + (s.causal ? ", causal" : "");
        check(what, within<T>(1e-5), {p}, [&](Order order) -> Results {
            Memory<float> ds(scores, 1);
            Memory<T> dp(p.size());
            shim::launch(s.rows, 64, order, [&] { OF(T, softmax)(ds.at, dp.at, s.m, scale, s.causal, s.first, s.queries); });
            return {dp.read()};
        });
        for (double &x : p) x = number(as(T(), x));
        for (int row = 0; row < s.rows; row++) {
            double dot = 0;
            for (int i = row * s.m; i < (row + 1) * s.m; i++) dot += p[i] * gp[i];
            for (int i = row * s.m; i < (row + 1) * s.m; i++) gs[i] = scale * p[i] * (gp[i] - dot);
        }
        check(what + ", gradient", within<T>(1e-5), {gs}, [&](Order order) -> Results {
            Memory<T> dp(p, 1), out(gs.size());
            Memory<float> dg(gp, 1);
            shim::launch(s.rows, 64, order, [&] { OF(T, softmax_grad)(dp.at, dg.at, out.at, s.m, scale); });
            return {out.read()};
        });
    }
}

// ---- Element by element -------------------------------------------------------------------------------------------------------

template <class T> static void geglus() {
    for (auto [rows, width] : {std::pair<size_t, size_t>{3, 5}, {7, 130}}) {
        Numbers x = random_numbers<T>(rows * 2 * width, 1), gy = random_numbers<T>(rows * width, 2), y, gx(x.size());
        for (double &v : x) v *= 4;
        for (size_t i = 0; i < rows * width; i++) {
            size_t hidden = i / width * 2 * width + i % width, gate = hidden + width;
            y.push_back(x[hidden] * x[gate] * cdf(x[gate]));
            gx[hidden] = gy[i] * x[gate] * cdf(x[gate]);
            gx[gate] = gy[i] * x[hidden] * (cdf(x[gate]) + x[gate] * pdf(x[gate]));
        }
        for (unsigned blocks : {1, 5}) {
            std::string what = std::string("geglu, ") + TYPE<T> + ", " + std::to_string(rows) + "x" + std::to_string(width) + ", " + std::to_string(blocks) + " blocks";
            check(what, within<T>(2e-6), {y}, [&, width = width, rows = rows](Order order) -> Results {
                Memory<T> dx(x, 1), out(y.size());
                shim::launch(blocks, 64, order, [&] { OF(T, geglu)(dx.at, out.at, rows * width, width); });
                return {out.read()};
            });
            check(what + ", gradient", within<T>(2e-6), {gx}, [&, width = width, rows = rows](Order order) -> Results {
                Memory<T> dx(x, 1), dy(gy, 1), out(x.size());
                shim::launch(blocks, 64, order, [&] { OF(T, geglu_grad)(dx.at, dy.at, out.at, rows * width, width); });
                return {out.read()};
            });
        }
    }
}

// ---- Sums ---------------------------------------------------------------------------------------------------------------------

template <class T> static void sums_of_gradients() {
    for (auto [images, channels, pixels] : {std::tuple{2, 3, 35}, {3, 2, 300}, {5, 7, 1}}) {
        Numbers x = random_numbers<T>(images * channels * pixels, 1), expected(channels);
        for (size_t i = 0; i < x.size(); i++) expected[i / pixels % channels] += x[i];
        check(std::string("channel_sums, ") + TYPE<T> + ", " + std::to_string(images) + "x" + std::to_string(channels) + "x" + std::to_string(pixels), 3e-6,
              {expected}, [&, images = images, channels = channels, pixels = pixels](Order order) -> Results {
                  Memory<T> dx(x, 1);
                  Memory<float> sums(channels);
                  shim::launch(channels, 64, order, [&] { OF(T, channel_sums)(dx.at, sums.at, images, channels, pixels); });
                  return {sums.read()};
              });
    }
    for (auto [rows, n, each] : {std::tuple{3, 7, 8}, {21, 40, 8}, {9, 64, 9}}) {
        int chunks = (rows + each - 1) / each, tiles = (n + 31) / 32;
        Numbers x = random_numbers<T>(rows * n, 1), expected(chunks * n);
        for (int i = 0; i < rows * n; i++) expected[i / n / each * n + i % n] += x[i];
        check(std::string("column_sums, ") + TYPE<T> + ", " + std::to_string(rows) + "x" + std::to_string(n) + " by " + std::to_string(each), 3e-6,
              {expected}, [&, rows = rows, n = n, each = each](Order order) -> Results {
                  Memory<T> dx(x, 1);
                  Memory<float> sums(chunks * n);
                  shim::launch(chunks * tiles, 256, order, [&] { OF(T, column_sums)(dx.at, sums.at, rows, n, each); });
                  return {sums.read()};
              });
    }
}

template <class T> static void biases() {
    for (auto [batch, channels, pixels] : {std::tuple<size_t, size_t, size_t>{2, 3, 35}, {5, 7, 1}}) {
        Numbers y = random_numbers<T>(batch * channels * pixels, 1), b = random_numbers(channels, 2), expected = y;
        for (size_t i = 0; i < y.size(); i++) expected[i] += b[i / pixels % channels];
        check(std::string("add_bias, ") + TYPE<T> + ", " + std::to_string(batch) + "x" + std::to_string(channels) + "x" + std::to_string(pixels),
              within<T>(1e-6), {expected}, [&, channels = channels, pixels = pixels](Order order) -> Results {
                  Memory<T> dy(y, 1);
                  Memory<float> db(b, 1);
                  shim::launch(2, 64, order, [&] { OF(T, add_bias)(dy.at, db.at, y.size(), pixels, channels); });
                  return {dy.read()};
              });
    }
}

template <class T> static void exchanges() {
    const size_t a = 2, b = 5, c = 3, d = 7;
    Numbers x = random_numbers<T>(a * b * c * d, 1), y(x.size());
    for (size_t i = 0; i < a; i++)
        for (size_t j = 0; j < b; j++)
            for (size_t k = 0; k < c; k++)
                for (size_t l = 0; l < d; l++) y[((i * c + k) * b + j) * d + l] = x[((i * b + j) * c + k) * d + l];
    check(std::string("exchange, ") + TYPE<T>, 0, {y}, [&](Order order) -> Results {
        Memory<T> dx(x, 1), out(y.size());
        shim::launch(2, 64, order, [&] { OF(T, exchange)(dx.at, out.at, x.size(), b, c, d); });
        return {out.read()};
    });
}

// bf16 has 8 binary digits: what lies between two of its numbers goes to the nearer, from the middle to the even one.
static void rounding() {
    Numbers x = {1 + 1 / 256.0, 1 + 3 / 256.0, 1 + 1 / 256.0 + 1e-6, 1 + 3 / 256.0 - 1e-6, -1 - 1 / 256.0, 3.3895313892515355e38, 1e-40, 0};
    Numbers y = {1, 1 + 4 / 256.0, 1 + 2 / 256.0, 1 + 2 / 256.0, -1, 3.3895313892515355e38, 1e-40, 0};
    for (double &v : y) v = number(as(bf16(), v));
    check("rounding to bf16", 0, {y}, [&](Order) -> Results {
        Memory<bf16> out(Numbers(x.size(), 0));
        Memory<float> b(x);
        shim::launch(1, 32, Order::Forward, [&] { add_bias_bf16(out.at, b.at, x.size(), 1, x.size()); });
        return {out.read()};
    });
    check("rounding of NaN to bf16", 0, {{1}}, [&](Order) -> Results {
        Memory<bf16> out(Numbers(1, 0));
        Memory<float> b(Numbers(1, NAN));
        shim::launch(1, 32, Order::Forward, [&] { add_bias_bf16(out.at, b.at, 1, 1, 1); });
        return {{std::isnan(out.read()[0]) ? 1.0 : 0.0}};
    });
}

// ---- All tensors at once ------------------------------------------------------------------------------------------------------

constexpr size_t CHUNK_OF_TENSOR = 65536;

// Tensors of these lengths, with `arrays` arrays each, as the kernels get them.
class Tensors {
    std::vector<std::unique_ptr<Memory<float>>> memory;
    std::vector<size_t> lengths;
    size_t arrays;

  public:
    std::vector<size_t> table;
    std::vector<unsigned> places;

    Tensors(const std::vector<size_t> &lengths, const std::vector<Numbers> &numbers) : lengths(lengths), arrays(numbers.size()) {
        size_t from = 0;
        for (size_t t = 0; t < lengths.size(); t++) {
            table.push_back(lengths[t]);
            for (const Numbers &all : numbers) {
                memory.push_back(std::make_unique<Memory<float>>(Numbers(all.begin() + from, all.begin() + from + lengths[t]), 1));
                table.push_back((size_t)memory.back()->at);
            }
            for (size_t c = 0; c * CHUNK_OF_TENSOR < lengths[t]; c++) places.push_back((unsigned)t), places.push_back((unsigned)c);
            from += lengths[t];
        }
    }

    unsigned blocks() const { return (unsigned)places.size() / 2; }

    Numbers read(size_t array) const {
        Numbers all;
        for (size_t t = 0; t < lengths.size(); t++) {
            Numbers some = memory[t * arrays + array]->read();
            all.insert(all.end(), some.begin(), some.end());
        }
        return all;
    }
};

static void optimisers() {
    const std::vector<size_t> lengths = {3, CHUNK_OF_TENSOR + 5, 1000};
    const size_t n = 3 + CHUNK_OF_TENSOR + 5 + 1000;
    const double beta1 = (float)0.9, beta2 = (float)0.995, decay = (float)0.98, rate = (float)0.05, root2 = (float)0.4, eps = (float)1e-3;
    Numbers p = random_numbers(n, 1), m = random_numbers(n, 2), v = random_numbers(n, 3, 1), g = random_numbers(n, 4), scaled = g;
    Numbers squared(4);
    for (size_t i = 0; i < n; i++) squared[i < 3 ? 0 : i < 3 + CHUNK_OF_TENSOR ? 1 : i < 8 + CHUNK_OF_TENSOR ? 2 : 3] += g[i] * g[i];
    for (double &x : scaled) x *= (float)0.3;
    Results expected = {p, m, v, g};
    for (size_t i = 0; i < n; i++) {
        double &m = expected[1][i], &v = expected[2][i], &p = expected[0][i];
        m = beta1 * m + (1 - beta1) * g[i];
        v = beta2 * v + (1 - beta2) * g[i] * g[i];
        p = decay * p - rate * m / (std::sqrt(v) / root2 + eps);
    }
    check("squares", 5e-6, {squared}, [&](Order order) -> Results {
        Tensors all(lengths, {g});
        Memory<float> sums(all.blocks());
        shim::launch(all.blocks(), 256, order, [&] { squares(all.table.data(), all.places.data(), sums.at); });
        return {sums.read(), all.read(0)};
    });
    check("scale", 1e-7, {scaled}, [&](Order order) -> Results {
        Tensors all(lengths, {g});
        shim::launch(all.blocks(), 64, order, [&] { scale(all.table.data(), all.places.data(), 0.3f); });
        return {all.read(0)};
    });
    check("adamw", 2e-6, expected, [&](Order order) -> Results {
        Tensors all(lengths, {p, m, v, g});
        shim::launch(all.blocks(), 64, order, [&] {
            adamw(all.table.data(), all.places.data(), (float)beta1, (float)beta2, (float)decay, (float)rate, (float)root2, (float)eps);
        });
        return {all.read(0), all.read(1), all.read(2), all.read(3)};
    });
}

template <class T> static void both() {
    group_norms<T>();
    layer_norms<T>();
    softmaxes<T>();
    geglus<T>();
    biases<T>();
    exchanges<T>();
    sums_of_gradients<T>();
}

int main() {
    both<float>();
    both<bf16>();
    rounding();
    optimisers();
}
