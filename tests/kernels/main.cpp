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
static double as(double, double x) { return x; }
static double number(float x) { return x; }
static double number(double x) { return x; }

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
            // The gradients of w and b of an image lie in one row, one behind the other.
            Numbers more = random_numbers<T>(s.count(), 5);
            Results separate = s.backward(x, w, b, gy), expected = {separate[0], Numbers(2 * s.batch * s.channels)};
            int plus = threads != 32;
            for (size_t i = 0; i < s.count(); i++) expected[0][i] += plus * more[i];
            for (int i = 0; i < s.batch * s.channels; i++)
                for (int r : {0, 1}) expected[1][(i / s.channels * 2 + r) * s.channels + i % s.channels] = separate[1 + r][i];
            check(what + ", gradient", within<T>(1e-5), expected, [&](Order order) -> Results {
                Memory<T> dx(x, 1), dy(gy, 1), dm(more, 1), gx(s.count());
                Memory<float> dw(w, 1), db(b, 1), sums(2 * s.batch * s.channels);
                shim::launch(blocks, threads, order, [&] {
                    OF(T, group_norm_grad)(dx.at, dw.at, db.at, dy.at, dm.at, gx.at, sums.at, sums.at + s.channels, s.size(), s.pixels, s.groups,
                                           2 * s.channels, eps, s.silu, plus);
                });
                return {gx.read(), sums.read()};
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
        Numbers more = random_numbers<T>(s.count(), 5);
        Results by_row = s.backward(x, w, b, gy), expected = {by_row[0], Numbers(blocks * 2 * n)};
        int plus = n != 7;
        for (int i = 0; i < rows * n; i++) {
            expected[0][i] += plus * more[i];
            for (int r : {0, 1}) expected[1][(i / n / each * 2 + r) * n + i % n] += by_row[1 + r][i];
        }
        check(what + ", gradient", within<T>(1e-5), expected, [&, n = n, eps = eps, rows = rows, each = each](Order order) -> Results {
            Memory<T> dx(x, 1), dy(gy, 1), dm(more, 1), gx(s.count());
            Memory<float> dw(w, 1), sums(blocks * 2 * n);
            shim::launch(blocks, 64, order, [&] {
                OF(T, layer_norm_grad)(dx.at, dw.at, dy.at, dm.at, gx.at, sums.at, sums.at + n, rows, each, n, 2 * n, (float)eps, plus);
            });
            return {gx.read(), sums.read()};
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

template <class T> static void finishes() {
    for (auto [batch, channels, pixels, with] : {std::tuple{2, 3, 35, 1}, {2, 4, 33, 2}, {1, 5, 70, 3}, {5, 7, 1, 2}}) {
        Numbers y = random_numbers<T>(batch * channels * pixels, 1), b = random_numbers(channels, 2), expected = y;
        Numbers image = random_numbers<T>(batch * channels, 3), more = random_numbers<T>(y.size(), 4);
        for (size_t i = 0; i < y.size(); i++) expected[i] += b[i / pixels % channels] + (with & 1) * image[i / pixels] + (with / 2) * more[i];
        check(std::string("finish, ") + TYPE<T> + ", " + std::to_string(with), within<T>(1e-6), {expected},
              [&, channels = channels, pixels = pixels, with = with](Order order) -> Results {
                  Memory<T> dy(y, 1), di(image, 1), dm(more, 1);
                  Memory<float> db(b, 1);
                  shim::launch(2, 64, order, [&] { OF(T, finish)(dy.at, db.at, di.at, dm.at, (unsigned)y.size(), pixels, channels, with & 1, with / 2); });
                  return {dy.read()};
              });
    }
}

template <class T> static void additions_of_columns() {
    for (auto [rows, n, split] : {std::tuple{3, 7, 7}, {21, 40, 20}, {9, 64, 33}}) {
        Numbers x = random_numbers<T>(rows * n, 1), a = random_numbers(split, 2), b = random_numbers(std::max(n - split, 1), 3);
        Results expected = {a, b};
        for (int i = 0; i < rows * n; i++) (i % n < split ? expected[0][i % n] : expected[1][i % n - split]) += x[i];
        check(std::string("add_columns, ") + TYPE<T> + ", " + std::to_string(rows) + "x" + std::to_string(n), 3e-6, expected,
              [&, rows = rows, n = n, split = split](Order order) -> Results {
                  Memory<T> dx(x, 1);
                  Memory<float> da(a, 1), db(b, 1);
                  shim::launch((n + 31) / 32, 256, order, [&] { OF(T, add_columns)(dx.at, da.at, db.at, rows, n, split); });
                  return {da.read(), db.read()};
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

// Matrices larger and smaller than the square of 32 x 32.
template <class T> static void swaps() {
    for (auto [matrices, rows, columns] : {std::tuple{2, 5, 7}, {1, 33, 70}, {3, 64, 32}}) {
        Numbers x = random_numbers<T>(matrices * rows * columns, 1), y(x.size());
        for (int m = 0; m < matrices; m++)
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < columns; j++) y[(m * columns + j) * rows + i] = x[(m * rows + i) * columns + j];
        unsigned blocks = matrices * ((rows + 31) / 32) * ((columns + 31) / 32);
        check(std::string("swap, ") + TYPE<T> + ", " + std::to_string(rows) + "x" + std::to_string(columns), 0, {y},
              [&, rows = rows, columns = columns](Order order) -> Results {
                  Memory<T> dx(x, 1), out(y.size());
                  shim::launch(blocks, 256, order, [&] { OF(T, swap)(dx.at, out.at, rows, columns); });
                  return {out.read()};
              });
    }
}

// Twice as large, one less than that, and smaller.
template <class T> static void upsamplings() {
    const size_t planes = 3, h0 = 4, w0 = 5;
    for (auto [h, w] : {std::pair<size_t, size_t>{8, 10}, {7, 9}, {8, 9}, {3, 5}}) {
        Numbers x = random_numbers<T>(planes * h0 * w0, 1), y(planes * h * w), gy = random_numbers<T>(y.size(), 2), gx(x.size());
        for (size_t p = 0; p < planes; p++)
            for (size_t i = 0; i < h; i++)
                for (size_t j = 0; j < w; j++) {
                    size_t from = (p * h0 + i * h0 / h) * w0 + j * w0 / w, to = (p * h + i) * w + j;
                    y[to] = x[from];
                    gx[from] += gy[to];
                }
        std::string what = std::string("upsample, ") + TYPE<T> + ", " + std::to_string(h) + "x" + std::to_string(w);
        check(what, 0, {y}, [&, h = h, w = w](Order order) -> Results {
            Memory<T> dx(x, 1), out(y.size());
            shim::launch(2, 64, order, [&] { OF(T, upsample)(dx.at, out.at, y.size(), h0, w0, h, w); });
            return {out.read()};
        });
        check(what + ", gradient", within<T>(1e-6), {gx}, [&, h = h, w = w](Order order) -> Results {
            Memory<T> dy(gy, 1), out(x.size());
            shim::launch(2, 64, order, [&] { OF(T, upsample_grad)(dy.at, out.at, x.size(), h0, w0, h, w); });
            return {out.read()};
        });
    }
}

static void mixes() {
    const size_t images = 3, each = 70;
    Numbers x = random_numbers(images * each, 1), y = random_numbers(images * each, 2), numbers = random_numbers(2 * images, 3), expected(x.size());
    for (size_t i = 0; i < x.size(); i++) expected[i] = numbers[i / each * 2] * x[i] + numbers[i / each * 2 + 1] * y[i];
    check("mix", 1e-6, {expected}, [&](Order order) -> Results {
        Memory<float> dx(x, 1), dy(y, 1), of(numbers, 1), out(x.size());
        shim::launch(2, 64, order, [&] { mix(dx.at, dy.at, of.at, out.at, x.size(), each); });
        return {out.read()};
    });
}

template <class T> static void parts() {
    const size_t images = 3, channels = 5, pixels = 35, first = 2, some = 2;
    Numbers x = random_numbers<T>(images * channels * pixels, 1), y;
    for (size_t i = 0; i < x.size(); i++)
        if (i / pixels % channels >= first && i / pixels % channels < first + some) y.push_back(x[i]);
    check(std::string("part, ") + TYPE<T>, 0, {y}, [&](Order order) -> Results {
        Memory<T> dx(x, 1), out(y.size());
        shim::launch(2, 64, order, [&] { OF(T, part)(dx.at, out.at, y.size(), some * pixels, channels * pixels, first * pixels); });
        return {out.read()};
    });
}

template <class T> static void additions() {
    Numbers sum = random_numbers(300, 1), g = random_numbers<T>(300, 2), expected = sum;
    for (size_t i = 0; i < sum.size(); i++) expected[i] += g[i];
    check(std::string("add_to, ") + TYPE<T>, 1e-7, {expected}, [&](Order order) -> Results {
        Memory<float> to(sum, 1);
        Memory<T> dg(g, 1);
        shim::launch(2, 64, order, [&] { OF(T, add_to)(to.at, dg.at, sum.size()); });
        return {to.read()};
    });
}

// ---- Losses -------------------------------------------------------------------------------------------------------------------

// The loss of a pair by its errors, as tools/train/loss.rs has it.
struct Loss {
    int form;
    double a, mu, anchor;
};

static double certain(const Loss &loss, double z) { // of a pair whose winner is certain
    double p = 1 / (1 + std::exp(-z)), q = 1 - loss.a;
    if (loss.form == 0) return -std::log(p) + loss.a * (1 - p);
    if (loss.form == 1) return (z - 0.5) * (z - 0.5);
    return p * std::log(p / q) + (1 - p) * std::log((1 - p) / (1 - q));
}

template <class T> static void losses() {
    const int pairs = 2;
    const size_t each = 70, n = 2 * pairs * each;
    const double scale = 0.25;
    int tried = 0;
    for (Loss loss : {Loss{0, 0, -1, 0}, Loss{0, 3, 0.2, 0}, Loss{1, 0, 0, 0.7}, Loss{2, 0.05, -1, 0}, Loss{3, 0.3, -1, 0}, Loss{3, 0.001, 0.5, 0}, Loss{4, 0, -1, 0.4}}) {
        // The second pair's images are alike, so that the guard has something to do.
        Numbers target = random_numbers(n, 1), policy = random_numbers<T>(n, 2), reference = random_numbers<T>(n, 3), base = random_numbers<T>(n, 4);
        for (size_t i = 0; i < each; i++) {
            policy[3 * each + i] = policy[each + i];
            target[3 * each + i] = target[each + i] - 0.5 * (policy[each + i] - target[each + i]); // the loser's error is larger, and alike
        }
        Numbers numbers = {0.9, 1.5, 3, 0.7, 0.8, 0.8, 1, 2, 1.2, 0.9}, sums(pairs * 11), seed(n);
        for (double &x : target) x = (float)x;
        for (int k = 0; k < pairs; k++) {
            double *s = &sums[k * 11];
            const double *of = &numbers[k * 5];
            for (size_t i = 0; i < each; i++) {
                double apart[2];
                for (int side = 0; side < 2; side++) {
                    size_t at = (side * pairs + k) * each + i;
                    apart[side] = policy[at] - target[at];
                    s[side] += apart[side] * apart[side];
                    s[2 + side] += (reference[at] - target[at]) * (reference[at] - target[at]);
                    s[4 + side] += policy[at] * policy[at];
                    s[6 + side] += reference[at] * reference[at];
                    s[9 + side] += (policy[at] - base[at]) * (policy[at] - base[at]);
                }
                s[8] += apart[0] * apart[1];
            }
            double t = of[0], weight = of[1], beta = of[2];
            auto margin = [&](double winner, double loser) {
                return -0.5 * beta * ((winner - loser) - (of[3] * s[2] - of[4] * s[3]) / each);
            };
            auto value = [&](double winner, double loser) {
                double z = margin(winner, loser);
                if (loss.form == 4) return weight * (t * winner + (1 - t) * loser);
                return weight * (t * certain(loss, z) + (1 - t) * certain(loss, -z));
            };
            double errors[2] = {of[3] * s[0] / each, of[4] * s[1] / each}, step = 1e-6, slopes[2];
            slopes[0] = (value(errors[0] + step, errors[1]) - value(errors[0] - step, errors[1])) / (2 * step);
            slopes[1] = (value(errors[0], errors[1] + step) - value(errors[0], errors[1] - step)) / (2 * step);
            if (loss.form == 3) { // its weight is held constant in the derivative
                auto w = [&](double z) { return std::min(std::max(0.5 - 0.4 * z, loss.a), 1 - loss.a); };
                double z = margin(errors[0], errors[1]);
                slopes[0] = weight * (t * w(z) - (1 - t) * w(-z)), slopes[1] = -slopes[0];
            }
            if (loss.mu >= 0 && slopes[0] > 0 && slopes[1] < 0 && s[8] > 0) tried++, slopes[1] *= std::min(1., (1 - loss.mu) * s[0] / s[8]);
            for (int side = 0; side < 2; side++)
                for (size_t i = 0; i < each; i++) {
                    size_t at = (side * pairs + k) * each + i;
                    double by_error = 2 * of[3 + side] / each;
                    seed[at] = scale * by_error * (slopes[side] * (policy[at] - target[at]) + weight * loss.anchor * (policy[at] - base[at]));
                }
        }
        check(std::string("pair_loss, ") + TYPE<T> + ", form " + std::to_string(loss.form) + ", " + std::to_string(loss.a), within<T>(1e-5), {seed, sums},
              [&](Order order) -> Results {
                  Memory<T> p(policy, 1), r(reference, 1), b(base, 1), out(n);
                  Memory<float> t(target, 1);
                  Memory<double> of(numbers), to(sums.size());
                  shim::launch(pairs, 96, order, [&] {
                      OF(T, pair_loss)(p.at, r.at, b.at, t.at, of.at, out.at, to.at, each, pairs, loss.form, loss.a, loss.mu, loss.anchor, scale);
                  });
                  return {out.read(), to.read()};
              });
    }
    if (tried < 2) printf("pair_loss: the guard had nothing to do\n"), exit(1);
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
        double &m = expected[1][i], &v = expected[2][i], &p = expected[0][i], half = 0.5 * g[i];
        m = beta1 * m + (1 - beta1) * half;
        v = beta2 * v + (1 - beta2) * half * half;
        p = decay * p - rate * m / (std::sqrt(v) / root2 + eps);
    }
    check("squares", 5e-6, {squared}, [&](Order order) -> Results {
        Tensors all(lengths, {g});
        Memory<float> sums(all.blocks());
        shim::launch(all.blocks(), 256, order, [&] { squares(all.table.data(), all.places.data(), sums.at); });
        return {sums.read(), all.read(0)};
    });
    const float by = 0.3f;
    check("scale", 1e-7, {scaled}, [&](Order order) -> Results {
        Tensors all(lengths, {g});
        shim::launch(all.blocks(), 64, order, [&] { scale(all.table.data(), all.places.data(), &by); });
        return {all.read(0)};
    });
    check("narrow", 0, {[&] {
              Numbers copies(n + 7, 1);
              for (size_t i = 0; i < n; i++) copies[i < 3 ? i : i + 5] = number(as(bf16(), g[i])); // the second tensor begins at 8
              return copies;
          }()},
          [&](Order order) -> Results {
              Tensors all(lengths, {g});
              std::vector<size_t> table = {all.table[0], all.table[1], 0, all.table[2], all.table[3], 8, all.table[4], all.table[5], lengths[1] + 8};
              Memory<bf16> copies(Numbers(n + 7, 1));
              shim::launch(all.blocks(), 64, order, [&] { narrow(table.data(), all.places.data(), copies.at); });
              return {copies.read()};
          });
    check("clear", 0, {Numbers(n, 1)}, [&](Order order) -> Results {
        Numbers wild = g;
        wild[3] = NAN;
        Tensors all(lengths, {wild});
        shim::launch(all.blocks(), 64, order, [&] { clear(all.table.data(), all.places.data()); });
        Numbers one_more = all.read(0);
        for (double &x : one_more) x += 1;
        return {one_more};
    });
    auto moved = [&](float factor) {
        return [&, factor](Order order) -> Results {
            Tensors all(lengths, {p, m, v, g});
            shim::launch(all.blocks(), 64, order, [&] {
                adamw_f32(all.table.data(), all.places.data(), &factor, 7, (float)beta1, (float)beta2, (float)decay, (float)rate, (float)root2, (float)eps);
            });
            return {all.read(0), all.read(1), all.read(2), all.read(3)};
        };
    };
    check("adamw", 2e-6, expected, moved(0.5f));
    check("adamw where the gradients are not finite", 0, {p, m, v, g}, moved(NAN));

    // Moments in bf16: each is one of the two numbers beside the exact one, and on the average they are exact.
    Numbers in_bf16 = v;
    for (double &x : in_bf16) x = number(as(bf16(), 1 + x)); // all digits between 1 and 3 are taken up
    Numbers wide = in_bf16;
    for (size_t i = 0; i < n; i++) wide[i] = beta2 * in_bf16[i] + (1 - beta2) * 0.25 * g[i] * g[i];
    check("adamw, bf16", 2e-2, {{0, 0, 0, 0, 1, 1}}, [&](Order order) -> Results {
        std::vector<size_t> table;
        std::vector<std::unique_ptr<Memory<bf16>>> moments;
        Tensors all(lengths, {p, g});
        size_t from = 0;
        for (size_t t = 0; t < lengths.size(); t++) {
            for (int k = 0; k < 2; k++)
                moments.push_back(std::make_unique<Memory<bf16>>(Numbers(in_bf16.begin() + from, in_bf16.begin() + from + lengths[t]), 1));
            for (size_t address : {all.table[3 * t], all.table[3 * t + 1], (size_t)moments[2 * t]->at, (size_t)moments[2 * t + 1]->at, all.table[3 * t + 2]})
                table.push_back(address);
            from += lengths[t];
        }
        float half = 0.5f;
        shim::launch(all.blocks(), 64, order, [&] {
            adamw_bf16(table.data(), all.places.data(), &half, 7, (float)beta1, (float)beta2, (float)decay, (float)rate, (float)root2, (float)eps);
        });
        Numbers moved = all.read(0), m, v;
        for (size_t t = 0; t < lengths.size(); t++)
            for (int k = 0; k < 2; k++)
                for (double x : moments[2 * t + k]->read()) (k ? v : m).push_back(x);
        double bias = 0, product = 0, wrong = 0, far = 0, up[2] = {};
        for (size_t i = 0; i < n; i++) {
            double exact[2] = {beta1 * in_bf16[i] + (1 - beta1) * 0.5 * g[i], wide[i]}, got[2] = {m[i], v[i]}, digit[2];
            for (int k = 0; k < 2; k++) {
                int exponent;
                std::frexp(exact[k], &exponent);
                digit[k] = std::ldexp(1.0, exponent - 8);
                far += std::fabs(got[k] - exact[k]) > digit[k] * 1.001;
                bias += (got[k] - exact[k]) / digit[k] / (double)n;
                up[k] = got[k] > exact[k];
            }
            product += (up[0] - 0.5) * (up[1] - 0.5) / (double)n; // the two are rounded independently
            wrong += std::fabs(moved[i] - (decay * p[i] - rate * m[i] / (std::sqrt(v[i]) / root2 + eps))) > 1e-5;
        }
        double repeated = 0; // the second chunk and the third tensor are not rounded as the first ones are
        for (size_t i = 0; i < 1000; i++) repeated += m[i] == m[8 + CHUNK_OF_TENSOR + i];
        return {{std::fabs(bias) < 5e-3 ? 0 : bias, std::fabs(product) < 0.2 ? 0 : product, wrong, far, repeated < 900 ? 1. : 0, m != v ? 1. : 0}};
    });

    // 1,100 partial sums, more than the block has threads.
    Numbers parts = random_numbers(1100, 5, 1);
    double root = std::sqrt(sum(parts));
    for (auto [most, first] : {std::pair{1., 0.}, {1e9, 0.}, {INFINITY, 0.}, {1., NAN}, {1., INFINITY}}) {
        Numbers given = parts;
        given[0] += first;
        bool finite = first == 0;
        Results expected = {{finite ? root : 0, finite ? std::min(1., most / (root + 1e-6)) : 0, finite ? 0. : 1.}};
        check("norm, at most " + std::to_string(most) + ", " + std::to_string(first), 1e-6, expected, [&, most = most](Order order) -> Results {
            Memory<float> sums(given, 1), factor(1);
            Memory<double> norm_of(1);
            shim::launch(1, 256, order, [&] { whole_norm(sums.at, norm_of.at, factor.at, (int)given.size(), most); });
            double to = factor.read()[0];
            if (std::isnan(to)) return {{0, 0, 1}};
            return {{norm_of.read()[0], to, 0}};
        });
    }
}

template <class T> static void both() {
    group_norms<T>();
    layer_norms<T>();
    softmaxes<T>();
    geglus<T>();
    biases<T>();
    finishes<T>();
    additions_of_columns<T>();
    exchanges<T>();
    swaps<T>();
    upsamplings<T>();
    parts<T>();
    additions<T>();
    losses<T>();
    sums_of_gradients<T>();
}

int main() {
    both<float>();
    both<bf16>();
    rounding();
    mixes();
    optimisers();
}
